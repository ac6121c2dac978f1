"""Weights whose columns are rescaled before rounding: RepQ-ViT's change to the layer behind.

The counterpart of `qlib.quantizers.by_channel`, on the layer behind the activation.
Paper: RepQ-ViT, Li et al., ICCV 2023, arXiv 2212.08254
"""

from torch import Tensor

from qlib.quantizers.base import Quantizer
from qlib.quantizers.uniform import Uniform


class Columns(Quantizer):
    """Rounds weights (out, in) after scaling their columns: ŵ = Q(w·r)/r.

    Q is a uniform grid with the scheme's granularity; ``column`` is r, (in,).
    """

    title = "nearest, columns brought to one footing"
    fits_alone = False
    mixed = True
    column: Tensor

    def __init__(self, grid: Quantizer, column: Tensor) -> None:
        super().__init__(grid.scale, grid.zero_point, grid.scheme)
        self.grid = Uniform(grid.scale, grid.zero_point, grid.scheme)
        self.scale = self.grid.scale  # one scale, whoever changes it
        self.register_buffer("column", column.detach().clone())

    @property
    def grids(self) -> int:
        return max(self.scale.numel(), self.column.numel())

    def forward(self, x: Tensor) -> Tensor:
        return self.values(self.nearest(x))

    def nearest(self, x: Tensor) -> Tensor:
        return self.grid.nearest(x * self.column)

    def values(self, codes: Tensor) -> Tensor:
        return self.grid.values(codes) / self.column

    def learnable(self) -> dict[str, list]:
        return {}
