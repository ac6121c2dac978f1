"""The value axis of distributions: linear, or linear around zero and logarithmic far out."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import floor, log10
from typing import Any

import numpy as np

APART = 0.1  # two ticks stand at least this share of the axis apart


@dataclass(frozen=True)
class ValueAxis:
    """How values are placed on an axis.

    Where values are drawn. ``bend`` is where the axis turns logarithmic; 0 keeps it linear.

    Plotly has no such axis, so figures draw ``sign(x)·log10(1 + |x|/bend)`` and label it with x.
    """

    bend: float = 0.0

    def place(self, x: Any) -> np.ndarray:
        """Positions of values on the figure's axis, same shape; NaN stays NaN."""
        x = np.asarray(x, dtype=np.float64)
        return np.sign(x) * np.log10(1 + np.abs(x) / self.bend) if self.bend else x

    def ticks(self, low: float, high: float, apart: float = APART) -> dict[str, Any]:
        """Tick settings for an axis from ``low`` to ``high``; nothing when it is linear.

        ``apart``: the least distance of two ticks, as a share of the axis.
        """
        if not self.bend:
            return {}
        apart = apart * float(self.place(high) - self.place(low))
        kept: list[float] = []
        for value in _candidates(self.bend, max(abs(low), abs(high))):
            inside = low <= value <= high
            near = [v for v in kept if abs(self.place(v) - self.place(value)) < apart]
            kept += [value] if inside and not near else []
        kept.sort()
        return {"tickvals": self.place(kept).tolist(), "ticktext": [number(v) for v in kept]}


def _candidates(bend: float, most: float) -> Iterable[float]:
    """Zero, then powers of ten from far out inwards, then their triples; both signs."""
    yield 0.0
    powers = range(floor(log10(max(most, bend))), floor(log10(bend)) - 1, -1)
    for factor in (1.0, 3.0):
        for power in powers:
            yield from (factor * 10.0**power, -factor * 10.0**power)


def bend_of(spreads: Any) -> float:
    """The value where the axis turns logarithmic, chosen to show the bulk of tensors.

    ``spreads`` are sizes such as a tensor's 99th percentile; 1 when all are zero.
    """
    sizes = np.abs(np.asarray(spreads, dtype=np.float64))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    return float(np.median(sizes)) / 2 if sizes.size else 1.0


def number(x: float, digits: int = 3) -> str:
    """A number as text: ``−0.0123``, few digits, a real minus sign, rarely an exponent."""
    if x == 0 or not np.isfinite(x):
        return "0" if x == 0 else "–"
    power = floor(log10(abs(x)))
    if -4 <= power < 6:
        text = f"{x:.{max(0, digits - 1 - power)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = f"{x:.{digits - 1}e}"
    return text.replace("-", "−")


def percent(share: float) -> str:
    """A share from 0 to 1 as text: ``0.3 %``; tiny shares are not rounded to nothing."""
    if share <= 0:
        return "0 %"
    if share < 1e-4:
        return "less than 0.01 %"
    value = 100 * share
    if value > 99.95 and share < 1:
        return "more than 99.9 %"
    digits = 2 if value < 0.1 else 1 if value < 10 or 99 < value < 100 else 0
    return f"{value:.{digits}f} %"
