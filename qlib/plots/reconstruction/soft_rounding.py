"""How soft rounding values collapse to 0 and 1: a heat map over steps, and one step's histogram."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from qlib.plots.reconstruction.learned import number, percent
from qlib.plots.reconstruction.unit_fits import fitted_as
from qlib.plots.shared import theme

LEAST = 0.001  # the smallest share that has a colour of its own
HEIGHT = 270
SPLIT = 0.66  # where the heat map ends and the histogram begins


@dataclass(frozen=True)
class Snapshot:
    """How the rounding values h of a unit are distributed at one step.

    Shares (sum 1) of the unit's weights in even bins of h, from 0 = down to 1 = up.

    ``flipped``: share of them that would go elsewhere than to the nearest level, or None.
    """

    step: int
    shares: tuple[float, ...]
    flipped: float | None = None

    @property
    def decided(self) -> float:
        """Share of the weights in the two outer bins."""
        return self.shares[0] + self.shares[-1]


@dataclass(frozen=True)
class SoftRounding:
    """Data of the figure: how the rounding values of a unit develop over its fit.

    All snapshots of one unit's fit; ``at`` is the place of the chosen one.
    """

    unit: str
    method: str
    snapshots: tuple[Snapshot, ...]
    at: int = -1

    @property
    def chosen(self) -> Snapshot:
        """The snapshot that is shown as bars."""
        return self.snapshots[self.at]

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps at which snapshots were taken."""
        return tuple(s.step for s in self.snapshots)


def info(
    events: Iterable[Mapping[str, Any]],
    layer: str,
    unit: str,
    *,
    method: str = "",
    step: int | None = None,
) -> SoftRounding:
    """Data of the figure, from a run's events.

    Snapshots of the fit of a layer or of its block; the one nearest to ``step``, else the last.

    Of a unit fitted in several rounds the first round with snapshots is taken.
    """
    reports = [e for e in events if e.get("phase") == "reconstruct" and _counts(e.get("soft"))]
    name = fitted_as(layer, unit, (e["unit"] for e in reports))
    snapshots: list[Snapshot] = []
    for event in (e for e in reports if e["unit"] == name):
        now = int(event.get("step") or 0)
        if snapshots and now <= snapshots[-1].step:
            break
        counts = _counts(event["soft"])
        total = sum(counts)
        shares = tuple(c / total for c in counts)
        snapshots.append(Snapshot(now, shares, number(event.get("flipped"))))
    at = len(snapshots) - 1
    if snapshots and step is not None:
        at = min(range(len(snapshots)), key=lambda i: abs(snapshots[i].step - step))
    return SoftRounding(name, method, tuple(snapshots), at)


def _counts(value: Any) -> Sequence[float]:
    """The counts of a snapshot; empty when there are none, or they are not counts."""
    if not isinstance(value, (list, tuple)) or len(value) < 2:
        return ()
    numbers = [x for x in map(number, value) if x is not None and x >= 0]
    return numbers if len(numbers) == len(value) and sum(numbers) > 0 else ()


def headline(info: SoftRounding) -> str:
    """The take-away: how many weights have chosen a side at the chosen step."""
    if not info.snapshots:
        return "No soft rounding is stored for this unit"
    now = info.chosen
    told = f"Step {now.step:,}: {percent(now.decided)} of weights chose a side"
    return told if now.flipped is None else f"{told}, {percent(now.flipped)} moved"


def figure(info: SoftRounding, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw rounding values over steps as a heat map, and those of one step as a histogram.

    Heat map of step and h, share of weights as colour; beside it the chosen step's bars.
    """
    figure = go.Figure()
    if info.snapshots:
        _map(figure, info, dark)
        _bars(figure, info, dark)
    figure.update_layout(
        xaxis={"title": "step inside the unit", "domain": (0, SPLIT - 0.02), "showgrid": False},
        yaxis={
            "title": "h: 0 = down, 1 = up",
            "range": [0, 1],
            "tickvals": [0, 0.5, 1],
            "showgrid": False,
        },
        xaxis2={
            "title": f"% at step {info.chosen.step:,}" if info.snapshots else "",
            "domain": (SPLIT + 0.04, 1),
            "anchor": "y",
            "rangemode": "tozero",
            "nticks": 4,
        },
        showlegend=False,
        bargap=0.08,
    )
    return theme.frame(
        figure, title=theme.tied(headline(info)), height=HEIGHT, dark=dark, width=58, large=large
    )


def _edges(info: SoftRounding) -> tuple[list[float], list[float]]:
    """Edges of the cells: halfway between snapshots, and of the bins of h."""
    steps = info.steps
    middles = [(a + b) / 2 for a, b in pairwise(steps)]
    first, last = (middles[0] - steps[0], steps[-1] - middles[-1]) if middles else (0.5, 0.5)
    bins = len(info.snapshots[0].shares)
    return [steps[0] - first, *middles, steps[-1] + last], [i / bins for i in range(bins + 1)]


def _map(figure: go.Figure, info: SoftRounding, dark: bool) -> None:
    shares = list(zip(*(s.shares for s in info.snapshots), strict=True))  # bins × steps
    x, y = _edges(info)
    figure.add_heatmap(
        x=x,
        y=y,
        z=[[math.log10(max(v, LEAST)) if v > 0 else None for v in row] for row in shares],
        customdata=[[[100 * v, s] for v, s in zip(row, info.steps, strict=True)] for row in shares],
        colorscale="Cividis",
        zmin=math.log10(LEAST),
        zmax=math.log10(0.6),
        xgap=1,
        hoverongaps=False,
        showscale=False,
        hovertemplate=(
            "step %{customdata[1]}: %{customdata[0]:.2f} % of the weights at h ≈ %{y:.2f}"
            "<extra></extra>"
        ),
    )
    at = info.at
    figure.add_shape(
        type="rect",
        x0=x[at],
        x1=x[at + 1],
        y0=0,
        y1=1,
        line={"color": theme.ink(dark), "width": 2},
    )


def _bars(figure: go.Figure, info: SoftRounding, dark: bool) -> None:
    """The chosen step's shares against the same h axis."""
    shares = info.chosen.shares
    bins = len(shares)
    figure.add_bar(
        orientation="h",
        x=[100 * v for v in shares],
        y=[(i + 0.5) / bins for i in range(bins)],
        xaxis="x2",
        marker={"color": theme.style(info.method).color},
        hovertemplate="h ≈ %{y:.2f}: %{x:.1f} % of the weights<extra></extra>",
        name="chosen step",
    )


def alt(info: SoftRounding) -> str:
    """The figure in words, with its numbers."""
    if not info.snapshots:
        return "Soft rounding over the steps: nothing is stored."
    first, last = info.snapshots[0], info.snapshots[-1]
    return (
        f"Soft rounding values of {info.unit} over the steps. {headline(info)}. At step "
        f"{first.step:,} {percent(first.decided)} lay at 0 or 1, at step {last.step:,} "
        f"{percent(last.decided)}."
    )
