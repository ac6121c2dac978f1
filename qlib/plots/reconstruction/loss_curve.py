"""Loss against step while units are reconstructed: the last fit bold, earlier ones faint."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import plotly.graph_objects as go

from qlib.plots.shared import theme

POINTS = 200  # per fit; thinning keeps each stretch's lowest and highest value
SHOWN = 40  # fits drawn: the latest ones


@dataclass(frozen=True)
class Fit:
    """One unit being fitted once. A method may fit each unit several times: ``round`` from 1.

    ``loss`` is the reconstruction loss without the rounding penalty; ``penalty`` is None where
    it is still switched off (warm-up) or not used.
    """

    unit: str
    round: int
    step: tuple[int, ...]
    loss: tuple[float, ...]
    penalty: tuple[float | None, ...]

    @property
    def level(self) -> tuple[float, float]:
        """Medians of the first and of the last few recorded losses (a twentieth each)."""
        few = max(1, len(self.loss) // 20)
        return median(self.loss[:few]), median(self.loss[-few:])

    @property
    def change(self) -> float:
        """Relative change between the two levels."""
        first, last = self.level
        return last / first - 1

    @property
    def warmup_end(self) -> int | None:
        """The first step with a penalty, when there were steps without one before it."""
        on = [s for s, p in zip(self.step, self.penalty, strict=True) if p is not None]
        return on[0] if on and self.penalty[0] is None else None


@dataclass(frozen=True)
class LossCurve:
    """Data of the figure: the loss over steps of every unit fitted so far.

    All fits so far, in their order; the place of the last one is ``index`` of ``of`` units.
    """

    fits: tuple[Fit, ...]
    index: int = 0
    of: int = 0
    finished: bool = False

    @property
    def last(self) -> Fit | None:
        """The fit that is running or ended last; None before the first one."""
        return self.fits[-1] if self.fits else None


def info(events: Iterable[Mapping[str, Any]], *, finished: bool = False) -> LossCurve:
    """Data of the figure, from a run's events (dicts as in ``events.jsonl``).

    A new fit begins with another unit or when the steps start again. Values that a logarithmic
    axis cannot show (zero, negative, not finite) are left out.
    """
    fits: list[tuple[str, int, list]] = []
    index = of = step = 0
    for event in events:
        if event.get("phase") != "reconstruct" or not event.get("unit"):
            continue
        unit, now = event["unit"], int(event.get("step") or 0)
        if not fits or fits[-1][0] != unit or now <= step:
            before = sum(name == unit for name, _, _ in fits)
            fits.append((unit, before + 1, []))
        step = now
        index, of = int(event.get("index") or 0), int(event.get("of") or 0)
        loss = _number(event.get("loss"))
        if loss is not None and loss > 0:
            fits[-1][2].append((now, loss, _number(event.get("penalty"))))
    fitted = tuple(Fit(u, r, *zip(*_thin(rows), strict=True)) for u, r, rows in fits if rows)
    return LossCurve(fitted, index, of, finished)


def _number(value: Any) -> float | None:
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None


def _thin(rows: list) -> list:
    """At most `POINTS` rows: of each stretch the ones with the lowest and the highest loss."""
    if len(rows) <= POINTS:
        return rows
    width = math.ceil((len(rows) - 2) / (POINTS // 2 - 1))
    kept = {0, len(rows) - 1}
    for start in range(1, len(rows) - 1, width):
        stretch = range(start, min(start + width, len(rows) - 1))
        kept.add(min(stretch, key=lambda i: rows[i][1]))
        kept.add(max(stretch, key=lambda i: rows[i][1]))
    return [rows[i] for i in sorted(kept)]


def headline(info: LossCurve) -> str:
    """The take-away: what the unit being fitted has gained so far, or all of them at the end."""
    last = info.last
    if last is None:
        return "No unit has been fitted yet"
    if info.finished:
        fell = sum(fit.change < 0 for fit in info.fits)
        return f"{fell} of {len(info.fits)} fits ended with a smaller error than they began with"
    place = f"Unit {info.index} of {info.of}" if info.of else last.unit
    if last.round > 1:
        place += f", round {last.round}"
    if len(last.loss) < 2 or abs(last.change) < 0.005:
        return f"{place}: the error has not moved yet"
    verb = "fallen" if last.change < 0 else "risen"
    return f"{place}: the error has {verb} by {abs(last.change):.0%}"


def figure(info: LossCurve, *, dark: bool = False, height: int = 320) -> go.Figure:
    """Draw loss against step for all units.

    Loss on a logarithmic axis; below it, dashed, the penalty that makes rounding hard.
    """
    figure = go.Figure()
    color = "#8A94FF" if dark else "#3848FA"
    last = None if info.finished else info.last
    quiet = theme.rgba(color, 0.5) if info.finished else theme.rgba(theme.GREY, 0.4)
    for fit in info.fits[-SHOWN:]:
        if fit is not last:
            _draw(figure, fit, {"color": quiet, "width": 1.4})
    pushed = last is not None and any(p is not None for p in last.penalty)
    if last is not None:
        _draw(figure, last, {"color": color, "width": 2.4})
        _start(figure, last, color, dark)
    figure.update_layout(
        xaxis={"title": "step inside the unit", "rangemode": "tozero", "anchor": "y"},
        yaxis={
            "title": "error, log scale",
            "type": "log",
            "exponentformat": "power",
            "dtick": 1,
            "domain": (0.34, 1) if pushed else (0, 1),
        },
        showlegend=False,
    )
    if last is not None and pushed:
        _push(figure, last, dark)
    return theme.frame(figure, title=headline(info), height=height, dark=dark, width=64)


def _draw(figure: go.Figure, fit: Fit, line: dict[str, Any]) -> None:
    name = fit.unit if fit.round == 1 else f"{fit.unit}, round {fit.round}"
    figure.add_scatter(
        x=fit.step,
        y=fit.loss,
        mode="lines",
        name=name,
        line=line,
        hovertemplate=f"<b>{name}</b><br>step %{{x}}: %{{y:.3g}}<extra></extra>",
    )


def _start(figure: go.Figure, fit: Fit, color: str, dark: bool) -> None:
    figure.add_scatter(
        x=[fit.step[0]],
        y=[fit.loss[0]],
        mode="markers",
        marker={"size": 9, "color": color, "line": {"width": 1.5, "color": theme.paper(dark)}},
        hovertemplate="at the start: %{y:.3g}<extra></extra>",
        name="start",
    )


def _push(figure: go.Figure, fit: Fit, dark: bool) -> None:
    pairs = [(s, p) for s, p in zip(fit.step, fit.penalty, strict=True) if p is not None]
    figure.add_scatter(
        x=[s for s, _ in pairs],
        y=[p for _, p in pairs],
        mode="lines",
        yaxis="y2",
        name="rounding penalty",
        line={"color": theme.faint(dark), "width": 1.8, "dash": "dash"},
        hovertemplate="penalty at step %{x}: %{y:.3g}<extra></extra>",
    )
    figure.update_layout(
        yaxis2={
            "title": "penalty",
            "rangemode": "tozero",
            "domain": (0, 0.22),
            "anchor": "x",
            "nticks": 3,
        },
        xaxis={"anchor": "y2"},
    )
    if fit.warmup_end is not None:
        figure.add_vline(
            x=fit.warmup_end,
            line={"color": theme.faint(dark), "dash": "dot", "width": 1},
            annotation={
                "text": "rounding starts to harden",
                "font": {"size": theme.SMALL, "color": theme.faint(dark)},
                "xanchor": "left",
                "yanchor": "top",
            },
        )


def alt(info: LossCurve) -> str:
    """The figure in words, with its numbers."""
    last = info.last
    if last is None:
        return "Reconstruction loss: nothing to show yet."
    return (
        f"Reconstruction loss against step, {len(info.fits)} fits. {headline(info)}, "
        f"from {last.loss[0]:.3g} to {last.loss[-1]:.3g} ({last.unit})."
    )
