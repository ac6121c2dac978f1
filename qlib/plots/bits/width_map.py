"""Accuracy by the bits of weights (rows) and of activations (columns): which break first."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from qlib.plots.shared import theme

Pair = tuple[int, int]  # bits of weights, bits of activations
CHOSEN = theme.COLORS[2]
ROW = 38  # pixels of a row
STATES = {"": "–", "failed": "✕", "queued": "…", "running": "…", "cancelling": "…"}
SAID = {
    "": "not measured: click, then compute it below",
    "failed": "the run did not finish",
    "queued": "waits in the queue",
    "running": "is being computed",
    "cancelling": "is being cancelled",
}


METRICS = {"top1": "Top-1", "kl": "KL to float"}
LEAST = 1e-5  # nats: a logarithmic scale has no zero


@dataclass(frozen=True)
class Cell:
    """One measured pair of bit-widths (weights, activations).

    Accuracy with its 95 % interval, in percent; ``kl`` in nats, None where not stored.
    """

    top1: float
    low: float
    high: float
    kl: float | None = None


@dataclass(frozen=True)
class WidthMap:
    """Data of the figure: accuracy (or another metric) for each pair of bit-widths.

    What the figure shows: ``cells`` where it was measured; ``metric``: a key of `METRICS`.

    ``states``: why another cell has no number yet, a key of `STATES`.
    """

    title: str
    weights: tuple[int, ...]  # most bits first
    acts: tuple[int, ...]
    cells: Mapping[Pair, Cell]
    states: Mapping[Pair, str]
    metric: str = "top1"


def info(
    title: str,
    cells: Mapping[Pair, Mapping[str, Any]],
    states: Mapping[Pair, str] | None = None,
    chosen: Pair | None = None,
    *,
    metric: str = "top1",
) -> WidthMap:
    """Data of the figure, from the measurements of a run.

    ``cells``: measurements by (bits of weights, bits of activations), as in a run's metrics.

    The map has a row and a column for each width of a cell, of a state and of ``chosen``.
    """
    states = {p: s for p, s in (states or {}).items() if p not in cells}
    seen = {*cells, *states} | ({chosen} if chosen else set())
    return WidthMap(
        title,
        tuple(sorted({w for w, _ in seen}, reverse=True)),
        tuple(sorted({a for _, a in seen}, reverse=True)),
        {p: Cell(m["top1"], m["top1_low"], m["top1_high"], m.get("kl")) for p, m in cells.items()},
        states,
        metric,
    )


def weaker(info: WidthMap) -> tuple[str, int, float, float] | None:
    """What breaks first: ("activations" or "weights", at these bits, accuracy with only these low,
    accuracy with only the others low); where they differ most. None where nothing can be told.

    The other side keeps the most bits of the map. "neither": the intervals overlap everywhere.
    """
    top = max((*info.weights, *info.acts), default=0)
    shared = [b for b in info.acts if b < top and {(top, b), (b, top)} <= set(info.cells)]
    if not shared:
        return None
    bits = max(shared, key=lambda b: abs(info.cells[top, b].top1 - info.cells[b, top].top1))
    acts, weights = info.cells[top, bits], info.cells[bits, top]
    if acts.high < weights.low:
        return "activations", bits, acts.top1, weights.top1
    if weights.high < acts.low:
        return "weights", bits, weights.top1, acts.top1
    return "neither", bits, acts.top1, weights.top1


def headline(info: WidthMap) -> str:
    """The take-away: which side breaks first, or how much is known."""
    weakest = weaker(info)
    if weakest is None:
        n, of = len(info.cells), len(info.weights) * len(info.acts)
        return f"{info.title}: {n} of {of} combinations measured"
    side, bits, low, other = weakest
    top = max((*info.weights, *info.acts))
    if side == "neither":
        return f"{info.title}: neither weights nor activations break first, inside the intervals"
    first = f"W{top}A{bits}" if side == "activations" else f"W{bits}A{top}"
    second = f"W{bits}A{top}" if side == "activations" else f"W{top}A{bits}"
    return f"{side.capitalize()} break first: {first} {low:.0f} %, {second} {other:.0f} %"


def figure(
    info: WidthMap, *, dark: bool = False, large: bool = False, chosen: Pair | None = None
) -> go.Figure:
    """Draw a heat map, bright is accurate; unmeasured cells are hatched, ``chosen`` is framed.

    ``customdata`` of a point: bits of weights, bits of activations.
    """
    figure = go.Figure()
    grid = [[info.cells.get((w, a)) for a in info.acts] for w in info.weights]
    figure.add_heatmap(
        x=list(range(len(info.acts))),
        y=list(range(len(info.weights))),
        z=[[_height(cell, info.metric) for cell in line] for line in grid],
        text=[[_number(cell, info.metric) for cell in line] for line in grid],
        texttemplate="%{text}",
        textfont={"size": theme.FONT_SIZE},
        colorscale="Cividis",
        **_scale(info, dark),
        xgap=2,
        ygap=2,
        hoverinfo="skip",
        name=info.title,
    )
    places = {(w, a): (x, y) for y, w in enumerate(info.weights) for x, a in enumerate(info.acts)}
    _missing(figure, info, places, dark)
    _targets(figure, info, places)
    if chosen in places:
        x, y = places[chosen]
        figure.add_shape(
            type="rect", x0=x - 0.48, x1=x + 0.48, y0=y - 0.46, y1=y + 0.46,
            line={"width": 3, "color": CHOSEN},
        )  # fmt: skip
    figure.update_xaxes(
        title="bits of activations", tickvals=list(range(len(info.acts))), showgrid=False,
        ticktext=[str(a) for a in info.acts], range=[-0.5, len(info.acts) - 0.5],
    )  # fmt: skip
    figure.update_yaxes(
        title="bits of weights", tickvals=list(range(len(info.weights))), showgrid=False,
        ticktext=[str(w) for w in info.weights], range=[len(info.weights) - 0.5, -0.5],
    )  # fmt: skip
    figure.update_layout(showlegend=False, hovermode="closest", bargap=0)
    height = max(theme.HELPER_HEIGHT, 105 + ROW * len(info.weights))
    return theme.frame(
        figure, title=headline(info), height=height, dark=dark, width=56, large=large
    )


def _height(cell: Cell | None, metric: str) -> float | None:
    """What the colour shows: percent, or the power of ten of the KL with its sign turned."""
    if cell is None or metric == "top1":
        return cell and cell.top1
    return None if cell.kl is None else -math.log10(max(cell.kl, LEAST))


def _number(cell: Cell | None, metric: str) -> str:
    if cell is None or (metric == "kl" and cell.kl is None):
        return ""
    return f"{cell.top1:.0f}" if metric == "top1" else f"{cell.kl:.1g}"


def _scale(info: WidthMap, dark: bool) -> dict:
    """Colours from below the worst cell to the best; so wide that little is no contrast."""
    font = {"size": theme.SMALL, "color": theme.faint(dark)}
    bar = {"thickness": 12, "tickfont": font, "outlinewidth": 0}
    if info.metric == "top1":
        lowest = min((cell.top1 for cell in info.cells.values()), default=0)
        title = {"text": "top-1 %", "side": "top", "font": font}
        span = {"zmin": min(80, 10 * math.floor(lowest / 10)), "zmax": 100}
        return span | {"colorbar": bar | {"title": title}}
    found = [_height(cell, "kl") for cell in info.cells.values()]
    known = [h for h in found if h is not None] or [0.0]
    low, high = math.floor(min(known)), max(math.ceil(max(known)), math.floor(min(known)) + 2)
    powers = list(range(low, high + 1))
    title = {"text": "nats, log", "side": "top", "font": font}
    bar |= {"tickvals": powers, "ticktext": [f"{10.0**-v:g}" for v in powers], "title": title}
    return {"zmin": low, "zmax": high, "colorbar": bar}


def _missing(
    figure: go.Figure, info: WidthMap, places: Mapping[Pair, tuple[int, int]], dark: bool
) -> None:
    """Hatched cells, with a sign that says why there is no number."""
    empty = [pair for pair in places if pair not in info.cells]
    signs = [STATES[info.states.get(pair, "")] for pair in empty]
    figure.add_bar(
        x=[places[p][0] for p in empty],
        base=[places[p][1] - 0.46 for p in empty],
        y=[0.92] * len(empty),
        width=0.95,
        marker={
            "color": "rgba(0,0,0,0)",
            "line": {"width": 0},
            "pattern": {
                "shape": "/",
                "size": 6,
                "solidity": 0.12,
                "fgcolor": theme.faint(dark),
                "bgcolor": "rgba(0,0,0,0)",
            },
        },
        hoverinfo="skip",
        name="not measured",
    )
    font = {"size": theme.FONT_SIZE, "color": theme.ink(dark)}
    figure.add_scatter(
        x=[places[p][0] for p in empty],
        y=[places[p][1] for p in empty],
        text=[f"<b>{sign}</b>" for sign in signs],
        mode="text",
        textfont=font,
        unselected={"textfont": {"color": font["color"]}},
        hoverinfo="skip",
        name="signs",
    )


def _targets(figure: go.Figure, info: WidthMap, places: Mapping[Pair, tuple[int, int]]) -> None:
    """Marks that nobody sees until they are clicked: cells of a heat map cannot be chosen."""
    figure.add_scatter(
        x=[x for x, _ in places.values()],
        y=[y for _, y in places.values()],
        customdata=[list(pair) for pair in places],
        text=[_said(info, pair) for pair in places],
        mode="markers",
        marker={"symbol": "square", "size": ROW - 3, "color": CHOSEN, "opacity": 0},
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
        hovertemplate="<b>W%{customdata[0]}A%{customdata[1]}</b><br>%{text}<extra></extra>",
        name="cells",
    )


def _said(info: WidthMap, pair: Pair) -> str:
    if (cell := info.cells.get(pair)) is None:
        return SAID[info.states.get(pair, "")]
    kl = "" if cell.kl is None else f"<br>KL to float {cell.kl:.2g} nats"
    return f"{cell.top1:.1f} % (95 %: {cell.low:.1f} to {cell.high:.1f}){kl}"


def alt(info: WidthMap) -> str:
    """The figure in words, with its numbers."""
    cells = [f"W{w}A{a} {_words(c, info.metric)}" for (w, a), c in sorted(info.cells.items())[::-1]]
    empty = len(info.weights) * len(info.acts) - len(cells)
    return (
        f"{METRICS[info.metric]} of {info.title} by bits of weights and activations: "
        f"{', '.join(cells)}. {empty} combinations are not measured."
    )


def _words(cell: Cell, metric: str) -> str:
    if metric == "top1":
        return f"{cell.top1:.1f} %"
    return "unknown" if cell.kl is None else f"{cell.kl:.2g} nats"
