"""Keep everything: the range is what was seen."""

from dataclasses import dataclass

from torch import Tensor

from qlib.observers._base import Observer
from qlib.scheme import Scheme


@dataclass(frozen=True)
class MinMax(Observer):
    """No clipping; one outlier stretches the grid for everybody."""

    title = "min–max"

    def find_range(
        self, x: Tensor, scheme: Scheme, counts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
