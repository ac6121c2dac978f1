"""Runs as points: accuracy against size, bit-operations or time, with intervals and the front."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from qlib.plots import _theme
from qlib.records import RunRecord

COSTS = {
    "size": "weights (MB)",
    "bops": "bit-operations per image (billion)",
    "time": "time of the whole run (s)",
}


@dataclass(frozen=True)
class Mark:
    """One run: ``low`` to ``high`` is the 95 % interval of ``top1`` in percent."""

    key: str
    method: str
    title: str
    bits: str
    cost: float
    top1: float
    low: float
    high: float
    front: bool


@dataclass(frozen=True)
class AccuracyVsSize:
    """Points by rising cost; ``floats`` are the float models' (cost, top1), where known."""

    cost: str
    marks: tuple[Mark, ...]
    floats: tuple[tuple[float, float], ...]
    fair: bool = True

    @property
    def front(self) -> tuple[Mark, ...]:
        return tuple(m for m in self.marks if m.front)

    @property
    def level(self) -> tuple[Mark, ...]:
        """The most accurate run and those whose intervals reach into its own, best first."""
        best = max(self.marks, key=lambda m: m.top1)
        near = [m for m in self.marks if m.high >= best.low]
        return tuple(sorted(near, key=lambda m: -m.top1))


def info(
    records: Sequence[RunRecord],
    *,
    cost: str = "size",
    titles: Mapping[str, str] | None = None,
    fair: bool = True,
) -> AccuracyVsSize:
    """Numbers of the runs; ``cost`` is a key of `COSTS`, ``titles`` names methods.

    ``fair`` is False when the runs were made under different conditions: then none is ahead.

    A run is on the front when no other run is at least as accurate for the same cost or less.
    """
    rows = sorted(
        ((_cost(r, cost), r) for r in records), key=lambda x: (x[0], -x[1].metrics["top1"])
    )
    marks, best = [], float("-inf")
    for value, record in rows:
        m, spec = record.metrics, record.spec
        marks.append(
            Mark(
                spec.key,
                spec.method,
                (titles or {}).get(spec.method, spec.method),
                f"W{spec.weight_bits}A{spec.act_bits}",
                value,
                m["top1"],
                m["top1_low"],
                m["top1_high"],
                m["top1"] > best,
            )
        )
        best = max(best, m["top1"])
    return AccuracyVsSize(cost, tuple(marks), _floats(records, cost), fair)


def _cost(record: RunRecord, cost: str) -> float:
    if cost == "time":
        return record.seconds["total"]
    return record.metrics["weight_mb" if cost == "size" else "gbops"]


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
    """The take-away: who is ahead, or that the intervals do not tell."""
    best = max(info.marks, key=lambda m: m.top1)
    if len(info.marks) == 1:
        return f"{_label(best)}: {best.top1:.1f} % at {_amount(info.cost, best.cost)}"
    if not info.fair:
        return f"{len(info.marks)} runs under different conditions: not to be ranked"
    level = [m for m in info.level if m is not best]
    if not level:
        return f"{_label(best)} is ahead: its interval lies above all others"
    if len(level) > 1:  # one line at 1280 pixels: the names are in the sentence above the figure
        return f"No clear winner: {len(level) + 1} intervals overlap"
    return f"No clear winner: the interval of {_label(best)} overlaps that of {_label(level[0])}"


def _label(mark: Mark) -> str:
    return f"{mark.title} {mark.bits}"


def _amount(cost: str, value: float) -> str:
    unit = {"size": "MB", "bops": "billion bit-operations", "time": "s"}[cost]
    return f"{value:.3g} {unit}"


def figure(info: AccuracyVsSize, *, dark: bool = False) -> go.Figure:
    """Scatter with interval bars; the front is a stepped line, points behind it are faded."""
    figure = go.Figure()
    front = info.front
    if len(front) > 1:
        figure.add_scatter(
            x=[m.cost for m in front],
            y=[m.top1 for m in front],
            mode="lines",
            line={"shape": "hv", "width": 1.2, "dash": "dot", "color": _theme.faint(dark)},
            hoverinfo="skip",
            name="front",
        )
    # bits are written beside the marks only where they tell runs apart
    labelled: list[Mark] | None = [] if len({m.bits for m in info.marks}) > 1 else None
    for method in dict.fromkeys(m.method for m in sorted(info.marks, key=lambda m: -m.top1)):
        group = [m for m in info.marks if m.method == method]
        _draw(figure, group, info.cost, labelled, dark)
    if info.floats:
        _stars(figure, info, dark)
    figure.update_xaxes(title=COSTS[info.cost] + ", log", type="log", **_ticks(info))
    figure.update_yaxes(title="top-1 accuracy (%)", rangemode="normal")
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        hovermode="closest",
    )
    framed = _theme.frame(figure, title=headline(info), dark=dark)
    return framed.update_layout(margin_t=framed.layout.margin.t + 30)


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
    style = _theme.style(marks[0].method)
    figure.add_scatter(
        x=[m.cost for m in marks],
        y=[m.top1 for m in marks],
        customdata=[[m.key, m.bits, m.low, m.high] for m in marks],
        mode="markers+text",
        text=[""] * len(marks) if labelled is None else _texts(marks, labelled),
        textposition="top right",
        textfont={"size": _theme.SMALL, "color": _theme.faint(dark)},
        name=marks[0].title,
        legendgroup=marks[0].method,
        showlegend=False,
        marker={
            "symbol": style.symbol,
            "size": 13,
            "color": style.color,
            "opacity": [1.0 if m.front else 0.45 for m in marks],
            "line": {"width": 1.5, "color": _theme.paper(dark)},
        },
        error_y=_bars(marks) | {"color": style.color, "thickness": 1.3, "width": 5},
        hovertemplate=(
            f"<b>{marks[0].title} %{{customdata[1]}}</b><br>%{{y:.1f}} % "
            "(95 %: %{customdata[2]:.1f} to %{customdata[3]:.1f})<br>"
            f"{COSTS[cost]}: %{{x:.3g}}<extra></extra>"
        ),
    )
    _legend(figure, marks[0])


def _bars(marks: list[Mark]) -> dict:
    """The 95 % intervals, which are longer on one side."""
    above, below = [m.high - m.top1 for m in marks], [m.top1 - m.low for m in marks]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below}


def _legend(figure: go.Figure, mark: Mark) -> None:
    """The method's entry in full colour: that of the marks would be as faint as their first."""
    style = _theme.style(mark.method)
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
        marker={"symbol": "star", "size": 14, "color": _theme.ink(dark)},
        name="float model",
        hovertemplate="<b>float model</b><br>%{y:.1f} % at %{x:.3g} MB<extra></extra>",
    )


def _ticks(info: AccuracyVsSize) -> dict:
    """Round numbers (1, 2, 5 times a power of ten) that cover the points with some room."""
    values = [m.cost for m in info.marks] + [x for x, _ in info.floats]
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
