"""The values of a layer's input around their peak, before noise and after, with the levels."""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from qlib.noise.profile import LayerNoise, Numbers
from qlib.plots.noise import _fast_figure, curves
from qlib.plots.noise._fast_figure import Parts
from qlib.plots.shared import theme
from qlib.plots.shared.values import number
from qlib.store.tensors import TensorHist

HEIGHT = 340
WINDOW = 5.0  # steps to each side of the peak
FINE = 200  # places where the noisy density is computed
BEFORE, AFTER = theme.COLORS[1], theme.COLORS[0]


@dataclass(frozen=True, eq=False)
class NoisyValues:
    """Data of the figure: distribution of a layer's input before and after noise.

    Shares of the values per step.

    ``edges`` (B + 1), ``before`` (B,): as counted, around the peak; ``at``, ``after``: expected
    over uniform noise of ``reach`` steps. ``levels``: of the grid, in the window.
    """

    layer: str
    bits: int
    reach: float
    step: float
    edges: Numbers
    before: Numbers
    at: Numbers
    after: Numbers
    levels: Numbers

    @property
    def flatter(self) -> float:
        """The highest density after noise, as a share of that before."""
        return float(self.after.max() / self.before.max())


def info(found: LayerNoise, hist: TensorHist, reach: float) -> NoisyValues:
    """Data of the figure, from a layer's stored counts.

    ``hist``: the layer's input as `qlib.store.tensors` has it, its bins as fine as they are.
    """
    counts = np.asarray(hist.float, dtype=np.float64)
    edges = np.asarray(hist.edges, dtype=np.float64) / found.step
    wide = edges[1] - edges[0]
    peak = float(edges[counts.argmax()] + wide / 2)
    # a window of whole bins that holds the peak and `WINDOW` steps to each side
    inside = (edges[:-1] >= peak - WINDOW - wide) & (edges[1:] <= peak + WINDOW + wide)
    shown = np.flatnonzero(inside)
    ends = float(edges[shown[0]]), float(edges[shown[-1] + 1])
    density = counts / counts.sum() / wide
    at = np.linspace(*ends, FINE)
    running = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    levels = np.arange(np.ceil(ends[0]), np.floor(ends[1]) + 1)
    return NoisyValues(
        found.layer,
        found.bits,
        reach,
        found.step,
        edges[shown[0] : shown[-1] + 2],
        density[shown],
        at,
        _spread(at, edges, running, reach, wide),
        levels,
    )


def _spread(at: Numbers, edges: Numbers, running: Numbers, reach: float, wide: float) -> Numbers:
    """Density of value + noise: the mass within reach of a place, over twice the reach."""
    half = max(reach, wide / 2)  # a bin tells no finer than itself
    mass = np.interp(at + half, edges, running) - np.interp(at - half, edges, running)
    return mass / (2 * half)


def headline(info: NoisyValues) -> str:
    """The take-away: how much flatter the peak becomes."""
    if info.reach == 0:
        return "Without noise the values stay where they are"
    if info.flatter > 0.98:
        return f"{curves.steps(info.reach)} leave the peak as high as it was"
    return f"{curves.steps(info.reach)} spread the peak to {100 * info.flatter:.0f} % of its height"


def figure(info: NoisyValues, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw values before (filled) and after noise (line), with a tick under each level."""
    parts = Parts(dark)
    parts.layout = {
        "xaxis": {
            "title": {"text": f"value (steps of {number(info.step, 2)})"},
            "range": [float(info.edges[0]), float(info.edges[-1])],
            "nticks": 8,
        },
        "yaxis": {
            "title": {"text": "density (1 = all in one step)"},
            "rangemode": "tozero",
            "nticks": 6,
        },
        "hovermode": "closest",
    }
    parts.line(
        x=info.edges,
        y=np.append(info.before, info.before[-1:]),
        mode="lines",
        line={"shape": "hv", "width": 1, "color": BEFORE},
        fill="tozeroy",
        fillcolor=theme.rgba(BEFORE, 0.3),
        name="input x",
        hovertemplate="%{x:.2f} steps: density %{y:.2f}<extra>x</extra>",
    )
    if info.reach > 0:
        parts.line(
            x=info.at,
            y=info.after,
            mode="lines",
            line={"width": 2.2, "color": AFTER},
            name="x + noise, expected",
            hovertemplate="%{x:.2f} steps: density %{y:.2f}<extra>x + noise</extra>",
        )
    tick = {"symbol": "line-ns-open", "size": 12, "color": theme.ink(dark), "line": {"width": 2}}
    parts.line(
        x=info.levels,
        y=np.zeros(len(info.levels)),
        mode="markers",
        marker=tick,
        name="levels",
        cliponaxis=False,
        customdata=info.levels * info.step,
        hovertemplate="level %{customdata:.4g}<extra></extra>",
    )
    return _fast_figure.framed(
        parts, headline(info), HEIGHT, rows=1, margin=(66, 16, 46), large=large
    )


def alt(info: NoisyValues) -> str:
    """The figure in words, with its numbers."""
    peaks = f"{info.before.max():.2f} per step before and {info.after.max():.2f} after"
    return (
        f"Values of the input of {info.layer} around their peak at {info.bits} bits, in steps of "
        f"{number(info.step)}, with {len(info.levels)} levels in view. {headline(info)}. The peak "
        f"has a density of {peaks}."
    )
