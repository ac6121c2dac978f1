"""Accuracy with its interval, agreement, error in decibels, size and operations."""

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from qlib.core.histogram import Histogram
from qlib.core.rows import LayerRow
from qlib.measure.levels import outside, step
from qlib.measure.output_errors import Errors
from qlib.measure.statistics import wilson
from qlib.measure.value_samples import Sample
from qlib.network.model import QuantModel
from qlib.quantizers.base import Quantizer


def sqnr(x: Tensor, x_hat: Tensor) -> float:
    """10·log10(Σx² / Σ(x − x̂)²) in dB; infinite when equal."""
    noise = float((x - x_hat).double().square().sum())
    return math.inf if noise == 0 else 10 * math.log10(float(x.double().square().sum()) / noise)


def kl_divergence(reference: Tensor, other: Tensor) -> float:
    """Mean over images of KL(softmax(reference) ‖ softmax(other)), in nats; logits (n, classes)."""
    p, q = reference.double().log_softmax(1), other.double().log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


def accuracy(labels: Tensor, logits: Tensor, reference: Tensor) -> dict[str, float]:
    """top1 with its interval, agreement with ``reference`` logits, images lost and gained."""
    right = logits.argmax(1) == labels
    right_before = reference.argmax(1) == labels
    n = len(labels)
    low, high = wilson(int(right.sum()), n)
    return {
        "top1": 100 * float(right.double().mean()),
        "top1_low": 100 * low,
        "top1_high": 100 * high,
        "top1_float": 100 * float(right_before.double().mean()),
        "agreement": 100 * float((logits.argmax(1) == reference.argmax(1)).double().mean()),
        "lost": int((right_before & ~right).sum()),
        "gained": int((right & ~right_before).sum()),
        "n": n,
        "kl": kl_divergence(reference, logits),
    }


def unlabelled(logits: Tensor, reference: Tensor) -> dict[str, float]:
    """What can be told without labels: agreement with its Wilson interval in percent, and KL."""
    same, n = logits.argmax(1) == reference.argmax(1), len(logits)
    low, high = wilson(int(same.sum()), n)
    return {
        "agreement": 100 * float(same.double().mean()),
        "agreement_low": 100 * low,
        "agreement_high": 100 * high,
        "n": n,
        "kl": kl_divergence(reference, logits),
    }


def layer_rows(
    model: QuantModel,
    seen: Mapping[str, Histogram],
    calib: Mapping[str, Errors] | None = None,
    test: Mapping[str, Errors] | None = None,
    samples: Mapping[str, Sample] | None = None,
) -> list[LayerRow]:
    """One row for each quantized tensor, in order of execution; see the columns in `_row`.

    Args:
        seen: histograms of the float network's activations by point name; the error of rounding
            an activation is computed on their bins.
        calib, test: what happened to each layer's output on these images; with them every layer
            gets a row of its own for its output.
        samples: values before and after rounding; they tell the errors of activations whose
            channels have levels of their own, as a histogram does not know channels.
    """
    rows: list[LayerRow] = []
    for name, layer in model.weighted().items():
        if (quantizer := layer.weight_point.quantizer) is not None:
            rows.append(_weight_row(model, name, quantizer, layer.weight))
    for name, point in model.points.items():
        if point.quantizer is not None:
            rows.append(_input_row(model, name, point.quantizer, seen[name], samples))
    for name, errors in (calib or {}).items():
        rows.append(_output_row(model, name, errors, (test or {}).get(name)))
    order = {name: i for i, name in enumerate(model.layers)}
    return sorted(rows, key=lambda row: order.get(row["layer"], _first(model, row, order)))


def _first(model: QuantModel, row: LayerRow, order: dict[str, int]) -> float:
    inner = model.layers_of(row["layer"])
    return order[inner[0]] - 0.5 if inner else math.inf


def _row(model: QuantModel, point: str, tensor: str) -> LayerRow:
    layer = point.rpartition(".")[0]
    found = model.layers.get(layer)
    return {
        "point": point,
        "layer": layer,
        "unit": model.unit_of(layer),
        "kind": found.kind if found is not None else "boundary",
        "tensor": tensor,
    }


def _grid_row(model: QuantModel, point: str, tensor: str, quantizer: Quantizer) -> LayerRow:
    row = _row(model, point, tensor)
    main = tensor in ("weight", "left")
    weighted = model.weighted().get(row["layer"]) if tensor == "weight" else None
    return {
        **row,
        "bits": quantizer.scheme.bits,
        "symmetric": quantizer.scheme.symmetric,
        "scale": float(quantizer.scale.mean()),
        "zero_point": float(quantizer.zero_point.mean()),
        "channels": quantizer.grids,
        "macs": model.macs.get(row["layer"], 0) if main else None,
        "params": None if weighted is None else weighted.weight.numel(),
    }


def _weight_row(model: QuantModel, name: str, quantizer: Quantizer, weight: Tensor) -> LayerRow:
    """``rmse_step``: √ mean of squared errors, each in steps of its own grid (0.289: rounding).
    ``beyond``: share of weights on neither of the two levels beside them."""
    with torch.no_grad():
        rounded, codes = quantizer(weight), quantizer.codes(weight)
        nearest = quantizer.nearest(weight)
        other = nearest + (weight - quantizer.values(nearest)).sign()  # on the weight's other side
        steps = (rounded - weight) / step(quantizer, weight)
        clipped = outside(quantizer, weight)
    return {
        **_grid_row(model, f"{name}.weight", "weight", quantizer),
        "sqnr_db": sqnr(weight, rounded),
        "clipped": float(clipped.double().mean()),
        "flipped": float((codes != nearest).double().mean()),
        "beyond": float(((codes != nearest) & (codes != other)).double().mean()),
        "mse": _mse(rounded, weight),
        "mse_nearest": _mse(quantizer.values(nearest), weight),
        "rmse_step": float(steps.double().square().mean().sqrt()),
    }


def _mse(x: Tensor, y: Tensor) -> float:
    return float((x - y).double().square().mean())


def _input_row(
    model: QuantModel,
    name: str,
    quantizer: Quantizer,
    seen: Histogram,
    samples: Mapping[str, Sample] | None,
) -> LayerRow:
    if quantizer.mixed:
        row = _grid_row(model, name, name.rpartition(".")[2], quantizer)
        return _with_sampled_errors(row, samples[name]) if samples else row
    values, counts = (t.to(quantizer.scale.device) for t in seen.values())
    with torch.no_grad():
        rounded = quantizer(values)
        steps = ((rounded - values) / step(quantizer, values)).double()
        clipped = outside(quantizer, values).double()
    root = counts.double().sqrt()
    return {
        **_grid_row(model, name, name.rpartition(".")[2], quantizer),
        "sqnr_db": sqnr(values * root, rounded * root),
        "clipped": float((clipped * counts).sum()),
        "flipped": None,
        "rmse_step": float((steps.square() * counts).sum().sqrt()),
    }


def _with_sampled_errors(row: LayerRow, sample: Sample) -> LayerRow:
    """With what is known without the steps of single channels."""
    x, y = (torch.from_numpy(v) for v in (sample.float, sample.rounded))
    clipped = sample.outside / max(1, sample.seen)
    return {**row, "sqnr_db": sqnr(x, y), "clipped": clipped}


def _output_row(model: QuantModel, name: str, calib: Errors, test: Errors | None) -> LayerRow:
    """What happened to a layer's output; the columns of held-out images end in ``_test``."""
    found: dict[str, float] = {}
    for suffix, errors in (("", calib), ("_test", test)):
        if errors is not None and errors.alone.n:
            found |= {f"local_{k}{suffix}": v for k, v in errors.alone.told().items()}
            found |= {f"acc_{k}{suffix}": v for k, v in errors.together.told().items()}
    if calib.nearest.n:
        found["acc_mse_nearest"] = calib.nearest.told()["mse"]
    row = _row(model, f"{name}.output", "output")
    return cast(LayerRow, {**row, **found})  # the names of the columns are put together
