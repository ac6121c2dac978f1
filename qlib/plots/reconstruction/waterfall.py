"""What each ingredient of learned rounding adds: from nearest rounding step by step to QDrop."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import plotly.graph_objects as go

from qlib.core import catalogue
from qlib.core.records import RunRecord
from qlib.measure.statistics import LEVEL, p_text, wilson
from qlib.plots.shared import step_bar, theme

METRICS = {
    "top1": "Top-1",
    "agreement": "Agreement",
    "kl": "KL divergence",
}
AXES = {
    "top1": "top-1 accuracy (%)",
    "agreement": "agreement with float (%)",
    "kl": "KL to the float answers (nats)",
}
HEIGHT = 300


@dataclass(frozen=True)
class Step:
    """The metric after one more ingredient of learned rounding.

    The value with everything up to this ingredient; ``low`` to ``high``: 95 %, where known.

    ``p``: of the paired test against the step before, where it was made.
    """

    method: str
    title: str
    ingredient: str
    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Waterfall:
    """Data of the figure: the metric after each ingredient of learned rounding.

    ``missing``: methods of the way that have no stored run; ``reference``: the float model.
    """

    metric: str
    steps: tuple[Step, ...]
    reference: float
    n: int = 0
    missing: tuple[str, ...] = ()

    @property
    def better(self) -> int:
        """Which direction of the metric is better: +1 for more, −1 for less."""
        return -1 if self.metric == "kl" else 1

    def gain(self, at: int) -> float:
        """How much better step ``at`` is than the one before it."""
        return self.better * (self.steps[at].value - self.steps[at - 1].value)

    def clear(self, at: int) -> bool:
        """Whether the paired test tells step ``at`` from the step before."""
        p = self.steps[at].p
        return p is not None and p < LEVEL


def info(
    records: Mapping[str, RunRecord],
    *,
    metric: str = "top1",
    titles: Mapping[str, str] | None = None,
    p: Mapping[str, float] | None = None,
) -> Waterfall:
    """Data of the figure, from comparable runs of several methods.

    The steps that have a run in ``records`` (method → run, made under equal conditions).

    ``p``: method → p value of the paired test of this metric against the step before.
    """
    titles, p, way = titles or {}, p or {}, catalogue.ingredients()
    steps = tuple(
        replace(_step(records[method], metric, titles.get(method, method), text), p=p.get(method))
        for method, text in way.items()
        if method in records and metric in records[method].metrics
    )
    missing = tuple(titles.get(m, m) for m in way if m not in records)
    first = next(iter(records.values()), None)
    whole = first.metrics.get("top1_float", 100.0) if first else 100.0
    reference = {"top1": whole, "agreement": 100.0}
    n = int(first.metrics["n"]) if first else 0
    return Waterfall(metric, steps, reference.get(metric, 0.0), n, missing)


def _step(record: RunRecord, metric: str, title: str, text: str) -> Step:
    m, value = record.metrics, record.metrics[metric]
    method = record.spec.method
    if metric == "kl":
        return Step(method, title, text, value)
    n = int(m["n"])
    low, high = wilson(round(value / 100 * n), n)
    return Step(method, title, text, value, 100 * low, 100 * high)


def headline(info: Waterfall) -> str:
    """The take-away: the largest step, and whether the paired test tells it from none."""
    if len(info.steps) < 2:
        return "There are too few stored runs for a step"
    best = max(range(1, len(info.steps)), key=info.gain)
    gain = info.gain(best)
    if gain <= 0:
        return "No ingredient makes the network better here"
    step = info.steps[best]
    sentence = f"{step.title}'s step is the largest: {amount(info, gain)}"
    if step.p is None:
        return sentence
    if info.clear(best):
        return f"{sentence} (paired {p_text(step.p)})"
    return f"{sentence}, but {info.n:,} images do not prove it (paired {p_text(step.p)})"


def plain(text: str) -> str:
    """A label without its line breaks."""
    return text.replace("<br>", " ")


def amount(info: Waterfall, gain: float) -> str:
    """A gain as text: ``+2.3 points``, or ``−0.012 nats``: in its metric's unit and direction."""
    if info.metric == "kl":
        return f"{-gain:+.3f} nats".replace("-", "−")
    return f"{gain:+.1f} points".replace("-", "−")


def figure(info: Waterfall, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw the change that each ingredient brings.

    A bar from each value to the next, green up and red down; marks with their intervals.
    """
    figure = go.Figure()
    if info.steps:
        _bars(figure, info, dark)
        _float(figure, info, dark)
        for place, step in enumerate(info.steps):
            _mark(figure, info, place, step, dark)
    names = [f"<b>{s.title}</b><br>{s.ingredient}" for s in info.steps]
    figure.update_xaxes(
        tickvals=list(range(len(names))),
        ticktext=names,
        range=[-0.45, max(1, len(names)) - 0.25],
        showgrid=False,
        fixedrange=True,
    )
    figure.update_yaxes(title=AXES[info.metric], **_span(info))
    figure.update_layout(showlegend=False, hovermode="closest")
    return theme.frame(
        figure, title=theme.tied(headline(info)), height=HEIGHT, dark=dark, width=96, large=large
    )


def _span(info: Waterfall) -> dict:
    if not info.steps:
        return {}
    ends = [x for s in info.steps for x in (s.value, s.low, s.high) if x is not None]
    ends.append(info.reference)
    room = 0.12 * (max(ends) - min(ends)) or 1.0
    low = max(0.0, min(ends) - room) if info.metric != "kl" else -room / 2
    return {"range": [low, max(ends) + room]}


def _bars(figure: go.Figure, info: Waterfall, dark: bool) -> None:
    """From the value before to the value after, in shapes: their ends are the only marks."""
    for place in range(1, len(info.steps)):
        before, after = info.steps[place - 1].value, info.steps[place].value
        better = info.gain(place) >= 0
        text = ("▲ " if better else "▼ ") + amount(info, info.gain(place))
        shapes, note = step_bar.bar(place, before, after, text, better=better, dark=dark)
        for shape in shapes:
            figure.add_shape(shape)
        figure.add_annotation(note)


def _float(figure: go.Figure, info: Waterfall, dark: bool) -> None:
    said = {"top1": f"float {info.reference:.1f} %", "agreement": "float 100 %", "kl": "float 0"}
    figure.add_hline(
        y=info.reference,
        line={"color": theme.ink(dark), "dash": "dash", "width": 1.2},
        annotation={
            "text": said[info.metric],
            "font": {"size": theme.SMALL, "color": theme.ink(dark)},
            "xanchor": "left",
            "x": 0,
            "yanchor": "bottom" if info.better > 0 else "top",
        },
    )


def _mark(figure: go.Figure, info: Waterfall, place: int, step: Step, dark: bool) -> None:
    style = theme.style(step.method)
    shown = f"{step.value:.3f}" if info.metric == "kl" else f"{step.value:.1f} %"
    reach = _reach(step, style.color)
    told = f"<br>95 %: {step.low:.1f} to {step.high:.1f}" if reach else ""
    figure.add_scatter(
        x=[place],
        y=[step.value],
        mode="markers",
        marker={
            "symbol": style.symbol,
            "size": 11,
            "color": style.color,
            "line": {"width": 1.5, "color": theme.paper(dark)},
        },
        name=step.title,
        hovertemplate=f"<b>{step.title}</b><br>{shown}{told}<extra></extra>",
        **reach,
    )
    figure.add_annotation(
        x=place - 0.05,
        y=step.value,
        xanchor="right",
        text=shown,
        showarrow=False,
        font={"size": theme.FONT_SIZE, "color": theme.ink(dark)},
    )


def _reach(step: Step, color: str) -> dict:
    """A bar over the interval; nothing where that is not known."""
    if step.low is None or step.high is None:
        return {}
    bar = {
        "type": "data",
        "symmetric": False,
        "array": [step.high - step.value],
        "arrayminus": [step.value - step.low],
        "color": color,
        "thickness": 1.4,
        "width": 6,
    }
    return {"error_y": bar}


def alt(info: Waterfall) -> str:
    """The figure in words, with its numbers."""
    told = []
    for step in info.steps:
        digits = 3 if info.metric == "kl" else 1
        part = f"{step.title} {step.value:.{digits}f}"
        if step.low is not None:
            part += f" ({step.low:.1f} to {step.high:.1f})"
        told.append(part)
    return f"{AXES[info.metric]} step by step: {', '.join(told)}. {headline(info)}."
