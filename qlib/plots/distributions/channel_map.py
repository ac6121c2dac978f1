"""The channels of a weight as rows: where each channel's values lie, brighter where they crowd."""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from qlib.plots.distributions import tensor
from qlib.plots.distributions.tensor import Run
from qlib.plots.shared import theme
from qlib.plots.shared.values import number

ROWS = 24  # with fewer channels every row is named


@dataclass(frozen=True)
class ChannelMap:
    """Data of the figure: counts of values for each channel of a weight.

    Counts (C, bins) of the channels ``index`` (C,), on ``edges`` (bins + 1).

    ``span`` (C,): from the lowest to the highest value of a channel, as far as bins tell it.
    """

    run: Run
    stage: str
    index: np.ndarray
    edges: np.ndarray
    counts: np.ndarray
    span: np.ndarray


def info(run: Run, *, stage: str = "float") -> ChannelMap:
    """Data of the figure: channels before (``float``) or after rounding (``rounded``)."""
    channels = tensor.channels_of(run.hist)
    counts = np.asarray(getattr(channels, stage), dtype=np.float64)
    edges = np.asarray(channels.edges, dtype=np.float64)
    filled = np.asarray(channels.float) > 0
    first, last = filled.argmax(1), filled.shape[1] - filled[:, ::-1].argmax(1)
    span = np.where(filled.any(1), edges[last] - edges[first], 0.0)
    return ChannelMap(run, stage, np.asarray(channels.index), edges, counts, span)


def headline(info: ChannelMap) -> str:
    """The take-away: how unlike the channels are."""
    usual, widest = float(np.median(info.span)), float(info.span.max())
    channel = int(info.index[info.span.argmax()])
    if usual <= 0 or widest < 1.25 * usual:
        return f"All {len(info.index)} channels spread about equally far"
    return f"Channel {channel} spreads {widest / usual:.1f} times as far as the median channel"


def figure(info: ChannelMap, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw a heat map of channel × value: colour is the logarithm of the count, empty is blank."""
    shown = np.where(info.counts > 0, np.log10(np.maximum(info.counts, 1)), np.nan)
    middle = (info.edges[1:] + info.edges[:-1]) / 2
    rows = np.arange(len(info.index))
    figure = go.Figure()
    figure.add_heatmap(
        x=middle,
        y=rows,
        z=shown.astype(np.float32),
        customdata=np.repeat(info.index[:, None], len(middle), 1),
        text=info.counts.astype(np.int64),
        colorscale="Cividis",
        zmin=0,
        zmax=max(1.0, float(np.nanmax(shown, initial=0.0))),
        colorbar=_bar(float(np.nanmax(shown, initial=1.0)), dark),
        hovertemplate=(
            "<b>channel %{customdata}</b><br>value near %{x:.4g}: %{text:,} weights<extra></extra>"
        ),
        hoverongaps=False,
    )
    figure.update_layout(
        xaxis={"title": f"value of the {tensor.name_of(info.run.hist)}", "showgrid": False},
        yaxis={"title": "output channel", "autorange": "reversed", "showgrid": False}
        | _ticks(info.index),
        hovermode="closest",
    )
    return theme.frame(figure, title=headline(info), dark=dark, large=large, width=78)


def _ticks(index: np.ndarray) -> dict:
    every = max(1, -(-len(index) // ROWS * 2)) if len(index) > ROWS else 2
    places = np.arange(0, len(index), every)
    return {"tickvals": places.tolist(), "ticktext": [str(int(index[p])) for p in places]}


def _bar(top: float, dark: bool) -> dict:
    powers = range(0, max(1, int(top)) + 1)
    small = {"size": theme.SMALL, "color": theme.faint(dark)}
    return {
        "title": {"text": "weights<br>per bin", "font": small},
        "tickvals": list(powers),
        "ticktext": [f"{10**p:,}" for p in powers],
        "tickfont": small,
        "thickness": 12,
        "outlinewidth": 0,
    }


def alt(info: ChannelMap) -> str:
    """The figure in words, with its numbers."""
    stage = "before rounding" if info.stage == "float" else "after rounding"
    return (
        f"{tensor.name_of(info.run.hist).capitalize()} {stage}, {len(info.index)} channels as "
        f"rows. {headline(info)}. Spans from {number(float(info.span.min()))} to "
        f"{number(float(info.span.max()))}."
    )
