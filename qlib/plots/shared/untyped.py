"""Parts of Plotly's figures, for the type checker: Plotly tells no types of them."""

from typing import Any

import plotly.graph_objects as go


def layout(figure: go.Figure) -> Any:
    """The figure's layout."""
    return figure.layout


def traces(figure: go.Figure) -> Any:
    """The figure's traces, in the order in which they are drawn."""
    return figure.data
