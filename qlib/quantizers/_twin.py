"""Two uniform ranges in one grid: half of the codes for small values, half for large ones.

The small range's step is the large one's divided by a power of two, so that integer hardware
brings both together with a shift. Not in the catalogue of quantizers: these grids fit one kind of
tensor each and have no symmetric or per-channel form.
Paper: PTQ4ViT, Yuan et al., ECCV 2022, arXiv 2111.12293
"""

import torch
from torch import Tensor

from qlib.quantizers._base import Quantizer
from qlib.scheme import Scheme

GELU_LEAST = 0.16997124254703522  # −min of x·Φ(x)


class _Twin(Quantizer):
    """``scale``: the large step s. ``shift``: m, so that the small step is s / 2^m.

    With q = 2^(b−1) codes for each range, codes count from ``scheme.qmin`` on: first the small
    range's, then the large one's. One grid for the whole tensor; nothing is learned.
    """

    def __init__(self, scale: Tensor, shift: Tensor, zero_point: Tensor, scheme: Scheme) -> None:
        super().__init__(scale, zero_point, scheme)
        self.register_buffer("shift", shift.detach().clone())

    @property
    def half(self) -> int:
        """q: codes of one range."""
        return 2 ** (self.scheme.bits - 1)

    @property
    def small(self) -> Tensor:
        return self.scale * 2.0**-self.shift

    def forward(self, x: Tensor) -> Tensor:
        return self.values(self.nearest(x))

    def learnable(self) -> dict[str, list]:
        return {}


class TwinUnit(_Twin):
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
    def unit_sum(self) -> Tensor:
        """Stored only where ranges are added."""
        if not self.summed:
            raise AttributeError("unit_sum")
        return torch.ones_like(self.shift)

    @property
    def unit_shift(self) -> Tensor:
        """m, under the name by which it is stored."""
        return self.shift

    @property
    def split(self) -> Tensor:
        """t: the top of the small range."""
        return 2.0**-self.shift

    def forward(self, x: Tensor) -> Tensor:
        if self.summed:
            return super().forward(x)
        top = max(1, self.half - 1) * self.scale
        return _by_steps(x, x < self.split, self.small, self.scale, torch.zeros_like(top), top)

    def nearest(self, x: Tensor) -> Tensor:
        low = (x / self.small).round()
        high = (x / self.scale).round() + self.half
        j = torch.where(x < self.split, low.clamp(min=0), high.clamp(max=2 * self.half - 1))
        return j + self.scheme.qmin

    def values(self, codes: Tensor) -> Tensor:
        j, q = codes - self.scheme.qmin, self.half
        low, high = j * self.small, (j - q) * self.scale
        if self.summed:
            low = low + (self.split * max(1, q - 1)).round() * self.scale
            high = high + self.split
        return torch.where(j < q, low, high)


class TwinSign(_Twin):
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

    @property
    def sign_shift(self) -> Tensor:
        """m, under the name by which it is stored."""
        return self.shift

    def forward(self, x: Tensor) -> Tensor:
        ends = -self.half * self.small, (self.half - 1) * self.scale
        return _by_steps(x, x < 0, self.small, self.scale, *ends)

    def nearest(self, x: Tensor) -> Tensor:
        low = (x / self.small).round().clamp(min=-self.half)
        high = (x / self.scale).round().clamp(max=self.half - 1)
        return torch.where(x < 0, low, high) + self.zero_point

    def values(self, codes: Tensor) -> Tensor:
        j = codes - self.zero_point
        return torch.where(j < 0, j * self.small, j * self.scale)


def _by_steps(
    x: Tensor, fine: Tensor, small: Tensor, large: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """``x`` on the multiples of ``small`` where ``fine``, of ``large`` elsewhere; in few passes."""
    step = torch.where(fine, small, large)
    return (x / step).round_().mul_(step).clamp_(low, high)


def finest_shift(scale: Tensor, half: int) -> Tensor:
    """The largest whole m with half·s/2^m ≥ 0.17."""
    return (scale * half / GELU_LEAST).log2().floor()
