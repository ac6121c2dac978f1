"""How a unit's output error is measured, as arguments of the loop; all on the squared one's scale.

A small difference Δ costs Σ wΔ² in every measure; each is scaled so that w is 1 on average.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qlib.core.functional import take
from qlib.learning.calibration import Calibration, Unit
from qlib.learning.reconstruct import share_of
from qlib.methods._gradient.design import Design

POWERS = {"mse": 2.0, "l1": 1.0, "lp": 2.4}
LEAST = 1e-30  # of a divisor


def measured(
    design: Design, unit: Unit, data: Calibration, inputs: Callable[[Tensor], Tensor] | None
) -> dict[str, Any]:
    """What `qlib.learning.reconstruct.reconstruct` is told; nothing for the squared error."""
    if design.error == "fisher":
        return {"importance": fisher(unit, data)}
    if design.error in POWERS:
        power = POWERS[design.error]
        return {} if power == 2 else {"power": power}
    compare = {"cosine": angle, "kl": divergence}[design.error](unit)
    feed = inputs or (lambda at: take(unit.inputs, at))
    share = share_of(unit, design.batch)
    return {"objective": lambda at: share * compare(unit(feed(at)), take(unit.targets, at))}


def fisher(unit: Unit, data: Calibration) -> Tensor:
    """The diagonal of the true Fisher matrix for every image, of mean 1; like ``unit.targets``."""
    importance = data.output_gradients(unit.model, unit).square_()
    importance /= importance.mean().clamp(min=LEAST)
    return importance


def angle(unit: Unit) -> Callable[[Tensor, Tensor], Tensor]:
    """Σ over images of 1 − cos(output, target), times 2·mean‖target‖²."""
    weight = 2 * unit.targets.flatten(1).square().sum(1).mean().clamp(min=LEAST)

    def compare(output: Tensor, target: Tensor) -> Tensor:
        return weight * (1 - F.cosine_similarity(output.flatten(1), target.flatten(1))).sum()

    return compare


def divergence(unit: Unit) -> Callable[[Tensor, Tensor], Tensor]:
    """Σ over images of KL(float answer ‖ quantized answer), scaled by the float network's doubt.

    To second order a divergence is ½ Σ Fᵢⱼ ΔᵢΔⱼ with F = diag(p) − ppᵀ, whose trace is Σ p(1 − p).
    """
    p = unit.targets.softmax(1)
    doubt = (p * (1 - p)).mean()
    weight = 2 / doubt.clamp(min=torch.finfo(p.dtype).eps)

    def compare(output: Tensor, target: Tensor) -> Tensor:
        logs = (output.log_softmax(1), target.log_softmax(1))
        return weight * F.kl_div(*logs, reduction="sum", log_target=True)

    return compare
