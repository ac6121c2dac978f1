"""Measures a network with several bit-widths at each of them, on the held-out images."""

from itertools import product
from typing import Any, cast

from torch import Tensor

from qlib.core.checks import hints
from qlib.core.rows import WidthRow
from qlib.network import costs, switching
from qlib.pipeline import judging
from qlib.pipeline.experiment import Experiment

WORK = 5e11  # multiply–accumulates up to which every combination of widths is measured


def measured(
    experiment: Experiment, reference: Tensor, own: int
) -> tuple[list[WidthRow], dict[str, Tensor]]:
    """Accuracy, size and operations at the widths of a quantized network that is switched on.

    All combinations of weight and activation bits where the network and the images are small,
    else equal bits alone (or all activation bits, where the weights keep theirs). The network has
    its own widths again afterwards.

    Args:
        reference: the float network's outputs for the held-out images, one row each.
        own: bits of the weights where they cannot be switched.

    Returns:
        rows of `RunRecord.bit_widths`, and the logits of each activation width, ``w8`` and so on
        (with equal weight bits, where these can be switched too). Both empty for a network of one
        width.
    """
    model, rows, logits = experiment.model, [], {}
    with switching.keeping(model):
        for weight_bits, act_bits in _combinations(experiment):
            switching.set_bits(model, act_bits, weights=weight_bits)
            found = experiment.predict(model, f"W{weight_bits or own}A{act_bits}")
            if weight_bits in (None, act_bits):
                logits[f"w{act_bits}"] = found
            rows.append(_row(experiment, found, reference, weight_bits or own, act_bits))
    return rows, logits


def _row(
    experiment: Experiment, logits: Tensor, reference: Tensor, weight_bits: int, act_bits: int
) -> WidthRow:
    told: dict[str, Any] = {"weight_bits": weight_bits, "act_bits": act_bits}
    told |= judging.judged(experiment, logits, reference) | costs.costs(experiment.model)
    return cast(WidthRow, {name: told[name] for name in hints(WidthRow) if name in told})


def _combinations(experiment: Experiment) -> list[tuple[int | None, int]]:
    """(weight bits, activation bits), highest first; None: weights keep their bits."""
    model = experiment.model
    acts, weights = switching.bit_widths(model)[::-1], switching.weight_bit_widths(model)[::-1]
    if not weights:
        return [(None, bits) for bits in acts]
    every: list[tuple[int | None, int]] = list(product(weights, acts))
    work = sum(model.macs.values()) * len(experiment.test) * len(every)
    return every if work <= WORK else [(bits, bits) for bits in acts]
