"""Runs as points: accuracy against size, bit-operations or time, with intervals and the front."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import plotly.graph_objects as go

from qlib.core.records import RunRecord
from qlib.plots.compare._marks import SAME, Mark, aside, mark_of
from qlib.plots.shared import theme

COSTS = {
    "size": "weights (MB)",
    "bops": "bit-operations per image (billion)",
    "time": "time of the whole run (s)",
}

HOW = {
    "size": "needs {} the memory of {}",
    "bops": "needs {} the bit-operations of {}",
    "time": "takes {} as long as {}",
}


@dataclass(frozen=True)
class AccuracyVsSize:
    """Data of the figure: runs with their cost and accuracy.

    Points by rising cost; ``floats`` are the float models' (cost, top1), where known.

    ``others`` are runs that are not compared, drawn faintly behind. ``apart``: of the keys of two
    runs, better first, whether a paired test tells them apart; without it their intervals count.
    """

    cost: str
    marks: tuple[Mark, ...]
    floats: tuple[tuple[float, float], ...]
    fair: bool = True
    others: tuple[Mark, ...] = ()
    apart: Mapping[tuple[str, str], bool] = field(default_factory=dict)

    @property
    def front(self) -> tuple[Mark, ...]:
        """The runs that no other run beats in both cost and accuracy."""
        return tuple(m for m in self.marks if m.front)


def info(
    records: Sequence[RunRecord],
    *,
    cost: str = "size",
    titles: Mapping[str, str] | None = None,
    fair: bool = True,
    others: Sequence[RunRecord] = (),
    apart: Mapping[tuple[str, str], bool] | None = None,
) -> AccuracyVsSize:
    """Data of the figure, from the records of finished runs.

    Numbers of the runs; ``cost`` is a key of `COSTS`, ``titles`` names methods.

    ``fair`` is False when the runs were made under different conditions: then none is ahead.
    ``apart`` is the verdict of paired tests on pairs of run keys, where there is one.

    A run is on the front when no other run is at least as accurate for the same cost or less.
    """
    names = titles or {}
    marks, best = [], float("-inf")
    for mark in sorted((mark_of(r, cost, names) for r in records), key=lambda m: (m.cost, -m.top1)):
        marks.append(replace(mark, front=fair and mark.top1 > best))
        best = max(best, mark.top1)
    behind = tuple(mark_of(r, cost, names) for r in others)
    floats = _floats(records, cost)
    axis = [m.cost for m in (*marks, *behind)] + [x for x, _ in floats]
    return AccuracyVsSize(cost, aside(marks, axis), floats, fair, behind, apart or {})


def _floats(records: Sequence[RunRecord], cost: str) -> tuple[tuple[float, float], ...]:
    if cost != "size":  # float costs no calibration, and its bit-operations are not stored
        return ()
    found = {
        (r.metrics["weight_mb_float"], r.metrics["top1_float"])
        for r in records
        if "weight_mb_float" in r.metrics
    }
    return tuple(sorted(found))


def headline(info: AccuracyVsSize) -> str:
    """The take-away: what the dearer runs of the front buy; who is ahead is not told by a front."""
    marks, many = info.marks, f"{len(info.marks)} runs"
    if len(marks) == 1:
        return f"{_label(marks[0])}: {marks[0].top1:.1f} % at {_amount(info.cost, marks[0].cost)}"
    if not info.fair:
        return f"{many}, no front: they were not made under the same conditions"
    low, high = min(m.top1 for m in marks), max(m.top1 for m in marks)
    if marks[-1].cost / marks[0].cost - 1 < SAME:
        return (
            f"At {_amount(info.cost, marks[0].cost)} each, {many} reach {low:.1f} to {high:.1f} %"
        )
    first, last = info.front[0], info.front[-1]
    if first is last:
        return f"{_label(first, marks)} costs least, and none of the {many} scores higher"
    times, gain = last.cost / first.cost, last.top1 - first.top1
    sentence = f"{_label(last, marks)} {HOW[info.cost].format(_times(times), _label(first, marks))}"
    sentence = f"{sentence}, for {_points(gain)} more"
    apart = info.apart.get((last.key, first.key))
    if apart is None:
        return f"{sentence}, inside the intervals" if first.high >= last.low else sentence
    return sentence if apart else f"{sentence}, which may be chance"


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 10 else f"{ratio:.0f} times"


def _points(value: float) -> str:
    return f"{value:.1f} points" if value < 10 else f"{value:.0f} points"


def _label(mark: Mark, among: Sequence[Mark] = ()) -> str:
    """Method and bits; the method alone among runs that all have the same bits."""
    return mark.title if len({m.bits for m in among}) == 1 else f"{mark.title} {mark.bits}"


def _amount(cost: str, value: float) -> str:
    unit = {"size": "MB", "bops": "billion bit-operations", "time": "s"}[cost]
    return f"{value:.3g} {unit}"


def figure(info: AccuracyVsSize, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw runs as points with intervals; the front is a stepped line, points behind it fade.

    With other runs behind, the compared ones wear a ring. ``customdata[0]`` is the run's key.
    """
    figure = go.Figure()
    for method in dict.fromkeys(m.method for m in info.others):
        _behind(figure, [m for m in info.others if m.method == method], info.cost)
    front = info.front
    if len(front) > 1:
        figure.add_scatter(
            x=[m.place for m in front],
            y=[m.top1 for m in front],
            mode="lines",
            line={"shape": "hv", "width": 1.2, "dash": "dot", "color": theme.faint(dark)},
            hoverinfo="skip",
            name="front",
        )
    # bits are written beside the marks only where they tell runs apart
    labelled: list[Mark] | None = [] if len({m.bits for m in info.marks}) > 1 else None
    for method in dict.fromkeys(m.method for m in sorted(info.marks, key=lambda m: -m.top1)):
        group = [m for m in info.marks if m.method == method]
        _draw(figure, group, info.cost, labelled, dark)
    if info.others:
        _rings(figure, info.marks, dark)
    if info.floats:
        _stars(figure, info, dark)
    figure.update_xaxes(title=COSTS[info.cost] + ", log", type="log", **_ticks(info))
    figure.update_yaxes(title="top-1 accuracy (%)", rangemode="normal")
    figure.update_layout(
        showlegend=True,
        legend=theme.LEGEND,
        hovermode="closest",
    )
    framed = theme.frame(figure, title=headline(info), dark=dark, large=large)
    return theme.raised(framed, 16)


def _texts(marks: list[Mark], labelled: list[Mark]) -> list[str]:
    """Bits beside each mark, but once only where marks of the same bits stand side by side."""
    texts = []
    for m in marks:
        near = [o for o in labelled if o.bits == m.bits and abs(o.cost / m.cost - 1) < 0.06]
        texts.append("" if near else m.bits)
        labelled += [] if near else [m]
    return texts


def _draw(
    figure: go.Figure, marks: list[Mark], cost: str, labelled: list[Mark] | None, dark: bool
) -> None:
    style = theme.style(marks[0].method)
    figure.add_scatter(
        x=[m.place for m in marks],
        y=[m.top1 for m in marks],
        customdata=_facts(marks),
        mode="markers+text",
        text=[""] * len(marks) if labelled is None else _texts(marks, labelled),
        textposition="top right",
        textfont={"size": theme.SMALL, "color": theme.faint(dark)},
        name=marks[0].title,
        legendgroup=marks[0].method,
        showlegend=False,
        marker={
            "symbol": style.symbol,
            "size": 13,
            "color": style.color,
            "opacity": [1.0 if m.front else 0.45 for m in marks],
            "line": {"width": 1.5, "color": theme.paper(dark)},
        },
        error_y=_bars(marks) | {"color": style.color, "thickness": 1.3, "width": 5},
        hovertemplate=_hover(marks[0], cost),
    )
    _legend(figure, marks[0])


def _facts(marks: Sequence[Mark]) -> list[list]:
    return [[m.key, m.bits, m.low, m.high, m.cost] for m in marks]


def _hover(mark: Mark, cost: str) -> str:
    return (
        f"<b>{mark.title} %{{customdata[1]}}</b><br>%{{y:.1f}} % "
        "(95 %: %{customdata[2]:.1f} to %{customdata[3]:.1f})<br>"
        f"{COSTS[cost]}: %{{customdata[4]:.3g}}<extra></extra>"
    )


def _behind(figure: go.Figure, marks: list[Mark], cost: str) -> None:
    """Runs that are not compared: small, open, without intervals."""
    style = theme.style(marks[0].method)
    figure.add_scatter(
        x=[m.place for m in marks],
        y=[m.top1 for m in marks],
        customdata=_facts(marks),
        mode="markers",
        name=f"{marks[0].title}, not compared",
        showlegend=False,
        marker={"symbol": f"{style.symbol}-open", "size": 9, "color": style.color, "opacity": 0.7},
        hovertemplate=_hover(marks[0], cost).replace("<extra>", "<br>click to compare it<extra>"),
    )


def _rings(figure: go.Figure, marks: Sequence[Mark], dark: bool) -> None:
    ring = {"symbol": "circle-open", "size": 22, "color": theme.ink(dark), "line": {"width": 1.6}}
    figure.add_scatter(
        x=[m.place for m in marks],
        y=[m.top1 for m in marks],
        mode="markers",
        name="compared",
        marker=ring,
        hoverinfo="skip",
    )


def _bars(marks: list[Mark]) -> dict:
    """The 95 % intervals, which are longer on one side."""
    above, below = [m.high - m.top1 for m in marks], [m.top1 - m.low for m in marks]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below}


def _legend(figure: go.Figure, mark: Mark) -> None:
    """The method's entry in full colour: that of the marks would be as faint as their first."""
    style = theme.style(mark.method)
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        name=mark.title,
        legendgroup=mark.method,
        marker={"symbol": style.symbol, "size": 12, "color": style.color},
    )


def _stars(figure: go.Figure, info: AccuracyVsSize, dark: bool) -> None:
    figure.add_scatter(
        x=[x for x, _ in info.floats],
        y=[y for _, y in info.floats],
        mode="markers",
        marker={"symbol": "star", "size": 14, "color": theme.ink(dark)},
        name="float model",
        hovertemplate="<b>float model</b><br>%{y:.1f} % at %{x:.3g} MB<extra></extra>",
    )


def _ticks(info: AccuracyVsSize) -> dict:
    """Round numbers (1, 2, 5 times a power of ten) that cover the points with some room."""
    values = [m.place for m in (*info.marks, *info.others)] + [x for x, _ in info.floats]
    low, high = min(values), max(values)
    steps = [a * 10.0**e for e in range(-6, 8) for a in (1, 2, 5)]
    below = [s for s in steps if s <= low * 0.95]
    above = [s for s in steps if s >= high * 1.25]
    shown = [s for s in steps if below[-1] <= s <= above[0]]
    if len(shown) > 9:
        shown = [s for s in shown if f"{s:e}".startswith("1")]
    return {"tickvals": shown, "ticktext": [f"{s:g}" for s in shown]}


def alt(info: AccuracyVsSize) -> str:
    """The figure in words, with its numbers."""
    parts = [
        f"{m.title} {m.bits}: {m.top1:.1f} % ({m.low:.1f} to {m.high:.1f}) "
        f"at {_amount(info.cost, m.cost)}"
        for m in info.marks
    ]
    return f"Top-1 accuracy against {COSTS[info.cost]} of {len(parts)} runs. " + ". ".join(parts)
