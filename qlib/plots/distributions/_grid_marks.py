"""What is drawn around a tensor's histogram: the ends of its grid, what is clipped, percentiles."""

from typing import Any

from qlib.plots.distributions import tensor
from qlib.plots.shared import theme
from qlib.plots.shared.values import ValueAxis, percent
from qlib.store.tensors import TensorHist

PERCENTILES = {1: "0.1 %", 7: "99.9 %"}  # those that get a mark, by their place
PANELS = ("y domain", "y2 domain")  # counts above, error below
NEAR = 0.16  # of the axis: marks closer than this are labelled away from each other


def shapes(
    hist: TensorHist, axis: ValueAxis, reach: tuple[float, float], *, one_grid: bool, dark: bool
) -> list[dict[str, Any]]:
    """Clipped ranges shaded with a line where they begin; the error of even rounding below.

    Where channels have grids of their own there is no common end, so none is drawn.
    """
    if not tensor.has_grid(hist):
        return []
    dotted = {"color": theme.faint(dark), "width": 1, "dash": "dot"}
    even = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y2", "line": dotted}
    drawn = [even | {"y0": tensor.EVEN, "y1": tensor.EVEN}]
    first, last = tensor.ends(hist)
    low, begin, end, high = axis.place([reach[0], first, last, reach[1]]).tolist()
    for a, b, edge in ((low, begin, begin), (end, high, end)):
        if one_grid and b > a:
            drawn += [s for panel in PANELS for s in _beyond(panel, a, b, edge)]
    return drawn


def _beyond(panel: str, a: float, b: float, edge: float) -> list[dict[str, Any]]:
    """The shade from ``a`` to ``b`` and the line at ``edge``, over the height of one panel."""
    shape = {"yref": panel, "y0": 0, "y1": 1, "layer": "below"}
    fill = {"fillcolor": theme.rgba(theme.WRONG, 0.1), "line": {"width": 0}}
    line = {"color": theme.WRONG, "width": 1.4, "dash": "dash"}
    return [
        shape | {"type": "rect", "x0": a, "x1": b} | fill,
        shape | {"type": "line", "x0": edge, "x1": edge, "line": line},
    ]


def notes(
    hist: TensorHist,
    axis: ValueAxis,
    reach: tuple[float, float],
    *,
    one_grid: bool,
    ground: float,
    dark: bool,
) -> list[dict[str, Any]]:
    """Percentiles below the counts (``ground`` is their share of the height), clipped shares."""
    texts = _percentiles(hist, axis, reach, ground, dark)
    if not tensor.has_grid(hist):
        return texts
    if one_grid:
        below, above = tensor.outside(hist)
        first, last = tensor.ends(hist)
        if below > 0:
            texts.append(_clipped(below, first, axis, reach, "right", dark))
        if above > 0:
            texts.append(_clipped(above, last, axis, reach, "left", dark))
    even = {"x": 1, "xref": "paper", "xanchor": "left", "y": tensor.EVEN, "yref": "y2"}
    return [*texts, even | _plain("0.29", dark)]


def _plain(text: str, dark: bool) -> dict[str, Any]:
    font = {"size": theme.SMALL, "color": theme.faint(dark)}
    return {"text": text, "showarrow": False, "font": font}


def _percentiles(hist, axis: ValueAxis, reach, ground: float, dark: bool) -> list[dict]:
    left, right = axis.place(reach)
    low, high = axis.place([hist.percentiles[place] for place in PERCENTILES])
    near = high - low < NEAR * (right - left)
    found = []
    for x, name, away in zip((low, high), PERCENTILES.values(), ("right", "left"), strict=True):
        side = away if near else "center"
        text = f"▲<br>{name}" if not near else f"{name} ▲" if away == "right" else f"▲ {name}"
        found.append(
            {"x": float(x), "xref": "x", "xanchor": side, "y": ground, "yref": "paper"}
            | {"yanchor": "top"}
            | _plain(text, dark)
        )
    return found


def _clipped(share: float, edge: float, axis: ValueAxis, reach, anchor: str, dark: bool) -> dict:
    """Beside the edge, on the side that has room for it."""
    left, at, right = axis.place([reach[0], edge, reach[1]]).tolist()
    room = (at - left if anchor == "right" else right - at) / (right - left)
    if room < NEAR:
        anchor = "left" if anchor == "right" else "right"
    font = {"size": theme.SMALL, "color": theme.ink(dark)}
    return {
        "x": at, "xref": "x", "xanchor": anchor, "y": 0.99, "yref": "paper", "yanchor": "top",
        "text": f" {percent(share)} clipped ", "showarrow": False, "font": font,
    }  # fmt: skip
