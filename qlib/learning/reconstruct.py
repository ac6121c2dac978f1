"""The one optimisation loop: fit a unit's quantized output to its float output."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from qlib.core.records import Event, InvalidSpec, Report
from qlib.learning import memory, optimizers
from qlib.learning.objective import OutputError
from qlib.learning.rounding_stats import look_at
from qlib.learning.units import Unit
from qlib.network.points import multiplying
from qlib.quantizers.base import Learner, Quantizer

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


@dataclass(frozen=True)
class FitSettings:
    """Settings of the optimisation loop: what is learned of a unit, how fast, for how long.

    Attributes:
        learn: learning rates of the roles that take part (see `Learner.learnable`).
        optimizer: by a name that `qlib.learning.optimizers` knows.
        penalty: λ of the rounding penalty Σ over weights, whose exponent is ``beta_schedule``'s.
        early_stop_undecided: stop early when at most this share of the soft choices is still
            undecided (looked at every `CHECK_EVERY` steps, after the penalty's warm-up); 0: never.
    """

    learn: Mapping[str, Rate]
    steps: int
    batch: int = 32
    optimizer: str = "adam"
    penalty: float = 0.0
    beta_schedule: BetaSchedule = BetaSchedule()
    early_stop_undecided: float = 0.0


def reconstruct(
    unit: Unit,
    settings: FitSettings,
    *,
    generator: torch.Generator,
    report: Report,
    objective: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Learn the parameters of a unit's quantizers for the roles asked for, then make them hard.

    At each step a batch is drawn, ``objective`` (and λ · rounding penalty) is differentiated, and
    the optimiser moves what is learned.

    Args:
        objective: indices (batch,) → what is made small; None: `OutputError` of the unit.

    Raises:
        InvalidSpec: the loss became infinite or not a number; the unit and the step are named. The
            unit is then as it was before, and hard.
    """
    objective = objective or OutputError(unit)
    learners, steps = unit.learners(), settings.steps
    groups = _groups(learners, settings.learn)
    soft = _penalised(learners, groups) if settings.penalty else []
    with _hardening(learners), _learning(unit, groups), unit.model.gradients():
        if not groups:
            return
        optimizer = _optimizer(groups, settings.optimizer)
        penalty = None
        for step in range(steps):
            loss = objective(_drawn(unit, settings.batch, generator))
            _clear(groups)
            loss.backward()
            beta = settings.beta_schedule.beta(step, steps) if soft else None
            if beta is not None:
                for q in soft:
                    q.add_penalty_grad(beta, settings.penalty)
            _cool(optimizer, groups, step, steps)
            optimizer.step()
            for q in learners:
                q.keep_positive()
            looked = step % CHECK_EVERY == 0
            if looked or step == steps - 1:
                _refuse_non_finite(loss.detach(), unit, step)
                if beta is not None:
                    penalty = settings.penalty * sum(q.penalty(beta).detach() for q in soft)
            place = (unit.title, unit.index, unit.of, step + 1, steps)
            seen = look_at(unit, step + 1, steps)
            report(Event("reconstruct", *place, loss.detach(), penalty, **seen))
            if looked and beta and _is_decided(soft, settings.early_stop_undecided):
                break


def _drawn(unit: Unit, batch: int, generator: torch.Generator) -> Tensor:
    """Indices of calibration images, (batch,), with replacement."""
    targets = unit.targets
    return torch.randint(len(targets), (batch,), generator=generator, device=targets.device)


def _is_decided(soft: list[Quantizer], share: float) -> bool:
    return share > 0 and undecided(soft) <= share


def undecided(soft: list[Quantizer]) -> float:
    """The share of soft choices that are farther than `NEAR` from being hard."""
    values = [v for q in soft if (v := q.soft_values()) is not None]
    count = sum(int(((v > NEAR) & (v < 1 - NEAR)).sum()) for v in values)
    return count / sum(v.numel() for v in values)


def _optimizer(groups: list[tuple[list, Rate]], name: str) -> torch.optim.Optimizer:
    return optimizers.optimizer(name, [{"params": p, "lr": rate.lr} for p, rate in groups])


@contextmanager
def _hardening(learners: Sequence[Learner]) -> Iterator[None]:
    """Hard at the end, whatever happens; after a non-finite loss on the values from before."""
    before = [{k: v.clone() for k, v in q.state_dict().items()} for q in learners]
    try:
        yield
    except InvalidSpec:
        for q, state in zip(learners, before, strict=True):
            q.load_state_dict(state)
        raise
    finally:
        for q in learners:
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
