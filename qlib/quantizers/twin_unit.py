"""Two uniform ranges in one grid, for probabilities.

Paper: PTQ4ViT, Yuan et al., ECCV 2022, arXiv 2111.12293
"""

import torch
from torch import Tensor

from qlib.core.scheme import Scheme
from qlib.quantizers._twin import Twin, by_steps


class TwinUnit(Twin):
    """For probabilities, x in [0, 1]: x̂ = x < t ? s/2^m·⌊x·2^m/s⌉ : s·⌊x/s⌉, t = (q − 1)·s/2^m.

    As in the published code s = 1/(q − 1), so that t = 2^−m. That code adds the two ranges instead
    of selecting one (``summed``): values from t on then come out too large by t, those below by
    s·⌊t/s⌉.
    """

    title = "twin uniform, for probabilities"

    def __init__(self, shift: Tensor, scheme: Scheme, *, summed: bool = False) -> None:
        scale = torch.ones_like(shift) / max(1, 2 ** (scheme.bits - 1) - 1)
        zero = torch.full_like(scale, scheme.qmin)
        super().__init__(scale, shift, zero, scheme)
        self.summed = summed

    @property
    def split(self) -> Tensor:
        """t: the top of the small range."""
        return 2.0**-self.shift

    def forward(self, x: Tensor) -> Tensor:
        if self.summed:
            return super().forward(x)
        top = max(1, self.each - 1) * self.scale
        return by_steps(x, x < self.split, self.small, self.scale, torch.zeros_like(top), top)

    def nearest(self, x: Tensor) -> Tensor:
        low = (x / self.small).round()
        high = (x / self.scale).round() + self.each
        j = torch.where(x < self.split, low.clamp(min=0), high.clamp(max=2 * self.each - 1))
        return j + self.scheme.qmin

    def values(self, codes: Tensor) -> Tensor:
        j, q = codes - self.scheme.qmin, self.each
        low, high = j * self.small, (j - q) * self.scale
        if self.summed:
            low = low + (self.split * max(1, q - 1)).round() * self.scale
            high = high + self.split
        return torch.where(j < q, low, high)
