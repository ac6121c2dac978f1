"""What each trick around noise takes off a layer's error: clip search, mean shift, then noise."""

from dataclasses import dataclass

import plotly.graph_objects as go

from qlib.core import catalogue
from qlib.core.records import BASELINE
from qlib.noise.profile import STAGES, LayerNoise
from qlib.plots.noise import _fast_figure
from qlib.plots.noise._fast_figure import Parts
from qlib.plots.shared import step_bar, theme
from qlib.plots.shared.values import number

HEIGHT = 320
NAMES = {
    "plain": ("plain", "min–max range"),
    "clip": ("+ clip", "range searched"),
    "shift": ("+ shift", "one constant"),
    "noise": ("+ noise", "mean of draws"),
}
SAID = {"clip": "clip", "shift": "shift", "noise": "noise"}
IMAGES = {"calib": "calibration", "test": "held-out"}
NOTHING = 0.005  # of the plain error: a smaller change is told as none


@dataclass(frozen=True)
class NoiseTricks:
    """Data of the figure: the error left after each step of the noise method.

    Output error in % of the output's energy after each of `STAGES`.

    ``values``: on the ``images`` that are asked for; ``others``: on the other ones.
    """

    layer: str
    bits: int
    images: str
    values: tuple[float, ...]
    others: tuple[float, ...]

    def gain(self, at: int) -> float:
        """The error removed by stage ``at``, as a share of the plain error; may be negative."""
        plain = self.values[0]
        return (self.values[at - 1] - self.values[at]) / plain if plain > 0 else 0.0


def info(found: LayerNoise, images: str = "calib") -> NoiseTricks:
    """Data of the figure: one layer at one bit-width."""
    columns = [tuple(100 * x for x in found.stages[:, k].tolist()) for k in (0, 1)]
    mine = columns[::-1] if images == "test" else columns
    return NoiseTricks(found.layer, found.bits, images, *mine)


def headline(info: NoiseTricks) -> str:
    """The take-away: how much of the plain error each trick takes off or adds."""
    if info.values[0] <= 0:
        return "Plain rounding makes no error here: no trick can take any off"
    changes = [f"{SAID[s]} {_change(info.gain(k))}" for k, s in enumerate(STAGES) if k]
    return f"Of the plain error: {', '.join(changes)}"


def _change(gain: float) -> str:
    if abs(gain) < NOTHING:
        return "±0 %"
    return f"{-100 * gain:+.0f} %".replace("-", "−")


def figure(info: NoiseTricks, *, dark: bool = False, large: bool = False) -> go.Figure:
    """A bar from each value to the next; full marks on the asked images, open ones on the others"""
    parts = Parts(dark)
    names = [f"<b>{NAMES[s][0]}</b>" + f"<br>{NAMES[s][1]}" * (not large) for s in STAGES]
    top = max([*info.values, *info.others]) or 1.0
    parts.layout = {
        "xaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": names,
            "tickangle": 0,
            "range": [-0.4, len(names) - 0.35],
            "showgrid": False,
            "fixedrange": True,
        },
        "yaxis": {
            "title": {"text": "output error (% of its energy)"},
            "range": [0, 1.14 * top],
            "nticks": 6,
        },
        "hovermode": "closest",
    }
    for place in range(1, len(info.values)):
        before, after = info.values[place - 1], info.values[place]
        better = info.gain(place) >= 0
        text = ("▼ " if better else "▲ ") + _change(info.gain(place))
        shapes, note = step_bar.bar(place, before, after, text, better=better, dark=dark)
        parts.shapes += shapes
        parts.notes.append(note)
    _marks(parts, info)
    return _fast_figure.framed(
        parts, headline(info), HEIGHT, rows=1, margin=(66, 16, 48), large=large
    )


def _marks(parts: Parts, info: NoiseTricks) -> None:
    style = theme.style(catalogue.noisy() or BASELINE)
    other = "calib" if info.images == "test" else "test"
    for values, images, symbol in (
        (info.others, other, "circle-open"),
        (info.values, info.images, style.symbol),
    ):
        parts.line(
            x=list(range(len(values))),
            y=list(values),
            mode="markers",
            name=f"{IMAGES[images]} rows",
            marker={"symbol": symbol, "size": 11, "color": style.color, "line": {"width": 1.6}},
            text=[NAMES[s][0] for s in STAGES],
            hovertemplate="<b>%{text}</b><br>%{y:.4g} % of the output's energy<extra></extra>",
        )
    near = 0.2 * max([*info.values, *info.others])
    for place, (value, other) in enumerate(zip(info.values, info.others, strict=True)):
        aside = -15 if 0 < other - value < near else 15  # not on the other mark
        parts.note(f"{number(value, 2)} %", x=place, y=value, yshift=aside)


def alt(info: NoiseTricks) -> str:
    """The figure in words, with its numbers."""
    stages = [
        f"{NAMES[s][0]} {number(a, 3)} % ({number(b, 3)} %)"
        for s, a, b in zip(STAGES, info.values, info.others, strict=True)
    ]
    other = IMAGES["calib" if info.images == "test" else "test"]
    return (
        f"Output error of {info.layer} at {info.bits} bits in percent of its energy, "
        f"{IMAGES[info.images]} rows ({other} rows): {', '.join(stages)}. {headline(info)}."
    )
