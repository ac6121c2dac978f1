"""The contract of a bit allocator: who gets how many bits."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qlib.core import params
from qlib.core.registry import discover
from qlib.core.scheme import BitPlan, Scheme

if TYPE_CHECKING:
    from qlib.network.model import QuantModel

EDGES = ("8-bit", "same", "float")


@dataclass(frozen=True)
class Allocator(ABC):
    """One way to spend bits over the layers of a network."""

    title: ClassVar[str]

    def __post_init__(self) -> None:
        params.check(self)

    @abstractmethod
    def allocate(
        self, model: "QuantModel", weight: Scheme, act: Scheme, *, edge_layers: str = "8-bit"
    ) -> BitPlan:
        """The grid of every weight and of every activation point.

        ``edge_layers``: the first and the last layer at 8 bits, at the ``same`` bits, or in float.
        """


Base = Allocator


def allocators() -> dict[str, type[Allocator]]:
    """Every allocator of this folder by its key, the name of its file."""
    return discover("allocators")
