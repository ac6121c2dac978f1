"""Runs as points: what each costs, how accurate it is, and where it is drawn."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qlib.core.records import RunRecord

SAME = 0.005  # costs that differ by less are drawn side by side


@dataclass(frozen=True)
class Mark:
    """One run as a point of cost and accuracy.

    One run: ``low`` to ``high`` is the 95 % interval of ``top1`` in percent.

    ``place`` is where it is drawn: at ``cost``, or a little aside where runs cost the same.
    """

    key: str
    method: str
    title: str
    bits: str
    cost: float
    top1: float
    low: float
    high: float
    front: bool
    place: float


def mark_of(record: RunRecord, cost: str, titles: Mapping[str, str]) -> Mark:
    """The point of a run: its cost of one kind and its top-1 with interval."""
    m, spec = record.metrics, record.spec
    title, bits = titles.get(spec.method, spec.method), f"W{spec.weight_bits}A{spec.act_bits}"
    value = _cost(record, cost)
    interval = m["top1"], m["top1_low"], m["top1_high"]
    return Mark(spec.key, spec.method, title, bits, value, *interval, front=False, place=value)


def aside(marks: Sequence[Mark], axis: Sequence[float]) -> tuple[Mark, ...]:
    """Shift runs of the same cost sideways, so that no interval hides another.

    The step is a part of the logarithmic axis, which holds all of ``axis``.
    """
    step = max(0.03, 0.018 * math.log(max(axis) / min(axis)))
    placed: list[Mark] = []
    for mark in marks:
        equal = [o for o in placed if mark.cost / o.cost - 1 < SAME]
        placed.append(replace(mark, place=mark.cost * math.exp(step * len(equal))))
    return tuple(placed)


def _cost(record: RunRecord, cost: str) -> float:
    if cost == "time":
        return record.seconds["total"]
    return record.metrics["weight_mb" if cost == "size" else "gbops"]
