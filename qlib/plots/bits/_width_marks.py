"""Accuracy over bit-widths: float and chance, names at the lines' ends, the width looked at."""

import plotly.graph_objects as go

from qlib.plots.bits import _width_axis
from qlib.plots.bits.width_lines import AccuracyBits
from qlib.plots.shared import theme


def unfinished(figure: go.Figure, info: AccuracyBits) -> None:
    """Draw a cross at the foot for each width whose run did not finish: it has no cost."""
    missed = [(x, b) for x in info.lines for b in x.failed]
    if info.cost != "bits" or not missed:
        return
    figure.add_scatter(
        x=[str(b) for _, b in missed],
        y=[info.floor + 0.03 * (103 - info.floor)] * len(missed),
        mode="markers",
        marker={"symbol": "x-thin", "size": 11, "line": {"width": 2.5, "color": theme.WRONG}},
        text=[f"{x.title}, {b} bits: the run did not finish" for x, b in missed],
        hovertemplate="%{text}<extra></extra>",
        name="did not finish",
    )


def pointer(figure: go.Figure, info: AccuracyBits, dark: bool) -> None:
    """Mark the chosen width: a stripe, or rings where widths have no place in common."""
    if info.cost == "bits":
        if info.current in info.bits:
            at = info.bits.index(info.current)
            figure.add_vrect(
                x0=at - 0.16,
                x1=at + 0.16,
                line_width=0,
                fillcolor=theme.rgba(theme.GREY, 0.16),
                layer="below",
            )
        return
    now = [p for x in info.lines for p in x.points if p.bits == info.current]
    figure.add_scatter(
        x=[_width_axis.place(p, info.cost) for p in now],
        y=[p.top1 for p in now],
        mode="markers",
        marker={
            "symbol": "circle-open",
            "size": 20,
            "color": theme.ink(dark),
            "line": {"width": 1.4},
        },
        hoverinfo="skip",
        name=f"{info.current} bits",
    )


def rules(figure: go.Figure, info: AccuracyBits, dark: bool) -> None:
    """Draw the float accuracy and chance as lines across the whole plot."""
    _rule(figure, info, info.float_top1, ("dash", theme.ink(dark)), "float model")
    if info.chance is not None and info.chance > info.floor:
        _rule(figure, info, info.chance, ("dot", theme.faint(dark)), "chance")


def _rule(
    figure: go.Figure, info: AccuracyBits, y: float, look: tuple[str, str], name: str
) -> None:
    x: list = [str(b) for b in info.bits]
    if info.cost != "bits":
        high, low = _width_axis.ends(info.lines, info.cost)
        x = [high * _width_axis.ROOM, low / _width_axis.ROOM]
    figure.add_scatter(
        x=x,
        y=[y] * len(x),
        mode="lines",
        line={"dash": look[0], "color": look[1], "width": 1.2},
        hovertemplate=f"{name}: {y:.1f} %<extra></extra>",
        name=name,
    )


def names(figure: go.Figure, info: AccuracyBits, dark: bool, gap: float, counts: bool) -> None:
    """Write the lines' names at their ends, kept apart."""
    ends = [(info.float_top1, f"float {info.float_top1:.1f} %", theme.ink(dark))]
    if info.chance is not None and info.chance > info.floor:
        ends.append((info.chance, f"chance {info.chance:g} %", theme.faint(dark)))
    ends += [
        (x.points[-1].top1, x.name if counts else x.title, theme.style(x.key).color)
        for x in info.lines
    ]
    where: dict = {"x": len(info.bits) - 1 + 0.12}
    if counts or info.cost != "bits":
        where = {"x": 1, "xref": "paper", "xshift": 4}
    for y, (_, text, color) in zip(_placed(ends, info, gap), ends, strict=True):
        figure.add_annotation(
            **where,
            xanchor="left",
            y=y,
            text=text,
            showarrow=False,
            font={"size": theme.FONT_SIZE, "color": color},
        )


def _placed(ends: list, info: AccuracyBits, gap: float) -> list[float]:
    """Heights of the names, inside the axis."""
    room = (103 - info.floor) / 103
    top, low = 103 - 4 * room, info.floor + 3 * room
    return spread([max(e[0], info.floor) for e in ends], gap, top, low)


def spread(
    values: list[float], gap: float = 7.5, top: float = 99.0, low: float = 3.0
) -> list[float]:
    """Positions for labels near ``values`` that stay ``gap`` apart, in the same order."""
    order = sorted(range(len(values)), key=lambda i: -values[i])
    placed, ceiling = [0.0] * len(values), top
    for i in order:
        placed[i] = min(values[i], ceiling)
        ceiling = placed[i] - gap
    floor = low
    for i in reversed(order):
        placed[i] = max(placed[i], floor)
        floor = placed[i] + gap
    return placed
