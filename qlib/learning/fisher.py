"""Fisher information of a unit's outputs, from answers drawn from the network's own prediction.

The mean of squared gradients of the cross-entropy to a label drawn from the network's own
prediction is the diagonal of the true Fisher matrix (with the images' own labels it would be that
of the empirical one). An encoder predicts no labels: see `qlib.network.answers.Features`.
"""

import torch
from torch import Tensor

from qlib.learning.calibration import Calibration
from qlib.learning.units import Unit

LEAST = 1e-30  # of a divisor


def output_gradients(unit: Unit, data: Calibration) -> Tensor:
    """∂ `Answers.sampled_loss` / ∂(unit output) in the float network, like ``unit.targets``."""
    answers = unit.model.answers
    gradients = torch.empty_like(unit.targets)
    with unit.model.quantized(weights=False, inputs=False), torch.enable_grad():
        for start in range(0, len(gradients), data.batch):
            part = slice(start, start + data.batch)
            y = unit.targets[part].detach().requires_grad_(True)
            loss = answers.sampled_loss(unit.answers(data.images[part], y), data.generator)
            (gradients[part],) = torch.autograd.grad(loss, y)
    return gradients


def fisher_diagonal(unit: Unit, data: Calibration) -> Tensor:
    """Squared `output_gradients` of every image, of mean 1; like ``unit.targets``."""
    importance = output_gradients(unit, data).square_()
    importance /= importance.mean().clamp(min=LEAST)
    return importance
