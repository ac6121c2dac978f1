"""The contract of an observer: values in, clipping range out; it keeps no state."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from qlib.core import params
from qlib.core.registry import discover
from qlib.core.scheme import Scheme


@dataclass(frozen=True)
class Observer(ABC):
    """Chooses the clipping range of a quantizer from the values of a tensor."""

    title: ClassVar[str]
    paper: ClassVar[str] = ""

    def __post_init__(self) -> None:
        params.check(self)

    @abstractmethod
    def find_range(
        self, x: Tensor, scheme: Scheme, counts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The clipping range of each row.

        Args:
            x: (rows, n) values; every row gets a range of its own.
            counts: (rows, n) how much each value weighs (a histogram's bins), or None for 1.

        Returns:
            lo, hi: (rows,), with lo ≤ 0 ≤ hi.
        """


Base = Observer


def observers() -> dict[str, type[Observer]]:
    """Every observer of this folder by its key, the name of its file."""
    return discover("observers")
