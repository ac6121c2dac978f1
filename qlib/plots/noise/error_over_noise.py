"""A layer's output error over the reach of the noise: measured, on new images, and predicted."""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from qlib.noise.profile import LayerNoise, Numbers
from qlib.plots.noise import _fast_figure, curves
from qlib.plots.noise._fast_figure import Parts
from qlib.plots.shared import theme

HEIGHT = 340
LINE = theme.COLORS[0]
PREDICTED = theme.COLORS[2]


@dataclass(frozen=True, eq=False)
class ErrorOverNoise:
    """Data of the figure: a layer's output error for each reach of the noise.

    Curves relative to the error without noise, over ``reaches`` in steps.

    ``calib``: by the chosen ``draw``; ``low`` to ``high``: over the uniform draws, with ``calib``
    where that is another one. ``closed_form``, ``search``: the reaches that two searches choose;
    None where they failed. ``reach``: the one that is looked at.
    """

    layer: str
    bits: int
    draw: str
    reaches: Numbers
    calib: Numbers
    low: Numbers
    high: Numbers
    test: Numbers
    predicted: Numbers
    reach: float
    closed_form: float | None
    search: float | None

    @property
    def known(self) -> bool:
        """Whether there was any error to compare with."""
        return bool(np.isfinite(self.calib).all())

    @property
    def best(self) -> tuple[float, float]:
        """The measured minimum on calibration rows: reach and share."""
        place = int(np.nanargmin(self.calib)) if self.known else 0
        return float(self.reaches[place]), float(self.calib[place])

    def at(self, curve: Numbers) -> float:
        """The value of a curve at the chosen reach."""
        return float(np.interp(self.reach, self.reaches, curve))


def info(found: LayerNoise, reach: float, draw: str = curves.MEAN) -> ErrorOverNoise:
    """Data of the figure: one layer at one bit-width; ``draw`` as in `curves.curve`."""
    calib = curves.curve(found, draw)
    band = found.calib
    return ErrorOverNoise(
        found.layer,
        found.bits,
        draw,
        found.reaches,
        calib,
        band.min(0),
        band.max(0),
        curves.curve(found, curves.MEAN if draw == curves.NORMAL else draw, "test"),
        found.predicted,
        reach,
        *(x if np.isfinite(x) else None for x in (found.closed_form, found.linear_search)),
    )


def headline(info: ErrorOverNoise) -> str:
    """The take-away: what this reach leaves, and whether none would be better."""
    if not info.known:
        return "This layer makes no error that noise could change"
    reach, share = info.best
    if info.reach == 0:
        if share < 1 - curves.EVEN:
            return f"Noise could help: {curves.times(share)} the error at {curves.steps(reach)}"
        return "No noise is the best choice here: 0 is a legal winner"
    now = info.at(info.calib)
    effect = curves.effect(now)
    start = f"Output error with {curves.steps(info.reach)}:"
    if effect == "even":
        return f"{start} as without noise"
    return f"{start} {curves.times(now)}, noise {effect}"


def figure(info: ErrorOverNoise, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw measured and predicted error over the reach of the noise.

    Curves on a logarithmic axis, so that help and harm by the same factor look the same.
    """
    parts = Parts(dark)
    low, high = _span(info) if info.known else (0.5, 2.0)
    parts.layout = {
        "xaxis": {
            "title": {"text": "reach of the noise (steps)"},
            "range": [-0.03, 1.53],
            "dtick": 0.25,
            "tickformat": ".2f",
        },
        "yaxis": {"title": {"text": "output error, × that without noise"}}
        | curves.log_axis(low, high),
        "hovermode": "closest",
    }
    if info.known:
        _sides(parts, low, high)
        _curves(parts, info)
        _searches(parts, info)
        _least(parts, info)
        _now(parts, info)
    return _fast_figure.framed(
        parts, headline(info), HEIGHT, rows=1, margin=(66, 12, 46), large=large
    )


def _span(info: ErrorOverNoise) -> tuple[float, float]:
    ends = np.concatenate([info.calib, info.low, info.high, info.test, info.predicted])
    ends = ends[np.isfinite(ends) & (ends > 0)]
    low, high = min(0.85, float(ends.min())), max(1.18, float(ends.max()))
    room = (high / low) ** 0.12
    return low / room, high * room**1.6


def _sides(parts: Parts, low: float, high: float) -> None:
    """Help below 1 and harm above it, shaded alike."""
    across = {"xref": "paper", "x0": 0, "x1": 1}
    parts.area(theme.rgba(curves.HELP, 0.1), y0=low, y1=1, **across)
    parts.area(theme.rgba(curves.HARM, 0.1), y0=1, y1=high, **across)
    corner = {"xref": "paper", "x": 0.995, "xanchor": "right", "yref": "paper"}
    parts.note("noise helps ↓", y=0, yanchor="bottom", **corner)
    parts.note("noise hurts ↑", y=1, yanchor="top", **corner)
    parts.rule(y=1, dash="dash", color=theme.ink(parts.dark), width=1.2)


def _curves(parts: Parts, info: ErrorOverNoise) -> None:
    band = {"x": info.reaches, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    band |= {"showlegend": False}
    parts.line(y=info.low, name="lowest draw", **band)
    fill = {"fill": "tonexty", "fillcolor": theme.rgba(LINE, 0.2)}
    parts.line(y=info.high, name="highest draw", **band, **fill)
    told = "±%{x:.2f} steps: %{y:.3f}× "
    parts.line(
        x=info.reaches,
        y=info.predicted,
        mode="lines",
        name="predicted (inputs)",
        line={"color": PREDICTED, "width": 1.8, "dash": "dot"},
        hovertemplate=told + "expected for the inputs<extra></extra>",
    )
    parts.line(
        x=info.reaches,
        y=info.test,
        mode="lines",
        name="held-out",
        line={"color": theme.faint(parts.dark), "width": 1.3},
        hovertemplate=told + "on held-out rows<extra></extra>",
    )
    parts.line(
        x=info.reaches,
        y=info.calib,
        customdata=[[float(r)] for r in info.reaches],
        mode="lines+markers",
        name="calibration",
        line={"color": LINE, "width": 2.4},
        marker={"size": 4, "color": LINE},
        hovertemplate=told + "on calibration rows<extra></extra>",
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 1}},
    )


def _searches(parts: Parts, info: ErrorOverNoise) -> None:
    """The two searched reaches as lines with a word each."""
    faint = theme.faint(parts.dark)
    found = ((info.closed_form, "expected best", 0), (info.search, "paper's search", 1))
    for reach, words, row in found:
        if reach is None:
            continue
        parts.rule(x=reach, dash="dashdot", color=faint, width=1)
        side = ("right", -3) if reach > 0.7 else ("left", 3)
        parts.note(
            f"{words} {reach:.2f}", faint, x=reach, yref="paper", y=1, yanchor="top",
            yshift=-17 - 16 * row, xanchor=side[0], xshift=side[1],
        )  # fmt: skip


def _least(parts: Parts, info: ErrorOverNoise) -> None:
    """The measured minimum, in a ring."""
    reach, share = info.best
    ring = {"symbol": "circle-open", "size": 13, "color": theme.ink(parts.dark)}
    said = f"least measured: {curves.times(share)} at {curves.steps(reach)}<extra></extra>"
    parts.line(
        x=[reach],
        y=[share],
        mode="markers",
        marker=ring | {"line": {"width": 1.8}},
        name="least",
        showlegend=False,
        hovertemplate=said,
    )
    anchor = "left" if reach < 0.2 else "right" if reach > 1.3 else "center"
    parts.note(
        f"least {curves.times(share)}", x=reach, y=float(np.log10(share)), yshift=-16,
        xanchor=anchor,
    )  # fmt: skip


def _now(parts: Parts, info: ErrorOverNoise) -> None:
    """The chosen reach."""
    parts.rule(x=info.reach, color=LINE, width=1.6)
    edge = {"line": {"width": 2, "color": theme.paper(parts.dark)}}
    parts.line(
        x=[info.reach],
        y=[info.at(info.calib)],
        mode="markers",
        marker={"size": 11, "color": LINE} | edge,
        showlegend=False,
        name="chosen reach",
        hoverinfo="skip",
    )


def alt(info: ErrorOverNoise) -> str:
    """The figure in words, with its numbers."""
    start = f"Output error of {info.layer} at {info.bits} bits over the reach of the noise"
    if not info.known:
        return f"{start}: {headline(info)}; there are no curves to compare."
    reach, share = info.best
    now = [info.at(c) for c in (info.calib, info.test, info.predicted)]
    searches = [
        f"{words} {x:.2f} steps" if x is not None else f"{words} failed"
        for x, words in ((info.closed_form, "by expectation"), (info.search, "the paper's search"))
    ]
    return (
        f"{start}, as a multiple of that without noise. {headline(info)}. At "
        f"{curves.steps(info.reach)}: {now[0]:.3f} on calibration rows, {now[1]:.3f} on held-out "
        f"rows, {now[2]:.3f} predicted for the inputs. Least measured: {share:.3f} at {reach:.2f} "
        f"steps. Best reach {searches[0]}, {searches[1]}."
    )
