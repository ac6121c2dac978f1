"""Images that quantization loses and gains in each run, with the exact paired test."""

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from qlib.measure.paired import Pair
from qlib.measure.statistics import LEVEL, p_text
from qlib.plots.shared import theme


@dataclass(frozen=True)
class Row:
    """One run against its float network; ``agreement`` is in percent."""

    key: str
    title: str
    pair: Pair
    agreement: float

    @property
    def lost(self) -> int:
        """How many images float has right and the quantized network wrong."""
        return self.pair.first

    @property
    def gained(self) -> int:
        """How many images float has wrong and the quantized network right."""
        return self.pair.second

    @property
    def proven(self) -> bool:
        """Whether the run loses more images than it gains, by more than chance would give."""
        return self.lost > self.gained and self.pair.p < LEVEL


@dataclass(frozen=True)
class FlipsBars:
    """Data of the figure: runs in the order in which they are drawn, first on top."""

    rows: tuple[Row, ...]


def info(runs: Sequence[tuple[str, str, Pair, float]]) -> FlipsBars:
    """Data of the figure: images lost and gained by each run.

    ``runs``: (key, title, float-against-quantized `Pair`, agreement in percent) of each run.
    """
    return FlipsBars(tuple(Row(*run) for run in runs))


def headline(info: FlipsBars) -> str:
    """The take-away: how many runs lose more images than chance explains."""
    rows, proven = info.rows, [r for r in info.rows if r.proven]
    if len(rows) == 1:
        row = rows[0]
        loss = "a loss beyond chance" if row.proven else "no loss beyond chance"
        return f"{row.lost} lost, {row.gained} gained: {loss}"
    if not proven:
        return f"None of the {len(rows)} runs loses more than chance explains"
    if len(proven) == len(rows):
        return f"All {len(rows)} runs lose more than chance explains"
    verb = "loses" if len(proven) == 1 else "lose"
    return f"{len(proven)} of {len(rows)} runs {verb} more than chance explains"


def figure(info: FlipsBars, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw images lost to the left, gained to the right. ``customdata[0]``: the run's key."""
    figure, rows = go.Figure(), info.rows
    most = {side: max((getattr(r, side) for r in rows), default=0) for side in ("lost", "gained")}
    widest = max(*most.values(), 1)
    for side, sign, color, shape in (
        ("lost", -1, theme.WRONG, ""),
        ("gained", 1, theme.RIGHT, "/"),
    ):
        counts = [getattr(r, side) for r in rows]
        figure.add_bar(
            orientation="h",
            y=list(range(len(rows))),
            x=[sign * c for c in counts],
            text=[str(c) for c in counts],
            textposition="outside",
            textfont={"size": theme.SMALL, "color": theme.ink(dark)},
            cliponaxis=False,
            name=side,
            marker={
                "color": theme.rgba(color, 0.75),
                "pattern": {"shape": shape, "solidity": 0.2},
            },
            customdata=[_facts(r) for r in rows],
            hovertemplate=HOVER,
        )
    for place, row in enumerate(rows):
        figure.add_annotation(
            x=1,
            xref="paper",
            xanchor="right",
            y=place,
            text=f"{p_text(row.pair.p)} · agrees on {row.agreement:.1f} %",
            showarrow=False,
            font={"size": theme.SMALL, "color": theme.faint(dark)},
        )
    figure.add_vline(x=0, line={"color": theme.ink(dark), "width": 1})
    framed = theme.frame(
        figure, title=headline(info), height=theme.HELPER_HEIGHT, dark=dark, width=60, large=large
    )
    # room for the numbers on both sides, and for the column of tests at the right
    limits = [-most["lost"] - 0.25 * widest, most["gained"] + 1.5 * widest]
    framed.update_xaxes(title="← images lost, images gained →", range=limits, **_ticks(most))
    framed.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[r.title for r in rows],
        range=[len(rows) - 0.4, -0.6],
        showgrid=False,
    )
    return framed.update_layout(barmode="overlay", bargap=0.35, showlegend=False)


HOVER = (
    "<b>%{customdata[1]}</b><br>right in both: %{customdata[2]}<br>"
    "lost (right in float alone): %{customdata[3]}<br>"
    "gained (right after quantization alone): %{customdata[4]}<br>"
    "wrong in both: %{customdata[5]}<br>exact paired test: %{customdata[6]}<extra></extra>"
)


def _facts(row: Row) -> list:
    pair = row.pair
    counts = [pair.both, pair.first, pair.second, pair.neither]
    return [row.key, row.title, *counts, p_text(pair.p)]


def _ticks(most: dict[str, int]) -> dict:
    """Whole numbers of images, written without a sign on either side."""
    widest = max(*most.values(), 1)
    step = next(s for e in range(9) for s in (10**e, 2 * 10**e, 5 * 10**e) if widest / s <= 4)
    values = list(range(-(most["lost"] // step) * step, most["gained"] + 1, step))
    return {"tickvals": values, "ticktext": [str(abs(v)) for v in values]}


def alt(info: FlipsBars) -> str:
    """The figure in words, with its numbers."""
    parts = [
        f"{r.title}: {r.lost} lost, {r.gained} gained of {r.pair.n}, {p_text(r.pair.p)}, "
        f"agreement {r.agreement:.1f} %"
        for r in info.rows
    ]
    return f"Images lost and gained against the float model. {'. '.join(parts)}."
