"""Predicted damage against cost: the best assignments of bits to units, and equal bits for all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import plotly.graph_objects as go

from qlib.plots.shared import theme

COSTS = {"weight_mb": "weights (MB)", "gbops": "bit-operations per image (billion)"}
UNITS = {"weight_mb": "MB", "gbops": "billion bit-operations"}
HEIGHT = theme.HELPER_HEIGHT + 50  # as the steps beside it
MOST = 300  # points drawn of a long front
LEAST = 1e-7  # nats: a logarithmic axis has no zero


class Priced(Protocol):
    """Type of an assignment of bits with its costs, as `qlib.allocation.front.Choice` has them."""

    kl: float
    weight_mb: float
    gbops: float


@dataclass(frozen=True)
class Mark:
    """One point of the figure: an assignment of bits to units with its cost and damage.

    ``code``: the assignment's digits, by which a click finds it.
    """

    cost: float
    kl: float
    code: str


@dataclass(frozen=True)
class BitsFront:
    """Data of the figure: the front, equal bits, and the assignment chosen now.

    What the figure shows; ``equal``: bits → the assignment that gives all units as many.
    """

    by: str
    front: tuple[Mark, ...]
    equal: Mapping[int, Mark]
    now: Mark
    method: str  # whose network it is, for its colour


def info(
    front: Sequence[tuple[Priced, str]],
    equal: Mapping[int, tuple[Priced, str]],
    now: tuple[Priced, str],
    *,
    method: str,
    by: str = "weight_mb",
) -> BitsFront:
    """Data of the figure, from the assignments of a front.

    Assignments with their codes; ``by``: a key of `COSTS`.
    """
    step = max(1, -(-len(front) // MOST))
    kept = [*front[::step], *([front[-1]] if (len(front) - 1) % step else [])]
    return BitsFront(
        by,
        tuple(_mark(c, by) for c in kept),
        {b: _mark(c, by) for b, c in equal.items()},
        _mark(now, by),
        method,
    )


def _mark(choice: tuple[Priced, str], by: str) -> Mark:
    return Mark(getattr(choice[0], by), choice[0].kl, choice[1])


def rival(info: BitsFront) -> tuple[int, Mark] | None:
    """The assignment of equal bits that costs no more than the present one, with the most bits."""
    fits = {b: m for b, m in info.equal.items() if m.cost <= info.now.cost * (1 + 1e-9)}
    return (max(fits), fits[max(fits)]) if fits else None


def headline(info: BitsFront) -> str:
    """The take-away: the predicted damage against that of equal bits for no more cost."""
    other, unit = rival(info), UNITS[info.by]
    if other is None:
        return f"Predicted KL {info.now.kl:.2g} nats for {info.now.cost:.3g} {unit}"
    bits, mark = other
    if mark.code == info.now.code:
        return f"{bits} bits everywhere: predicted KL {mark.kl:.2g} nats"
    if mark.kl <= info.now.kl:
        return f"{bits} bits everywhere would do no more damage for no more {unit}"
    ratio = mark.kl / max(info.now.kl, LEAST)
    extra = info.now.cost / mark.cost - 1
    price = "for the same cost" if extra < 0.005 else f"for {100 * extra:.0f} % more cost"
    return f"{ratio:.1f} times less predicted damage than {bits} bits everywhere, {price}"


def figure(info: BitsFront, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw the front as a stepped line, equal bits as diamonds, a ring around the present one.

    ``customdata`` of a point: its code.
    """
    style = theme.style(info.method)
    figure = go.Figure()
    figure.add_scatter(
        **_points(info.front),
        mode="lines+markers",
        line={"shape": "hv", "width": 1.5, "color": style.color},
        marker={"size": 5, "color": style.color},
        hovertemplate=_hover("best for its cost", info.by),
        name="best for its cost",
    )
    figure.add_scatter(
        **_points(list(info.equal.values())),
        mode="markers+text",
        text=[str(b) for b in info.equal],
        textposition="top right",
        cliponaxis=False,
        textfont={"size": theme.SMALL, "color": theme.faint(dark)},
        marker={"symbol": "diamond", "size": 9, "color": theme.GREY},
        hovertemplate=_hover("%{text} bits everywhere", info.by),
        name="equal bits for all",
    )
    figure.add_scatter(
        **_points([info.now]),
        mode="markers",
        marker={
            "symbol": "circle-open", "size": 17, "color": theme.ink(dark), "line": {"width": 2.5}
        },
        hovertemplate=_hover("chosen now", info.by),
        name="chosen now",
    )  # fmt: skip
    figure.update_xaxes(title=COSTS[info.by], rangemode="normal")
    kls = [max(m.kl, LEAST) for m in (*info.front, *info.equal.values(), info.now)]
    figure.update_yaxes(
        title="KL (nats), log", type="log", exponentformat="power", dtick=1,
        range=[math.log10(min(kls)) - 0.25, math.log10(max(kls)) + 0.45],
    )  # fmt: skip
    figure.update_layout(showlegend=False, hovermode="closest")
    return theme.frame(
        figure, title=headline(info), height=HEIGHT, dark=dark, width=46, large=large
    )


def _points(marks: Sequence[Mark]) -> dict:
    return {
        "x": [m.cost for m in marks],
        "y": [max(m.kl, LEAST) for m in marks],
        "customdata": [[m.code] for m in marks],
    }


def _hover(name: str, by: str) -> str:
    return (
        f"<b>{name}</b><br>predicted KL %{{y:.2g}} nats<br>{COSTS[by]}: %{{x:.3g}}<extra></extra>"
    )


def alt(info: BitsFront) -> str:
    """The figure in words, with its numbers."""
    equal = [f"{b} bits {m.kl:.2g} nats at {m.cost:.3g}" for b, m in info.equal.items()]
    return (
        f"Predicted KL against {COSTS[info.by]}. Now: {info.now.kl:.2g} nats at "
        f"{info.now.cost:.3g}. Equal bits for all: {', '.join(equal)}. "
        f"{len(info.front)} best assignments from {info.front[0].cost:.3g} to "
        f"{info.front[-1].cost:.3g}."
    )
