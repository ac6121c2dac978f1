"""Who gains from noise: each layer's rounding error against what noise leaves of its output's."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from qlib.noise.profile import LayerNoise
from qlib.plots.noise import _fast_figure, curves
from qlib.plots.noise._fast_figure import Parts
from qlib.plots.shared import theme

HEIGHT = 340
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "hexagon", "star")
NAMES_A_ROW = 3  # of the legend, half a page wide
HALF = 0.5  # the reach for which theory is y = 1/x
NEAREST = 1e-3
Ends = tuple[float, float]
COLORS = ((0.0, "#3848FA"), (0.5, "#8F86A8"), (1.0, "#B38C19"))  # first to last block


@dataclass(frozen=True)
class Dot:
    """One layer. ``x``: rounding error ÷ (step²/12), ``y``: output error with ÷ without noise."""

    layer: str
    role: str
    depth: int
    x: float
    y: float
    reach: float


@dataclass(frozen=True)
class WhoGains:
    """Data of the figure: each layer's rounding error, and what noise leaves of its output's.

    ``reach``: of all layers in steps; None: each layer has the one that its search chose.
    """

    dots: tuple[Dot, ...]
    bits: int
    reach: float | None
    images: str
    blocks: int

    @property
    def gain(self) -> tuple[Dot, ...]:
        """Layers whose output error the noise lowers."""
        return tuple(d for d in self.dots if curves.effect(d.y) == "helps")

    @property
    def lose(self) -> tuple[Dot, ...]:
        """Layers whose output error the noise raises."""
        return tuple(d for d in self.dots if curves.effect(d.y) == "hurts")

    @property
    def idle(self) -> tuple[Dot, ...]:
        """Layers for which the search chose no noise."""
        return tuple(d for d in self.dots if d.reach == 0)


def info(
    layers: Sequence[LayerNoise],
    bits: int,
    reach: float | None,
    draw: str = curves.MEAN,
    images: str = "calib",
) -> WhoGains:
    """Data of the figure: all layers at one bit-width that have an error to compare.

    Without noise there is nothing to see: half a step stands for a ``reach`` of 0.
    """
    here = [f for f in layers if f.bits == bits]
    reach = HALF if reach == 0 else reach
    blocks = {name: i for i, name in enumerate(dict.fromkeys(f.block for f in here))}
    dots = []
    for found in here:
        own = curves.searched(found) if reach is None else reach
        y = curves.left(found, own, draw, images)
        if y > 0 and found.rounding > 0 and math.isfinite(y):
            depth = blocks[found.block]
            dots.append(Dot(found.layer, curves.role(found), depth, found.rounding, y, own))
    return WhoGains(tuple(dots), bits, reach, images, len(blocks))


def headline(info: WhoGains) -> str:
    """The take-away: how many layers this noise helps, and how many it hurts."""
    if not info.dots:
        return "No layer to compare"
    counts = f"{len(info.gain)} of {len(info.dots)} layers, hurts {len(info.lose)}"
    if info.reach is None:
        return f"Who gains: each layer at its own reach, noise helps {counts}"
    return f"Who gains: noise of {curves.steps(info.reach)} helps {counts}"


def figure(
    info: WhoGains, *, dark: bool = False, large: bool = False, chosen: str = ""
) -> go.Figure:
    """Draw one mark per layer on logarithmic axes; theory is solid at half a step: exact there."""
    parts = Parts(dark)
    xs, ys = _spans(info)
    parts.layout = {
        "xaxis": {"title": {"text": "rounding error ÷ (step²/12), no noise"}}
        | curves.log_axis(*xs, count=5),
        "yaxis": {"title": {"text": "output error, × without noise"}}
        | curves.log_axis(*ys, count=4),
        "hovermode": "closest",
    }
    _quadrants(parts, xs, ys)
    _theory(parts, info, xs)
    _dots(parts, info)
    for dot in info.dots:
        if dot.layer == chosen:
            _ring(parts, dot)
    names = sum(trace.get("showlegend", True) for trace in parts.data)
    rows = -(-names // NAMES_A_ROW)
    return _fast_figure.framed(
        parts, headline(info), HEIGHT, rows=rows, margin=(66, 56, 46), large=large
    )


def _spans(info: WhoGains) -> tuple[tuple[float, float], tuple[float, float]]:
    found = []
    for values in ([d.x for d in info.dots], [d.y for d in info.dots]):
        low, high = min([0.8, *values]), max([1.25, *values])
        room = (high / low) ** 0.08
        found.append((low / room, high * room))
    return found[0], found[1]


def _quadrants(parts: Parts, xs: Ends, ys: Ends) -> None:
    """Where theory says that noise helps, lower right, and hurts, upper left."""
    line = {"color": theme.faint(parts.dark), "width": 1.2, "dash": "dash"}
    parts.rule(y=1, **line)
    parts.rule(x=1, **line)
    parts.area(theme.rgba(curves.HELP, 0.1), x0=1, x1=xs[1], y0=ys[0], y1=1)
    parts.area(theme.rgba(curves.HARM, 0.1), x0=xs[0], x1=1, y0=1, y1=ys[1])
    # in the corners that theory's line stays clear of; 0 is the place of 1 on a logarithmic axis
    for text, x, side, up in (
        ("between levels:<br><b>helps</b>", 0.995, "right", "top"),
        ("on levels:<br><b>hurts</b>", 0.005, "left", "bottom"),
    ):
        parts.note(text, x=x, y=0, xref="paper", xanchor=side, align=side, yanchor=up)


def _theory(parts: Parts, info: WhoGains, xs: Ends) -> None:
    x = np.geomspace(*xs, 33)
    exact = info.reach is not None and abs(info.reach - HALF) < NEAREST
    look = {"width": 2, "dash": "solid"} if exact else {"width": 1.2, "dash": "dot"}
    parts.line(
        x=x,
        y=1 / x,
        mode="lines",
        name="theory at ±½",
        line={"color": theme.ink(parts.dark)} | look,
        hovertemplate="1 ÷ %{x:.2f} = %{y:.2f}<extra>theory for the inputs</extra>",
    )


def groups(info: WhoGains) -> dict[str, list[Dot]]:
    """Layers grouped by their role in the block; of many roles the rarest are merged."""
    counts = Counter(dot.role for dot in info.dots)
    kept = sorted(role for role, _ in counts.most_common(len(SYMBOLS) - 1))
    by_role = {role: [d for d in info.dots if d.role == role] for role in kept}
    rest = [d for d in info.dots if d.role not in by_role]
    return by_role | ({"others": rest} if rest else {})


def _dots(parts: Parts, info: WhoGains) -> None:
    for place, (role, dots) in enumerate(groups(info).items()):
        marker = {
            "symbol": SYMBOLS[place],
            "size": 10,
            "color": [d.depth for d in dots],
            "colorscale": COLORS,
            "cmin": 0,
            "cmax": max(1, info.blocks - 1),
            "line": {"width": 1, "color": theme.paper(parts.dark)},
        }
        if place == 0:
            marker |= {"showscale": True, "colorbar": _depths(info, parts.dark)}
        parts.line(
            x=[d.x for d in dots],
            y=[d.y for d in dots],
            customdata=[[d.layer, d.reach] for d in dots],
            mode="markers",
            name=role,
            marker=marker,
            hovertemplate="<b>%{customdata[0]}</b><br>rounding %{x:.2f} × step²/12<br>"
            "±%{customdata[1]:.2f} steps leave %{y:.2f}×<extra></extra>",
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 1}},
        )


def _depths(info: WhoGains, dark: bool) -> dict:
    faint = {"size": theme.SMALL, "color": theme.faint(dark)}
    ends = [0, max(1, info.blocks - 1)]
    return {
        "title": {"text": "block", "font": faint},
        "tickvals": ends,
        "ticktext": ["first", "last"],
        "tickfont": faint,
        "thickness": 8,
        "len": 1,
        "x": 1.01,
        "outlinewidth": 0,
    }


def _ring(parts: Parts, dot: Dot) -> None:
    ring = {"symbol": "circle-open", "size": 18, "color": theme.ink(parts.dark)}
    parts.line(
        x=[dot.x],
        y=[dot.y],
        mode="markers",
        marker=ring | {"line": {"width": 2}},
        name="chosen layer",
        showlegend=False,
        hoverinfo="skip",
    )


def alt(info: WhoGains) -> str:
    """The figure in words, with its numbers."""
    images = "held-out" if info.images == "test" else "calibration"
    text = (
        f"Rounding error over step²/12 against output error with noise over that without, "
        f"{len(info.dots)} layers at {info.bits} bits, {images} rows. {headline(info)}."
    )
    if info.dots:
        best, worst = (f(info.dots, key=lambda d: d.y) for f in (min, max))
        text += (
            f" Best: {best.layer}, {best.y:.2f} times the error at rounding {best.x:.2f}; worst: "
            f"{worst.layer}, {worst.y:.2f} at {worst.x:.2f}."
        )
    return text
