"""Reconstruction objectives: the error of a unit's output."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qlib.core import fused
from qlib.core.functional import take
from qlib.learning.units import Unit


@dataclass(frozen=True)
class OutputError:
    """The error of a batch: Σ over channels, mean over all else, of importance · |Δ|^power.

    Attributes:
        inputs: indices → what the unit is run on; None: on ``unit.inputs`` at the indices.
        importance: weight of each output element, shaped like ``unit.targets`` (mean 1).
    """

    unit: Unit
    inputs: Callable[[Tensor], Tensor] | None = None
    power: float = 2.0
    importance: Tensor | None = None

    def __call__(self, at: Tensor) -> Tensor:
        unit, share = self.unit, share_of(self.unit, len(at))
        x = take(unit.inputs, at) if self.inputs is None else self.inputs(at)
        weight = None if self.importance is None else take(self.importance, at)
        return _error(unit(x), unit.targets, at, self.power, weight, share)


def share_of(unit: Unit, batch: int) -> float:
    """What one squared difference counts: Σ over channels, mean over the rest of a batch."""
    return unit.channels / (batch * unit.targets[0].numel())


def squared_error(output: Tensor, target: Tensor, share: float) -> Tensor:
    """share · Σ (output − target)², with a gradient for either that asks for one."""
    return _SquaredError.apply(output, target, share)


def _error(
    output: Tensor,
    targets: Tensor,
    at: Tensor,
    power: float,
    importance: Tensor | None,
    share: float,
) -> Tensor:
    if power == 2 and importance is None:
        plain = lambda: squared_error(output, take(targets, at), share)  # noqa: E731
        return fused.run(fused.SquaredErrorFn, output, targets, at, share, plain=plain)
    gap = output - take(targets, at)
    size = gap.square() if power == 2 else gap.abs().clamp(min=1e-12).pow(power)
    return (size if importance is None else size * importance).sum() * share


class _SquaredError(torch.autograd.Function):
    """share · Σ (output − target)², with two passes over memory fewer than autograd's own."""

    @staticmethod
    def forward(ctx, output, target, share):
        gap = output - target
        ctx.gap, ctx.share = gap, share
        return gap.norm().square() * share

    @staticmethod
    def backward(ctx, grad):
        slope = ctx.gap.mul_(2 * ctx.share * grad)
        return slope, -slope if ctx.needs_input_grad[1] else None, None
