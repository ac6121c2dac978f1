"""One tensor before and after: its values, the levels of its grid, and the error at each value."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from qlib.plots.distributions import _error_panel, _grid_marks, tensor
from qlib.plots.distributions.tensor import Run, Side
from qlib.plots.shared import theme, untyped
from qlib.plots.shared.values import ValueAxis, bend_of, number, percent

UPPER, LOWER = (0.45, 1.0), (0.0, 0.3)  # of the height: counts above, error below
MANY = 80  # levels from which on they are drawn thinner


@dataclass(frozen=True)
class TensorHistogram:
    """Data of the figure: a tensor's values before and after rounding, for one or more runs.

    The first of ``sides`` is the run shown; the others are laid over it.

    ``stage``: ``float`` draws the values before rounding, ``rounded`` what each level got.
    """

    sides: tuple[Side, ...]
    stage: str
    log: bool
    axis: ValueAxis

    @property
    def main(self) -> Side:
        """The run that is shown; the others are laid over it."""
        return self.sides[0]

    @property
    def errors(self) -> bool:
        """Whether there is an error to draw: not where the tensor stayed in float."""
        return bool(np.isfinite(self.main.rmse).any())

    @property
    def reach(self) -> tuple[float, float]:
        """The range of values on the axis: all runs' bins and a little room beside them."""
        low = min(float(s.edges[0]) for s in self.sides)
        high = max(float(s.edges[-1]) for s in self.sides)
        room = 0.015 * (high - low)
        return low - room, high + room


def info(
    runs: Sequence[Run],
    *,
    stage: str = "float",
    bins: int = 256,
    log: bool = True,
    symlog: bool = False,
) -> TensorHistogram:
    """Data of the figure: one tensor in one or more runs; the first is the one shown."""
    sides = tuple(tensor.side(run, bins) for run in runs)
    bulk = sides[0].hist.percentiles
    bend = bend_of([max(abs(bulk[3]), abs(bulk[5]))]) if symlog else 0.0
    return TensorHistogram(sides, stage, log, ValueAxis(bend))


def headline(info: TensorHistogram) -> str:
    """The take-away: the grid, and who makes use of it."""
    main, hist = info.main, info.main.hist
    if hist.tensor == "output":
        share = tensor.rmse(hist) / max(tensor.spread(hist), 1e-30)
        return f"The quantized network is off by {percent(share)} of this output's spread"
    if tensor.kept_float(hist):
        return "Kept in float: no grid, nothing is rounded"
    lost = f"{percent(hist.clipped)} clipped" if hist.clipped > 0 else "nothing clipped"
    levels = hist.qmax - hist.qmin + 1
    if main.grids > 1:
        return f"{main.grids} channels, each with its own {levels} levels; {lost}"
    bulk = tensor.bulk_levels(hist)
    if bulk <= 0.6 * levels:
        return f"Only {bulk} of {levels} levels serve 99.8 % of the values; {lost}"
    return f"{levels} levels, {number(hist.scale)} apart; {lost}"


def figure(info: TensorHistogram, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw counts above and the error of each bin below, on one axis of values."""
    figure, main, reach = go.Figure(), info.main, info.reach
    colors = tensor.colors(info.sides, dark)
    counts = tensor.count_axis(_top(info), info.log)
    _values(figure, info, dark)
    if info.stage == "rounded":
        for side, color in zip(info.sides, colors, strict=True):
            _rounded(figure, info, side, color)
    elif main.shared:
        _comb(figure, info, counts["range"][1], tensor.accent(dark))
    legend = len(untyped.traces(figure)) > 1
    if info.errors:
        _error_panel.draw(figure, info.sides, info.axis, colors, LOWER)
    ground = UPPER[0] if info.errors else 0.0
    marks = {"one_grid": main.shared, "dark": dark}
    figure.update_layout(
        xaxis={
            "title": f"value of the {tensor.name_of(main.hist)}",
            "range": info.axis.place(reach).tolist(),
            "anchor": "y2" if info.errors else "y",
            "title_standoff": 22 if not info.errors else 6,
            **info.axis.ticks(*reach),
        },
        yaxis=counts | {"domain": (ground, 1)},
        shapes=_grid_marks.shapes(main.hist, info.axis, reach, **marks),
        annotations=_grid_marks.notes(main.hist, info.axis, reach, ground=ground, **marks),
        showlegend=legend,
        legend=theme.LEGEND,
        hovermode="closest",
    )
    framed = theme.frame(figure, title=headline(info), dark=dark, large=large, width=78)
    room = {"t": untyped.layout(framed).margin.t + 26 * legend, "r": 36}
    return framed.update_layout(margin=room)


def _top(info: TensorHistogram) -> float:
    """The largest count that is drawn."""
    tops = [info.main.float.max(initial=0)]
    if info.stage == "rounded":
        tops += [(s.landed if s.shared else s.rounded).max(initial=0) for s in info.sides]
    return float(max(tops))


def _values(figure: go.Figure, info: TensorHistogram, dark: bool) -> None:
    """Float values as a filled staircase, quieter where the rounded ones are shown."""
    main, ink, alone = info.main, theme.ink(dark), info.stage == "float"
    x, y = tensor.stairs(main.edges, main.float)
    share = y / max(1.0, main.float.sum()) * 100
    figure.add_scatter(
        x=info.axis.place(x),
        y=tensor.floored(y, info.log),
        mode="lines",
        line={"shape": "hv", "color": theme.rgba(ink, 0.75), "width": 1.6 if alone else 0.8},
        fill="tozeroy",
        fillcolor=theme.rgba(ink, 0.22 if alone else 0.12),
        name="float values",
        customdata=np.stack([x, np.append(x[1:], x[-1]), y, share], 1),
        hovertemplate=(
            "<b>float values</b><br>%{customdata[0]:.4g} to %{customdata[1]:.4g}<br>"
            "%{customdata[2]:,.0f} values (%{customdata[3]:.2f} %)<extra></extra>"
        ),
    )


def _comb(figure: go.Figure, info: TensorHistogram, top: float, color: str) -> None:
    """The levels as short teeth on the ground; ``top`` ends the count axis."""
    levels = info.main.hist.levels
    tooth = 10 ** (0.13 * top) if info.log else 0.07 * top
    x, y = tensor.stems(levels, np.full(len(levels), tooth), _ground(info))
    figure.add_scatter(
        x=info.axis.place(x),
        y=y,
        mode="lines",
        line={"color": color, "width": 2.4 if len(levels) < MANY else 1},
        name="levels of the grid" if len(info.sides) == 1 else f"levels, {info.main.title}",
        hoverinfo="skip",
    )


def _ground(info: TensorHistogram) -> float:
    return tensor.GROUND if info.log else 0.0


def _rounded(figure: go.Figure, info: TensorHistogram, side: Side, color: str) -> None:
    """What each level got: stems and marks; a staircase where the levels of channels differ."""
    if side.shared:
        if side is info.main:
            _stems(figure, info, color)
        _landed(figure, info, side, color)
    elif not tensor.kept_float(side.hist):
        x, y = tensor.stairs(side.edges, side.rounded)
        figure.add_scatter(
            x=info.axis.place(x),
            y=tensor.floored(y, info.log),
            mode="lines",
            line={"shape": "hv", "color": color, "width": 1.6} | tensor.dash(info.sides, side),
            name=_said(info, side),
            customdata=np.stack([x, np.append(x[1:], x[-1]), y], 1),
            hovertemplate=(
                f"<b>{_said(info, side)}</b><br>%{{customdata[0]:.4g}} to %{{customdata[1]:.4g}}"
                "<br>%{customdata[2]:,.0f} values<extra></extra>"
            ),
        )


def _said(info: TensorHistogram, side: Side) -> str:
    if len(info.sides) > 1:
        return side.title
    return "quantized network" if side.hist.tensor == "output" else "after rounding"


def _stems(figure: go.Figure, info: TensorHistogram, color: str) -> None:
    side = info.main
    tops = tensor.floored(side.landed, info.log)
    x, y = tensor.stems(side.hist.levels, tops, _ground(info))
    figure.add_scatter(
        x=info.axis.place(x),
        y=y,
        mode="lines",
        line={"color": color, "width": 3 if len(side.landed) < MANY else 1.2},
        hoverinfo="skip",
        showlegend=False,
    )


def _landed(figure: go.Figure, info: TensorHistogram, side: Side, color: str) -> None:
    """One mark for each level at the number of values that it got."""
    codes = np.arange(side.hist.qmin, side.hist.qmax + 1)
    share = side.landed / max(1, side.landed.sum()) * 100
    symbol = theme.style(side.method).symbol if len(info.sides) > 1 else "circle"
    figure.add_scatter(
        x=info.axis.place(side.hist.levels),
        y=tensor.marked(side.landed, info.log),
        mode="markers",
        marker={"symbol": symbol, "size": 8 if len(codes) < MANY else 4, "color": color},
        name=_said(info, side),
        customdata=np.stack([codes, side.hist.levels, side.landed, share], 1),
        hovertemplate=(
            f"<b>{side.title}: level %{{customdata[1]:.4g}}</b> (code %{{customdata[0]:.0f}})<br>"
            "%{customdata[2]:,.0f} values (%{customdata[3]:.2f} %)<extra></extra>"
        ),
    )


def alt(info: TensorHistogram) -> str:
    """The figure in words, with its numbers."""
    main, hist = info.main, info.main.hist
    p = [number(float(v)) for v in hist.percentiles]
    parts = [
        f"{tensor.name_of(hist).capitalize()}, {main.title}: {hist.count:,} values from {p[0]} "
        f"to {p[8]}, 99.8 % of them between {p[1]} and {p[7]}",
        headline(info),
    ]
    if tensor.has_grid(hist):
        parts.append(
            f"Grid from {number(hist.clip_lo)} to {number(hist.clip_hi)}; error "
            f"{tensor.rmse(hist) / hist.scale:.2f} steps where 0.29 is even rounding"
        )
    if len(info.sides) > 1:
        parts.append("Laid over it: " + ", ".join(s.title for s in info.sides[1:]))
    return ". ".join(parts) + "."
