"""Round each weight up or down, softly while it is learned.

Paper: AdaRound, Nagel et al., ICML 2020, arXiv 2004.10568, equations 21–24
"""

import torch
from torch import Tensor, nn

from qlib.core import fused
from qlib.core.functional import clip_
from qlib.core.scheme import Scheme
from qlib.quantizers.base import Quantizer
from qlib.quantizers.uniform import Uniform

STRETCH = (1.1, -0.1)  # ζ, γ: let h reach 1 and 0
SURE = 1e30  # a V that nothing moves: h is 0 or 1, its slope 0
EDGE = 1e-4  # keeps V finite and its gradient alive for weights that lie on the grid


class SoftRound(Quantizer):
    """ŵ = s·(clamp(⌊w/s⌋ + z + h(V)) − z), h(V) = clamp(σ(V)(ζ − γ) + γ, 0, 1).

    V starts where h equals the fractional part of w/s: the soft weight is the float weight
    (clipped). Made for one weight tensor; `harden` replaces h by 0 or 1 for good.
    """

    title = "up or down, learned"
    up_or_down = True
    floor: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> None:
        super().__init__(scale, zero_point, scheme)
        self.up: nn.Parameter | None = None
        self.soft = True
        self._kept: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_nearest(cls, nearest: Quantizer, weight: Tensor) -> "SoftRound":
        """Soft rounding of ``weight`` on the grid of an already fitted quantizer."""
        quantizer = cls(nearest.scale, nearest.zero_point, nearest.scheme)
        quantizer.start(weight)
        return quantizer

    @torch.no_grad()
    def start(self, weight: Tensor) -> nn.Parameter:
        """Set V from the fractional parts of ``weight / scale``."""
        ratio = self.scheme.granularity.split(weight) / self.scale
        floor = ratio.floor()
        up = nn.Parameter(inverse_h(ratio - floor), requires_grad=False)
        self.set_rounding(floor, up)
        return up

    @property
    def v(self) -> nn.Parameter:
        """V, or the choice once it is hard.

        Raises:
            RuntimeError: it was not started with a weight.
        """
        if self.up is None:
            raise RuntimeError("There is nothing to round yet; call `start` with the weight.")
        return self.up

    def set_rounding(self, floor: Tensor, up: nn.Parameter) -> None:
        """Take V and ⌊w/s⌋, in steps from 0.0; both shaped like the weight's split."""
        self.register_buffer("floor", floor)
        self.up = up

    @torch.no_grad()
    def freeze(self, mask: Tensor, weight: Tensor) -> None:
        """Leave the weights where ``mask`` is True at their nearest level."""
        split = self.scheme.granularity.split
        up = (split(weight) / self.scale).round() - self.floor
        self.v.copy_(torch.where(split(mask), (2 * up - 1) * SURE, self.v))

    def h(self) -> Tensor:
        """Rounding as a number in [0, 1]; 0 or 1 once hard."""
        return _stretched(torch.sigmoid(self.v)).clamp(0, 1) if self.soft else self.v

    def soft_values(self) -> Tensor | None:
        return self.h() if self.soft and self.up is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """The rounded weight. ``x`` gives the shape: the values were taken by `start`."""
        up = self.start(x) if self.up is None else self.up
        if self.soft and torch.is_grad_enabled() and up.requires_grad:
            y = _learned(up, *self._line())
        else:
            y = clip_(self.floor + self.h(), self.low, self.high) * self.scale
        return y.reshape(x.shape)

    def _line(self) -> tuple[Tensor, Tensor]:
        """ŵ = base + h·step, worked out once: whether a weight is clipped does not depend on h.

        With ⌊w/s⌋ below the grid or at its upper end both choices give the same level: step is 0.
        """
        if self._kept is None:
            inside = (self.floor >= self.low) & (self.floor < self.high)
            base = clip_(self.floor.clone(), self.low, self.high) * self.scale
            self._kept = base, inside * self.scale
        return self._kept

    def codes(self, x: Tensor) -> Tensor:
        steps = clip_(self.floor + self.h().round(), self.low, self.high)
        return (steps + self.zero_point).reshape(x.shape)

    def as_grid(self) -> Uniform:
        return Uniform(self.scale, self.zero_point, self.scheme)

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        return {"rounding": [self.v]} if self.soft else {}

    def penalty(self, beta: float) -> Tensor | None:
        """Σ 1 − |2h − 1|^β: a sum over weights, never a mean."""
        if not self.soft:
            return None
        return (1 - (2 * self.h() - 1).abs().pow(beta)).sum()

    @torch.no_grad()
    def add_penalty_grad(self, beta: float, weight: float) -> None:
        """Add the gradient of ``weight · penalty(beta)`` to V's, without building a graph."""
        up = self.v
        if up.grad is None:
            up.grad = torch.zeros_like(up)
        if fused.add_penalty_grad(up, beta, weight, STRETCH):
            return
        sigma = torch.sigmoid(up)
        h = _stretched(sigma)
        u = h.clamp(0, 1).mul_(2).sub_(1)
        slope = _to_v(u.abs().pow_(beta - 1).copysign_(u), sigma, h)
        up.grad.sub_(slope, alpha=2 * beta * weight)

    @torch.no_grad()
    def harden(self) -> None:
        """Make the rounding hard: up where V ≥ 0, that is where h ≥ ½."""
        if self.soft:
            self.up = nn.Parameter((self.v >= 0).to(self.v.dtype), requires_grad=False)
            self.soft = False
            self._kept = None


def inverse_h(fraction: Tensor) -> Tensor:
    """The V where h(V) is a number in [0, 1]; at the very ends h stops a little short of them."""
    zeta, gamma = STRETCH
    return -torch.log((zeta - gamma) / (fraction.clamp(EDGE, 1 - EDGE) - gamma) - 1)


def _stretched(sigma: Tensor) -> Tensor:
    zeta, gamma = STRETCH
    return (sigma * (zeta - gamma)).add_(gamma)


def _to_v(grad: Tensor, sigma: Tensor, h: Tensor) -> Tensor:
    """A gradient for h(V) on its way back to V: 0 where h is clamped."""
    zeta, gamma = STRETCH
    moving = torch.ops.aten.hardtanh_backward(grad, h, 0.0, 1.0)
    return torch.ops.aten.sigmoid_backward(moving, sigma).mul_(zeta - gamma)


def _learned(up: nn.Parameter, base: Tensor, step: Tensor) -> Tensor:
    """base + h(V)·step with the gradient for V alone."""
    plain = lambda: _SoftRound.apply(up, base, step)  # noqa: E731
    return fused.run(fused.SoftRoundFn, up, base, step, STRETCH, plain=plain)


class _SoftRound(fused.Function):
    """base + h(V)·step with the gradient for V alone."""

    @staticmethod
    def forward(ctx, up, base, step):
        sigma = torch.sigmoid(up)
        h = _stretched(sigma)
        ctx.save_for_backward(sigma, h, step)
        return torch.addcmul(base, h.clamp(0, 1), step)

    @staticmethod
    def backward(ctx, grad):
        sigma, h, step = ctx.saved_tensors
        return _to_v(grad.reshape(step.shape) * step, sigma, h), None, None
