"""Per layer an arrow from nearest to learned rounding: weight error across, output error up."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import plotly.graph_objects as go

from qlib.plots.reconstruction import learned
from qlib.plots.reconstruction.learned import Gain, framed, times
from qlib.plots.shared import theme
from qlib.plots.shared.places import blocks, prefix

TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100)
TOLD = (
    "<b>%{customdata[0]}</b>, %{customdata[4]}<br>weight error %{customdata[1]}, "
    "output error %{customdata[2]} of nearest<br>%{customdata[3]}<extra></extra>"
)
NAMED = 3  # layers whose names stand beside their arrows: those that gained most


@dataclass(frozen=True)
class Arrow(Gain):
    """A layer whose both ratios are known."""

    weight: float
    output: float


@dataclass(frozen=True)
class Group:
    """The arrows of one method."""

    method: str
    title: str
    gains: tuple[Arrow, ...]


@dataclass(frozen=True)
class ErrorArrows:
    """Data of the figure: each layer's errors before and after learning.

    Groups of arrows, that of the method asked for first; ``layer`` is the chosen one.

    ``against``: what output errors are divided by, in words.
    """

    groups: tuple[Group, ...]
    layer: str = ""
    against: str = "this layer at nearest"

    @property
    def main(self) -> tuple[Arrow, ...]:
        """The arrows of the run that is shown."""
        return self.groups[0].gains if self.groups else ()


def info(
    rows: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    nearest: Sequence[Mapping[str, Any]] | None = None,
    data: str = "calib",
    titles: Mapping[str, str] | None = None,
    layer: str = "",
) -> ErrorArrows:
    """Data of the figure, from each method's table of layers.

    Arrows of the methods of ``rows`` (method → rows of its ``layers.csv``), in that order.

    ``nearest`` and ``data``: what output errors are divided by, as in `learned.gains`.
    """
    groups = []
    for method, found in rows.items():
        arrows = tuple(
            Arrow(**vars(g)) for g in learned.gains(found, nearest, data) if g.weight and g.output
        )
        if arrows:
            groups.append(Group(method, (titles or {}).get(method, method), arrows))
    against = "this layer at nearest" if nearest is None else "the nearest network"
    return ErrorArrows(tuple(groups), layer, against)


def headline(info: ErrorArrows) -> str:
    """The take-away: in how many layers a worse weight error bought a better output."""
    if not info.main:
        return "No layer was learned: every arrow would have no length"
    traded = sum(g.traded for g in info.main)
    if not traded:
        return "In no layer did moving weights bring the output closer"
    return f"Weights worse, output better: {traded} of {len(info.main)} layers"


def figure(info: ErrorArrows, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw an arrow per layer from nearest to learned rounding.

    Both axes logarithmic, 1 = nearest rounding; arrows start at (1, 1).
    """
    figure = go.Figure()
    for place, group in reversed(list(enumerate(info.groups))):
        _arrows(figure, group, info.layer, dark, main=place == 0)
    spans = _spans(info)
    _rules(figure, info, dark)
    _names(figure, info, dark)
    axis = {"type": "log", "tickvals": TICKS, "ticktext": [f"{t:g}×" for t in TICKS]}
    figure.update_xaxes(title="weight error against nearest, log", range=spans[0], **axis)
    figure.update_yaxes(title=f"output error against {info.against}, log", range=spans[1], **axis)
    several = len(info.groups) > 1
    return framed(figure, headline(info), several=several, dark=dark, large=large)


def _spans(info: ErrorArrows) -> tuple[list[float], list[float]]:
    """Axis ranges (decimal logarithms) that hold all arrows, (1, 1) and words above and below."""
    points = [g for group in info.groups for g in group.gains]
    xs = [math.log10(g.weight) for g in points] or [0.0]
    ys = [math.log10(g.output) for g in points] or [0.0]
    right, top = max(0.15, *xs), max(0.0, *ys)
    left, bottom = min(0.0, *xs), min(-0.15, *ys)
    wide, tall = right - left, top - bottom
    return (
        [left - 0.06 * wide, right + 0.16 * wide],
        [bottom - 0.2 * tall, top + 0.14 * tall],
    )


def _arrows(figure: go.Figure, group: Group, layer: str, dark: bool, *, main: bool) -> None:
    """All arrows of a method as one broken line; only the tips can be seen and clicked as marks."""
    style = theme.style(group.method)
    chosen = [g.layer == layer for g in group.gains]
    figure.add_scatter(
        x=_broken(1.0, [g.weight for g in group.gains]),
        y=_broken(1.0, [g.output for g in group.gains]),
        customdata=_broken([None] * 5, [_said(g, group) for g in group.gains], [None] * 5),
        mode="lines+markers",
        name=group.title,
        showlegend=False,
        line={"color": theme.rgba(style.color, 0.45 if main else 0.25), "width": 1.4,
              "dash": "solid" if main else style.dash},
        marker={
            "symbol": "arrow",
            "angleref": "previous",
            "opacity": _broken(0, [1] * len(chosen), 0),
            "size": _broken(0, [19 if c else 12 if main else 9 for c in chosen], 0),
            "color": style.color,
            "line": {
                "width": _broken(0, [2 if c else 0 for c in chosen], 0),
                "color": theme.ink(dark),
            },
        },
        hovertemplate=_broken("<extra></extra>", [TOLD] * len(chosen), "<extra></extra>"),
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 1}},
    )  # fmt: skip
    figure.add_scatter(  # its entry in the legend: that of the arrows would be as faint as they are
        x=[None],
        y=[None],
        mode="lines",
        name=group.title,
        line={"color": style.color, "width": 2, "dash": "solid" if main else style.dash},
    )


def _broken(start: Any, ends: list, gap: Any = None) -> list:
    """start, end, gap, start, end, gap, ...: the points of separate arrows in one line."""
    return [x for end in ends for x in (start, end, gap)]


def _said(gain: Arrow, group: Group) -> list:
    moved = "" if gain.flipped is None else f"{learned.percent(gain.flipped)} of its weights moved"
    return [gain.layer, times(gain.weight), times(gain.output), moved, group.title]


def _rules(figure: go.Figure, info: ErrorArrows, dark: bool) -> None:
    """Lines at 1, where nearest rounding is, and what lies on either side in words."""
    line = {"color": theme.faint(dark), "width": 1.2, "dash": "dot"}
    figure.add_hline(y=1, line=line)
    figure.add_vline(x=1, line=line)
    figure.add_scatter(
        x=[1],
        y=[1],
        mode="markers",
        marker={"symbol": "circle", "size": 10, "color": theme.GREY},
        name="nearest rounding",
        hovertemplate="nearest rounding: both errors are 1×<extra></extra>",
        showlegend=False,
    )
    said = {"xanchor": "right", "xref": "paper", "x": 0.995, "yref": "paper", "showarrow": False}
    font = {"size": theme.SMALL, "color": theme.faint(dark)}
    figure.add_annotation(
        text="↓ weights worse, <b>output better</b>", y=0.01, yanchor="bottom", font=font, **said
    )
    if any(g.output > 1.005 for group in info.groups for g in group.gains):
        figure.add_annotation(
            text="↑ weights worse, output worse", y=0.99, yanchor="top", font=font, **said
        )


def _names(figure: go.Figure, info: ErrorArrows, dark: bool) -> None:
    """The chosen layer, and the layers that gained most, by name."""
    best = sorted((g for g in info.main if g.traded), key=lambda g: g.output)[:NAMED]
    chosen = [g for g in info.main if g.layer == info.layer and g not in best]
    head = prefix(blocks([g.unit for g in info.main]))
    taken: list[tuple[float, float]] = []
    for gain in [*chosen, *best]:
        at = (math.log10(gain.weight), math.log10(gain.output))
        if any(abs(at[0] - x) < 0.1 and abs(at[1] - y) < 0.05 for x, y in taken):
            continue
        taken.append(at)
        text = gain.layer.removeprefix(head)
        figure.add_annotation(
            x=at[0],
            y=at[1],
            text=f"<b>{text}</b>" if gain.layer == info.layer else text,
            showarrow=False,
            yshift=-14 if gain.output <= 1 else 14,
            font={"size": theme.SMALL, "color": theme.ink(dark)},
        )


def alt(info: ErrorArrows) -> str:
    """The figure in words, with its numbers."""
    if not info.main:
        return "Weight error against output error: nothing was learned, so nothing is drawn."
    weight, output = (
        median(side) for side in zip(*((g.weight, g.output) for g in info.main), strict=True)
    )
    text = (
        f"Weight error against output error of {len(info.main)} layers; {info.against} is 1. "
        f"{headline(info)}. In the median layer the weight error is {times(weight)} and the "
        f"output error {times(output)} that of nearest rounding."
    )
    chosen = next((g for g in info.main if g.layer == info.layer), None)
    if chosen is None:
        return text
    return f"{text} {chosen.layer}: {times(chosen.weight)} and {times(chosen.output)}."
