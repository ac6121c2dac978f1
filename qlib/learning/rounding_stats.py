"""Statistics of rounding while it is learned: how soft it is, how much of it has flipped."""

from functools import cache
from typing import TypedDict

import torch

from qlib.learning.units import Unit

SOFT_BINS = 20  # even, over [0, 1]
MOST, LEAST, TOTAL = 20, 8, 160  # looks at a unit, fewer where there are many units


class Look(TypedDict, total=False):
    """``soft`` and ``flipped`` of `qlib.core.records.Event`."""

    soft: list[int]
    flipped: float


def look_at(unit: Unit, step: int, steps: int) -> Look:
    """What `look` tells at some of the steps (from 1), see `moments`; empty at all others."""
    return look(unit) if step in moments(steps, unit.of) else {}


@cache
def moments(steps: int, units: int) -> frozenset[int]:
    """The steps (from 1) at which to look: evenly spread, the first and the last among them."""
    looks = max(LEAST, min(MOST, TOTAL // max(1, units), steps))
    return frozenset(1 + round(i * (steps - 1) / (looks - 1)) for i in range(looks))


@torch.no_grad()
def look(unit: Unit) -> Look:
    """The ``soft`` and ``flipped`` of `qlib.core.records.Event`; empty when no weight is learned.

    Only weights that are being learned count. ``soft`` is left out where rounding is hard.
    """
    counts = torch.zeros(SOFT_BINS, dtype=torch.float64)
    flipped = total = 0
    for layer in unit.weighted:
        q, weight = layer.weight_point.quantizer, layer.weight
        if q is None or not any(p.requires_grad for p in q.parameters()):
            continue
        flipped += int((q.codes(weight) != q.nearest(weight)).sum())
        total += weight.numel()
        if (soft := q.soft_values()) is not None:
            counts += torch.histc(soft, SOFT_BINS, 0, 1).double().cpu()
    if not total:
        return {}
    stats: Look = {"flipped": flipped / total}
    if counts.any():
        stats["soft"] = [int(n) for n in counts]
    return stats
