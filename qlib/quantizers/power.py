"""Round to the nearest level of a grid that a power function bends: fine near zero, coarse far out.

Papers: PowerQuant, Yvinec et al., ICLR 2023, arXiv 2301.09858; NUPES, arXiv 2308.05600
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qlib.core import fused
from qlib.core.functional import clip_, qparams
from qlib.core.scheme import Scheme
from qlib.observers.base import Observer
from qlib.quantizers.base import Quantizer

EXPONENTS = (0.25, 1.25)  # outside, levels crowd at zero or at the ends
TINY = 1e-12  # stands in for 0 inside logarithms and slopes of levels, ...
LEAST = 1e-22  # ... and of what is rounded: any power of it is far below a step, yet no denormal


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
    reach: Tensor | None

    def __init__(
        self,
        scale: Tensor,
        zero_point: Tensor,
        scheme: Scheme,
        exponent: nn.Parameter | float = 1.0,
    ) -> None:
        super().__init__(scale, zero_point, scheme)
        if not isinstance(exponent, nn.Parameter):
            start = torch.as_tensor(exponent).to(self.scale)
            exponent = nn.Parameter(start, requires_grad=False)
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
        """Fix the ends of the range, so that the exponent may be learned without moving them."""
        self.reach = bend(self.scale * self._far(), 1 / self.exponent)

    def forward(self, x: Tensor) -> Tensor:
        split = self.scheme.granularity.split(x)
        learned = any(t.requires_grad for t in (x, self.scale, self.stretch, self.exponent))
        if learned and torch.is_grad_enabled():
            y = self._learned(split)
        else:  # with fewer tensors beside x
            scale = self._scale()
            y = Levels(self._steps(split, scale), scale, self.low, self.high).values(self.exponent)
        return y.reshape(x.shape)

    def _learned(self, x: Tensor) -> Tensor:
        grid = self.reach, self.stretch, self.exponent, self._far(), self.low, self.high
        plain = lambda: _Bent.apply(x, self._scale(), self.exponent, self.low, self.high)  # noqa: E731
        return fused.run(fused.PowerFn, x, *grid, LEAST, TINY, plain=plain)

    def nearest(self, x: Tensor) -> Tensor:
        steps = self._steps(self.scheme.granularity.split(x), self._scale())
        return (steps + self.zero_point).reshape(x.shape)

    @torch.no_grad()
    def _steps(self, split: Tensor, scale: Tensor) -> Tensor:
        """The nearest level of each element, in steps from 0.0."""
        ratio = _ratio(_log(split).mul_(self.exponent), split, scale)
        return clip_(ratio.round_(), self.low, self.high)

    def values(self, codes: Tensor) -> Tensor:
        steps = self.scheme.granularity.split(codes) - self.zero_point
        levels = Levels(steps, self._scale(), self.low, self.high)
        return levels.values(self.exponent).reshape(codes.shape)

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        if self.reach is None:
            return {}
        return {"act_scale": [self.stretch], "exponent": [self.exponent]}

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


class _Bent(fused.Function):
    """Straight-through for x, scale and exponent.

    The gradient for x is 1 inside the range and 0 where clipped, on the unbent axis: the slopes of
    φ and φ⁻¹ would give 0·∞ at zero. For the exponent it is exactly 0 where rounding is exact.

    Powers and logarithms cost twenty times a product. What depends on the code alone is worked out
    once for each level and looked up; what depends on x shares one logarithm.
    """

    @staticmethod
    def forward(ctx, x, scale, exponent, low, high):
        log = _log(x)
        ratio = _ratio(log * exponent, x, scale)
        raw = ratio.round()
        steps = raw.clamp(low, high)
        inside = raw.sub_(steps).eq_(0)  # ones and zeros, in place: a comparison's bits are slow
        ctx.levels = Levels(steps, scale, low, high)
        ctx.save_for_backward(log, ratio, steps, inside, scale, exponent)
        return ctx.levels.values(exponent)

    @staticmethod
    def backward(ctx, grad):
        log, ratio, steps, inside, scale, exponent = ctx.saved_tensors
        kept, for_exponent = grad * inside, None
        for_x = kept if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:3]):
            return for_x, None, None, None, None
        slope = ctx.levels.of(lambda bent: slope_at(bent, exponent))
        by_code = (kept * slope).mul_(ratio)
        for_scale = (slope.mul_(grad).mul_(steps) - by_code).sum_to_size(scale.shape)
        if ctx.needs_input_grad[2]:
            at_fixed_code = (grad * ctx.levels.of(lambda bent: growth_at(bent, exponent))).sum()
            for_exponent = at_fixed_code + (by_code * scale).mul_(log).sum()
        return for_x, for_scale, for_exponent, None, None


def _log(x: Tensor) -> Tensor:
    return x.abs().clamp_(min=LEAST).log_()


def _ratio(power: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """φ(x)/s from a·ln|x|, in its place. All rounding starts here: other ways tie elsewhere."""
    return power.exp_().copysign_(x).div_(scale)


class Levels:
    """Positions of all elements on the axis after the power function, looked up by level number."""

    def __init__(self, steps: Tensor, scale: Tensor, low: Tensor | float, high: Tensor | float):
        self.shape, self.number = steps.shape, None
        if scale.numel() == 1 and isinstance(low, float) and isinstance(high, float):
            levels = torch.arange(low, high + 1, device=steps.device, dtype=steps.dtype)
            # within the levels even where a step is not a number
            self.number = (steps - low).to(torch.int32).clamp_(0, len(levels) - 1).flatten()
            self.bent = levels * scale.reshape(())
        else:
            self.bent = steps * scale

    def values(self, exponent: Tensor) -> Tensor:
        """φ⁻¹ of every element's place: the same bits for the same code, whoever asks."""
        return self.of(lambda bent: unbend(bent, exponent))

    def of(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """``function`` (element by element) of every element's place, shaped like the steps."""
        values = function(self.bent)
        return (
            values if self.number is None else values.index_select(0, self.number).view(self.shape)
        )


def unbend(bent: Tensor, exponent: Tensor) -> Tensor:
    """φ⁻¹ at points of the bent axis."""
    return bend(bent, 1 / exponent)


def slope_at(bent: Tensor, exponent: Tensor) -> Tensor:
    """∂φ⁻¹ at points of the bent axis: (1/a)·|v|^(1/a − 1)."""
    return bent.abs().clamp(min=TINY).pow(1 / exponent - 1) / exponent


def growth_at(bent: Tensor, exponent: Tensor) -> Tensor:
    """∂φ⁻¹/∂a at points of the bent axis that stay: −ln|v|·φ⁻¹(v)/a²."""
    return -log_size(bent) * unbend(bent, exponent) / exponent**2


def log_size(bent: Tensor) -> Tensor:
    """ln|v|, far down at 0."""
    return bent.abs().clamp(min=TINY).log()
