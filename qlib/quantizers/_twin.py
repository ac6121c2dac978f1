"""Two uniform ranges in one grid: half of the codes for small values, half for large ones.

The small range's step is the large one's divided by a power of two, so that integer hardware
brings both together with a shift. These grids fit one kind of tensor each and have no symmetric or
per-channel form.
Paper: PTQ4ViT, Yuan et al., ECCV 2022, arXiv 2111.12293
"""

import torch
from torch import Tensor

from qlib.core.scheme import Scheme
from qlib.quantizers.base import Quantizer


class Twin(Quantizer):
    """Base of grids with two uniform ranges, of step s and s / 2^m. ``scale``: s, ``shift``: m.

    With q = 2^(b−1) codes for each range, codes count from ``scheme.qmin`` on: first the small
    range's, then the large one's. One grid for the whole tensor; nothing is learned.
    """

    fits_alone = False
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, zero_point: Tensor, scheme: Scheme) -> None:
        super().__init__(scale, zero_point, scheme)
        self.register_buffer("shift", shift.detach().clone())

    @property
    def each(self) -> int:
        """q: how many codes one range has."""
        return 2 ** (self.scheme.bits - 1)

    @property
    def small(self) -> Tensor:
        """The step of the small range, s / 2^m."""
        return self.scale * 2.0**-self.shift

    def forward(self, x: Tensor) -> Tensor:
        return self.values(self.nearest(x))

    def learnable(self) -> dict[str, list]:
        return {}


def by_steps(
    x: Tensor, fine: Tensor, small: Tensor, large: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """``x`` on the multiples of ``small`` where ``fine``, of ``large`` elsewhere; in few passes."""
    step = torch.where(fine, small, large)
    return (x / step).round_().mul_(step).clamp_(low, high)
