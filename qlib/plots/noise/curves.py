"""Shared numbers of the noise figures: which error curve is meant, and how values are written."""

import math

import numpy as np

from qlib.noise.profile import LayerNoise, Numbers
from qlib.plots.shared import theme
from qlib.plots.shared.places import short

EVEN = 0.02  # a change of the error by less is not told as help or harm
MEAN, NORMAL = "mean", "normal"
HELP, HARM = theme.RIGHT, theme.WRONG
TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100)


def curve(found: LayerNoise, draw: str = MEAN, images: str = "calib") -> Numbers:
    """(R,) output error relative to reach 0, for one way of drawing the noise.

    ``draw``: `MEAN` over the uniform draws, the number of one of them from "1", or `NORMAL`, which
    was measured on calibration rows only. ``images``: ``calib`` or ``test``.
    """
    if draw == NORMAL:
        return found.normal
    rows = found.test if images == "test" else found.calib
    return rows.mean(0) if draw == MEAN else rows[int(draw) - 1]


def left(found: LayerNoise, reach: float, draw: str = MEAN, images: str = "calib") -> float:
    """Share of the output's error that is left at a reach; NaN where there was none."""
    return float(np.interp(reach, found.reaches, curve(found, draw, images)))


def searched(found: LayerNoise) -> float:
    """The reach of least expected error that the search chose; 0 where it found no number."""
    return found.closed_form if math.isfinite(found.closed_form) else 0.0


def failed(found: LayerNoise) -> bool:
    """Whether the layer has no finite error to search, as where all values are equal."""
    return not (math.isfinite(found.closed_form) and np.isfinite(found.calib).all())


def effect(share: float) -> str:
    """Whether a share of error means that noise ``helps``, ``hurts`` or is ``even``."""
    if not math.isfinite(share) or abs(share - 1) <= EVEN:
        return "even"
    return "helps" if share < 1 else "hurts"


def change(share: float) -> str:
    """The error left against the error before, in words: ``18 % less``, ``2.3 times the``."""
    if share >= 2:
        return f"{share:.1f} times the"
    percent = 100 * abs(share - 1)
    shown = f"{percent:.0f}" if percent >= 1 else f"{percent:.1g}" if percent >= 0.1 else "0"
    return f"{shown} % {'less' if share < 1 else 'more'}"


def steps(reach: float) -> str:
    """A reach of noise as text: ``±0.85 steps``."""
    return f"±{reach:.2f} steps"


def role(found: LayerNoise) -> str:
    """The layer's name inside its block: ``mlp.fc2``; a layer alone has its kind."""
    inner = short(found.layer, found.block)
    return found.kind if inner == found.layer else inner


def times(share: float) -> str:
    """A share as a factor in text: ``0.82×``."""
    return f"{share:.0f}×" if share >= 10 else f"{share:.2f}×"


def log_axis(low: float, high: float, count: int = 6) -> dict:
    """Settings of a logarithmic axis of multiples from ``low`` to ``high``, with ticks inside.

    At most ``count`` ticks; 1 is always one of them.
    """
    inside = [t for t in TICKS if low <= t <= high]
    apart = math.log10(high / low) / count
    kept: list[float] = [1.0]
    for tick in sorted(inside, key=lambda t: abs(math.log10(t))):
        if all(abs(math.log10(tick / other)) >= apart for other in kept):
            kept.append(tick)
    kept.sort()
    ends = [math.log10(low), math.log10(high)]
    texts = [f"{t:g}×" for t in kept]
    return {"type": "log", "range": ends, "tickvals": kept, "ticktext": texts}
