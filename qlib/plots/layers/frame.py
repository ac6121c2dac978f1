"""What figures with one place per layer share: axes, hatching, labels, bands and rules."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from qlib.plots.layers.damage import DECADES, Profile, Value
from qlib.plots.shared import places as _places
from qlib.plots.shared import theme, untyped

ROOM = 265  # pixels of a main figure's plot area from top to bottom, about
HOVER = (
    "<b>%{customdata[0]}</b> (%{customdata[1]})<br>%{customdata[2]}<extra>%{fullData.name}</extra>"
)


@dataclass(frozen=True)
class Axis:
    """A value axis from ``low`` to ``high`` with room for labels above ``top``, the data's end."""

    low: float
    top: float
    high: float
    log: bool
    line: float = _places.LINE

    def drawn(self, value: float) -> float:
        """Position of a value on the axis; small ones stay visible on a logarithmic axis."""
        return max(value, self.low * 1.12) if self.log else value

    @property
    def settings(self) -> dict:
        """The axis as Plotly's settings."""
        ends = [self.low, self.high]
        if not self.log:
            return {"range": ends, "zeroline": self.low < 0, "zerolinecolor": theme.GREY}
        powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.top)) + 1)
        return {
            "type": "log",
            "range": [math.log10(e) for e in ends],
            "tickvals": [10.0**p for p in powers],
            "ticktext": [f"{10.0**p:g}" for p in powers],
        }

    def lane(self, number: int, pixels: float = 0.0) -> float:
        """The value at the foot of a row of labels, ``pixels`` above it."""
        up = (number * self.line + 8 + pixels) / ROOM
        if self.log:
            length = math.log10(self.high / self.low)
            return self.top * 10 ** (up * length)
        return self.top + up * (self.high - self.low)


def axis(profiles: Sequence[Profile], lanes: int, *, large: bool = False) -> Axis:
    """The value axis for all values, their ranges, the flag line and ``lanes`` rows of labels."""
    known = [v for p in profiles for v in p.known]
    values = [x for v in known for x in (v.value, v.low, v.high) if x is not None] or [1.0]
    flag = profiles[0].flag
    line = _places.LINE * (1.2 if large else 1.0)  # larger text on a figure that is higher too
    share = 1 - (lanes * line + 14) / ROOM
    if any(p.logarithmic for p in profiles):
        shown = values + ([flag] if flag else [])
        top = max(shown)
        least = min(v.value for v in known if v.value > 0)
        low = max(least * 0.7, top * 10**-DECADES)
        return Axis(low, top, low * (top / low) ** (1 / share), True, line)
    # a flag far above all values would flatten them
    top = max([*values, 0.0])
    if flag is not None and flag <= 2 * top:
        top = max(top, flag)
    low = min(0.0, *values)
    top = top if top > low else low + 1.0
    low -= 0.05 * (top - low) * (low < 0)
    return Axis(low, top, low + (top - low) / share, False, line)


def amount(value: float, profile: Profile) -> str:
    """A number with its unit as text; its sign is that of the figure."""
    if profile.unit in ("points", "dB"):
        return f"{value:.1f} {profile.unit}".replace("-", "−")
    return f"{value:.2g} {profile.unit}".strip().replace("-", "−")


def share(part: float, whole: float) -> str:
    """A part of a whole as text: ``15 %``, ``<1 %``, ``−3 %``."""
    percent = 100 * part / whole
    if 0 < percent < 1:
        return "<1 %"
    return f"{round(percent)} %".replace("-", "−")


def data(values: Sequence[Value], profile: Profile) -> list[list[str]]:
    """Hover and click data of a mark: layer (a click sets it), kind, and its numbers in words."""
    return [[v.layer, v.kind, told(v, profile)] for v in values]


def told(value: Value, profile: Profile) -> str:
    """One layer's number and range as text, or why there is none."""
    if value.value is None:
        why = {"kept": "kept in float", "absent": "has none"}
        return why.get(value.state, "not measured")
    text = amount(value.value, profile)
    if value.low is not None and value.high is not None:
        ends = [amount(e, profile).split()[0] for e in (value.low, value.high)]
        what = "95 %" if profile.metric == "top1" else "two halves of the images"
        text += f" ({what}: {ends[0]} to {ends[1]})"
    return text + (", kept in float" if value.state == "kept" else "")


def hatch(
    figure: go.Figure, profile: Profile, place: Mapping[str, int], scale: Axis, dark: bool
) -> None:
    """Draw columns for layers without a number: lines where kept in float, dots if unmeasured."""
    looks = (("kept", "/", "kept in float"), ("missing", ".", "not measured"))
    for state, shape, name in looks:
        unknown = [v for v in profile.values if v.value is None and v.state == state]
        if not unknown:
            continue
        figure.add_bar(
            x=[place[v.layer] for v in unknown],
            y=[scale.top - (0 if scale.log else min(0.0, scale.low))] * len(unknown),
            base=None if scale.log else [min(0.0, scale.low)] * len(unknown),
            width=0.9,
            customdata=data(unknown, profile),
            name=name,
            showlegend=True,
            marker={
                "color": "rgba(0,0,0,0)",
                "line": {"width": 0},
                "pattern": {"shape": shape, "fgcolor": theme.faint(dark), "size": 7},
            },
            opacity=0.55,
            hovertemplate=HOVER,
        )


def label(
    figure: go.Figure,
    labels: Sequence[_places.Label],
    peaks: Mapping[float, float],
    scale: Axis,
    dark: bool,
) -> None:
    """Write names above their marks, each with a thin leader line down to it."""
    xs, ys, notes = [], [], []
    for one in labels:
        foot = scale.lane(one.lane, pixels=12)
        xs += [one.at, one.at, None]
        ys += [max(peaks[round(one.at)], scale.low), foot, None]
        notes.append(
            {
                "x": one.at,
                "y": math.log10(foot) if scale.log else foot,
                "text": one.text,
                "showarrow": False,
                "xanchor": "right" if one.left else "left",
                "yanchor": "middle",
                "xshift": -2 if one.left else 2,
                "font": {"size": theme.SMALL, "color": theme.ink(dark)},
            }
        )
    figure.layout.annotations = notes  # one by one they would take a quarter of a second
    if xs:
        figure.add_scatter(
            x=xs,
            y=ys,
            mode="lines",
            line={"width": 1, "color": theme.faint(dark)},
            hoverinfo="skip",
            showlegend=False,
            name="names",
        )


def rule(figure: go.Figure, value: float, text: str, count: int, dark: bool) -> None:
    """Draw a dashed line across the figure, named in the legend."""
    figure.add_scatter(
        x=[-0.6, count - 0.4],
        y=[value, value],
        mode="lines",
        line={"dash": "dash", "width": 1.3, "color": theme.WRONG},
        name=text,
        hoverinfo="skip",
        showlegend=True,
    )


def band(figure: go.Figure, place: float) -> None:
    """Draw the stripe behind the chosen layer."""
    figure.add_vrect(
        x0=place - 0.5,
        x1=place + 0.5,
        line={"width": 1.5, "color": theme.COLORS[0]},
        fillcolor=theme.rgba(theme.COLORS[0], 0.14),
        layer="below",
    )


def below(
    figure: go.Figure,
    profile: Profile,
    layers: Sequence[str],
    order: str,
    *,
    slider: bool = False,
    large: bool = False,
) -> None:
    """The axis of layers: blocks with thin separators, or ranks."""
    count = len(layers)
    settings = {"range": [-0.6, count - 0.4], "showgrid": False}
    if order == "worst":
        ranks = [1, *range(5, count + 1, 5)]
        settings |= {"tickvals": [r - 1 for r in ranks], "ticktext": [str(r) for r in ranks]}
        settings["title"] = "rank of the layer, worst first"
    else:
        blocks = _places.blocks([v.unit for v in profile.values])
        places, texts = _places.ticks(blocks, count, width(large))
        shared = _places.prefix(blocks)
        said = f" (numbers: {shared}N)" if shared else ""
        settings |= {"tickvals": places, "ticktext": texts}
        settings["title"] = f"layers in network order, by block{said}"
        rules = [_separator(block.first - 0.5) for block in blocks[1:]]
        layout = untyped.layout(figure)
        layout.shapes = [*rules, *layout.shapes]
    if slider:
        settings["rangeslider"] = {"visible": True, "thickness": 0.08}
    figure.update_xaxes(**settings, ticks="", tickangle=0)


def _separator(x: float) -> dict:
    """A thin line between two blocks, as high as the plot."""
    line = {"width": 1, "color": "rgba(128,133,140,0.35)"}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "y domain", "line": line}


def width(large: bool) -> float:
    """Width of the plot area in pixels, in the text size of a desk."""
    return _places.WIDTH / (_places.LARGE if large else 1.0)


def framed(figure: go.Figure, title: str, *, dark: bool, large: bool, **more) -> go.Figure:
    """The figure with the common frame and a legend in one row above the plot."""
    figure.update_layout(legend=theme.LEGEND)
    framed_figure = theme.frame(figure, title=title, dark=dark, large=large, **more)
    layout = untyped.layout(framed_figure)
    if layout.xaxis.rangeslider.visible:
        framed_figure.update_layout(height=layout.height + 60, margin_b=44)
    if any(t.showlegend is not False for t in untyped.traces(framed_figure)):
        theme.raised(framed_figure, 26)
    return framed_figure
