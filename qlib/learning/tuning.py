"""Bias and norm tuning after any method; codes stay fixed, and inference costs nothing more.

Paper: AdaQuant, Hubara et al., ICML 2021, arXiv 2006.10518, equations 6–8 for the statistics
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from qlib.core.records import Event, InvalidSpec, Report
from qlib.learning.calibration import Calibration
from qlib.learning.walk import iter_units
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer
from qlib.quantizers.base import Quantizer
from qlib.quantizers.fixed_codes import FixedCodes
from qlib.quantizers.power import Power

RATE, BATCH = 1e-3, 32  # of the biases; the published rate is AdaQuant's for a layer's bias


def tune(model: QuantModel, data: Calibration, report: Report, *, norms: bool, biases: int) -> None:
    """Channel statistics if asked for, then ``biases`` steps for all biases together.

    For networks of one bit-width: what is tuned fits the chosen one alone.
    """
    if norms:
        tune_norms(model, data, report)
    tune_biases(model, data, steps=biases, rate=RATE, batch=BATCH, report=report)


@torch.no_grad()
def tune_norms(model: QuantModel, data: Calibration, report: Report) -> None:
    """Bring mean and spread of every output channel back to those of the float network.

    The paper opens folded batch norms, estimates their statistics anew and folds them again; the
    same is done here in closed form, for every layer with a weight whether a norm was folded into
    it or not, on inputs from the layers tuned before. What statistics should be is measured on the
    same images, where the paper takes the norm's own β and γ. A channel's factor r goes into its
    weight scale and its offset into the bias: codes stay, a device pays nothing. Where a channel
    has no scale of its own only the mean is mended.
    """
    for unit in iter_units(model, data, by="layer", weights=True, inputs=True):
        (layer,) = unit.weighted
        fitted = layer.weight_point.quantizer
        if fitted is None:
            continue
        run = partial(model.partial.layer_output, unit.title)
        mean, spread = _channels(layer, run, unit.inputs, data.batch)
        with model.quantized(weights=False, inputs=False):
            want, wanted = _channels(layer, run, unit.float_inputs, data.batch)
        ratio = torch.where(spread > 1e-6 * wanted, wanted / spread, torch.ones_like(spread))
        if fitted.scheme.granularity.kind == "tensor":
            ratio = torch.ones_like(ratio)
        else:
            layer.weight_point.fill(_stretched(fitted, layer.weight, ratio))
        added = (layer.correction or layer.correct_bias()).added
        bias = 0.0 if layer.bias is None else layer.bias
        added.copy_(ratio * (bias + added) + want - ratio * mean - bias)
        report(Event("calibrate", unit.title, unit.index, unit.of, note="channel statistics"))


def _channels(
    layer: QuantLayer, run: Callable[[Tensor], Tensor], inputs: Tensor, batch: int
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each output channel, over images and places."""
    total = square = inputs.new_zeros((), dtype=torch.float64)
    count = 0.0
    for part in inputs.split(batch):
        y = run(part)
        rows = (y.movedim(1, -1) if layer.kind == "conv" else y).flatten(0, -2).double()
        total, square, count = total + rows.sum(0), square + rows.square().sum(0), count + len(rows)
    mean = total / count
    spread = (square / count - mean.square()).clamp(min=0).sqrt()
    return mean.to(inputs.dtype), spread.to(inputs.dtype)


def _stretched(fitted: Quantizer, weight: Tensor, ratio: Tensor) -> Quantizer:
    """The same codes on grids whose levels are ``ratio`` (out,) times as far from 0."""
    ratio = ratio.reshape(-1, *(1,) * (fitted.scale.dim() - 1))
    grid = copy.deepcopy(fitted.as_grid())
    grid.scale.mul_(ratio**grid.exponent if isinstance(grid, Power) else ratio)  # its axis is bent
    return FixedCodes(grid, fitted.codes(weight))


def tune_biases(
    model: QuantModel, data: Calibration, *, steps: int, rate: float, batch: int, report: Report
) -> None:
    """Adam on all biases together, so that the network's answers come near the float network's.

    The loss is KL(float ‖ quantized) of the answers (see `qlib.network.answers`), mean over images,
    in nats; no labels. Codes and grids stay as they are. Biases are learned as corrections, which
    are off in the float network.

    Raises:
        InvalidSpec: the loss became infinite or not a number; biases are then as they were before.
    """
    layers = [m for m in model.weighted().values() if m.weight_point.quantizer is not None]
    if not steps or not layers:
        return
    answers = _answers(model, data)
    added = [(layer.correction or layer.correct_bias()).added for layer in layers]
    optimizer = torch.optim.Adam(added, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with _learning(added), model.quantized(weights=True, inputs=True), model.gradients():
        for step in range(steps):
            at = torch.randint(len(answers), (batch,), generator=data.generator,
                               device=answers.device)  # fmt: skip
            loss = model.answers.divergence_loss(model(data.images[at]), answers[at]) / len(at)
            if not math.isfinite(float(loss.detach())):
                raise InvalidSpec(
                    f"The loss of tuning the biases is {float(loss.detach())} at iteration "
                    f"{step + 1}; the biases are as before. Try a smaller learning rate."
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            report(Event("calibrate", "", step + 1, steps, note="biases"))


@torch.no_grad()
def _answers(model: QuantModel, data: Calibration) -> Tensor:
    """What the float network returns for every image."""
    with model.quantized(weights=False, inputs=False):
        parts = data.images.split(data.batch)
        return torch.cat([model(part) for part in parts])


@contextmanager
def _learning(params: list[nn.Parameter]) -> Iterator[None]:
    """Gradients for these alone; after `InvalidSpec` they have the values from before."""
    before = [p.detach().clone() for p in params]
    for p in params:
        p.requires_grad_(True)
    try:
        yield
    except InvalidSpec:
        for p, value in zip(params, before, strict=True):
            p.data.copy_(value)
        raise
    finally:
        for p in params:
            p.requires_grad_(False)
            p.grad = None
