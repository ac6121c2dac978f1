"""How far the tensors of a network reach: thin rungs to the extremes, thick ones in the bulk."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from qlib.plots.distributions import tensor as _tensor
from qlib.plots.shared import theme
from qlib.plots.shared.values import ValueAxis, bend_of, number
from qlib.store.tensors import TensorHist

FLAG, STRONG = 3.0, 10.0  # outlier ratios from which a rung is marked, and marked strongly
ROW, ROOM = 16, 100  # pixels of a rung, and of title and axis together
LABEL = 22  # characters of a layer's name
APART = 0.17  # two ticks of the narrow axis stand at least this share of it apart
KINDS = {
    "weight": ("weight",),
    "input": ("input", "left", "right", "boundary"),
    "output": ("output",),
}


@dataclass(frozen=True)
class Rung:
    """The range of one tensor.

    One tensor. ``percentiles`` as in `qlib.store.tensors`; ``clip`` is None without a grid.
    """

    name: str
    layer: str
    tensor: str
    percentiles: tuple[float, ...]
    ratio: float
    clip: tuple[float, float] | None
    clipped: float


@dataclass(frozen=True)
class RangeLadder:
    """Data of the figure: value ranges of all tensors of one kind.

    Rungs of one kind of tensor from top to bottom; ``order``: ``network`` or ``outliers``.
    """

    kind: str
    order: str
    rungs: tuple[Rung, ...]
    axis: ValueAxis

    @property
    def worst(self) -> Rung:
        """The tensor whose extremes lie furthest beyond its bulk."""
        return max(self.rungs, key=lambda r: r.ratio)

    @property
    def flagged(self) -> tuple[Rung, ...]:
        """The tensors with outliers, far beyond their bulk."""
        return tuple(r for r in self.rungs if r.ratio >= FLAG)


def info(
    hists: Sequence[TensorHist], *, kind: str = "input", order: str = "network"
) -> RangeLadder:
    """Data of the figure: the range of each tensor of one kind.

    The tensors of a kind (`KINDS`) among ``hists``, which are in network order.
    """
    rungs = [_rung(h) for h in hists if h.tensor in KINDS[kind]]
    if order == "outliers":
        rungs.sort(key=lambda r: -r.ratio)
    bend = bend_of([max(abs(r.percentiles[3]), abs(r.percentiles[5])) for r in rungs])
    return RangeLadder(kind, order, tuple(rungs), ValueAxis(bend))


def _rung(hist: TensorHist) -> Rung:
    grid = _tensor.has_grid(hist)
    ratio = float(hist.outlier_ratio)
    return Rung(
        hist.name,
        hist.layer,
        hist.tensor,
        tuple(float(p) for p in hist.percentiles),
        ratio if np.isfinite(ratio) else 1.0,
        (float(hist.clip_lo), float(hist.clip_hi)) if grid else None,
        float(hist.clipped) if grid else 0.0,
    )


def headline(info: RangeLadder) -> str:
    """The take-away: who reaches furthest beyond its own bulk."""
    what = {"weight": "weights", "input": "inputs", "output": "outputs"}[info.kind]
    if not info.rungs:
        return f"No {what} were recorded"
    if not info.flagged:
        return f"Tame {what}: at most {info.worst.ratio:.1f} times p99.9"
    return f"{len(info.flagged)} of {len(info.rungs)} {what} have outliers"


def figure(info: RangeLadder, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw the range of each tensor as a horizontal bar.

    Rungs on a bent value axis. Each has an unseen bar that can be clicked: [layer, tensor].
    """
    figure = go.Figure()
    places = np.arange(len(info.rungs), dtype=np.float64)
    table = np.array([r.percentiles for r in info.rungs], dtype=np.float64).reshape(-1, 9)
    at = info.axis.place(table)
    low, high = (float(table.min()), float(table.max())) if len(table) else (-1.0, 1.0)
    _targets(figure, info, places, info.axis.place([low, high]))
    color = _tensor.accent(dark)
    for first, last, width, shade in ((0, 8, 1.2, 0.9), (1, 7, 4, 0.45), (3, 5, 8, 1.0)):
        x, y = _spans(at[:, first], at[:, last], places)
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": theme.rgba(color, shade), "width": width},
            hoverinfo="skip",
        )
    _grid_ends(figure, info, places, dark)
    figure.add_scatter(
        x=at[:, 4],
        y=places,
        mode="markers",
        marker={"size": 6, "color": theme.paper(dark), "line": {"width": 1.4, "color": color}},
        unselected={"marker": {"opacity": 1}},
        hoverinfo="skip",
    )
    _flags(figure, info, at)
    room = 0.04 * float(np.diff(info.axis.place([low, high]))[0])
    figure.update_layout(
        xaxis={
            "title": "value" if large else f"value, log beyond ±{number(info.axis.bend, 1)}",
            "range": [float(info.axis.place(low)) - room, float(info.axis.place(high)) + 2 * room],
            "side": "top",  # a long ladder is scrolled
            "title_standoff": 4,
            **info.axis.ticks(low, high, APART),
        },
        yaxis={
            "range": [len(info.rungs) - 0.4, -0.6],
            "tickvals": places.tolist(),
            "ticktext": [_short(r) for r in info.rungs],
            "showgrid": False,
        },
        barmode="overlay",
        bargap=0,
        showlegend=False,
        hovermode="closest",
    )
    height = max(theme.HELPER_HEIGHT, ROOM + ROW * len(info.rungs))
    framed = theme.frame(
        figure, title=headline(info), height=height, dark=dark, large=large, width=38
    )
    theme.raised(framed, 60 if large else 44)
    return framed if large else framed.update_yaxes(tickfont_size=theme.SMALL)


def _spans(left, right, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One line with gaps: from ``left`` to ``right`` at each place."""
    gap = np.full(len(places), np.nan)
    return np.stack([left, right, gap], 1).ravel(), np.stack([places, places, gap], 1).ravel()


def _targets(figure: go.Figure, info: RangeLadder, places, reach: np.ndarray) -> None:
    """Bars over the whole width that nobody sees: they answer to the mouse."""
    unseen = {"marker": {"opacity": 0}}
    figure.add_bar(
        base=[float(reach[0])] * len(places),
        x=[float(reach[1] - reach[0])] * len(places),
        y=places,
        orientation="h",
        width=1,
        marker={"color": theme.GREY, "opacity": 0},
        selected=unseen,
        unselected=unseen,
        customdata=[[r.layer, r.tensor, _told(r)] for r in info.rungs],
        hovertemplate="%{customdata[2]}<extra></extra>",
    )


def _told(rung: Rung) -> str:
    p = [number(v) for v in rung.percentiles]
    lines = [
        f"<b>{rung.layer}</b>, {_tensor.NAMES.get(rung.tensor, rung.tensor)}",
        f"all values {p[0]} to {p[8]}",
        f"99.8 % of them {p[1]} to {p[7]}",
        f"half of them {p[3]} to {p[5]}, median {p[4]}",
        f"outlier ratio {rung.ratio:.1f}",
    ]
    if rung.clip:
        lines.append(f"grid {number(rung.clip[0])} to {number(rung.clip[1])}")
    return "<br>".join(lines)


def _grid_ends(figure: go.Figure, info: RangeLadder, places: np.ndarray, dark: bool) -> None:
    """Where each tensor's grid begins and ends."""
    rows = [(x, y) for r, y in zip(info.rungs, places, strict=True) if r.clip for x in r.clip]
    if rows:
        figure.add_scatter(
            x=info.axis.place([x for x, _ in rows]),
            y=[y for _, y in rows],
            mode="markers",
            marker={"symbol": "line-ns", "size": 10}
            | {"line": {"width": 1.8, "color": theme.ink(dark)}},
            unselected={"marker": {"opacity": 1}},
            hoverinfo="skip",
        )


def _flags(figure: go.Figure, info: RangeLadder, at: np.ndarray) -> None:
    """A symbol beyond the end of rungs with outliers: open from `FLAG`, filled from `STRONG`."""
    rows = [i for i, r in enumerate(info.rungs) if r.ratio >= FLAG]
    if rows:
        strong = [info.rungs[i].ratio >= STRONG for i in rows]
        far = [
            8 if abs(p[8]) >= abs(p[0]) else 0 for p in (info.rungs[i].percentiles for i in rows)
        ]
        figure.add_scatter(
            x=[at[i, f] for i, f in zip(rows, far, strict=True)],
            y=rows,
            mode="markers",
            marker={
                "symbol": ["diamond" if s else "diamond-open" for s in strong],
                "size": 9,
                "color": theme.WRONG,
            },
            unselected={"marker": {"opacity": 1}},
            hoverinfo="skip",
        )


def _short(rung: Rung) -> str:
    """The end of the name, which tells tensors apart."""
    text = rung.layer + {"left": " L", "right": " R"}.get(rung.tensor, "")
    return text if len(text) <= LABEL else "…" + text[1 - LABEL :]


def alt(info: RangeLadder) -> str:
    """The figure in words, with its numbers."""
    worst = sorted(info.rungs, key=lambda r: -r.ratio)[:3]
    named = ", ".join(f"{r.name} {r.ratio:.1f}" for r in worst)
    return (
        f"Ranges of {len(info.rungs)} tensors ({info.kind}). {headline(info)}. "
        f"Largest outlier ratios: {named}."
    )
