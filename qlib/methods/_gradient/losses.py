"""How a unit's output error is measured; all on the scale of the squared one.

A small difference Δ costs Σ wΔ² in every measure; each is scaled so that w is 1 on average.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from qlib.core.functional import take
from qlib.learning.calibration import Calibration
from qlib.learning.fisher import LEAST, fisher_diagonal
from qlib.learning.objective import OutputError, share_of
from qlib.learning.units import Unit
from qlib.methods._gradient.design import Design

POWERS = {"mse": 2.0, "l1": 1.0, "lp": 2.4}


def objective(
    design: Design, unit: Unit, data: Calibration, inputs: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor]:
    """Indices (batch,) → the error that the design makes small; ``inputs`` as in `OutputError`."""
    if design.error == "fisher":
        return OutputError(unit, inputs, importance=fisher_diagonal(unit, data))
    if design.error in POWERS:
        return OutputError(unit, inputs, POWERS[design.error])
    compare = {"cosine": angle, "kl": divergence}[design.error](unit)
    feed = inputs or (lambda at: take(unit.inputs, at))
    share = share_of(unit, design.batch)
    return lambda at: share * compare(unit(feed(at)), take(unit.targets, at))


def angle(unit: Unit) -> Callable[[Tensor, Tensor], Tensor]:
    """Σ over images of 1 − cos(output, target), times 2·mean‖target‖²."""
    weight = 2 * unit.targets.flatten(1).square().sum(1).mean().clamp(min=LEAST)

    def compare(output: Tensor, target: Tensor) -> Tensor:
        return weight * (1 - F.cosine_similarity(output.flatten(1), target.flatten(1))).sum()

    return compare


def divergence(unit: Unit) -> Callable[[Tensor, Tensor], Tensor]:
    """Σ over images of KL(float answer ‖ quantized answer), scaled by the float network's doubt.

    To second order a divergence is ½ Σ Fᵢⱼ ΔᵢΔⱼ with the Fisher matrix F of the answers.
    """
    answers = unit.model.answers
    weight = 2 / answers.doubt(unit.targets)

    def compare(output: Tensor, target: Tensor) -> Tensor:
        return weight * answers.divergence_loss(output, target)

    return compare
