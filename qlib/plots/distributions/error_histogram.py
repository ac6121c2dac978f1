"""What rounding and clipping did to a tensor: how often each error occurs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from qlib.plots.distributions import tensor
from qlib.plots.distributions.tensor import Run, Side
from qlib.plots.shared import theme
from qlib.plots.shared.values import number, percent


@dataclass(frozen=True)
class ErrorHistogram:
    """Data of the figure: how often each rounding error occurs.

    The first of ``sides`` is the run shown. ``edges``: per side, in steps (see `Side.step`).
    """

    sides: tuple[Side, ...]
    edges: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]
    log: bool

    @property
    def main(self) -> Side:
        """The run that is shown; the others are laid over it."""
        return self.sides[0]

    @property
    def stepped(self) -> bool:
        """Whether errors are in steps of a grid; the outputs' are in the unit of the values."""
        return tensor.has_grid(self.main.hist)

    @property
    def within(self) -> float:
        """Share of errors of at most half a step; bins at the border count in part."""
        running = np.concatenate([[0.0], np.cumsum(self.counts[0])])
        low, high = np.interp([-0.5, 0.5], self.edges[0], running)
        return float((high - low) / running[-1]) if running[-1] else 1.0

    @property
    def largest(self) -> float:
        """The size of the largest error, as exactly as the bins allow."""
        filled = np.nonzero(self.counts[0])[0]
        ends = self.edges[0][[filled[0], filled[-1] + 1]] if filled.size else np.zeros(2)
        return float(np.abs(ends).max())


def info(runs: Sequence[Run], *, bins: int = 256, log: bool = True) -> ErrorHistogram:
    """Data of the figure: errors (rounded minus float); runs that left it in float are left out."""
    sides = tuple(tensor.side(run, bins) for run in runs if not tensor.kept_float(run.hist))
    many = [len(s.hist.error) // bins for s in sides]
    edges = tuple(
        np.asarray(s.hist.error_edges, dtype=np.float64)[::m] / s.step
        for s, m in zip(sides, many, strict=True)
    )
    counts = tuple(tensor.fewer(s.hist.error, m) for s, m in zip(sides, many, strict=True))
    return ErrorHistogram(sides, edges, counts, log)


def headline(info: ErrorHistogram) -> str:
    """The take-away: how much stays within half a step."""
    largest = f"the largest is {number(info.largest, 2)}"
    if not info.stepped:
        return f"Errors of the output add up from all layers before; {largest}"
    half = "half a step" if info.main.grids == 1 else "half the median step"
    return f"{percent(info.within)} of the errors are within {half}; {largest} steps"


def figure(info: ErrorHistogram, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw the counts of errors as a staircase.

    Staircase of errors with what even rounding and what a bell curve of that size would give.
    """
    figure = go.Figure()
    _references(figure, info, dark)
    for place, color in enumerate(tensor.colors(info.sides, dark)):
        _staircase(figure, info, place, color)
    unit = "steps of the grid" if info.main.grids == 1 else "median steps"
    figure.update_layout(
        xaxis={
            "title": f"error of the {tensor.name_of(info.main.hist)}, rounded − float"
            + (f" ({unit})" if info.stepped else ""),
            "range": _reach(info),
        },
        yaxis=tensor.count_axis(max(float(c.max(initial=0)) for c in info.counts), info.log),
        shapes=_half_steps(info, dark),
        legend=theme.LEGEND,
        showlegend=True,
        hovermode="closest",
    )
    framed = theme.frame(figure, title=headline(info), dark=dark, large=large, width=78)
    return theme.raised(framed, 26)


def _reach(info: ErrorHistogram) -> list[float]:
    """The errors of all runs, and half a step to each side, with a little room."""
    ends = np.array([e[[0, -1]] for e in info.edges] + [[-0.5, 0.5]] * info.stepped)
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    room = 0.02 * (high - low)
    return [low - room, high + room]


def _staircase(figure: go.Figure, info: ErrorHistogram, place: int, color: str) -> None:
    side, counts = info.sides[place], info.counts[place]
    x, y = tensor.stairs(info.edges[place], counts)
    share = y / max(1.0, counts.sum()) * 100
    main = side is info.main
    unit = " steps" if info.stepped else ""
    figure.add_scatter(
        x=x,
        y=tensor.floored(y, info.log),
        mode="lines",
        line={"shape": "hv", "color": color, "width": 1.8} | tensor.dash(info.sides, side),
        fill="tozeroy" if main else None,
        fillcolor=theme.rgba(color, 0.25),
        name=side.title,
        customdata=np.stack([x, np.append(x[1:], x[-1]), y, share], 1),
        hovertemplate=(
            f"<b>{side.title}</b><br>error %{{customdata[0]:.3g}} to %{{customdata[1]:.3g}}{unit}"
            "<br>%{customdata[2]:,.0f} values (%{customdata[3]:.2f} %)<extra></extra>"
        ),
    )


def _references(figure: go.Figure, info: ErrorHistogram, dark: bool) -> None:
    """Counts that a bell curve of the same size, and errors even over a step, would have."""
    edges, counts = info.edges[0], info.counts[0]
    total, wide = counts.sum(), edges[1] - edges[0]
    middle = (edges[1:] + edges[:-1]) / 2
    sigma = max(tensor.rmse(info.main.hist) / info.main.step, 1e-12)
    x = np.linspace(edges[0], edges[-1], 121)
    bell = total * wide / (sigma * np.sqrt(2 * np.pi)) * np.exp(-((x / sigma) ** 2) / 2)
    bell = np.where(bell < tensor.GROUND / 2, np.nan, bell) if info.log else bell
    faint = theme.faint(dark)
    if info.stepped and middle[0] <= 0 <= middle[-1]:
        flat = total * wide
        figure.add_scatter(
            x=[-0.5, -0.5, 0.5, 0.5],
            y=[tensor.GROUND if info.log else 0, flat, flat, tensor.GROUND if info.log else 0],
            mode="lines",
            line={"color": theme.ink(dark), "width": 1.6, "dash": "dash"},
            name="even over one step",
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=x,
        y=bell,
        mode="lines",
        line={"color": faint, "width": 1.4, "dash": "dot"},
        name="bell curve of that size",
        hoverinfo="skip",
    )


def _half_steps(info: ErrorHistogram, dark: bool) -> list[dict]:
    """What lies beyond half a step is shaded: clipping, or rounding that was learned."""
    if not info.stepped:
        return []
    ends = _reach(info)
    shape = {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "layer": "below", "line_width": 0}
    shape["fillcolor"] = theme.rgba(theme.WRONG, 0.1)
    beyond = ((ends[0], -0.5), (0.5, ends[1]))
    return [shape | {"x0": float(a), "x1": float(b)} for a, b in beyond if b > a]


def alt(info: ErrorHistogram) -> str:
    """The figure in words, with its numbers."""
    unit = "steps" if info.stepped else "(unit of the values)"
    size = tensor.rmse(info.main.hist) / info.main.step
    return (
        f"Errors of the {tensor.name_of(info.main.hist)}, {info.main.title}: {headline(info)}. "
        f"Root mean square {number(size)} {unit}."
    )
