"""Colours, marks and the shared frame of every figure.

The colours were checked for the three kinds of colour blindness and for contrast on white and on
the dark background; still, no method is told by colour alone: dash and symbol go with it.
"""

import textwrap
import zlib
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from qlib.core import catalogue
from qlib.core.catalogue import Color
from qlib.plots.shared import large as _large
from qlib.plots.shared import untyped

FONT = '"Source Sans", "Source Sans Pro", "Segoe UI", sans-serif'
FONT_SIZE = 13  # nothing on a figure is set smaller than 12
SMALL = 12
TITLE_SIZE = 16
MAIN_HEIGHT = 380
HELPER_HEIGHT = 240

GREY = "#80858C"
WRONG = "#D6455D"
RIGHT = "#2E9E5D"
# one row of names above the plot, at its right end
LEGEND = {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 1, "xanchor": "right"}
METHOD_COLORS: dict[Color, str] = {
    "blue": "#3848FA",
    "ochre": "#B38C19",
    "magenta": "#C91DAC",
    "green": "#2E9E5D",
    "violet": "#BF6AFB",
    "olive": "#706010",
    "grey": GREY,  # the baseline's
}
COLORS = tuple(color for color in METHOD_COLORS.values() if color != GREY)
DASHES = ("solid", "dash", "longdash", "dashdot", "longdashdot", "dot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "hexagon", "star-diamond", "pentagon")


@dataclass(frozen=True)
class Style:
    """How one method is drawn everywhere."""

    color: str
    dash: str
    symbol: str


def style(method: str) -> Style:
    """The fixed style of a method, or of a line made by one of its variants.

    The method's file says it; one that does not say gets a style from its name. There are seven
    colours, then they come again: symbol and dash tell the methods of one colour apart.
    """
    look = catalogue.looks().get(method)
    if look:
        return Style(METHOD_COLORS[look.color], look.dash, look.symbol)
    mark = zlib.crc32(method.encode())
    return Style(
        COLORS[mark % len(COLORS)],
        DASHES[mark // 7 % len(DASHES)],
        SYMBOLS[mark // 61 % len(SYMBOLS)],
    )


def ink(dark: bool = False) -> str:
    """The colour of text and of float references."""
    return "#E8EAEE" if dark else "#22262E"


def faint(dark: bool = False) -> str:
    """The colour of secondary text and thin rules."""
    return "#9AA1AB" if dark else "#5E6570"


def paper(dark: bool = False) -> str:
    """The page's background colour, for rings around marks."""
    return "#0E1117" if dark else "#FFFFFF"


def rgba(color: str, alpha: float) -> str:
    """``#RRGGBB`` with an opacity from 0 to 1."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def wrapped(text: str, width: int = 96) -> str:
    """A sentence broken into lines for a figure's title."""
    return "<br>".join(textwrap.wrap(text, width)) or text


def frame(
    figure: go.Figure,
    *,
    title: str,
    height: int = MAIN_HEIGHT,
    dark: bool = False,
    width: int = 96,
    large: bool = False,
) -> go.Figure:
    """Give a figure the common title, fonts, margins and a zoom that survives reruns.

    ``width`` is the number of characters of the title's longest line. ``large`` is for a room:
    text, lines and marks that are read from the last row, on a higher figure.
    """
    figure.update_layout(settings(title, height, dark=dark, width=width, large=large))
    look = axis(dark=dark, large=large)
    figure.update_xaxes(look, selector=_shown)
    figure.update_yaxes(look, selector=_shown)
    return _large.enlarge(figure) if large else figure


def settings(title: str, height: int, *, dark: bool, width: int, large: bool) -> dict[str, Any]:
    """The layout that `frame` gives a figure, its axes left out."""
    size, heading = (_large.FONT, _large.TITLE) if large else (FONT_SIZE, TITLE_SIZE)
    lines = wrapped(title, round(width * TITLE_SIZE / heading))
    top = 26 + round(1.3 * heading) * (lines.count("<br>") + 1)
    return {
        "title": {
            "text": lines,
            "x": 0,
            "xref": "container",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            # Plotly centres the lines on the place of the first
            "pad": {"t": 6 + round(0.65 * heading) * lines.count("<br>"), "l": 2},
            "font": {"size": heading, "weight": 600, "color": ink(dark)},
        },
        "height": round(height * _large.HEIGHT) if large else height,
        "margin": {"l": 8, "r": 8, "t": top, "b": 8},
        "font": {"family": FONT, "size": size, "color": ink(dark)},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"font": {"size": size}, "align": "left"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": faint(dark), "activecolor": ink(dark)},
        "uirevision": "keep",
    }


def axis(*, dark: bool, large: bool) -> dict[str, Any]:
    """The look that `frame` gives each axis."""
    text = {"size": _large.FONT if large else FONT_SIZE, "color": faint(dark)}
    plain = {"automargin": True, "gridcolor": "rgba(128,133,140,0.22)", "zeroline": False}
    return plain | {"tickfont": text, "title": {"font": text}}


def _shown(axis: go.layout.XAxis | go.layout.YAxis) -> bool:
    return axis.visible is not False


def config(name: str) -> dict[str, Any]:
    """Plotly's toolbar settings: no logo, PNG at three times the size, a telling file name."""
    return {
        "displaylogo": False,
        "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
        "toImageButtonOptions": {"format": "png", "scale": 3, "filename": name},
    }


def marks(figure: go.Figure) -> int:
    """How many points a figure draws; pages keep this below 10,000."""
    return sum(len(t.x) if t.x is not None else 0 for t in untyped.traces(figure))


def tied(title: str) -> str:
    """The text with each percent sign kept on the line of its number."""
    return title.replace(" %", "\N{NO-BREAK SPACE}%")


def raised(figure: go.Figure, by: float) -> go.Figure:
    """The same figure with ``by`` more pixels above the plot."""
    return figure.update_layout(margin_t=untyped.layout(figure).margin.t + by)
