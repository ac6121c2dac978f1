"""Share of each layer's weights that learning moved to another level than the nearest one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from qlib.plots.reconstruction import learned
from qlib.plots.reconstruction.learned import Gain, percent
from qlib.plots.shared import places as _places
from qlib.plots.shared import theme

WIDTH = 400  # pixels of the plot area at 1280 pixels: half a page


@dataclass(frozen=True)
class Group:
    """One method's layers in order of execution."""

    method: str
    title: str
    gains: tuple[Gain, ...]


@dataclass(frozen=True)
class Flips:
    """Data of the figure: the share of moved weights in each layer.

    The method asked for first; ``layers`` and ``units`` name the places on the axis.
    """

    groups: tuple[Group, ...]
    layers: tuple[str, ...]
    units: tuple[str, ...]
    layer: str = ""

    @property
    def main(self) -> tuple[Gain, ...]:
        """The layers of the method asked for."""
        return self.groups[0].gains if self.groups else ()


def info(
    rows: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    titles: Mapping[str, str] | None = None,
    layer: str = "",
) -> Flips:
    """Data of the figure, from each method's table of layers.

    Shares of the methods of ``rows`` (method → rows of its ``layers.csv``), in that order.
    """
    groups, places = [], {}
    for method, found in rows.items():
        gains = tuple(g for g in learned.gains(found) if g.flipped is not None)
        places |= {g.layer: g.unit for g in gains if g.layer not in places}
        if gains:
            groups.append(Group(method, (titles or {}).get(method, method), gains))
    return Flips(tuple(groups), tuple(places), tuple(places.values()), layer)


def headline(info: Flips) -> str:
    """The take-away: how many weights moved, and where most."""
    share = learned.moved(info.main)
    if not share:
        return "No weight was moved: every one sits at its nearest level"
    most = max(info.main, key=_share)
    name = most.layer.removeprefix(_places.prefix(_places.blocks(info.units)))
    return f"{percent(share)} of weights moved; most: {name} ({percent(_share(most))})"


def figure(info: Flips, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw bars for one method, marks for several; layers in order, named by their units."""
    figure = go.Figure()
    for group in info.groups:
        (_bars if len(info.groups) == 1 else _marks)(figure, info, group, dark)
    if info.layer in info.layers:
        at = info.layers.index(info.layer)
        figure.add_vrect(
            x0=at - 0.5,
            x1=at + 0.5,
            line_width=0,
            fillcolor=theme.rgba(theme.GREY, 0.25),
            layer="below",
        )
    units = _places.blocks(info.units)
    places, texts = _places.ticks(units, len(info.layers), WIDTH)
    head = _places.prefix(units)
    figure.update_xaxes(
        title="layers in order" + (f", {head}…" if head else ""),
        tickvals=places,
        ticktext=texts,
        tickangle=0,
        range=[-0.6, max(1, len(info.layers)) - 0.4],
        showgrid=False,
    )
    figure.update_yaxes(title="weights moved (%)", rangemode="tozero")
    figure.update_layout(showlegend=False, hovermode="closest", bargap=0.15)
    return theme.frame(
        figure,
        title=theme.tied(headline(info)),
        height=theme.HELPER_HEIGHT,
        dark=dark,
        width=58,
        large=large,
    )


def _share(gain: Gain) -> float:
    return gain.flipped or 0.0  # `info` takes only layers that have one


def _common(info: Flips, group: Group) -> dict[str, Any]:
    place = {layer: i for i, layer in enumerate(info.layers)}
    return {
        "x": [place[g.layer] for g in group.gains],
        "y": [100 * _share(g) for g in group.gains],
        "customdata": [[g.layer, g.params] for g in group.gains],
        "name": group.title,
        "hovertemplate": (
            f"<b>%{{customdata[0]}}</b>, {group.title}<br>%{{y:.1f}} % of %{{customdata[1]:,}} "
            "weights moved<extra></extra>"
        ),
    }


def _bars(figure: go.Figure, info: Flips, group: Group, dark: bool) -> None:
    edge = [2 if g.layer == info.layer else 0 for g in group.gains]
    figure.add_bar(
        **_common(info, group),
        marker={
            "color": theme.style(group.method).color,
            "line": {"width": edge, "color": theme.ink(dark)},
        },
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 1}},
    )


def _marks(figure: go.Figure, info: Flips, group: Group, dark: bool) -> None:
    style = theme.style(group.method)
    figure.add_scatter(
        **_common(info, group),
        mode="markers",
        marker={
            "symbol": style.symbol,
            "size": 9,
            "color": style.color,
            "line": {"width": 1, "color": theme.paper(dark)},
        },
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 1}},
    )


def alt(info: Flips) -> str:
    """The figure in words, with its numbers."""
    if not info.main:
        return "Share of moved weights per layer: nothing to show."
    chosen = next((g for g in info.main if g.layer == info.layer), None)
    told = f" {chosen.layer}: {percent(_share(chosen))}." if chosen else ""
    names = ", ".join(g.title for g in info.groups)
    return (
        f"Share of moved weights of {len(info.layers)} layers with {names}. {headline(info)}.{told}"
    )
