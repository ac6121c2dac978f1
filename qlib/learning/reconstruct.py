"""The one optimisation loop: fit a unit's quantized output to its float output."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from qlib.core import fused
from qlib.core.functional import take
from qlib.core.records import Event, InvalidSpec, Report
from qlib.learning import memory, optimizers
from qlib.learning.calibration import Unit
from qlib.learning.rounding_stats import look, moments
from qlib.network.points import multiplying
from qlib.quantizers.base import Quantizer

CHECK_EVERY = 50  # steps between looks at the loss: looking makes a GPU wait
NEAR = 0.05  # of 0 or 1: a soft choice counts as decided


@dataclass(frozen=True)
class Rate:
    """The learning rate of one role; ``cosine`` lets it fall to zero."""

    lr: float
    cosine: bool = False


@dataclass(frozen=True)
class BetaSchedule:
    """The exponent β of the rounding penalty: nothing during warm-up, then ``first`` → ``last``.

    AdaRound §3.2; linear in BRECQ's and QDrop's code, cosine in AdaRound's.
    """

    first: float = 20.0
    last: float = 2.0
    warmup: float = 0.2  # share of the steps
    cosine: bool = False

    def beta(self, step: int, steps: int) -> float | None:
        """β at ``step`` (from 0), or None during warm-up."""
        start = self.warmup * steps
        if step < start:
            return None
        t = (step - start) / max(1.0, steps - start)
        left = 0.5 * (1 + math.cos(math.pi * t)) if self.cosine else 1 - t
        return self.last + (self.first - self.last) * left


def reconstruct(
    unit: Unit,
    *,
    learn: Mapping[str, Rate],
    steps: int,
    generator: torch.Generator,
    batch: int = 32,
    inputs: Callable[[Tensor], Tensor] | None = None,
    power: float = 2.0,
    importance: Tensor | None = None,
    objective: Callable[[Tensor], Tensor] | None = None,
    penalty: float = 0.0,
    beta_schedule: BetaSchedule = BetaSchedule(),
    optimizer: str = "adam",
    early_stop_undecided: float = 0.0,
    report: Report,
) -> None:
    """Fit what the unit's quantizers offer for the roles in ``learn``; then they are hard.

    The error is Σ over channels, mean over everything else, of importance · |Δ|^power; to it comes
    ``penalty`` · Σ over weights of the rounding penalty.

    Args:
        inputs: indices (batch,) → unit input; default: ``unit.inputs`` at the indices.
        importance: weight of each output element, shaped like ``unit.targets`` (mean 1).
        objective: indices (batch,) → what is made small, in place of that error of one pass; see
            `squared_error`.
        optimizer: the optimiser, by a name that `qlib.learning.optimizers` knows.
        early_stop_undecided: stop early when at most this share of the soft choices is still
            undecided (looked at every `CHECK_EVERY` steps, after the penalty's warm-up); 0: never.

    Raises:
        InvalidSpec: the loss became infinite or not a number; the unit and the step are named. The
            unit is then as it was before, and hard.
    """
    quantizers = unit.learners()  # and corrections of biases
    groups = _groups(quantizers, learn)
    soft = _penalised(quantizers, groups) if penalty else []
    inputs = inputs or (lambda at: take(unit.inputs, at))
    share = share_of(unit, batch)

    def error(at: Tensor) -> Tensor:
        weight = None if importance is None else take(importance, at)
        return _error(unit(inputs(at)), unit.targets, at, power, weight, share)

    objective = objective or error

    with _hardening(quantizers), _learning(unit, groups), torch.enable_grad():
        stepper = _optimizer(groups, optimizer) if groups else None
        pushed, looks = None, moments(steps, unit.of)
        for step in range(steps if groups else 0):
            size, device = len(unit.targets), unit.targets.device
            loss = objective(torch.randint(size, (batch,), generator=generator, device=device))
            _clear(groups)
            loss.backward()
            beta = beta_schedule.beta(step, steps) if soft else None
            for q in soft if beta is not None else ():
                q.add_penalty_grad(beta, penalty)
            _cool(stepper, groups, step, steps)
            stepper.step()
            for q in quantizers:
                q.keep_positive()
            if step % CHECK_EVERY == 0 or step == steps - 1:
                _refuse_non_finite(loss.detach(), unit, step)
                if beta is not None:
                    pushed = penalty * sum(q.penalty(beta).detach() for q in soft)
            at = (unit.title, unit.index, unit.of, step + 1, steps)
            seen = look(unit) if step + 1 in looks else {}
            report(Event("reconstruct", *at, loss.detach(), pushed, **seen))
            if (
                early_stop_undecided
                and step % CHECK_EVERY == 0
                and beta
                and undecided(soft) <= early_stop_undecided
            ):
                break


def undecided(soft: list[Quantizer]) -> float:
    """The share of soft choices that are farther than `NEAR` from being hard."""
    values = [q.soft_values() for q in soft]
    count = sum(int(((v > NEAR) & (v < 1 - NEAR)).sum()) for v in values)
    return count / sum(v.numel() for v in values)


def _optimizer(groups: list[tuple[list, Rate]], name: str) -> torch.optim.Optimizer:
    return optimizers.optimizer(name, [{"params": p, "lr": rate.lr} for p, rate in groups])


@contextmanager
def _hardening(quantizers: list[Quantizer]) -> Iterator[None]:
    """Hard at the end, whatever happens; after a non-finite loss on the values from before."""
    before = [{k: v.clone() for k, v in q.state_dict().items()} for q in quantizers]
    try:
        yield
    except InvalidSpec:
        for q, state in zip(quantizers, before, strict=True):
            q.load_state_dict(state)
        raise
    finally:
        for q in quantizers:
            q.harden()


@contextmanager
def _learning(unit: Unit, groups: list[tuple[list, Rate]]) -> Iterator[None]:
    """Gradients on for what is learned; off again at the end, and kept weights thrown away."""
    memory.give_back()  # what carrying the boundaries on has left
    params = [p for group, _ in groups for p in group]
    for p in params:
        p.requires_grad_(True)
    try:
        with multiplying(unit.layers.values(), unit.arithmetic):
            yield
    finally:
        for p in params:
            p.requires_grad_(False)
        _clear(groups)
        for layer in unit.weighted:
            layer.weight_point.forget()
        memory.give_back()  # what learning has left


def _clear(groups: list[tuple[list, Rate]]) -> None:
    """Without the optimiser's own `zero_grad`, which takes a hundredth of a small unit's step."""
    for params, _ in groups:
        for p in params:
            p.grad = None


def _groups(quantizers: list, learn: Mapping[str, Rate]) -> list[tuple[list, Rate]]:
    groups = []
    for role, rate in learn.items():
        offered = [p for q in quantizers for p in q.learnable().get(role, [])]
        params = list({id(p): p for p in offered}.values())  # one may be shared
        if params and rate.lr > 0:
            groups.append((params, rate))
    return groups


def _penalised(quantizers: list, groups: list[tuple[list, Rate]]) -> list:
    """Quantizers with something soft that is being learned."""
    learned = {id(p) for params, _ in groups for p in params}
    moving = [q for q in quantizers if any(id(p) in learned for p in q.parameters())]
    return [q for q in moving if q.penalty(2.0) is not None]


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
        if fused.rows_fit(targets) and fused.runs(output):
            return fused.SquaredErrorFn.apply(output, targets, at, share)
        return squared_error(output, take(targets, at), share)
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


def _cool(optimizer: torch.optim.Optimizer, groups: list, step: int, steps: int) -> None:
    for group, (_, rate) in zip(optimizer.param_groups, groups, strict=True):
        if rate.cosine:
            group["lr"] = rate.lr * 0.5 * (1 + math.cos(math.pi * step / steps))


def _refuse_non_finite(loss: Tensor, unit: Unit, step: int) -> None:
    if not math.isfinite(float(loss)):
        raise InvalidSpec(
            f"The loss of {unit.title} (unit {unit.index} of {unit.of}) is {float(loss)} at "
            f"iteration {step + 1}; finished units are kept. Try a smaller learning rate, or "
            "check the weights and the images for infinite values."
        )
