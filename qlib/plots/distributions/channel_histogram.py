"""One output channel of a weight before and after rounding: on its own grid, the levels show."""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from qlib.plots.distributions import tensor
from qlib.plots.distributions.tensor import Run
from qlib.plots.shared import theme
from qlib.plots.shared.values import number, percent


@dataclass(frozen=True)
class ChannelHistogram:
    """Data of the figure: counts of one output channel before and after rounding.

    Counts (bins,) of channel ``channel`` on ``edges`` (bins + 1).
    """

    run: Run
    channel: int
    edges: np.ndarray
    float: np.ndarray
    rounded: np.ndarray
    log: bool


def info(run: Run, channel: int, *, log: bool = True) -> ChannelHistogram:
    """Data of the figure: one recorded channel, by its number in the weight."""
    channels = tensor.channels_of(run.hist)
    place = int(np.flatnonzero(channels.index == channel)[0])
    before, after = (
        np.asarray(a[place], dtype=np.float64) for a in (channels.float, channels.rounded)
    )
    return ChannelHistogram(run, channel, np.asarray(channels.edges), before, after, log)


def headline(info: ChannelHistogram) -> str:
    """The take-away: how far this channel reaches."""
    filled = np.flatnonzero(info.float)
    if not filled.size:
        return f"Channel {info.channel} holds no values"
    low, high = info.edges[[filled[0], filled[-1] + 1]]
    share = (high - low) / (info.edges[-1] - info.edges[0])
    return f"Channel {info.channel} spans {percent(share)} of the range of all channels"


def figure(info: ChannelHistogram, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw float values as a staircase, with stems at the bins that rounded values fell into."""
    figure, ink = go.Figure(), theme.ink(dark)
    x, y = tensor.stairs(info.edges, info.float)
    figure.add_scatter(
        x=x,
        y=tensor.floored(y, info.log),
        mode="lines",
        line={"shape": "hv", "color": theme.rgba(ink, 0.75), "width": 1},
        fill="tozeroy",
        fillcolor=theme.rgba(ink, 0.16),
        name="float values",
        customdata=np.stack([x, np.append(x[1:], x[-1]), y], 1),
        hovertemplate="%{customdata[0]:.4g} to %{customdata[1]:.4g}: "
        "%{customdata[2]:,.0f} weights<extra>float</extra>",
    )
    if not tensor.kept_float(info.run.hist):
        _rounded(figure, info, tensor.accent(dark))
    top = max(info.float.max(initial=0), info.rounded.max(initial=0))
    reach = info.edges[[0, -1]] + np.array([-0.015, 0.015]) * (info.edges[-1] - info.edges[0])
    figure.update_layout(
        xaxis={"title": "value of the weights", "range": reach.tolist()},
        yaxis=tensor.count_axis(float(top), info.log, "weights") | {"title": "weights per bin"},
        legend=theme.LEGEND,
        hovermode="closest",
    )
    return theme.frame(
        figure, title=headline(info), height=theme.HELPER_HEIGHT, dark=dark, large=large, width=56
    )


def _rounded(figure: go.Figure, info: ChannelHistogram, color: str) -> None:
    middle = (info.edges[1:] + info.edges[:-1]) / 2
    filled = info.rounded > 0
    at, tops = middle[filled], info.rounded[filled]
    x, y = tensor.stems(at, tops, tensor.GROUND if info.log else 0.0)
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": color, "width": 2},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.add_scatter(
        x=at,
        y=tops,
        mode="markers",
        marker={"color": color, "size": 6},
        name="after rounding",
        hovertemplate="near %{x:.4g}: %{y:,} weights<extra>after rounding</extra>",
    )


def alt(info: ChannelHistogram) -> str:
    """The figure in words, with its numbers."""
    levels = int((info.rounded > 0).sum())
    return (
        f"Weights of channel {info.channel} of {info.run.hist.layer}: {headline(info)}, which is "
        f"{number(float(info.edges[0]))} to {number(float(info.edges[-1]))}. After rounding they "
        f"fall into {levels} of {len(info.rounded)} bins."
    )
