"""Which weights of a unit take part in learning; the others stay at their nearest level."""

import torch
from torch import Tensor

from qlib.learning.calibration import Calibration
from qlib.learning.units import Unit
from qlib.methods._gradient.design import Design
from qlib.network.points import standing_in
from qlib.quantizers.power import bend


@torch.no_grad()
def frozen_weights(design: Design, unit: Unit, data: Calibration) -> list[Tensor | None]:
    """For each layer with a weight: True where the weight stays; None where all take part.

    To be asked before what is learned replaces the fitted quantizers.
    """
    fitted = [layer for layer in unit.weighted if layer.weight_point.quantizer is not None]
    everyone = design.select == "all" or (design.select != "undecided" and design.share >= 1)
    if everyone or not fitted:
        return [None] * len(unit.weighted)
    if design.select == "undecided":
        chosen = [_distance(layer) <= design.delta for layer in fitted]
    else:
        scores = {"random": _chance, "important": _owed}[design.select](fitted, unit, data)
        chosen = _first(scores, design.share)
    masks = {id(layer): ~mask for layer, mask in zip(fitted, chosen, strict=True)}
    return [masks.get(id(layer)) for layer in unit.weighted]


def _distance(layer) -> Tensor:
    """How far each weight is from the middle between two levels, in steps; 0 to ½."""
    quantizer = layer.weight_point.quantizer
    split = quantizer.scheme.granularity.split(layer.weight)
    ratio = bend(split, getattr(quantizer, "exponent", 1)) / quantizer.scale
    return (ratio - ratio.floor() - 0.5).abs().reshape(layer.weight.shape)


def _chance(layers: list, unit: Unit, data: Calibration) -> list[Tensor]:
    device = data.generator.device
    draw = lambda shape: torch.rand(shape, generator=data.generator, device=device)  # noqa: E731
    return [draw(layer.weight.shape) for layer in layers]


def _owed(layers: list, unit: Unit, data: Calibration) -> list[Tensor]:
    """|(ŵ − w)·∂E/∂ŵ|: what, to first order, the unit's squared error owes to each rounding."""
    rounded = [la.weight_point.quantizer(la.weight).requires_grad_(True) for la in layers]
    pairs = zip(layers, rounded, strict=True)
    given = {layer.weight_point: lambda x, value=value: value for layer, value in pairs}
    with standing_in(given), unit.model.gradients():
        for start in range(0, len(unit.targets), data.batch):
            part = slice(start, start + data.batch)
            (unit(unit.inputs[part]) - unit.targets[part]).square().sum().backward()
    pairs = zip(layers, rounded, strict=True)
    return [((v - la.weight) * (0 if v.grad is None else v.grad)).abs() for la, v in pairs]


def _first(scores: list[Tensor], share: float) -> list[Tensor]:
    """True for the highest ``share`` of all the scores together."""
    every = torch.cat([score.flatten() for score in scores])
    chosen = torch.zeros_like(every, dtype=torch.bool)
    chosen[every.topk(round(share * len(every))).indices] = True
    parts = chosen.split([score.numel() for score in scores])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]
