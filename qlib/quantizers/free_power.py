"""Codes that are free over the whole of a power-function grid, learned together with its exponent.

Paper: NUPES, Yvinec et al., arXiv 2308.05600
"""

from functools import cached_property

import torch
from torch import Tensor, nn

from qlib.core import fused
from qlib.core.functional import clip_
from qlib.core.scheme import Scheme
from qlib.quantizers.power import Levels, Power, bend, log_size


class FreePower(Power):
    """ŵ = sign(k)·m·(|k|/K)^(1/a), k = ⌊v⌉, where v and a are learned and m stays.

    A change of a shifts ⌊K·(|w|/m)^a⌋ of many weights at once, so a choice between up and down made
    for one exponent means nothing for the next: codes are variables of their own. v starts where
    PowerQuant has it before rounding. At a fixed code ∂ŵ/∂a = −ln(|k|/K)·ŵ/a², and ∂ŵ/∂k is
    ŵ/(a·k); at k = 0, where that vanishes or explodes, it is the distance to the first level.
    """

    title = "free codes on a learned power-function grid"
    frozen: Tensor | None

    def __init__(
        self,
        scale: Tensor,
        zero_point: Tensor,
        scheme: Scheme,
        exponent: nn.Parameter | float = 1.0,
    ) -> None:
        super().__init__(scale, zero_point, scheme, exponent)
        self.latent: nn.Parameter | None = None
        self.register_buffer("frozen", None)

    @classmethod
    def from_nearest(cls, fitted: Power, weight: Tensor, exponent: nn.Parameter) -> "FreePower":
        """On the grid of a fitted quantizer; ``exponent`` has its value and may be shared."""
        quantizer = cls(fitted.scale, fitted.zero_point, fitted.scheme, exponent)
        quantizer.start(weight)
        quantizer.hold_reach()
        return quantizer

    @torch.no_grad()
    def start(self, weight: Tensor) -> nn.Parameter:
        """Set v to the codes of ``weight`` before rounding."""
        split = bend(self.scheme.granularity.split(weight), self.exponent)
        steps = clip_(split / self.scale, self.low, self.high)
        self.latent = nn.Parameter(steps, requires_grad=False)
        return self.latent

    @torch.no_grad()
    def freeze(self, mask: Tensor, weight: Tensor) -> None:
        """Leave the codes where ``mask`` is True as nearest has them before learning."""
        self.first = self._started(weight).round()
        self.frozen = self.scheme.granularity.split(mask)

    def forward(self, x: Tensor) -> Tensor:
        v = self._started(x)
        grid = (v, self._scale(), self.exponent, self.low, self.high)
        y = fused.run(
            fused.RoundFn, v, self.reach, self.exponent, *self._grid,
            plain=lambda: _Free.apply(*grid),
        )  # fmt: skip
        return y.reshape(x.shape)

    def _started(self, weight: Tensor) -> nn.Parameter:
        """v, from where PowerQuant has it if it is nowhere yet."""
        return self.start(weight) if self.latent is None else self.latent

    @cached_property
    def _grid(self) -> tuple[Tensor, float, float]:
        """Steps to the farther end of each grid; the lowest and the highest end of all."""
        low, high = (torch.as_tensor(end) for end in (self.low, self.high))
        return self._far().expand_as(self.scale), float(low.min()), float(high.max())

    def codes(self, x: Tensor) -> Tensor:
        return (self._started(x).detach().round() + self.zero_point).reshape(x.shape)

    def as_grid(self) -> Power:
        return Power(self.scale, self.zero_point, self.scheme, self.exponent)

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        if self.reach is None or self.latent is None:
            return {}
        return {"rounding": [self.latent], "exponent": [self.exponent]}

    @torch.no_grad()
    def keep_positive(self) -> None:
        super().keep_positive()
        if self.latent is not None and self.latent.requires_grad:
            clip_(self.latent, self.low, self.high)
            if self.frozen is not None:
                self.latent.copy_(torch.where(self.frozen, self.first, self.latent))

    @torch.no_grad()
    def harden(self) -> None:
        super().harden()
        if self.latent is not None:
            self.latent.round_()


class _Free(fused.Function):
    """φ⁻¹(s·⌊v⌉), straight-through at the rounding."""

    @staticmethod
    def forward(ctx, latent, scale, exponent, low, high):
        steps = latent.round()
        y = Levels(steps, scale, low, high).values(exponent)
        ctx.save_for_backward(steps, y, scale, exponent)
        return y

    @staticmethod
    def backward(ctx, grad):
        steps, y, scale, exponent = ctx.saved_tensors
        first = bend(scale, 1 / exponent)
        slope = torch.where(steps == 0, first, y / (exponent * steps))  # φ⁻¹(s·k) by k
        weighed = grad * y
        for_scale = weighed.sum_to_size(scale.shape) / (exponent * scale)
        for_exponent = -(weighed * log_size(steps * scale)).sum() / exponent**2
        return slope.mul_(grad), for_scale, for_exponent, None, None
