"""Measures a network with several bit-widths at each of them, on the held-out images."""

from itertools import product

from torch import Tensor

from qlib.core.rows import WidthRow
from qlib.measure import metrics
from qlib.network import costs, switching
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
        reference: float logits of the held-out images, (n, classes).
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
    told = metrics.accuracy(experiment.labels, logits, reference) | costs.costs(experiment.model)
    return {
        "weight_bits": weight_bits,
        "act_bits": act_bits,
        "top1": told["top1"],
        "top1_low": told["top1_low"],
        "top1_high": told["top1_high"],
        "agreement": told["agreement"],
        "lost": told["lost"],
        "gained": told["gained"],
        "kl": told["kl"],
        "weight_mb": told["weight_mb"],
        "gbops": told["gbops"],
    }


def _combinations(experiment: Experiment) -> list[tuple[int | None, int]]:
    """(weight bits, activation bits), highest first; None: weights keep their bits."""
    model = experiment.model
    acts, weights = switching.bit_widths(model)[::-1], switching.weight_bit_widths(model)[::-1]
    if not weights:
        return [(None, bits) for bits in acts]
    every: list[tuple[int | None, int]] = list(product(weights, acts))
    work = sum(model.macs.values()) * len(experiment.test) * len(every)
    return every if work <= WORK else [(bits, bits) for bits in acts]
