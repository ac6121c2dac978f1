"""Damage by block (rows) and kind of layer (columns): where in the network, and in which part."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from qlib.plots.layers import frame
from qlib.plots.layers.damage import DECADES, Profile, Value
from qlib.plots.shared import places, theme

ALONE = "alone"  # the column of units that are one layer
NONE = {"kept": "float", "missing": "…", "absent": "–", "": ""}  # what a cell says for a number
CHOSEN = theme.COLORS[2]
ROW = 21  # pixels of a row
CELLS = 60  # with so few cells, each has its number written in it


@dataclass(frozen=True)
class KindMap:
    """Data of the figure: damage by block and by kind of layer.

    What the figure shows; a cell that is not in ``cells`` has no layer.
    """

    profile: Profile
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], Value]

    def sums(self) -> dict[str, float]:
        """Damage added up over each column, where it can be added: not for decibels or cosines."""
        found = dict.fromkeys(self.columns, 0.0)
        for (_, column), v in self.cells.items():
            found[column] += v.value or 0.0
        return found


def info(profile: Profile) -> KindMap:
    """Data of the figure: the layers of a profile by unit and by name inside the unit."""
    cells = {}
    counts: dict[str, int] = {}
    for v in profile.values:
        counts[v.unit] = counts.get(v.unit, 0) + 1
    for v in profile.values:
        column = ALONE if counts[v.unit] == 1 else places.short(v.layer, v.unit)
        cells[v.unit, column] = v
    rows = tuple(counts)
    columns = dict.fromkeys(column for _, column in cells)
    ordered = [c for c in columns if c != ALONE] + [ALONE] * (ALONE in columns)
    return KindMap(profile, rows, tuple(ordered), cells)


def headline(info: KindMap) -> str:
    """The take-away: the kind of layer that adds up to most, or the worst cell."""
    cells = {k: v for k, v in info.cells.items() if v.value is not None}
    if not cells:
        return "No layer is measured yet"
    profile = info.profile
    if profile.unit == "dB" or profile.metric == "cosine" or len(info.columns) < 2:
        worst = profile.worst[0]
        return f"The worst cell: {worst.layer}"
    sums = info.sums()
    whole, best = sum(x for x in sums.values() if x > 0), max(sums, key=sums.__getitem__)
    if whole <= 0:
        return "No kind of layer stands out"
    # sums are of layers measured one at a time: shares of their sum, not of the network's damage
    return f"{best} layers do most: {frame.share(sums[best], whole)} of the sum over all"


def figure(
    info: KindMap, *, dark: bool = False, large: bool = False, chosen: str = ""
) -> go.Figure:
    """Draw a heat map, bright is bad; "–" where unknown; a frame around the chosen layer."""
    profile, flip = info.profile, info.profile.bad < 0
    log = profile.logarithmic
    grid = [[info.cells.get((row, column)) for column in info.columns] for row in info.rows]
    figure = go.Figure()
    figure.add_heatmap(
        x=list(range(len(info.columns))),
        y=list(range(len(info.rows))),
        z=[[_height(v, log) for v in line] for line in grid],
        text=[[_number(info, v) for v in line] for line in grid],
        texttemplate="%{text}",
        textfont={"size": theme.SMALL},
        colorscale="Cividis",
        reversescale=flip,
        xgap=2,
        ygap=2,
        zmin=_floor(profile) if log else None,
        colorbar=_colorbar(profile, log, dark),
        hoverinfo="skip",
        name=profile.title,
    )
    _gaps(figure, grid, dark)
    _targets(figure, grid, profile)
    if chosen:
        _frame(figure, grid, chosen)
    blocks = places.blocks([v.unit for v in profile.values])
    shared = places.prefix(blocks)
    figure.update_xaxes(
        tickvals=list(range(len(info.columns))), ticktext=_endings(info.columns),
        title="kind of layer, by its name in the block", tickangle=0, showgrid=False,
        range=[-0.5, len(info.columns) - 0.5],
    )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(info.rows))), showgrid=False,
        ticktext=[unit.removeprefix(shared) for unit in info.rows],
        title="block",
        range=[len(info.rows) - 0.5, -0.5],
    )  # fmt: skip
    height = max(theme.HELPER_HEIGHT, 105 + ROW * len(info.rows))
    return theme.frame(
        figure, title=headline(info), height=height, dark=dark, width=60, large=large
    )


def _endings(columns: Sequence[str]) -> list[str]:
    """``attn.qkv`` → ``qkv`` where that still tells the columns apart."""
    ends = [c.rpartition(".")[2] for c in columns]
    plain = [e for e in ends if not e.isdigit()]
    return ends if len(set(plain)) == len(columns) else list(columns)


def _height(value: Value | None, log: bool) -> float | None:
    if value is None or value.value is None:
        return None
    if not log:
        return value.value
    return math.log10(value.value) if value.value > 0 else -99.0


def _floor(profile: Profile) -> float:
    positive = [v.value for v in profile.known if v.value > 0]
    top = math.log10(max(positive))
    return max(math.log10(min(positive)), top - DECADES)


def _colorbar(profile: Profile, log: bool, dark: bool) -> dict:
    font = {"size": theme.SMALL, "color": theme.faint(dark)}
    bar = {"thickness": 12, "tickfont": font, "outlinewidth": 0}
    title = {"text": profile.unit, "side": "top", "font": font}
    if log:
        top = math.ceil(math.log10(max(v.value for v in profile.known)))
        powers = list(range(math.floor(_floor(profile)), top + 1))
        bar |= {"tickvals": powers, "ticktext": [f"{10.0**p:g}" for p in powers]}
    return bar | {"title": title}


def _number(info: KindMap, value: Value | None) -> str:
    """What a cell says while there are few."""
    if value is None or value.value is None or len(info.cells) > CELLS:
        return ""
    coarse = info.profile.unit in ("dB", "points")
    return (f"{value.value:.1f}" if coarse else f"{value.value:.1g}").replace("-", "−")


def _gaps(figure: go.Figure, grid: list, dark: bool) -> None:
    """A dash where a block has no such layer, or a word why a layer has no number."""
    cells = [(x, y, v) for y, line in enumerate(grid) for x, v in enumerate(line)]
    empty = [(x, y, "–" if v is None else NONE[v.state])
             for x, y, v in cells if v is None or v.value is None]  # fmt: skip
    font = {"size": theme.SMALL, "color": theme.faint(dark)}
    figure.add_scatter(
        x=[x for x, _, _ in empty],
        y=[y for _, y, _ in empty],
        text=[text for _, _, text in empty],
        mode="text",
        textfont=font,
        unselected={"textfont": {"color": font["color"]}},
        hoverinfo="skip",
        showlegend=False,
        name="gaps",
    )


def _targets(figure: go.Figure, grid: list, profile: Profile) -> None:
    """Marks that nobody sees until they are clicked: cells of a heat map cannot be chosen."""
    cells = [(x, y, v) for y, line in enumerate(grid) for x, v in enumerate(line) if v is not None]
    figure.add_scatter(
        x=[x for x, _, _ in cells],
        y=[y for _, y, _ in cells],
        customdata=frame.data([v for _, _, v in cells], profile),
        mode="markers",
        marker={"symbol": "square", "size": ROW - 3, "color": CHOSEN, "opacity": 0},
        selected={"marker": {"opacity": 0.75}},
        unselected={"marker": {"opacity": 0}},
        hovertemplate=frame.HOVER.replace("%{fullData.name}", ""),
        showlegend=False,
        name="cells",
    )


def _frame(figure: go.Figure, grid: list, chosen: str) -> None:
    for y, line in enumerate(grid):
        for x, v in enumerate(line):
            if v is not None and v.layer == chosen:
                figure.add_shape(
                    type="rect", x0=x - 0.48, x1=x + 0.48, y0=y - 0.46, y1=y + 0.46,
                    line={"width": 3, "color": CHOSEN},
                )  # fmt: skip


def alt(info: KindMap) -> str:
    """The figure in words, with the worst cells."""
    worst = [f"{v.layer} {frame.amount(v.value, info.profile)}" for v in info.profile.worst[:5]]
    return (
        f"{info.profile.axis} by block ({len(info.rows)}) and kind ({', '.join(info.columns)}). "
        f"Worst: {', '.join(worst) or 'none measured'}."
    )
