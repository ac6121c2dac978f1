"""Keep everything: the range is what was seen."""

from dataclasses import dataclass

from torch import Tensor

from qlib.core.scheme import Scheme
from qlib.observers.base import Observer


@dataclass(frozen=True)
class MinMax(Observer):
    """No clipping; one outlier stretches the grid for everybody."""

    title = "min–max"

    def find_range(
        self, x: Tensor, scheme: Scheme, counts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
