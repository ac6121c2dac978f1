"""The range from the least to the greatest value: nothing is clipped."""

from dataclasses import dataclass

from torch import Tensor

from qlib.core.scheme import Scheme
from qlib.observers.base import Observer


@dataclass(frozen=True)
class MinMax(Observer):
    """The full range of the values, without clipping; one outlier stretches the grid for all."""

    title = "min–max"

    def find_range(
        self, x: Tensor, scheme: Scheme, counts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
