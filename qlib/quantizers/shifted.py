"""Round to nearest after a learned shift; the step and the zero-point are learned too.

Paper: AdaQuant, Hubara et al., ICML 2021, arXiv 2006.10518, equation 2
"""

import torch
from torch import Tensor, nn

from qlib.core import fused
from qlib.core.scheme import Scheme
from qlib.quantizers.base import Quantizer
from qlib.quantizers.uniform import Uniform

LEAST = 0.01  # share of its first width that a step keeps at least


class Shifted(Quantizer):
    """x̂ = s·t·(clamp(⌊x/(s·t) + V⌉ + ⌊z⌉, qmin, qmax) − ⌊z⌉), straight-through at both roundings.

    V, for weights only, is counted in steps and unbounded: a code may go anywhere. t stretches the
    step; it starts at 1, so that one learning rate fits layers of any size. The float tensor is
    never written to. `harden` merges t into the scale and makes z whole for good.
    """

    title = "nearest after a learned shift"
    frozen: Tensor | None

    def __init__(self, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> None:
        super().__init__(scale, zero_point, scheme)
        self.stretch = nn.Parameter(torch.ones_like(self.scale), requires_grad=False)
        self.zero = nn.Parameter(self.zero_point.clone(), requires_grad=False)
        self.shift: nn.Parameter | None = None
        self.register_buffer("frozen", None)
        self.soft = True

    @classmethod
    def from_nearest(cls, nearest: Quantizer, weight: Tensor | None = None) -> "Shifted":
        """On the grid of a fitted quantizer; with a shift of 0 for each element of ``weight``."""
        quantizer = cls(nearest.scale, nearest.zero_point, nearest.scheme)
        if weight is not None:
            none = torch.zeros_like(nearest.scheme.granularity.split(weight))
            quantizer.shift = nn.Parameter(none, requires_grad=False)
        return quantizer

    def freeze(self, mask: Tensor, weight: Tensor) -> None:
        """Leave the shift at 0 where ``mask`` is True: nearest, on the grid as it is learned."""
        self.frozen = self.scheme.granularity.split(mask)

    def forward(self, x: Tensor) -> Tensor:
        plain = lambda: self._rounded(x)[0].reshape(x.shape)  # noqa: E731
        if not self.soft or self.shift is not None:
            return plain()
        scale = self.scale * self.stretch
        return fused.run(
            fused.FakeQuantizeFn, x, scale, *self._ends(), None, self.zero, plain=plain
        )

    def codes(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return (self._rounded(x)[1] + self.zero.round()).reshape(x.shape)

    def as_grid(self) -> Uniform:
        return Uniform(self.scale, self.zero_point, self.scheme)

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        if not self.soft:
            return {}
        zero = [] if self.scheme.symmetric else [self.zero]
        if self.shift is None:
            return {"act_scale": [self.stretch], "zero_point": zero}
        return {"shift": [self.shift], "weight_scale": [self.stretch], "zero_point": zero}

    @torch.no_grad()
    def keep_positive(self) -> None:
        """Keep the step positive, and zero on the grid."""
        if self.stretch.requires_grad:
            self.stretch.clamp_(min=LEAST)
        if self.zero.requires_grad:
            self.zero.clamp_(self.scheme.qmin, self.scheme.qmax)
        if self.frozen is not None and self.shift is not None:
            self.shift.masked_fill_(self.frozen, 0)

    @torch.no_grad()
    def harden(self) -> None:
        self.soft = False
        self.scale.mul_(self.stretch)
        self.stretch.fill_(1)
        self.zero.round_()
        self.zero_point.copy_(self.zero)
        self.low, self.high = self._ends()

    def _rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values, and codes in steps from 0.0, in the shape that the scale broadcasts against."""
        split = self.scheme.granularity.split(x)
        scale = self.scale * self.stretch
        shift = split.new_zeros(()) if self.shift is None else self.shift
        low, high = (self.low, self.high) if not self.soft else self._ends()
        return _Rounded.apply(split, shift, scale, self.zero, low, high)

    def _ends(self) -> tuple[Tensor, Tensor]:
        zero = self.zero.detach().round()
        return self.scheme.qmin - zero, self.scheme.qmax - zero


class _Rounded(torch.autograd.Function):
    """s·clamp(⌊x/s + V⌉, qmin − ⌊z⌉, qmax − ⌊z⌉); only what is clipped depends on z."""

    @staticmethod
    def forward(ctx, x, shift, scale, zero, low, high):
        ratio = x / scale
        raw = (ratio + shift).round_()
        steps = raw.clamp(low, high)
        ctx.save_for_backward(ratio, raw == steps, steps, shift, scale, zero)
        ctx.mark_non_differentiable(steps)
        return steps * scale, steps

    @staticmethod
    def backward(ctx, *grads):
        grad, _ = grads
        ratio, inside, steps, shift, scale, zero = ctx.saved_tensors
        kept = grad * inside
        need = ctx.needs_input_grad
        for_shift = (kept * scale).sum_to_size(shift.shape) if need[1] else None
        for_scale = (grad * steps - kept * ratio).sum_to_size(scale.shape) if need[2] else None
        for_zero = ((kept - grad) * scale).sum_to_size(zero.shape) if need[3] else None
        return kept if need[0] else None, for_shift, for_scale, for_zero, None, None
