"""How often each integer code is used: the tensor as it would be stored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from qlib.plots.distributions import tensor
from qlib.plots.distributions.tensor import Run, Side
from qlib.plots.shared import theme
from qlib.plots.shared.values import number, percent

MOST_BARS = 80  # more codes are drawn without gaps between the bars
MOST = 0.9  # the share that the busiest codes are counted up to


@dataclass(frozen=True)
class CodeCounts:
    """Data of the figure: how many values use each integer code, for one or more runs.

    The first of ``sides`` is drawn as bars, the others as marks over them.
    """

    sides: tuple[Side, ...]
    log: bool

    @property
    def main(self) -> Side:
        """The run that is drawn as bars."""
        return self.sides[0]

    @property
    def used(self) -> int:
        """How many codes at least one value has."""
        return int((self.main.landed > 0).sum())

    @property
    def busy(self) -> int:
        """The fewest codes that together hold `MOST` of the values."""
        falling = np.sort(self.main.landed)[::-1].cumsum()
        return int(np.searchsorted(falling, MOST * falling[-1]) + 1)


def info(runs: Sequence[Run], *, log: bool = True) -> CodeCounts:
    """Data of the figure: code counts of one tensor; the first run is the one shown."""
    sides = tuple(tensor.side(run) for run in runs if tensor.has_grid(run.hist))
    return CodeCounts(sides, log)


def headline(info: CodeCounts) -> str:
    """The take-away: how much of the grid is put to use."""
    total = len(info.main.landed)
    used = f"all {total}" if info.used == total else f"{info.used} of {total}"
    held = f"{info.busy} of them hold" if info.busy > 1 else "one of them holds"
    return f"{used.capitalize()} codes are used; {held} 90 % of the values"


def figure(info: CodeCounts, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw a bar for each integer code.

    Bars over the codes; with one shared grid the ticks name the values that codes stand for.
    """
    figure = go.Figure()
    main, hist = info.main, info.main.hist
    codes = np.arange(hist.qmin, hist.qmax + 1)
    colors = tensor.colors(info.sides, dark)
    figure.add_bar(
        x=codes,
        y=main.landed,
        marker={"color": colors[0], "line": {"width": 0}},
        name=main.title,
        customdata=_facts(main),
        hovertemplate=_hover(main),
    )
    for side in info.sides[1:]:
        style = theme.style(side.method)
        figure.add_scatter(
            x=np.arange(side.hist.qmin, side.hist.qmax + 1),
            y=tensor.marked(side.landed, info.log),
            mode="markers",
            marker={"color": style.color, "symbol": style.symbol, "size": 10}
            | {"line": {"width": 1.5, "color": theme.paper(dark)}},
            name=side.title,
            customdata=_facts(side),
            hovertemplate=_hover(side),
        )
    figure.update_layout(
        xaxis={"title": _axis_title(main), **_ticks(main, codes)},
        yaxis=tensor.count_axis(tensor.most(info.sides, "landed"), info.log),
        bargap=0.12 if len(codes) < MOST_BARS else 0,
        showlegend=len(info.sides) > 1,
        legend=theme.LEGEND,
    )
    framed = theme.frame(figure, title=headline(info), dark=dark, large=large, width=78)
    return theme.raised(framed, 26 if info.sides[1:] else 0)


def _facts(side: Side) -> np.ndarray:
    share = side.landed / max(1, side.landed.sum()) * 100
    return np.stack([side.hist.levels, share], 1)


def _hover(side: Side) -> str:
    stands = "about " if side.grids > 1 else ""
    return (
        f"<b>{side.title}: code %{{x}}</b><br>stands for {stands}%{{customdata[0]:.4g}}<br>"
        "%{y:,.0f} values (%{customdata[1]:.2f} %)<extra></extra>"
    )


def _axis_title(side: Side) -> str:
    if side.shared:
        return f"integer code of the {tensor.name_of(side.hist)}; below it, the value it stands for"
    return f"integer code of the {tensor.name_of(side.hist)} ({side.grids} grids)"


def _ticks(side: Side, codes: np.ndarray) -> dict:
    """At most nine codes, with their values where all of them share one grid."""
    every = max(1, -(-len(codes) // 9))
    shown = codes[::every]
    texts = [number(float(c), 4) for c in shown]
    if side.shared:
        values = side.hist.levels[::every]
        texts = [f"{t}<br>{number(float(v), 2)}" for t, v in zip(texts, values, strict=True)]
    return {"tickvals": shown.tolist(), "ticktext": texts}


def alt(info: CodeCounts) -> str:
    """The figure in words, with its numbers."""
    main = info.main
    top = int(main.landed.argmax())
    share = main.landed[top] / max(1, main.landed.sum())
    return (
        f"Integer codes of the {tensor.name_of(main.hist)}, {main.title}. {headline(info)}. "
        f"The most frequent is {main.hist.qmin + top} with {percent(share)} of the values."
    )
