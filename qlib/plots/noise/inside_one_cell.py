"""The rounding error at each position inside one rounding cell, without and with noise."""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from qlib.noise import theorem
from qlib.noise.profile import LayerNoise, Numbers
from qlib.plots.noise import _fast_figure, curves
from qlib.plots.noise._fast_figure import Parts
from qlib.plots.shared import theme

POINTS = 129
MOST = 5.0  # times an even spread: higher peaks are cut off, and told
HEIGHT = 340
HALF = 0.5  # the reach to compare with where there is no noise
PLAIN, NOISY = theme.GREY, theme.COLORS[0]
MASS = theme.COLORS[1]


@dataclass(frozen=True, eq=False)
class InsideOneCell:
    """Data of the figure: error and density of values over the positions in one rounding cell.

    ``at``: positions in steps, 0 on a level, ±½ midway between two; errors in step².

    ``noisy``: expected over uniform noise of ``reach``, on a grid without ends. ``crossings``:
    positions where both are equal. ``phase``: (64,) where the layer's values are. ``before`` and
    ``after``: mean errors over them.
    """

    layer: str
    bits: int
    reach: float
    at: Numbers
    plain: Numbers
    noisy: Numbers
    crossings: tuple[float, ...]
    phase: Numbers
    before: float
    after: float
    expected: float
    clipped: float

    @property
    def share(self) -> float:
        """What is left of the mean error; NaN where there was none."""
        return self.after / self.before if self.before > 0 else float("nan")

    @property
    def peak(self) -> float:
        """The fullest bin, as a multiple of an even spread."""
        return float(self.phase.max()) * len(self.phase)


def info(found: LayerNoise, reach: float) -> InsideOneCell:
    """Data of the figure: one layer at one bit-width under uniform noise of ``reach`` steps."""
    at = np.linspace(-0.5, 0.5, POINTS)
    plain, noisy = at**2, _error(at, reach)
    bins = len(found.phase)
    middle = (np.arange(bins) + 0.5) / bins - 0.5
    return InsideOneCell(
        found.layer,
        found.bits,
        reach,
        at,
        plain,
        noisy,
        _crossings(at, plain, noisy, reach),
        found.phase,
        float(found.phase @ middle**2),
        float(found.phase @ _error(middle, reach)),
        float(np.interp(reach, found.reaches, found.predicted)),
        found.clipped,
    )


def _error(at: Numbers, reach: float) -> Numbers:
    """Expected squared error in step²; `noise.error` has its levels at odd halves of a step."""
    return theorem.error(at + 0.5, reach, 0.5) if reach > 0 else at**2


def _crossings(at: Numbers, plain: Numbers, noisy: Numbers, reach: float) -> tuple[float, ...]:
    """Where the noisy curve changes sides, found between neighbouring positions."""
    if reach == 0:
        return ()
    gap = noisy - plain
    turns = np.flatnonzero(gap[:-1] * gap[1:] < 0)
    places = at[turns] + (at[1] - at[0]) * gap[turns] / (gap[turns] - gap[turns + 1])
    exact = np.flatnonzero((gap[1:-1] == 0) & (gap[:-2] * gap[2:] < 0)) + 1
    return tuple(float(p) for p in np.sort(np.concatenate([places, at[exact]])))


def headline(info: InsideOneCell) -> str:
    """The take-away: what noise of this reach does to values that lie where this layer's do."""
    if not info.phase.any():
        return "Every value is clipped: none lies in a cell"
    if info.before <= 0:
        return "Every value lies on a level: rounding makes no error"
    if info.reach == 0:
        return f"No noise: this layer's rounding makes {12 * info.before:.2f} × step²/12"
    effect = curves.effect(info.share)
    start = f"In the cell, {curves.steps(info.reach)}"
    if effect == "even":
        return f"{start} change next to nothing"
    if info.share >= 2:
        return f"{start} hurt: {info.share:.1f} times the error"
    verb = "help" if effect == "helps" else "hurt"
    return f"{start} {verb}: {curves.change(info.share)} error"


def figure(info: InsideOneCell, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw both errors over the cell (green: noise lowers it, hatched: not); values below."""
    parts = Parts(dark)
    parts.layout = {
        "xaxis": {
            "title": {"text": "position in the rounding cell (steps)"},
            "range": [-0.51, 0.51],
            "tickvals": [-0.5, -0.25, 0, 0.25, 0.5],
            "ticktext": ["−½<br>midway", "−¼", "0<br>on a level", "¼", "½<br>midway"],
        },
        "yaxis": {
            "title": {"text": "squared error (step²)"},
            "range": [0, 0.265],
            "tickvals": [0, 0.05, 0.1, 0.15, 0.2, 0.25],
        },
        "hovermode": "x unified",
    }
    _mass(parts, info)
    if info.reach > 0:
        _between(parts, info, helps=True)
        _between(parts, info, helps=False)
    _curve(parts, info.at, info.plain, "plain rounding", PLAIN, "dash")
    if info.reach > 0:
        _curve(parts, info.at, info.noisy, "with noise", NOISY, "solid")
        _mark(parts, info)
    else:
        _curve(parts, info.at, _error(info.at, HALF), "±½ step would give", NOISY, "dot")
    _values_axis(parts, info)
    return _fast_figure.framed(
        parts, headline(info), HEIGHT, rows=2, margin=(56, 48, 64), large=large
    )


def _values_axis(parts: Parts, info: InsideOneCell) -> None:
    top = min(MOST, max(2.0, 1.1 * info.peak))
    parts.layout["yaxis2"] = {
        "title": {"text": "values (1 = evenly spread)"},
        "overlaying": "y",
        "side": "right",
        "range": [0, top],
        "showgrid": False,
        "tickvals": list(range(int(top) + 1)),
    }
    if info.peak > top:
        place = (int(info.phase.argmax()) + 0.5) / len(info.phase) - 0.5
        side = (
            {"xanchor": "left", "xshift": 4} if place < 0.3 else {"xanchor": "right", "xshift": -4}
        )
        parts.note(f"peak {info.peak:.0f}", x=place, y=1, yref="paper", yanchor="top", **side)


def _mass(parts: Parts, info: InsideOneCell) -> None:
    """The layer's values as a filled staircase on the axis to the right."""
    parts.line(
        x=np.linspace(-0.5, 0.5, len(info.phase) + 1),
        y=np.append(info.phase, info.phase[-1:]) * len(info.phase),
        yaxis="y2",
        mode="lines",
        line={"shape": "hv", "width": 0.8, "color": theme.rgba(MASS, 0.9)},
        fill="tozeroy",
        fillcolor=theme.rgba(MASS, 0.28),
        name="this layer's values",
        hovertemplate="%{y:.2f}",
    )


def _between(parts: Parts, info: InsideOneCell, *, helps: bool) -> None:
    """The area between the curves, where the noisy one is lower, or where it is higher."""
    inside = info.noisy < info.plain if helps else info.noisy > info.plain
    other = np.where(inside, info.noisy, info.plain)
    color = curves.HELP if helps else curves.HARM
    edge = {"x": info.at, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    parts.line(y=info.plain, name="", showlegend=False, **edge)
    fill = {"fill": "tonexty", "fillcolor": theme.rgba(color, 0.3)}
    if not helps:
        fill |= {"fillpattern": {"shape": "/", "fgcolor": color, "size": 7, "solidity": 0.35}}
    name = "noise helps" if helps else "noise hurts"
    parts.line(y=other, name=name, **edge, **fill)


def _curve(parts: Parts, x: Numbers, y: Numbers, name: str, color: str, dash: str) -> None:
    parts.line(
        x=x,
        y=y,
        mode="lines",
        line={"color": color, "width": 2.2, "dash": dash},
        name=name,
        hovertemplate="%{y:.3f} step²",
    )


def _mark(parts: Parts, info: InsideOneCell) -> None:
    """The crossings as rings, the last with its place."""
    if not info.crossings:
        return
    ring = {"size": 9, "symbol": "circle-open", "color": theme.ink(parts.dark)}
    parts.line(
        x=list(info.crossings),
        y=[c * c for c in info.crossings],
        mode="markers",
        marker=ring | {"line": {"width": 2}},
        showlegend=False,
        hoverinfo="skip",
        name="crossing",
    )
    last = info.crossings[-1]
    if last > 0:
        parts.note(f"{last:.3f}", x=last, y=last * last, yshift=14, xshift=-14)


def alt(info: InsideOneCell) -> str:
    """The figure in words, with its numbers."""
    text = (
        f"Squared error over the rounding cell of {info.layer} at {info.bits} bits, plain and with "
        f"uniform noise of {curves.steps(info.reach)}. {headline(info)}. Mean over the layer's "
        f"values: {info.before:.4f} step² plain, {info.after:.4f} with noise; step²/12 is 0.0833."
    )
    if info.crossings:
        places = ", ".join(f"{c:.3f}".replace("-", "−") for c in info.crossings)
        text += f" The curves cross at {places}."
    return text
