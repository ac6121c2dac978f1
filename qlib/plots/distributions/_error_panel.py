"""The error at each value of a tensor, as a panel of its own below the counts."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from qlib.plots.distributions import tensor
from qlib.plots.distributions.tensor import Side
from qlib.plots.shared.values import ValueAxis

TEETH, WALL = 0.62, 1.3  # steps that the axis shows at least and at most


def draw(
    figure: go.Figure,
    sides: Sequence[Side],
    axis: ValueAxis,
    colors: Sequence[str],
    domain: tuple[float, float],
) -> None:
    """Root mean squared error over the value: teeth inside the range, a wall outside.

    Adds the axis ``y2`` over ``domain`` of the height; the first of ``sides`` is the run shown.
    """
    stepped = tensor.has_grid(sides[0].hist)
    unit = "steps" if stepped else "(unit of the values)"
    for side, color in zip(sides, colors, strict=True):
        middle = (side.edges[1:] + side.edges[:-1]) / 2
        figure.add_scatter(
            x=axis.place(middle),
            y=side.rmse,
            yaxis="y2",
            mode="lines",
            line={"color": color, "width": 1.6} | tensor.dash(sides, side),
            connectgaps=False,
            showlegend=False,
            customdata=middle,
            hovertemplate=(
                f"<b>error, {side.title}</b><br>values near %{{customdata:.4g}} are off by "
                f"%{{y:.3g}} {unit} (root mean square)<extra></extra>"
            ),
        )
        _alone(figure, side, axis, color)
    top = 1.1 * max(float(np.nanmax(s.rmse, initial=0.0)) for s in sides) or 1.0
    shown = min(max(top, TEETH), WALL) if stepped else top
    if top > shown:
        _beyond(figure, sides, axis, colors, shown)
    figure.update_layout(
        yaxis2={
            "title": "error (steps)" if stepped else "error (RMS)",
            "domain": domain,
            "anchor": "x",
            "nticks": 4,
            "range": [0, shown],
        }
    )


def _alone(figure: go.Figure, side: Side, axis: ValueAxis, color: str) -> None:
    """Bins without neighbours as dots: a line does not show them."""
    known = np.pad(np.isfinite(side.rmse), 1)
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    middle = ((side.edges[1:] + side.edges[:-1]) / 2)[alone]
    figure.add_scatter(
        x=axis.place(middle),
        y=side.rmse[alone],
        yaxis="y2",
        mode="markers",
        marker={"color": color, "size": 3.5},
        showlegend=False,
        hoverinfo="skip",
    )


def _beyond(
    figure: go.Figure, sides: Sequence[Side], axis: ValueAxis, colors: Sequence[str], top: float
) -> None:
    """Errors above the end of their axis, as arrows at its upper edge."""
    for side, color in zip(sides, colors, strict=True):
        far = np.nan_to_num(side.rmse) > top
        middle = ((side.edges[1:] + side.edges[:-1]) / 2)[far]
        figure.add_scatter(
            x=axis.place(middle),
            y=np.full(len(middle), 0.94 * top),
            yaxis="y2",
            mode="markers",
            marker={"symbol": "triangle-up", "size": 7, "color": color},
            showlegend=False,
            customdata=np.stack([middle, side.rmse[far]], 1),
            hovertemplate=(
                f"<b>error, {side.title}</b><br>values near %{{customdata[0]:.4g}} are off by "
                "%{customdata[1]:.3g} steps<extra></extra>"
            ),
        )
