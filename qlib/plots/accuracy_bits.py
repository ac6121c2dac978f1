"""Accuracy over bit-widths (weights and activations alike): a line and its band per method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from qlib.plots import _theme
from qlib.records import RunRecord
from qlib.statistics import loss_told

CLIFF = 5.0  # points below float from which a loss is called one


@dataclass(frozen=True)
class Point:
    """One run: ``low`` to ``high`` is the 95 % interval of ``top1``, all in percent.

    ``lost`` and ``gained``: images that only the float network or only this one gets right.
    """

    bits: int
    top1: float
    low: float
    high: float
    lost: int
    gained: int

    @property
    def holds(self) -> bool:
        """Whether the exact paired test tells no loss against the float network."""
        return not loss_told(self.lost, self.gained)


@dataclass(frozen=True)
class Line:
    """One method's points, most bits first."""

    method: str
    title: str
    points: tuple[Point, ...]

    @property
    def mean(self) -> float:
        """Accuracy averaged over the bit-widths."""
        return sum(p.top1 for p in self.points) / len(self.points)

    @property
    def holds_to(self) -> int | None:
        """The fewest bits up to which no loss is visible; None when there is one at once."""
        held = None
        for point in self.points:
            if not point.holds:
                break
            held = point.bits
        return held

    @property
    def first_loss(self) -> Point | None:
        """The point of most bits that shows a loss."""
        return next((p for p in self.points if not p.holds), None)


@dataclass(frozen=True)
class AccuracyBits:
    """What the figure shows; ``bits`` is the axis, most bits first."""

    model: str
    n: int
    float_top1: float
    chance: float | None
    bits: tuple[int, ...]
    lines: tuple[Line, ...]
    current: int | None = None


def info(
    records: Sequence[RunRecord],
    *,
    titles: Mapping[str, str] | None = None,
    current: int | None = None,
) -> AccuracyBits:
    """Numbers of the runs of *one* model on one test set whose weights and activations agree.

    Where two runs share method and bits the later one counts. ``titles`` names methods,
    ``current`` is the bit-width to point at.

    Raises:
        ValueError: no such run, or runs of several models.
    """
    same = [r for r in records if r.spec.weight_bits == r.spec.act_bits]
    models = sorted({r.spec.model for r in same})
    if len(models) != 1:
        raise ValueError(f"accuracy_bits.info needs runs of one model with W = A; got {models}.")
    first = same[0].metrics
    classes = same[0].data.get("classes")
    cells = {(r.spec.method, r.spec.weight_bits): r.metrics for r in same}
    bits = tuple(sorted({b for _, b in cells}, reverse=True))
    methods = sorted({m for m, _ in cells}, key=lambda m: (m != "nearest", m))
    lines = tuple(_line(m, bits, cells, titles or {}) for m in methods)
    return AccuracyBits(
        model=models[0],
        n=int(first["n"]),
        float_top1=first["top1_float"],
        chance=100 / classes if classes else None,
        bits=bits,
        lines=lines,
        current=current,
    )


def _line(method: str, bits, cells, titles: Mapping[str, str]) -> Line:
    points = tuple(
        Point(b, m["top1"], m["top1_low"], m["top1_high"], int(m["lost"]), int(m["gained"]))
        for b in bits
        if (m := cells.get((method, b))) is not None
    )
    return Line(method, titles.get(method, method), points)


def headline(info: AccuracyBits) -> str:
    """The take-away, from the numbers: how far down each method shows no loss."""
    plain = info.lines[0]
    best = max(info.lines[1:] or info.lines, key=lambda x: (-(x.holds_to or 99), x.mean))
    if plain.holds_to == info.bits[-1]:
        return f"No loss is visible down to {plain.holds_to} bits with {info.n:,} test images"
    if best.holds_to is None and plain.holds_to is None:
        return "Every stored bit-width loses accuracy that these test images can show"
    if plain is best or best.holds_to is None:
        return f"{plain.title}: no visible loss down to {plain.holds_to} bits{_then(info, plain)}"
    start = f"no visible loss down to {plain.holds_to} bits" if plain.holds_to else "loses at once"
    if best.holds_to == plain.holds_to:
        gap, bits = _gap(plain, best)
        return f"{plain.title}: {start}; at {bits} bits {best.title} keeps {gap:.0f} points more"
    return f"{plain.title}: {start}; {best.title}: down to {best.holds_to}"


def _then(info: AccuracyBits, line: Line) -> str:
    """What comes below the bits that hold: a cliff only where it is steep."""
    next_ = line.first_loss
    if next_ is None:
        return ""
    drop = info.float_top1 - next_.top1
    return ", then the cliff" if drop >= CLIFF else f"; {drop:.1f} points lost at {next_.bits}"


def _gap(plain: Line, best: Line) -> tuple[float, int]:
    other = {p.bits: p.top1 for p in best.points}
    return max((other[p.bits] - p.top1, p.bits) for p in plain.points if p.bits in other)


def figure(info: AccuracyBits, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Lines with bands; float dashed, chance dotted; equal spacing between bit-widths."""
    figure = go.Figure()
    for line in info.lines:
        _draw(figure, line, dark)
    ticks = [str(b) for b in info.bits]
    figure.update_xaxes(
        title="bits of weights and activations",
        type="category",
        categoryorder="array",
        categoryarray=ticks,
        range=[-0.3, len(ticks) - 1 + (1.4 if large else 0.95)],
        showgrid=False,
    )
    figure.update_yaxes(title="top-1 accuracy (%)", range=[0, 103], tickvals=[0, 25, 50, 75, 100])
    _rules(figure, info, dark, gap=9.5 if large else 7.5)
    figure.update_layout(showlegend=False, hovermode="closest")
    return _theme.frame(figure, title=headline(info), dark=dark, large=large)


def _draw(figure: go.Figure, line: Line, dark: bool) -> None:
    style = _theme.style(line.method)
    x = [str(p.bits) for p in line.points]
    band = [p.high for p in line.points] + [p.low for p in reversed(line.points)]
    figure.add_scatter(
        x=x + x[::-1],
        y=band,
        fill="toself",
        fillcolor=_theme.rgba(style.color, 0.13),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        name=f"{line.title}, 95 % interval",
    )
    figure.add_scatter(
        x=x,
        y=[p.top1 for p in line.points],
        customdata=[[p.bits, p.low, p.high, line.method] for p in line.points],
        mode="lines+markers",
        name=line.title,
        line={"color": style.color, "dash": style.dash, "width": 2.5},
        marker={
            "symbol": style.symbol,
            "size": 10,
            "color": style.color,
            "line": {"width": 1.5, "color": _theme.paper(dark)},
        },
        hovertemplate=(
            f"<b>{line.title}</b>, %{{customdata[0]}} bits<br>%{{y:.1f}} % "
            "(95 %: %{customdata[1]:.1f} to %{customdata[2]:.1f})<extra></extra>"
        ),
    )


def _rules(figure: go.Figure, info: AccuracyBits, dark: bool, gap: float) -> None:
    """Float, chance and the current width; names of the lines at their ends, kept apart."""
    last = len(info.bits) - 1
    ends = [(info.float_top1, f"float {info.float_top1:.1f} %", _theme.ink(dark))]
    _rule(figure, info, info.float_top1, ("dash", _theme.ink(dark)), "float model")
    if info.chance is not None:
        _rule(figure, info, info.chance, ("dot", _theme.faint(dark)), "chance")
        ends.append((info.chance, f"chance {info.chance:g} %", _theme.faint(dark)))
    ends += [(x.points[-1].top1, x.title, _theme.style(x.method).color) for x in info.lines]
    for y, (_, text, color) in zip(_spread([e[0] for e in ends], gap), ends, strict=True):
        figure.add_annotation(
            x=last + 0.12,
            xanchor="left",
            y=y,
            text=text,
            showarrow=False,
            font={"size": _theme.FONT_SIZE, "color": color},
        )
    if info.current in info.bits:
        at = info.bits.index(info.current)
        figure.add_vrect(
            x0=at - 0.16,
            x1=at + 0.16,
            line_width=0,
            fillcolor=_theme.rgba(_theme.GREY, 0.16),
            layer="below",
        )


def _rule(
    figure: go.Figure, info: AccuracyBits, y: float, look: tuple[str, str], name: str
) -> None:
    figure.add_scatter(
        x=[str(b) for b in info.bits],
        y=[y] * len(info.bits),
        mode="lines",
        line={"dash": look[0], "color": look[1], "width": 1.2},
        hovertemplate=f"{name}: {y:.1f} %<extra></extra>",
        name=name,
    )


def _spread(values: list[float], gap: float = 7.5, top: float = 99.0) -> list[float]:
    """Positions for labels near ``values`` that stay ``gap`` apart, in the same order."""
    order = sorted(range(len(values)), key=lambda i: -values[i])
    placed, ceiling = [0.0] * len(values), top
    for i in order:
        placed[i] = min(values[i], ceiling)
        ceiling = placed[i] - gap
    floor = 3.0
    for i in reversed(order):
        placed[i] = max(placed[i], floor)
        floor = placed[i] + gap
    return placed


def alt(info: AccuracyBits) -> str:
    """The figure in words, with its numbers."""
    parts = [
        f"{x.title}: " + ", ".join(f"{p.bits} bits {p.top1:.1f} %" for p in x.points)
        for x in info.lines
    ]
    return (
        f"Top-1 accuracy of {info.model} over bit-widths, {info.n} test images. "
        f"Float {info.float_top1:.1f} %. " + ". ".join(parts) + "."
    )
