"""When does noise before rounding remove error? Each linear layer alone, at several bit-widths.

Every number is measured on rows of a float network's activations: an even random sample of each
layer's, a few hundred, so that memory does not grow with the number of images. What the numbers
mean is said in `qlib.noise.profile`; what theory says of them, in `qlib.noise.theorem`.
Paper: NoisyQuant, Liu et al., CVPR 2023, arXiv 2211.16056
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from qlib.core.histogram import Histogram
from qlib.core.records import Event, InvalidSpec
from qlib.core.scheme import BitPlan, Scheme
from qlib.learning.calibration import Calibration
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer
from qlib.noise import theorem
from qlib.noise._output import Grids, Output, best_clip, best_shift, reached
from qlib.noise._rows import fits, sampled
from qlib.noise.profile import NOISE, REACHES, LayerNoise
from qlib.quantizers.uniform import Uniform

SEEDS = 3  # draws of the noise
ROWS = range(128, 513)  # of one layer, from either set of images: fewer where layers are large …
WORK = 6e8  # … so that rows × (width of the input × smaller side), all layers together, stay below


@dataclass
class _Layer:
    """One layer's rows, (n, d) of either set of images, and the draws that all bit-widths share.

    ``draws``: (S, d) from −1 to 1; ``bell``: (1, d) from a normal distribution of that variance.
    """

    name: str
    layer: QuantLayer
    seen: Histogram
    calib: Tensor
    test: Tensor
    draws: Tensor
    bell: Tensor


class _Numbers(TypedDict):
    """All numbers of `LayerNoise` that depend on the bits."""

    step: float
    phase: np.ndarray
    clipped: float
    rounding: float
    predicted: np.ndarray
    calib: np.ndarray
    test: np.ndarray
    normal: np.ndarray
    closed_form: float
    linear_search: float
    stages: np.ndarray


def skipped(model: QuantModel) -> list[str]:
    """Names of layers with a weight where noise cannot be removed exactly.

    These are convolutions that pad, overlap or have groups: a value that several patches read in
    different places, or a border, would need another correction than one number for each output.
    """
    return [name for name, layer in model.weighted().items() if not fits(layer)]


def rows_for(model: QuantModel) -> int:
    """The most rows of one layer that are measured, from either set of images."""
    layers = [layer for layer in model.weighted().values() if fits(layer)]
    shapes = [layer.weight.flatten(1).shape for layer in layers]
    each = sum(d * min(d, out) for out, d in shapes)
    return min(ROWS[-1], max(ROWS[0], int(WORK / max(1, each))))


@torch.no_grad()
def measure(
    model: QuantModel, data: Calibration, test: Tensor, plans: Mapping[int, BitPlan]
) -> list[LayerNoise]:
    """What noise does to each linear layer and patch embedding, as they run, bits ascending.

    Args:
        model: its quantizers count for nothing and stay as they are.
        data: calibration images and observers; its generator draws rows and noise, its report
            hears of every finished layer and bit-width (``loss``: share of the held-out error that
            is left).
        test: (n, c, h, w) held-out images, preprocessed.
        plans: the grids of each bit-width; layers without a grid are left out.

    Raises:
        InvalidSpec: there is no such layer.
    """
    names = [n for n, layer in model.weighted().items() if fits(layer) and _planned(n, plans)]
    if not names:
        raise InvalidSpec(
            "This network has no linear layer and no convolution of separate patches that fixed "
            "noise could be added to; choose another one, such as a vision transformer."
        )
    order, results = list(model.layers), []
    for at, layer in enumerate(_layers(model, data, test, names)):
        weight = layer.layer.weight
        for b, (bits, plan) in enumerate(sorted(plans.items())):
            w_hat = Uniform.fit(weight, plan.weights[layer.name], data.weight_observer)(weight)
            scheme = plan.inputs[f"{layer.name}.input"]
            numbers = _measured(layer, w_hat.flatten(1), scheme, data)
            result = LayerNoise(
                layer=layer.name,
                kind=layer.layer.kind,
                block=model.unit_of(layer.name),
                depth=order.index(layer.name),
                bits=bits,
                reaches=REACHES,
                **numbers,
            )
            results.append(result)
            left = result.left(result.closed_form, "test")
            place = (at * len(plans) + b + 1, len(names) * len(plans))
            data.report(Event("profile", layer.name, *place, loss=left, note=f"{NOISE} {bits}"))
    return results


def _measured(layer: _Layer, w_hat: Tensor, scheme: Scheme, data: Calibration) -> _Numbers:
    device, (values, counts) = layer.calib.device, layer.seen.values()
    lo, hi = data.act_observer.find_range(values, scheme, counts)
    grid = Grids.of(lo.to(device), hi.to(device), scheme)
    calib, test = (Output(x, layer.layer, w_hat) for x in (layer.calib, layer.test))
    ends = (float(grid.low[0]), float(grid.high[0]))
    u = (layer.calib / grid.step).cpu().numpy()
    phase, clipped, rounding = theorem.cells(u, *ends)
    predicted = theorem.expected(u, REACHES, *ends)
    curves, inputs = reached(calib, grid, torch.cat([layer.draws, layer.bell]), REACHES)
    held_out, _ = reached(test, grid, layer.draws, REACHES)
    return {
        "step": float(grid.step[0]),
        "phase": phase,
        "clipped": clipped,
        "rounding": rounding,
        "predicted": _relative(predicted),
        "calib": _relative(curves[:-1]),
        "test": _relative(held_out),
        "normal": _relative(curves[-1]),
        "closed_form": float(REACHES[predicted.argmin()]),
        "linear_search": float(REACHES[inputs[0].argmin()]),
        "stages": _stages(calib, test, layer, grid, scheme),
    }


def _stages(
    calib: Output, test: Output, layer: _Layer, observed: Grids, scheme: Scheme
) -> np.ndarray:
    """(4, 2) error ÷ energy of the output after each stage, which stands on the one before."""
    lo, hi = (layer.calib.new_tensor([end]) for end in (layer.seen.lo, layer.seen.hi))
    plain = Grids.of(lo, hi, scheme)
    clip = best_clip(calib, lo, hi, scheme, observed)
    shift = best_shift(calib, clip)
    u = (layer.calib / clip.step + shift).cpu().numpy()
    expected = theorem.expected(u, REACHES, float(clip.low[0]), float(clip.high[0]))
    reach, none = float(REACHES[expected.argmin()]), torch.zeros_like(layer.draws[:1])
    moved = none + shift
    steps = [(plain, none), (clip, none), (clip, moved)]
    steps.append((clip, moved + reach * layer.draws if reach else moved))
    sides = [[float(side.error(*step).mean()) / side.energy for side in (calib, test)]
             for step in steps]  # fmt: skip
    return np.array(sides)


def _relative(errors: np.ndarray) -> np.ndarray:
    """Along the last axis, to the first of it; no error at all stays no error: 1 everywhere."""
    base = errors[..., :1]
    return np.divide(errors, base, out=np.ones_like(errors), where=base > 0)


def _layers(
    model: QuantModel, data: Calibration, test: Tensor, names: list[str]
) -> Iterator[_Layer]:
    """Layers in order of execution, each given away so that memory falls as the study goes on."""
    seen, rows = data.histograms(model), rows_for(model)
    calib = sampled(model, data, data.images, names, rows)
    held_out = sampled(model, data, test, names, rows)
    rng = data.generator
    for name in names:
        x = calib.pop(name)
        draws = 2 * torch.rand(SEEDS, x.shape[1], generator=rng, device=rng.device) - 1
        bell = torch.randn(1, x.shape[1], generator=rng, device=rng.device) / 3**0.5
        layer, counts = model.weighted()[name], seen[f"{name}.input"]
        yield _Layer(name, layer, counts, x, held_out.pop(name), draws, bell)


def _planned(name: str, plans: Mapping[int, BitPlan]) -> bool:
    return all(name in p.weights and f"{name}.input" in p.inputs for p in plans.values())
