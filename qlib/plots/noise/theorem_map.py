"""Where noise helps by the theorem: the change of the error over position x and reach n."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import plotly.graph_objects as go

from qlib.noise import theorem
from qlib.noise.profile import Numbers
from qlib.plots.noise import _fast_figure, curves
from qlib.plots.noise._fast_figure import Parts
from qlib.plots.shared import theme

DRAWS = 20_000
HEIGHT = 340
NX, NN = 41, 61
LIMIT = 3.0  # reaches are drawn up to here, in halves of a step


@dataclass(frozen=True)
class Trial:
    """Formula and simulation at one position and reach.

    The theorem at one place, in units of b, half a step; errors in b².

    ``closed``: D by closed form (the theorem's where its ``condition`` x ≤ n ≤ 2b − x holds, else
    the exact expectation); ``drawn``: by simulation, with its standard ``error``.
    """

    x: float
    n: float
    condition: bool
    closed: float
    drawn: float
    error: float
    draws: int = DRAWS

    @property
    def agrees(self) -> bool:
        """Whether simulation and formula differ by chance alone (4 standard errors)."""
        return abs(self.closed - self.drawn) <= 4 * self.error + 1e-9


def trial(x: float, n: float, seed: int = 0) -> Trial:
    """Compare the closed form with a seeded simulation at distance ``x`` from the boundary."""
    condition = x <= n <= 2 - x and n > 0
    plain = (1 - x) ** 2
    closed = float(theorem.gain(x, n)) if condition else float(theorem.error(x, n)) - plain
    if n == 0:
        return Trial(x, n, condition, 0.0, 0.0, 0.0)
    moved = x + np.random.default_rng(seed).uniform(-n, n, DRAWS)
    squares = (2 * np.floor(moved / 2) + 1 - moved) ** 2  # levels at odd multiples of b
    spread = float(squares.std() / np.sqrt(DRAWS))
    return Trial(x, n, condition, closed, float(squares.mean()) - plain, spread)


def headline(at: Trial) -> str:
    """The take-away at the chosen place."""
    if at.n == 0:
        return "Without noise nothing changes: D = 0"
    if abs(at.closed) < 5e-4:
        return f"At x = {at.x:.2f} b, n = {at.n:.2f} b: noise changes nothing"
    word = "helps" if at.closed < 0 else "hurts"
    return f"At x = {at.x:.2f} b, n = {at.n:.2f} b: noise {word}, D = {_signed(at.closed)} b²"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


@cache
def field() -> tuple[Numbers, Numbers, Numbers]:
    """Data of the map: the predicted change of the error over position and reach.

    x (NX,), n (NN,) and D (NN, NX) in units of b; exact beyond the theorem's condition too.
    """
    x, n = np.linspace(0, 1, NX), np.linspace(0, LIMIT, NN)
    return x, n, theorem.error(x[None], n[:, None]) - (1 - x[None]) ** 2


def figure(at: Trial, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Green where noise helps, red where it hurts; the theorem's range and its boundary as lines"""
    parts = Parts(dark)
    parts.layout = {
        "xaxis": {
            "title": {"text": "x: distance from the boundary (b = ½ step)", "standoff": 10},
            "range": [0, 1],
            "dtick": 0.2,
        },
        "yaxis": {
            "title": {"text": "n: reach of the noise (b)"},
            "range": [0, LIMIT],
            "dtick": 0.5,
        },
        "hovermode": "closest",
    }
    parts.data.append(_map(dark))
    _lines(parts)
    for x, n, word in ((0.13, 0.8, "helps"), (0.8, 2.0, "hurts")):
        parts.note(f"<b>{word}</b>", x=x, y=n)
    cross = {"size": 13, "symbol": "x", "color": theme.ink(dark)}
    parts.line(
        x=[at.x],
        y=[at.n],
        mode="markers",
        marker=cross | {"line": {"width": 1.5, "color": theme.paper(dark)}},
        name="chosen place",
        showlegend=False,
        hoverinfo="skip",
    )
    return _fast_figure.framed(
        parts, headline(at), HEIGHT, rows=1, margin=(52, 64, 54), large=large
    )


def _map(dark: bool) -> dict[str, Any]:
    x, n, change = field()
    bar = {
        "title": {"text": "D (b²)", "side": "right"},
        "thickness": 10,
        "tickvals": [-1, -0.5, 0, 0.5, 1],
        "ticktext": ["−1", "−½", "0", "½", "1"],
        "outlinewidth": 0,
    }
    return {
        "type": "heatmap",
        "x": x,
        "y": n,
        "z": change,
        "zmin": -1,
        "zmax": 1,
        "colorscale": [[0, curves.HELP], [0.5, theme.paper(dark)], [1, curves.HARM]],
        "colorbar": bar,
        "hovertemplate": "x %{x:.2f} b, n %{y:.2f} b<br>D %{z:.3f} b²<extra></extra>",
        "name": "D",
        "showlegend": False,
    }


def _lines(parts: Parts) -> None:
    """D = 0 by the theorem, and the range of x and n for which the theorem speaks."""
    ink = theme.ink(parts.dark)
    n = np.linspace(0, 2, 61)
    edge = theorem.helps_below(n)
    inside = (edge >= 0) & (edge <= n) & (n <= 2 - edge)
    parts.line(
        x=edge[inside],
        y=n[inside],
        mode="lines",
        name="D = 0: x = n (1 − √(n/3b))",
        line={"color": ink, "width": 2.2},
        hoverinfo="skip",
    )
    parts.line(
        x=[0, 1, 0],
        y=[0, 1, 2],
        mode="lines",
        name="condition x ≤ n ≤ 2b − x",
        line={"color": ink, "width": 1.2, "dash": "dot"},
        hoverinfo="skip",
    )


def alt(at: Trial) -> str:
    """The figure in words, with its numbers."""
    where = "inside" if at.condition else "outside"
    return (
        f"Change of the squared error by uniform noise over x and n. {headline(at)}. Closed form "
        f"{_signed(at.closed)} b², simulation of {at.draws:,} draws {_signed(at.drawn)} ± "
        f"{at.error:.3f} b²; {where} the theorem's condition."
    )
