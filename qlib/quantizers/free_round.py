"""Codes that are variables of their own: free over the whole grid, or within some steps of nearest.

Study: Yvinec et al., arXiv 2308.07662
"""

import torch
from torch import Tensor, nn

from qlib.core import fused
from qlib.core.functional import clip_
from qlib.core.scheme import Scheme
from qlib.quantizers.base import Quantizer
from qlib.quantizers.uniform import Uniform


class FreeRound(Quantizer):
    """ŵ = s·⌊v⌉ with v learned, straight-through at the rounding: ∂ŵ/∂v = s, ∂ŵ/∂s = ⌊v⌉.

    v is counted in steps from 0.0; it starts at w/s and stays between whole numbers: the ends of
    the grid, or ``reach`` steps on either side of the nearest level. Rounding is hard all along.
    """

    title = "codes learned freely"
    least: Tensor
    most: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> None:
        super().__init__(scale, zero_point, scheme)
        self.latent: nn.Parameter | None = None
        self.soft = True

    @classmethod
    def from_nearest(
        cls, nearest: Quantizer, weight: Tensor, reach: int | None = None
    ) -> "FreeRound":
        """On the grid of a fitted quantizer; ``reach``: None for the whole grid."""
        quantizer = cls(nearest.scale, nearest.zero_point, nearest.scheme)
        quantizer.start(weight, reach)
        return quantizer

    @torch.no_grad()
    def start(self, weight: Tensor, reach: int | None = None) -> nn.Parameter:
        """Set v to w/s, within its limits."""
        ratio = self.scheme.granularity.split(weight) / self.scale
        nearest = clip_(ratio.round(), self.low, self.high)
        far = self.scheme.steps if reach is None else reach
        self.register_buffer("least", (nearest - far).clamp(min=self.low))
        self.register_buffer("most", (nearest + far).clamp(max=self.high))
        self.latent = nn.Parameter(ratio.clamp(self.least, self.most), requires_grad=False)
        return self.latent

    def _started(self, weight: Tensor) -> nn.Parameter:
        """v, from w/s if it is nowhere yet."""
        return self.start(weight) if self.latent is None else self.latent

    @torch.no_grad()
    def freeze(self, mask: Tensor, weight: Tensor) -> None:
        """Leave the weights where ``mask`` is True at their nearest level."""
        v = self._started(weight)
        nearest = self.scheme.granularity.split(self.nearest(weight)) - self.zero_point
        mask = self.scheme.granularity.split(mask)
        self.least = torch.where(mask, nearest, self.least)
        self.most = torch.where(mask, nearest, self.most)
        v.clamp_(self.least, self.most)

    def forward(self, x: Tensor) -> Tensor:
        return _Free.apply(self._started(x), self.scale).reshape(x.shape)

    def codes(self, x: Tensor) -> Tensor:
        return (self._started(x).detach().round() + self.zero_point).reshape(x.shape)

    def as_grid(self) -> Uniform:
        return Uniform(self.scale, self.zero_point, self.scheme)

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        if self.latent is None or not self.soft:
            return {}
        return {"rounding": [self.latent], "weight_scale": [self.scale]}

    @torch.no_grad()
    def keep_positive(self) -> None:
        super().keep_positive()
        if self.latent is not None and self.latent.requires_grad:
            torch.maximum(torch.minimum(self.latent, self.most), self.least, out=self.latent)

    @torch.no_grad()
    def harden(self) -> None:
        self.soft = False
        if self.latent is not None:
            self.latent.round_()


class _Free(fused.Function):
    """s·⌊v⌉, straight-through at the rounding."""

    @staticmethod
    def forward(ctx, latent, scale):
        steps = latent.round()
        ctx.save_for_backward(steps, scale)
        return steps * scale

    @staticmethod
    def backward(ctx, grad):
        steps, scale = ctx.saved_tensors
        grad = grad.reshape(steps.shape)
        for_scale = (grad * steps).sum_to_size(scale.shape) if ctx.needs_input_grad[1] else None
        return grad * scale, for_scale
