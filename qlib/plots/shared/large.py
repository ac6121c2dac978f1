"""Larger text, lines and marks of a finished figure, for showing it to a room."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from qlib.plots.shared import untyped

FONT, TITLE = 18, 22  # pixels
LINE, RULE, MARK = 3.0, 2.0, 10.0
HEIGHT = 1.25  # of the usual height: larger text needs room


def enlarge(figure: go.Figure) -> go.Figure:
    """Raise all sizes of a figure's traces, notes and rules to what a room can read."""
    for trace in untyped.traces(figure):
        _text(trace)
        if trace.type in ("scatter", "scattergl"):
            _scatter(trace)
        for bars in ("error_x", "error_y"):
            if bars in trace and trace[bars].visible is not False and trace[bars].array is not None:
                trace[bars].thickness = max(trace[bars].thickness or 0, LINE)
    for note in untyped.layout(figure).annotations or ():
        note.font.size = max(note.font.size or 0, FONT)
    for shape in untyped.layout(figure).shapes or ():
        if shape.line.width is None or shape.line.width > 0:
            shape.line.width = max(shape.line.width or 0, RULE)
    figure.update_layout(legend_font_size=FONT)
    return figure


def _scatter(trace: Any) -> None:
    mode = trace.mode or "lines+markers"
    if "lines" in mode and trace.line.width != 0:  # a width of zero is a filled area's edge
        trace.line.width = max(trace.line.width or 0, LINE)
    if "markers" in mode:
        size = trace.marker.size
        if size is None or isinstance(size, int | float):
            trace.marker.size = max(size or 0, MARK)
        else:
            trace.marker.size = np.maximum(size, MARK)


def _text(trace: Any) -> None:
    if "textfont" in trace:
        size = trace.textfont.size
        trace.textfont.size = max(size or 0, FONT) if not isinstance(size, tuple) else FONT
    bar = None
    if "colorbar" in trace and trace.showscale is not False:
        bar = trace.colorbar
    elif "marker" in trace and trace.marker.to_plotly_json().get("showscale"):
        bar = trace.marker.colorbar
    if bar is not None:
        bar.tickfont.size = FONT
        bar.title.font.size = FONT
