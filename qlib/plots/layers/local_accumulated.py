"""Two errors of every layer's output: its own, and all that has gathered before it. In decibels."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import plotly.graph_objects as go

from qlib.plots.layers import damage, frame
from qlib.plots.layers.damage import Profile, Row, Value
from qlib.plots.shared import theme

PER_BIT = 6.02  # dB that one more bit gives where values fill their range evenly: 20·log10(2)
GUIDES = (8, 6, 4, 2)
CLOSE = 1.0  # dB: nearer than that, nothing has gathered
MANY = 80
LOOKS = {  # mode → symbol, colour; data → open or filled, and shift to the side
    "local": ("circle", theme.COLORS[0]),
    "accumulated": ("diamond", theme.COLORS[1]),
}
SIDES = {"calib": ("", -0.17, "calibration"), "test": ("-open", 0.17, "held-out")}


@dataclass(frozen=True)
class LocalAccumulated:
    """Data of the figure: each layer's own error and the error gathered up to it.

    What the figure shows: (mode, data) → profile of SQNR; all have the same layers.
    """

    profiles: dict[tuple[str, str], Profile]

    @property
    def layers(self) -> tuple[Value, ...]:
        """The names of the layers, in network order."""
        return next(iter(self.profiles.values())).values

    def typical(self, mode: str) -> float:
        """The median over the layers, on held-out images where there are some, in dB."""
        data = "test" if (mode, "test") in self.profiles else "calib"
        return median(v.value for v in self.profiles[mode, data].known)


def info(rows: Sequence[Row], *, kept: Sequence[str] = ()) -> LocalAccumulated | None:
    """Data of the figure: SQNR of ``output`` rows of ``layers.csv``; None where none are stored."""
    profiles = {}
    for mode in LOOKS:
        for data in SIDES:
            profile = damage.compared(rows, mode, "sqnr", data, kept=kept)
            if profile.known:
                profiles[mode, data] = profile
    complete = {mode for mode, _ in profiles} == set(LOOKS)
    return LocalAccumulated(profiles) if complete else None


def headline(info: LocalAccumulated) -> str:
    """The take-away: what the layer in the middle makes itself, and what has gathered there."""
    alone, gathered = info.typical("local"), info.typical("accumulated")
    if alone - gathered < CLOSE:
        return f"Errors hardly gather: a typical layer stands at {gathered:.0f} dB, as if alone"
    return (
        f"Errors gather: a typical layer has {alone:.0f} dB by itself and {gathered:.0f} dB "
        "in the whole network"
    )


def figure(
    info: LocalAccumulated, *, dark: bool = False, large: bool = False, chosen: str = ""
) -> go.Figure:
    """Draw lines from local to accumulated SQNR; filled on calibration images, open on others."""
    figure = go.Figure()
    place = {v.layer: i for i, v in enumerate(info.layers)}
    for data, (_, shift, _name) in SIDES.items():
        _stems(figure, info, data, place, shift, dark)
    for (mode, data), profile in info.profiles.items():
        _marks(figure, profile, place, mode, data)
    values = [v.value for p in info.profiles.values() for v in p.known]
    low, high = min(0.0, *values), max(values)
    _guides(figure, len(place), high * 1.04, dark)
    if chosen in place:
        frame.band(figure, place[chosen])
    first = next(iter(info.profiles.values()))
    frame.below(figure, first, tuple(place), "network", slider=len(place) > MANY, large=large)
    figure.update_yaxes(
        title="SQNR of the output (dB)", range=[low - 1, high * 1.04 + 1],
        zeroline=low < 0, zerolinecolor=theme.GREY,
    )  # fmt: skip
    figure.update_layout(hovermode="closest")
    framed = frame.framed(figure, headline(info), dark=dark, large=large)
    return framed.update_layout(margin_r=64)


def _stems(
    figure: go.Figure, info: LocalAccumulated, data: str, place: dict, shift: float, dark: bool
) -> None:
    """From local to accumulated, one line per layer that has both."""
    local, gathered = (info.profiles.get((mode, data)) for mode in LOOKS)
    if local is None or gathered is None:
        return
    xs, ys = [], []
    for one, other in zip(local.values, gathered.values, strict=True):
        if one.value is not None and other.value is not None:
            at = place[one.layer] + shift
            xs += [at, at, None]
            ys += [one.value, other.value, None]
    figure.add_scatter(
        x=xs,
        y=ys,
        mode="lines",
        line={"width": 1, "color": theme.rgba(theme.GREY, 0.7)},
        hoverinfo="skip",
        showlegend=False,
        name=f"stems {data}",
    )


def _marks(figure: go.Figure, profile: Profile, place: dict, mode: str, data: str) -> None:
    (symbol, color), (open_, shift, name) = LOOKS[mode], SIDES[data]
    known = profile.known
    figure.add_scatter(
        x=[place[v.layer] + shift for v in known],
        y=[v.value for v in known],
        customdata=frame.data(known, profile),
        mode="markers",
        name=f"{mode}, {name}",
        marker={
            "symbol": symbol + open_,
            "size": 8,
            "color": color,
            "line": {"width": 1.6 if open_ else 0, "color": color},
        },
        hovertemplate=frame.HOVER,
    )


def _guides(figure: go.Figure, count: int, high: float, dark: bool) -> None:
    """What so many bits give to values that fill their range evenly: a guide, no bound."""
    for bits in GUIDES:
        level = PER_BIT * bits
        if level > high:
            continue
        figure.add_shape(
            type="line", x0=0, x1=1, xref="paper", y0=level, y1=level, layer="below",
            line={"width": 1.2, "dash": "dot", "color": theme.faint(dark)},
        )  # fmt: skip
        figure.add_annotation(
            x=1, xref="paper", xanchor="left", y=level, text=f" {bits} bits", showarrow=False,
            font={"size": theme.SMALL, "color": theme.faint(dark)},
        )  # fmt: skip


def alt(info: LocalAccumulated) -> str:
    """The figure in words, with its numbers."""
    parts = []
    for (mode, data), profile in info.profiles.items():
        worst = profile.worst[0]
        parts.append(
            f"{mode} error on {SIDES[data][2]} images: lowest {worst.value:.1f} dB at "
            f"{worst.layer}, first layer {profile.known[0].value:.1f}, last "
            f"{profile.known[-1].value:.1f}"
        )
    return f"SQNR of {len(info.layers)} layers' outputs in dB. " + "; ".join(parts) + "."
