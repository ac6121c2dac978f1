"""Typed access to parts of Plotly's figures, which Plotly leaves untyped."""

from typing import Any

import plotly.graph_objects as go


def layout(figure: go.Figure) -> Any:
    """The figure's layout."""
    return figure.layout


def traces(figure: go.Figure) -> Any:
    """The figure's traces, in the order in which they are drawn."""
    return figure.data
