"""Accuracy over bit-widths (weights and activations alike): a line and its band per method."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from qlib.core.records import RunRecord, network_name
from qlib.plots.bits import _width_axis
from qlib.plots.bits._width_axis import COSTS
from qlib.plots.bits._width_marks import names, pointer, rules, unfinished
from qlib.plots.bits._width_words import headline
from qlib.plots.bits.width_lines import AccuracyBits, Line, Point, lines_of
from qlib.plots.shared import theme

__all__ = ["COSTS", "AccuracyBits", "Line", "Point", "alt", "figure", "headline", "info"]


def info(
    records: Sequence[RunRecord],
    *,
    titles: Mapping[str, str] | None = None,
    current: int | None = None,
    cost: str = "bits",
    chosen: str = "",
    failed: Mapping[str, Sequence[int]] | None = None,
    zoom: bool = False,
) -> AccuracyBits:
    """Data of the figure: accuracy over bit-widths, one line per method.

    Numbers of the runs of *one* model on one test set whose weights and activations agree.

    A run of a network with switchable widths is a line by itself. Where two runs share method and
    bits the later one counts. ``titles`` names methods, ``current`` is the bit-width to point at,
    ``cost`` a key of `COSTS`, ``failed``: line → widths whose run did not finish. ``zoom`` cuts the
    axis of accuracy below the lowest interval.

    Raises:
        ValueError: no such run, or runs of several models.
    """
    lines = lines_of(records, titles or {}, failed)
    same = [r for r in records if r.bit_widths or r.spec.weight_bits == r.spec.act_bits]
    models = sorted({r.spec.model for r in same})
    if len(models) != 1 or not lines:
        raise ValueError(f"accuracy_bits.info needs runs of one model with W = A; got {models}.")
    first = same[0].metrics
    classes = same[0].data.get("classes")
    seen = {p.bits for x in lines for p in x.points} | {b for x in lines for b in x.failed}
    return AccuracyBits(
        model=network_name(models[0]),
        n=int(first["n"]),
        float_top1=first["top1_float"],
        chance=100 / classes if classes else None,
        bits=tuple(sorted(seen, reverse=True)),
        lines=lines,
        current=current,
        cost=cost,
        chosen=chosen,
        zoom=zoom,
    )


def figure(
    info: AccuracyBits, *, dark: bool = False, large: bool = False, counts: bool = False
) -> go.Figure:
    """Draw accuracy over bit-widths, with intervals as bands; float dashed, chance dotted.

    A width that was not measured is a gap in its line. ``counts``: the names at the right also say
    how many models are stored. ``customdata`` of a point: bits, interval, method, key of its line.
    """
    figure = go.Figure()
    for line in info.lines:
        _band(figure, line, info)
        _draw(figure, line, info, dark)
    beside = (1.4 if large else 0.95) * max(1.0, len(info.bits) / 6)  # room for the names
    right = 0.25 if counts else beside
    figure.update_xaxes(_width_axis.layout(info.lines, info.bits, info.cost, right))
    figure.update_yaxes(_width_axis.upward(info.floor))
    rules(figure, info, dark)
    gap = (9.5 if large else 7.5) * (103 - info.floor) / 103
    names(figure, info, dark, gap=gap, counts=counts)
    unfinished(figure, info)
    pointer(figure, info, dark)
    figure.update_layout(showlegend=False, hovermode="closest")
    wide = 96 if counts else 74  # without counts it stands beside other things
    framed = theme.frame(figure, title=headline(info), dark=dark, large=large, width=wide)
    if counts or info.cost != "bits":
        widest = max(len(x.name if counts else x.title) for x in info.lines)
        framed.update_layout(margin_r=round(max(widest, 14) * (10.5 if large else 7.1)) + 10)
    return framed


def _band(figure: go.Figure, line: Line, info: AccuracyBits) -> None:
    """The 95 % interval of each stretch of neighbouring widths."""
    x, y = [], []
    for stretch in line.runs(info.bits):
        at = [_width_axis.place(p, info.cost) for p in stretch]
        gap = [None] if x else []
        x += gap + at + at[::-1]
        y += gap + [p.high for p in stretch] + [p.low for p in reversed(stretch)]
    figure.add_scatter(
        x=x,
        y=y,
        fill="toself",
        fillcolor=theme.rgba(theme.style(line.key).color, 0.13),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        name=f"{line.title}, 95 % interval",
    )


def _draw(figure: go.Figure, line: Line, info: AccuracyBits, dark: bool) -> None:
    style, marks = theme.style(line.key), _with_gaps(line, info.bits)
    alone = {p.bits for s in line.runs(info.bits) if len(s) == 1 for p in s}
    figure.add_scatter(
        x=[_width_axis.place(p, info.cost) if p else None for p in marks],
        y=[p.top1 if p else None for p in marks],
        customdata=[[p.bits, p.low, p.high, line.method, line.key] if p else None for p in marks],
        mode="lines+markers",
        connectgaps=False,
        name=line.name,
        error_y=_bars(marks, alone, style.color) if len(alone) and len(line.points) > 1 else None,
        line={
            "color": style.color,
            "dash": style.dash,
            "width": 3.6 if line.key == info.chosen else 2.5,
        },
        marker={
            "symbol": style.symbol,
            "size": 13 if line.key == info.chosen else 10,
            "color": style.color,
            "line": {"width": 1.5, "color": theme.paper(dark)},
        },
        hovertemplate=(
            f"<b>{line.title}</b>, %{{customdata[0]}} bits<br>%{{y:.1f}} % "
            "(95 %: %{customdata[1]:.1f} to %{customdata[2]:.1f})<extra></extra>"
        ),
    )


def _with_gaps(line: Line, bits: Sequence[int]) -> list[Point | None]:
    """The points, with None between two stretches: a width in between is missing."""
    found: list[Point | None] = []
    for stretch in line.runs(bits):
        found += [None] * bool(found) + stretch
    return found


def _bars(marks: Sequence[Point | None], alone: set[int], color: str) -> dict:
    """Intervals of points that have no neighbour, and so no band."""
    bare = [p if p and p.bits in alone else None for p in marks]
    above = [p.high - p.top1 if p else 0 for p in bare]
    below = [p.top1 - p.low if p else 0 for p in bare]
    sides = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return sides | {"color": color, "thickness": 1.2, "width": 0}


def alt(info: AccuracyBits) -> str:
    """The figure in words, with its numbers."""
    parts = [
        f"{x.name if x.one else x.title}: "
        + ", ".join(f"{p.bits} bits {p.top1:.1f} %" for p in x.points)
        for x in info.lines
    ]
    return (
        f"Top-1 accuracy of {info.model} over bit-widths, {info.n} test images. "
        f"Float {info.float_top1:.1f} %. " + ". ".join(parts) + "."
    )
