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
    whole, share = unit.targets, len(unit.targets) // len(unit.runs)
    with unit.model.quantized(weights=False, inputs=False), unit.model.gradients():
        for at, run in enumerate(unit.runs):  # one by one: each meets all images
            targets = whole[at * share : (at + 1) * share]
            for start in range(0, share, data.batch):
                part = slice(start, start + data.batch)
                y = targets[part].detach().requires_grad_(True)
                outputs = unit.answers(data.images[part], y, run)
                loss = answers.sampled_loss(outputs, data.generator)
                (slope,) = torch.autograd.grad(loss, y)
                gradients[at * share + start : at * share + start + len(y)] = slope
    return gradients


def fisher_diagonal(unit: Unit, data: Calibration) -> Tensor:
    """Squared `output_gradients` of every image, of mean 1; like ``unit.targets``."""
    importance = output_gradients(unit, data).square_()
    importance /= importance.mean().clamp(min=LEAST)
    return importance
