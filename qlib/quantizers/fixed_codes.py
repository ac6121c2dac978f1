"""A weight with fixed integer codes, as one-shot rounding or a stored run gives it."""

import torch
from torch import Tensor, nn

from qlib.core.scheme import Scheme
from qlib.quantizers.base import Quantizer, State, restored


class FixedCodes(Quantizer):
    """A weight stored as integer codes on a given ``grid``. Nothing is learned.

    Made for one weight tensor: what it is called with is not looked at.
    """

    title = "fixed codes"
    fits_alone = False
    chosen: Tensor

    def __init__(self, grid: Quantizer, chosen: Tensor) -> None:
        super().__init__(grid.scale, grid.zero_point, grid.scheme)
        self.grid, self.mixed = grid, grid.mixed
        self.scale = grid.scale  # one scale, whoever changes it
        self.register_buffer("chosen", chosen.detach().clone())

    @classmethod
    def of(cls, fitted: Quantizer, codes: Tensor) -> "FixedCodes":
        """From whole codes, shaped like the weight, on the grid of a fitted quantizer."""
        return cls(fitted.as_grid(), codes)

    @property
    def grids(self) -> int:
        return self.grid.grids

    def forward(self, x: Tensor) -> Tensor:
        return self.grid.values(self.chosen)

    def codes(self, x: Tensor) -> Tensor:
        return self.chosen

    def nearest(self, x: Tensor) -> Tensor:
        return self.grid.nearest(x)

    def values(self, codes: Tensor) -> Tensor:
        return self.grid.values(codes)

    def as_grid(self) -> Quantizer:
        return self.grid

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        return {}

    def state(self, weight: Tensor | None = None) -> State:
        """The stored form: codes as small integers, and the grid."""
        codes = self.chosen.to(_integers(self.scheme))
        return State(self.key(), self.scheme, {"codes": codes}, parts={"grid": self.grid.state()})

    @classmethod
    def from_state(cls, state: State, weight: Tensor | None = None) -> "FixedCodes":
        grid = restored(state.parts["grid"])
        return cls(grid, state.tensors["codes"].to(grid.scale.dtype))


def _integers(scheme: Scheme) -> torch.dtype:
    """The smallest type that holds the codes of a grid."""
    if scheme.bits > 8:
        return torch.int16 if scheme.symmetric else torch.int32
    return torch.int8 if scheme.symmetric else torch.uint8
