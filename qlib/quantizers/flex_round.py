"""Divide each weight by a learned factor, then round to the nearest level.

Paper: FlexRound, Lee et al., ICML 2023, arXiv 2306.00317
"""

import torch
from torch import Tensor, nn

from qlib.core import fused
from qlib.core.functional import fake_quantize
from qlib.core.scheme import Scheme
from qlib.quantizers.base import Quantizer
from qlib.quantizers.uniform import Uniform

SMALLEST = 1e-3  # a factor at 0 would send its weight to infinity


class FlexRound(Quantizer):
    """ŵ = s·(clamp(⌊w/(s·S₂·s₃·s₄)⌉ + z) − z), all factors positive, 1 at the start.

    S₂ is shaped like the weight, s₃ has one number for each output channel, s₄ (convolutions only)
    one for each input channel. The straight-through estimator gives ∂ŵ/∂S = −w/S² with S = S₂s₃s₄:
    large weights move most, and may pass the two levels beside them. Rounding is hard all along;
    after training the codes and s are what a device keeps.
    """

    title = "divided by learned factors"
    frozen: Tensor | None

    def __init__(self, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> None:
        super().__init__(scale, zero_point, scheme)
        self.factors: nn.ParameterList | None = None
        self.register_buffer("frozen", None)
        self.soft = True

    @classmethod
    def from_nearest(cls, nearest: Quantizer, weight: Tensor) -> "FlexRound":
        """Factors of 1 for ``weight`` on the grid of an already fitted quantizer."""
        quantizer = cls(nearest.scale, nearest.zero_point, nearest.scheme)
        quantizer.start(weight)
        return quantizer

    @torch.no_grad()
    def start(self, weight: Tensor) -> nn.ParameterList:
        """Set every factor to 1, which is rounding to nearest."""
        shapes = [weight.shape, (weight.shape[0],) + (1,) * (weight.dim() - 1)]
        if weight.dim() > 2:
            shapes.append((1, weight.shape[1]) + (1,) * (weight.dim() - 2))
        ones = [nn.Parameter(weight.new_ones(shape), requires_grad=False) for shape in shapes]
        self.factors = nn.ParameterList(ones)
        return self.factors

    def freeze(self, mask: Tensor, weight: Tensor) -> None:
        """Divide by nothing where ``mask`` is True: nearest, on the grid as it is learned."""
        self.frozen = mask

    def divisors(self, x: Tensor) -> Tensor:
        """S, shaped like ``x``."""
        own, *shared = self.start(x) if self.factors is None else self.factors
        for factor in shared:
            own = own * factor
        return own if self.frozen is None else own.masked_fill(self.frozen, 1)

    def forward(self, x: Tensor) -> Tensor:
        split, by = map(self.scheme.granularity.split, (x, self.divisors(x)))
        grid = (self.scale, self.low, self.high)
        y = fused.run(
            fused.DivideFn, split, by, *grid, plain=lambda: fake_quantize(split / by, *grid)
        )
        return y.reshape(x.shape)

    def codes(self, x: Tensor) -> Tensor:
        return self.nearest(x / self.divisors(x))

    def as_grid(self) -> Uniform:
        return Uniform(self.scale, self.zero_point, self.scheme)

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        if self.factors is None or not self.soft:
            return {}
        return {"rounding": list(self.factors), "weight_scale": [self.scale]}

    def harden(self) -> None:
        self.soft = False

    @torch.no_grad()
    def keep_positive(self) -> None:
        super().keep_positive()
        for factor in self.factors or ():
            if factor.requires_grad:
                factor.clamp_(min=SMALLEST)
