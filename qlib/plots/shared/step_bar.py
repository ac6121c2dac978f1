"""One step of a waterfall: a bar from the value before to the value after, and what it changed."""

from typing import Any

from qlib.plots.shared import theme

Drawn = dict[str, Any]


def bar(
    place: int, before: float, after: float, text: str, *, better: bool, dark: bool = False
) -> tuple[list[Drawn], Drawn]:
    """Shapes and the note of the step to ``place``, green where it is ``better``.

    They can be no marks: a step's ends are the only ones.
    """
    lead = {
        "type": "line",
        "x0": place - 1,
        "x1": place + 0.28,
        "y0": before,
        "y1": before,
        "line": {"color": theme.faint(dark), "width": 1, "dash": "dot"},
    }
    box = {
        "type": "rect",
        "x0": place - 0.28,
        "x1": place + 0.28,
        "y0": before,
        "y1": after,
        "line": {"width": 0},
        "fillcolor": theme.rgba(theme.RIGHT if better else theme.WRONG, 0.35),
        "layer": "below",
    }
    note = {
        "x": place + 0.3,
        "y": (before + after) / 2,
        "xanchor": "left",
        "text": text,
        "showarrow": False,
        "font": {"size": theme.FONT_SIZE, "color": theme.ink(dark)},
    }
    return [lead, box], note
