"""Two uniform ranges in one grid, one on each side of zero, for outputs of GELU.

Paper: PTQ4ViT, Yuan et al., ECCV 2022, arXiv 2111.12293
"""

import torch
from torch import Tensor

from qlib.core.scheme import Scheme
from qlib.quantizers._twin import Twin, by_steps

GELU_LEAST = 0.16997124254703522  # −min of x·Φ(x)


class TwinSign(Twin):
    """For outputs of GELU: step s/2^m below zero, s from zero on; x̂ = 0 for x = 0.

    GELU never gives less than −0.17, so m is as large as it can be while the q negative codes
    reach that far. (The published code leaves the two steps independent.)
    """

    title = "twin uniform, for GELU"

    @classmethod
    def of_step(cls, scale: Tensor, scheme: Scheme) -> "TwinSign":
        """With the finest small step that reaches to GELU's minimum."""
        half = 2 ** (scheme.bits - 1)
        zero = torch.full_like(scale, scheme.qmin + half)
        return cls(scale, finest_shift(scale, half), zero, scheme)

    def forward(self, x: Tensor) -> Tensor:
        ends = -self.each * self.small, (self.each - 1) * self.scale
        return by_steps(x, x < 0, self.small, self.scale, *ends)

    def nearest(self, x: Tensor) -> Tensor:
        low = (x / self.small).round().clamp(min=-self.each)
        high = (x / self.scale).round().clamp(max=self.each - 1)
        return torch.where(x < 0, low, high) + self.zero_point

    def values(self, codes: Tensor) -> Tensor:
        j = codes - self.zero_point
        return torch.where(j < 0, j * self.small, j * self.scale)


def finest_shift(scale: Tensor, half: int) -> Tensor:
    """The largest whole m with half·s/2^m ≥ 0.17."""
    return (scale * half / GELU_LEAST).log2().floor()
