"""Weights or activations? Four bars: the float network, weights only, inputs only, both."""

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from qlib.plots.layers import damage as _damage
from qlib.plots.layers.damage import Row
from qlib.plots.shared import theme

NAMES = {"none": "float", "weights": "weights only", "inputs": "inputs only", "both": "both"}
METRICS = {
    "top1": ("top-1 accuracy (%)", "%"),
    "agreement": ("agreement with float (%)", "%"),
    "kl": ("KL to float (nats)", "nats"),
}
FOLD = 3.0  # times the damage from which one side is said to be the one
PATTERNS = {"weights": "/", "inputs": "\\", "both": "x"}


@dataclass(frozen=True)
class Bar:
    """One measured accuracy of the whole network; ``low`` to ``high``: 95 % interval of top-1."""

    split: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class SplitBars:
    """Data of the figure: the whole network with weights, inputs, both or nothing rounded.

    What the figure shows: the bars there are, in the order of `NAMES`.
    """

    metric: str
    method: str
    bars: tuple[Bar, ...]
    n: int

    def damage(self, split: str) -> float | None:
        """How much worse than the float network, in the metric's unit; None when not measured."""
        found = {b.split: b.value for b in self.bars}
        if split not in found or "none" not in found:
            return None
        gap = found["none"] - found[split]
        return -gap if self.metric == "kl" else gap


def info(rows: Sequence[Row], *, metric: str = "top1", method: str = "") -> SplitBars:
    """Data of the figure, from the rows of a sensitivity profile.

    Numbers of the whole network; ``rows`` as in ``profile.csv``, ``metric`` of `METRICS`.
    """
    by_split = _damage.ends(rows, metric)
    bars = []
    for split, row in by_split.items():
        ends = [None, None]
        if metric == "top1":
            ends = [_damage.number(row, f"top1_{end}") for end in ("low", "high")]
        bars.append(Bar(split, float(row[metric]), *ends))
    n = next((int(row.get("n") or 0) for row in by_split.values()), 0)
    return SplitBars(metric, method, tuple(bars), n)


def side(info: SplitBars) -> str:
    """Which side does the damage: ``weights``, ``inputs``, ``both``, ``none``, or "" (unknown)."""
    weights, inputs, both = (info.damage(s) for s in ("weights", "inputs", "both"))
    if weights is None or inputs is None or both is None:
        return ""
    if max(weights, inputs, both) <= 0:
        return "none"
    if inputs >= FOLD * max(weights, 0.0):
        return "inputs"
    return "weights" if weights >= FOLD * max(inputs, 0.0) else "both"


def headline(info: SplitBars) -> str:
    """The take-away: which side does the damage."""
    sentences = {
        "inputs": "Rounding the inputs does most of it",
        "weights": "Rounding the weights does most of it",
        "both": "Weights and inputs both do damage",
        "none": "Neither weights nor inputs cost anything here",
    }
    return sentences.get(side(info), "Weights or inputs: not measured yet")


def figure(info: SplitBars, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw four bars with intervals, each labelled with its loss against float; clickable."""
    figure = go.Figure()
    style = theme.style(info.method)
    ends = {b.split: (b.low, b.high) for b in info.bars if b.low is not None}
    figure.add_bar(
        x=[NAMES[b.split] for b in info.bars],
        y=[b.value for b in info.bars],
        customdata=[[b.split, _told(info, b)] for b in info.bars],
        text=[_text(info, b) for b in info.bars],
        textposition="outside" if info.metric == "kl" else "inside",
        insidetextanchor="start",
        textangle=0,
        textfont={"size": theme.FONT_SIZE, "color": theme.ink(dark)},
        marker={
            "color": [
                theme.rgba(theme.GREY if b.split == "none" else style.color, 0.35)
                for b in info.bars
            ],
            "line": {
                "width": 1.5,
                "color": [theme.ink(dark) if b.split == "none" else style.color for b in info.bars],
            },
        },
        error_y=_intervals(info, ends, dark),
        hovertemplate="<b>%{x}</b><br>%{customdata[1]}<extra></extra>",
        showlegend=False,
        cliponaxis=False,
    )
    figure.update_xaxes(title="what is quantized in the whole network", showgrid=False)
    top = max((b.value for b in info.bars), default=1.0) or 1.0
    figure.update_yaxes(title=METRICS[info.metric][0], range=[0, 1.2 * top], nticks=5)
    if METRICS[info.metric][1] == "%":
        figure.update_yaxes(range=[0, 104], tickvals=[0, 25, 50, 75, 100])
    figure.update_layout(bargap=0.3)
    return theme.frame(
        figure, title=headline(info), height=theme.HELPER_HEIGHT, dark=dark, width=48, large=large
    )


def _text(info: SplitBars, bar: Bar) -> str:
    unit = METRICS[info.metric][1]
    text = f"{bar.value:.1f} %" if unit == "%" else f"{bar.value:.2g}"
    gap = info.damage(bar.split)
    if bar.split == "none" or gap is None or unit != "%":
        return f"<b>{text}</b>"
    return f"<b>{text}</b><br>{-gap:+.1f}".replace("-", "−")


def _told(info: SplitBars, bar: Bar) -> str:
    text = f"{bar.value:.3g} {METRICS[info.metric][1]}"
    return text if bar.low is None else f"{text} (95 %: {bar.low:.1f} to {bar.high:.1f})"


def _intervals(info: SplitBars, ends: dict, dark: bool) -> dict:
    if not ends:
        return {"visible": False}
    return {
        "type": "data",
        "symmetric": False,
        "array": [ends[b.split][1] - b.value for b in info.bars],
        "arrayminus": [b.value - ends[b.split][0] for b in info.bars],
        "color": theme.ink(dark),
        "thickness": 1.4,
        "width": 6,
    }


def alt(info: SplitBars) -> str:
    """The figure in words, with its numbers."""
    bars = [f"{NAMES[b.split]}: {_told(info, b)}" for b in info.bars]
    return (
        f"{METRICS[info.metric][0]} of the whole network on {info.n} images. "
        + "; ".join(bars)
        + "."
    )
