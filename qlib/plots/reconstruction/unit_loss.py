"""Loss of one unit while it was fitted, other methods overlaid, its neighbours faint behind."""

import math
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from qlib.plots.reconstruction.learned import framed, percent
from qlib.plots.reconstruction.loss_curve import Fit
from qlib.plots.reconstruction.unit_fits import Track, UnitLoss, info, smoothed
from qlib.plots.shared import theme

__all__ = ["UnitLoss", "alt", "figure", "headline", "info"]

POINTS = 60  # of each faint curve


def headline(info: UnitLoss) -> str:
    """The take-away: the unit's error, from the first recorded steps to the last ones."""
    main = info.main
    if main is None:
        return "No loss is stored for this unit"
    if main.unit in info.broken:
        return f"{main.unit}: the loss stopped being a number"
    first, last = main.fits[0].level[0], main.fits[-1].level[1]
    change = last / first - 1
    if abs(change) < 0.005:
        return f"{main.unit}: the error ends where it began"
    verb = "fell" if change < 0 else "rose"
    amount = percent(abs(change)) if change < 1 else f"{last / first:.1f} times"
    return f"{main.unit}: error {verb} from {first:.3g} to {last:.3g} ({amount})"


def figure(
    info: UnitLoss,
    *,
    dark: bool = False,
    large: bool = False,
    log: bool = True,
    penalty: bool = True,
) -> go.Figure:
    """Draw the loss against step; below it, dashed, the penalty that makes the rounding hard."""
    figure = go.Figure()
    for fit in info.others:
        _behind(figure, fit)
    for place in range(len(info.tracks) - 1, -1, -1):
        _track(figure, info, place, dark)
    pushed = penalty and info.main is not None and info.main.penalised
    figure.update_xaxes(title="step inside the unit", rangemode="tozero", anchor="y")
    figure.update_yaxes(
        title="error of the unit's output" + (", log" if log else ""),
        domain=(0.32, 1) if pushed else (0, 1),
        **({"type": "log", "exponentformat": "power", "dtick": 1} if log else {}),
    )
    if log:
        _decades(figure, info)
    else:
        _linear(figure, info)
    if info.main is not None:
        _warm_up(figure, info.main.fits[0], dark)
    if info.main is not None and pushed:
        _push(figure, info.main, dark)
    several = len(info.tracks) > 1
    return framed(figure, headline(info), several=several, dark=dark, large=large)


def _behind(figure: go.Figure, fit: Fit) -> None:
    keep = slice(None, None, max(1, len(fit.step) // POINTS))
    figure.add_scatter(
        x=fit.step[keep],
        y=smoothed(fit.loss)[keep],
        mode="lines",
        line={"color": theme.rgba(theme.GREY, 0.28), "width": 1},
        name=fit.unit,
        showlegend=False,
        hovertemplate=f"{fit.unit}, another unit: %{{y:.3g}}<extra></extra>",
    )


def _track(figure: go.Figure, info: UnitLoss, place: int, dark: bool) -> None:
    track = info.tracks[place]
    style, main = theme.style(track.method), place == 0
    name = track.title if track.unit == info.tracks[0].unit else f"{track.title}: {track.unit}"
    wide = 2.6 if main else 1.7
    for fit in track.fits:
        if info.smooth and main:
            _line(figure, fit, fit.loss, {"color": theme.rgba(style.color, 0.25), "width": 1})
        y = smoothed(fit.loss) if info.smooth else fit.loss
        line = {"color": style.color, "width": wide, "dash": "solid" if main else style.dash}
        _line(figure, fit, y, line, name, track.method, fit.round == 1)
    first = track.fits[0]
    figure.add_scatter(
        x=first.step[:1],
        y=(smoothed(first.loss) if info.smooth else first.loss)[:1],
        mode="markers",
        marker={
            "symbol": style.symbol,
            "size": 9,
            "color": style.color,
            "line": {"width": 1.5, "color": theme.paper(dark)},
        },
        name=f"{track.title}, start",
        legendgroup=track.method,
        showlegend=False,
        hovertemplate="before learning, weights not rounded yet: %{y:.3g}<extra></extra>",
    )


def _line(
    figure: go.Figure, fit: Fit, y, line: dict[str, Any], name: str = "", group: str = "",
    first: bool = True,
) -> None:  # fmt: skip
    round_ = "" if fit.round == 1 else f", round {fit.round}"
    hover = f"<b>{name}{round_}</b>, {fit.unit}<br>step %{{x}}: %{{y:.3g}}<extra></extra>"
    figure.add_scatter(
        x=fit.step,
        y=y,
        mode="lines",
        line=line,
        name=name + round_ if name else f"{fit.unit}, every loss",
        legendgroup=group or None,
        showlegend=bool(name) and first,
        **({"hovertemplate": hover} if name else {"hoverinfo": "skip"}),
    )


def _decades(figure: go.Figure, info: UnitLoss) -> None:
    """The tracks with some room; neighbours far away (edge layers have more bits) stay outside.

    Ticks between the powers of ten where the room is less than two of them.
    """
    if info.losses:
        low, high = math.log10(min(info.losses)), math.log10(max(info.losses))
        room = max(0.2, 0.35 * (high - low))
        figure.update_yaxes(range=[low - room, high + room])
        wide = high - low + 2 * room
        if wide < 2:
            step = "D2" if wide > 0.8 else None
            figure.update_yaxes(dtick=step, exponentformat="none", tickformat=".3~g")


def _linear(figure: go.Figure, info: UnitLoss) -> None:
    """From zero to the tracks' own highest loss: another unit's would flatten them."""
    figure.update_yaxes(range=[0, 1.05 * max(info.losses, default=1.0)])


def _warm_up(figure: go.Figure, fit: Fit, dark: bool) -> None:
    if fit.warmup_end is not None:
        figure.add_vline(
            x=fit.warmup_end,
            line={"color": theme.faint(dark), "dash": "dot", "width": 1},
            annotation={
                "text": "warm-up ends",
                "font": {"size": theme.SMALL, "color": theme.faint(dark)},
                "xanchor": "left",
                "yanchor": "top",
            },
        )


def _push(figure: go.Figure, track: Track, dark: bool) -> None:
    for fit in track.fits:
        known = [(s, p) for s, p in zip(fit.step, fit.penalty, strict=True) if p is not None]
        # it is looked at now and then and repeated in between: a line from look to look
        pairs = known[:1] + [b for a, b in pairwise(known) if a[1] != b[1]] + known[-1:]
        figure.add_scatter(
            x=[s for s, _ in pairs],
            y=[p for _, p in pairs],
            mode="lines",
            yaxis="y2",
            name="rounding penalty",
            showlegend=False,
            line={"color": theme.faint(dark), "width": 1.8, "dash": "dash"},
            hovertemplate="penalty at step %{x}: %{y:.3g}<extra></extra>",
        )
    figure.update_layout(
        yaxis2={
            "title": "penalty",
            "rangemode": "tozero",
            "domain": (0, 0.2),
            "anchor": "x",
            "nticks": 3,
        },
        xaxis={"anchor": "y2"},
    )


def alt(info: UnitLoss) -> str:
    """The figure in words, with its numbers."""
    if info.main is None:
        return "Loss while the unit was fitted: nothing is stored."
    told = "; ".join(
        f"{t.title} ({t.unit}) from {t.fits[0].level[0]:.3g} to {t.fits[-1].level[1]:.3g}"
        for t in info.tracks
    )
    return (
        f"Loss against step. {headline(info)}. "
        f"Medians of the first and of the last recorded steps: {told}."
    )
