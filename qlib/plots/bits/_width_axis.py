"""The axis of bit-widths: the bits themselves evenly spaced, or what a width costs, on a log axis.

Cheap is at the right on all of them, so that a line keeps its shape when the axis is changed.
"""

import math
from collections.abc import Sequence
from typing import Any

from qlib.plots.bits.width_lines import Line, Point

COSTS = {
    "bits": "bits of weights and activations",
    "size": "weights at that width (MB), log",
    "bops": "bit-operations per image (billion), log",
}
ROOM = 1.12  # factor of empty axis on either side


def place(point: Point, cost: str) -> str | float | None:
    """Position of a point on the axis; None where the run did not store what the axis counts."""
    return str(point.bits) if cost == "bits" else _cost(point, cost)


def _cost(point: Point, cost: str) -> float | None:
    return {"size": point.size, "bops": point.bops}.get(cost)


def ends(lines: Sequence[Line], cost: str) -> tuple[float, float]:
    """Highest and lowest cost of all points.

    Raises:
        ValueError: no point has such a cost.
    """
    costs = [c for x in lines for p in x.points if (c := _cost(p, cost))]
    if not costs:
        raise ValueError(f"no stored run tells its {cost}")
    return max(costs), min(costs)


def layout(lines: Sequence[Line], bits: Sequence[int], cost: str, right: float) -> dict[str, Any]:
    """Settings of the bit-width axis; ``right``: empty room after the last width, in widths."""
    if cost == "bits":
        ticks = [str(b) for b in bits]
        return {
            "title": COSTS["bits"], "type": "category", "categoryorder": "array",
            "categoryarray": ticks, "range": [-0.3, len(ticks) - 1 + right], "showgrid": False,
        }  # fmt: skip
    high, low = ends(lines, cost)
    shown = _ticks(low, high)
    span = [math.log10(high * ROOM), math.log10(low / ROOM)]
    return {
        "title": COSTS[cost], "type": "log", "range": span, "showgrid": False,
        "tickvals": shown, "ticktext": [f"{v:g}" for v in shown],
    }  # fmt: skip


def upward(floor: float) -> dict[str, Any]:
    """Settings of the vertical accuracy axis.

    The axis of accuracy; one that does not begin at 0 says so, with a mark of the cut.
    """
    if floor <= 0:
        return {"title": "top-1 accuracy (%)", "range": [0, 103], "tickvals": [0, 25, 50, 75, 100]}
    step = next(s for s in (1, 2, 5, 10, 20) if (100 - floor) / s <= 8)
    ticks = [v for v in range(0, 101, step) if v >= floor]
    span = (100 - floor) * 0.03
    return {
        "title": f"top-1 accuracy (%), cut below {floor:g}", "range": [floor, 100 + span],
        "tickvals": [floor, *ticks], "ticktext": ["≈", *map(str, ticks)],
    }  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers in between: 1, 2, 5 times a power of ten, with more where there are few."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        inside = [a * 10.0**e for e in decades for a in steps]
        inside = [v for v in inside if low / ROOM <= v <= high * ROOM]
        if len(inside) >= 4:
            break
    return inside
