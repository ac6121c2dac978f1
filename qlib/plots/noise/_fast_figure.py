"""Quickly built figures: assembled as plain data and validated once, so they follow a slider.

Each call of a method on a Plotly figure checks the figure again, and margins that fit themselves
make the browser draw it twice. Here the parts are collected first and the margins are given.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from qlib.plots.shared import large as _large
from qlib.plots.shared import theme

LINE, ROOM_LINE = 19, 26  # pixels of a row of the legend; in a room
WIDTH = 58  # characters of a title, half a page wide


@dataclass
class Parts:
    """What a figure is made of, in the words of Plotly; ``layout`` holds what is not a list."""

    dark: bool = False
    data: list[dict[str, Any]] = field(default_factory=list)
    shapes: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)

    def line(self, **trace: Any) -> None:
        """Add a line or other scatter trace."""
        self.data.append({"type": "scatter"} | trace)

    def rule(
        self, *, x: float | None = None, y: float | None = None, dash: str = "solid", **line: Any
    ) -> None:
        """Add a line over the whole plot at x or at y."""
        across = {"xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y}
        upward = {"yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x}
        self.shapes.append({"type": "line"} | (across if x is None else upward))
        self.shapes[-1]["line"] = {"dash": dash} | line

    def area(self, color: str, **place: Any) -> None:
        """Add a rectangle below the data."""
        box = {"type": "rect", "layer": "below", "line": {"width": 0}}
        self.shapes.append(box | {"fillcolor": color} | place)

    def note(self, text: str, color: str = "", **place: Any) -> None:
        """Add a text without an arrow."""
        font = {"size": theme.SMALL, "color": color or theme.ink(self.dark)}
        self.notes.append({"text": text, "showarrow": False, "font": font} | place)


def framed(
    parts: Parts,
    title: str,
    height: int,
    *,
    rows: int,
    margin: tuple[int, int, int],
    large: bool = False,
) -> go.Figure:
    """The figure, half a page wide, as `_theme.frame` makes it.

    ``rows``: of the legend above the plot; ``margin``: pixels to the left, right and bottom; for a
    room, where text is larger, margins fit themselves.
    """
    dark = parts.dark
    layout = theme.settings(theme.tied(title), height, dark=dark, width=WIDTH, large=large)
    look = theme.axis(dark=dark, large=large) | {"automargin": large}
    left, right, bottom = margin
    # larger names stand one below the other, above a plot that stays as high as it was
    names = sum(trace.get("showlegend", True) for trace in parts.data)
    above = ROOM_LINE * names if large and rows else LINE * rows
    layout["height"] += above if large else 0
    top = layout["margin"]["t"] + 5 + above
    layout["margin"] = {"l": left, "r": right, "b": bottom, "t": top, "autoexpand": large}
    layout |= {"showlegend": rows > 0, "legend": theme.LEGEND | {"x": 0, "xanchor": "left"}}
    layout |= {"shapes": parts.shapes, "annotations": parts.notes}
    axes = {name: look for name in parts.layout if name.startswith(("xaxis", "yaxis"))}
    figure = go.Figure({"data": parts.data, "layout": merged(layout | axes, parts.layout)})
    return _large.enlarge(figure) if large else figure


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Both sets of parts joined; where both set an option, the second one's value counts."""
    joined = dict(one)
    for key, value in other.items():
        old = joined.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = merged(old, value)
        joined[key] = value
    return joined
