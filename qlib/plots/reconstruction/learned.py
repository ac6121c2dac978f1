"""What learned rounding changed in each layer, computed from the rows of ``layers.csv``."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import plotly.graph_objects as go

from qlib.plots.shared import theme


@dataclass(frozen=True)
class Gain:
    """One layer's errors with learned rounding against those with nearest rounding.

    ``weight``: squared error of its weights, ``output``: of its output in the quantized network,
    both as multiples of what nearest rounding gives; ``flipped``: share of its weights whose code
    is not the nearest one of their grid, ``beyond``: of those that are on neither of the two levels
    beside them; ``params``: how many weights it has. None: not stored, or nothing to divide by.
    """

    layer: str
    unit: str
    params: int
    weight: float | None
    output: float | None
    flipped: float | None = None
    beyond: float | None = None

    @property
    def traded(self) -> bool:
        """Whether the weight error got worse while the output error got better."""
        if self.weight is None or self.output is None:
            return False
        return self.weight > 1 > self.output


def gains(
    rows: Iterable[Mapping[str, Any]],
    nearest: Iterable[Mapping[str, Any]] | None = None,
    data: str = "calib",
) -> tuple[Gain, ...]:
    """The comparison with nearest rounding of every quantized layer with weights, in order.

    ``nearest``: rows of the network with every weight rounded to nearest on even steps, whose
    weight errors, and output errors on ``data`` (``calib`` or ``test``), are divided by. Without
    them it is the same network and the same grids with this layer's weights alone sent back to
    nearest, which is known on calibration images only.
    """
    rows = list(rows)
    ours = _outputs(rows)
    theirs, above, below = ours, "acc_mse", "acc_mse_nearest"
    even = {}
    if nearest is not None:
        nearest = list(nearest)
        even = {r["layer"]: r for r in nearest if r.get("tensor") == "weight"}
        above = below = "acc_mse_test" if data == "test" else "acc_mse"
        theirs = _outputs(nearest)
    return tuple(
        Gain(
            row["layer"],
            row["unit"],
            int(number(row.get("params")) or 0),
            _ratio(row.get("mse"), even.get(row["layer"], row).get("mse_nearest")),
            _ratio(ours.get(row["layer"], {}).get(above), theirs.get(row["layer"], {}).get(below)),
            number(row.get("flipped")),
            number(row.get("beyond")),
        )
        for row in rows
        if row.get("tensor") == "weight"
    )


def _outputs(rows: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {r["layer"]: r for r in rows if r.get("tensor") == "output"}


def _ratio(part: Any, whole: Any) -> float | None:
    above, below = number(part), number(whole)
    return above / below if above and below and above > 0 and below > 0 else None


def number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def moved(found: Iterable[Gain]) -> float | None:
    """Share of all weights that learning moved to another level (0 to 1)."""
    known = [(g.flipped, g.params) for g in found if g.flipped is not None and g.params]
    total = sum(params for _, params in known)
    return sum(share * params for share, params in known) / total if total else None


def regridded(found: Iterable[Gain]) -> bool:
    """Whether weights lie on other levels than nearest rounding uses."""
    return any(g.weight is not None and abs(g.weight - 1) > 1e-3 for g in found)


def typical(found: Iterable[Gain]) -> tuple[float | None, float | None]:
    """Medians over the layers of the weight ratio and of the output ratio."""
    found = list(found)
    return _middle(g.weight for g in found), _middle(g.output for g in found)


def _middle(ratios: Iterable[float | None]) -> float | None:
    known = [x for x in ratios if x is not None]
    return median(known) if known else None


def times(ratio: float) -> str:
    """A ratio as text: ``12×``, ``1.5×``; two digits where it is near or below one."""
    if ratio >= 10:
        return f"{ratio:.0f}×"
    return f"{ratio:.1f}×" if ratio >= 1.095 else f"{ratio:.2f}×"


def percent(share: float) -> str:
    """A share (0 to 1) in percent: whole numbers from 1 % on, ``0.4 %`` below."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 1 or value == 0 else f"{value:.1g} %"


def framed(figure: go.Figure, title: str, *, several: bool, dark: bool, large: bool) -> go.Figure:
    """The figure with the common frame.

    Half a page wide; with ``several`` methods their names stand above, the first one first.
    """
    row = {"orientation": "h", "y": 1.01, "yanchor": "bottom", "x": 0, "traceorder": "reversed"}
    figure.update_layout(showlegend=several, legend=row, hovermode="closest")
    made = theme.frame(figure, title=theme.tied(title), dark=dark, width=58, large=large)
    return theme.raised(made, 26 * several)
