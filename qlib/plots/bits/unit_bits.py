"""A bit-width for each unit, as steps along the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from qlib.plots.shared import theme

HEIGHT = theme.HELPER_HEIGHT + 50


@dataclass(frozen=True)
class Unit:
    """One unit at its chosen ``bits``; ``fixed``: it has no other width. ``kl`` in nats."""

    name: str
    bits: int
    kl: float
    widths: tuple[int, ...]

    @property
    def fixed(self) -> bool:
        """Whether the unit has a single possible bit-width."""
        return len(self.widths) == 1


@dataclass(frozen=True)
class UnitBits:
    """Data of the figure: the units in order of execution, each with its bit-width."""

    units: tuple[Unit, ...]
    method: str  # whose network it is, for its colour
    shared: str = ""  # beginning that the names of blocks have in common

    @property
    def free(self) -> tuple[Unit, ...]:
        """The units that have several bit-widths to choose from."""
        return tuple(u for u in self.units if not u.fixed)


def info(blocks: Sequence[Mapping[str, Any]], bits: Mapping[str, int], *, method: str) -> UnitBits:
    """Data of the figure: each unit of a network with the bit-width chosen for it.

    ``blocks``: rows of `RunRecord.blocks`; ``bits``: a width for each unit that has several.
    """
    kl_by_unit: dict[str, dict[int, float]] = {}
    for row in blocks:
        kl_by_unit.setdefault(row["unit"], {})[int(row["bits"])] = float(row["kl"])
    units = []
    for name, kls in kl_by_unit.items():
        at = bits.get(name, next(iter(kls)))
        units.append(Unit(name, at, kls[at], tuple(sorted(kls, reverse=True))))
    return UnitBits(tuple(units), method, _shared(list(kl_by_unit)))


def _shared(names: Sequence[str]) -> str:
    """``blocks.`` where all units with a name like another's begin with it, else nothing."""
    heads = [name.split(".")[0] + "." for name in names if "." in name]
    several = {head for head in heads if heads.count(head) > 1}
    return several.pop() if len(several) == 1 else ""


def headline(info: UnitBits) -> str:
    """The take-away: which units got the most bits, which the fewest."""
    free = info.free
    low, high = min(u.bits for u in free), max(u.bits for u in free)
    if low == high:
        return f"Every unit has {low} bits"
    return f"{high} bits for {_named(info, high)}, {low} for {_named(info, low)}"


def _named(info: UnitBits, bits: int) -> str:
    names = [u.name.removeprefix(info.shared) for u in info.free if u.bits == bits]
    if len(names) > 3:
        return f"{len(names)} units"
    what = "block" if info.shared else ""
    listed = ", ".join(names)
    return f"{what}{'s' * (len(names) > 1)} {listed}".strip() if what else listed


def figure(
    info: UnitBits, *, dark: bool = False, large: bool = False, level: int | None = None
) -> go.Figure:
    """Draw the bit-width of each unit as steps; units with only one width are open.

    ``level``: equal bits for all, which cost no more; dashed, and named under the axis.
    """
    style, n = theme.style(info.method), len(info.units)
    edges = [x for i in range(n) for x in (i - 0.5, i + 0.5)]
    figure = go.Figure()
    figure.add_scatter(
        x=edges,
        y=[u.bits for u in info.units for _ in (0, 1)],
        mode="lines",
        fill="tozeroy",
        fillcolor=theme.rgba(style.color, 0.14),
        line={"color": style.color, "width": 2.5},
        hoverinfo="skip",
        name="bits",
    )
    for fixed, symbol in ((False, "square"), (True, "square-open")):
        some = [(i, u) for i, u in enumerate(info.units) if u.fixed == fixed]
        figure.add_scatter(
            x=[i for i, _ in some],
            y=[u.bits for _, u in some],
            customdata=[[u.name, u.kl] for _, u in some],
            text=[str(u.bits) for _, u in some],
            textposition=[_beside(u.bits, level) for _, u in some],
            mode="markers+text",
            textfont={"size": theme.SMALL, "color": theme.ink(dark)},
            marker={"symbol": symbol, "size": 8, "color": style.color},
            hovertemplate=(
                "<b>%{customdata[0]}</b><br>%{y} bits"
                + (", fixed" if fixed else "")
                + "<br>alone: KL %{customdata[1]:.2g} nats<extra></extra>"
            ),
            name="fixed" if fixed else "switchable",
        )
    if level is not None:
        figure.add_hline(y=level, line={"dash": "dash", "width": 1.2, "color": theme.faint(dark)})
    equal = f"{'<br>' if large else '; '}dashed: {level} bits everywhere" if level else ""
    figure.update_xaxes(
        title=f"{_what(info)}, in order of execution{equal}", tickvals=list(range(n)),
        showgrid=False,
        tickangle=0,
        ticktext=[_short(u.name, info.shared) for u in info.units], range=[-0.55, n - 0.45],
    )  # fmt: skip
    widths = sorted({w for u in info.units for w in u.widths})
    figure.update_yaxes(
        title="bits of the unit", range=[0, max(widths) + 2], tickvals=widths,
    )  # fmt: skip
    figure.update_layout(showlegend=False, hovermode="closest")
    return theme.frame(
        figure, title=headline(info), height=HEIGHT, dark=dark, width=56, large=large
    )


def _beside(bits: int, level: int | None) -> str:
    """Where a number stands clear of the dashed line: above its mark, or else under it."""
    return "bottom center" if level == bits + 1 else "top center"


def _short(name: str, shared: str) -> str:
    """``blocks.3`` → ``3``, ``patch_embed.proj`` → ``patch``; others as they are."""
    if shared and name.startswith(shared):
        return name.removeprefix(shared)
    return name.split(".")[0].split("_")[0] if shared else name


def _what(info: UnitBits) -> str:
    return "block" if info.shared else "unit"


def alt(info: UnitBits) -> str:
    """The figure in words, with its numbers."""
    parts = [f"{u.name} {u.bits}{' (fixed)' if u.fixed else ''}" for u in info.units]
    return f"Bits of each unit in order of execution: {', '.join(parts)}."
