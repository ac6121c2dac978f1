"""Round to the nearest level of a grid that a power function bends: fine near zero, coarse far out.

Papers: PowerQuant, Yvinec et al., ICLR 2023, arXiv 2301.09858; NUPES, arXiv 2308.05600
"""

import torch
from torch import Tensor, nn

from qlib.functional import qparams
from qlib.observers._base import Observer
from qlib.quantizers._base import Quantizer
from qlib.scheme import Scheme

EXPONENTS = (0.25, 1.25)  # outside, levels crowd at zero or at the ends
TINY = 1e-12  # stands in for 0 inside logarithms and slopes


def bend(x: Tensor, exponent: Tensor | float) -> Tensor:
    """sign(x)·|x|^a: keeps products, as |x·y|^a = |x|^a·|y|^a, and zero."""
    return x.sign() * x.abs().pow(exponent)


class Power(Quantizer):
    """x̂ = φ⁻¹(s·k), k = clamp(⌊φ(x)/s⌉ + z, qmin, qmax) − z, φ(x) = sign(x)·|x|^a.

    Scale and zero-point belong to the bent axis, so that a = 1 is the uniform grid and a symmetric
    scheme is PowerQuant's operator with s = m^a/Q. Two operands with the same exponent multiply in
    integers: x̂·ŷ = φ⁻¹(s_x·s_y·k_x·k_y), and a sum adds up powers of products (`accumulated`).

    ``reach``: after `hold_reach`, what the far end of the grid stands for while the exponent
    moves: s = (m·t)^a/K for m = reach, a factor t that can be learned, and K steps.
    """

    title = "nearest on a power-function grid"

    def __init__(
        self,
        scale: Tensor,
        zero_point: Tensor,
        scheme: Scheme,
        exponent: nn.Parameter | float = 1.0,
    ) -> None:
        super().__init__(scale, zero_point, scheme)
        if not isinstance(exponent, nn.Parameter):
            exponent = nn.Parameter(self.scale.new_tensor(exponent), requires_grad=False)
        self.exponent = exponent
        self.stretch = nn.Parameter(torch.ones_like(self.scale), requires_grad=False)
        self.register_buffer("reach", None)

    @classmethod
    def fit(
        cls,
        x: Tensor,
        scheme: Scheme,
        observer: Observer,
        exponent: nn.Parameter | float = 1.0,
        counts: Tensor | None = None,
    ) -> "Power":
        """The range is chosen on the bent axis. ``counts``: as in `Observer.find_range`."""
        bent = bend(x, torch.as_tensor(exponent).detach())
        lo, hi = observer.find_range(scheme.granularity.rows(bent), scheme, counts)
        shape = scheme.granularity.scale_shape(x)
        return cls(*qparams(lo.reshape(shape), hi.reshape(shape), scheme), scheme, exponent)

    @torch.no_grad()
    def hold_reach(self) -> None:
        """From here on the exponent may move, and the ends of the range stay where they are."""
        self.reach = bend(self.scale * self._far(), 1 / self.exponent)

    def forward(self, x: Tensor) -> Tensor:
        split = self.scheme.granularity.split(x)
        return _Bent.apply(split, self._scale(), self.exponent, self.low, self.high).reshape(
            x.shape
        )

    def nearest(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            split = bend(self.scheme.granularity.split(x), self.exponent)
            steps = (split / self._scale()).round().clamp(self.low, self.high)
            return (steps + self.zero_point).reshape(x.shape)

    def values(self, codes: Tensor) -> Tensor:
        split = self.scheme.granularity.split(codes) - self.zero_point
        return bend(split * self._scale(), 1 / self.exponent).reshape(codes.shape)

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        if self.reach is None:
            return {}
        return {"scale": [self.stretch], "exponent": [self.exponent]}

    @torch.no_grad()
    def keep_positive(self) -> None:
        if self.stretch.requires_grad:
            self.stretch.clamp_(min=0.01)
        if self.exponent.requires_grad:
            self.exponent.clamp_(*EXPONENTS)

    @torch.no_grad()
    def harden(self) -> None:
        if self.reach is not None:
            self.scale.copy_(self._scale())
            self.stretch.fill_(1)
            self.reach = None

    def _scale(self) -> Tensor:
        """On the bent axis."""
        if self.reach is None:
            return self.scale
        return (self.reach * self.stretch).pow(self.exponent) / self._far()

    def _far(self) -> Tensor:
        """Steps from 0.0 to the farther end."""
        low, high = torch.as_tensor(self.low), torch.as_tensor(self.high)
        return torch.maximum(-low, high).to(self.scale)


def accumulated(a: Power, b: Power, one: Tensor, two: Tensor) -> Tensor:
    """Σ over the last axis of the products of two operands, from their integer codes alone.

    Args:
        one, two: codes, same shape; the quantizers have one exponent and one scale each.

    Each product of codes is an integer; what adds up are powers of these products.
    """
    product = (one - a.zero_point) * (two - b.zero_point)
    unit = bend(a.scale * b.scale, 1 / a.exponent)
    return unit * bend(product, 1 / a.exponent).sum(-1)


class _Bent(torch.autograd.Function):
    """Straight-through for x, scale and exponent.

    The gradient for x is 1 inside the range and 0 where clipped, on the unbent axis: the slopes of
    φ and φ⁻¹ would give 0·∞ at zero. For the exponent it is exactly 0 where rounding is exact.
    """

    @staticmethod
    def forward(ctx, x, scale, exponent, low, high):
        ratio = bend(x, exponent) / scale
        raw = ratio.round()
        steps = raw.clamp(low, high)
        bent = steps * scale
        y = bend(bent, 1 / exponent)
        ctx.save_for_backward(x, y, ratio, bent, steps == raw, scale, exponent)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y, ratio, bent, inside, scale, exponent = ctx.saved_tensors
        kept = grad * inside
        for_scale = for_exponent = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            slope = slope_at(bent, exponent)
            pulled = grad * slope
            for_scale = (pulled * bent / scale - pulled * inside * ratio).sum_to_size(scale.shape)
        if ctx.needs_input_grad[2]:
            at_fixed_code = -grad * bent.abs().clamp(min=TINY).log() * y / exponent**2
            by_code = pulled * inside * ratio * scale * x.abs().clamp(min=TINY).log()
            for_exponent = (at_fixed_code + by_code).sum()
        return kept if ctx.needs_input_grad[0] else None, for_scale, for_exponent, None, None


def slope_at(bent: Tensor, exponent: Tensor) -> Tensor:
    """∂φ⁻¹ at points of the bent axis: (1/a)·|v|^(1/a − 1)."""
    return bent.abs().clamp(min=TINY).pow(1 / exponent - 1) / exponent
