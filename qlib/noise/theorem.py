"""What a random shift does to rounding: the theorem of NoisyQuant in closed form. No torch.

Two neighbouring levels lie at −b and b; a value at distance x from the boundary between them is
rounded with the error b − x. With N, uniform in (−n, n), added before rounding and taken off
after it, the squared error has another mean; the difference D is negative for values near the
boundary and positive for values near a level.
Paper: NoisyQuant, Liu et al., CVPR 2023, arXiv 2211.16056, theorem 1
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]
ROOM = 2**20  # numbers that the candidates of one step may fill


def gain(x: ArrayLike, n: ArrayLike, b: ArrayLike = 1.0) -> Numbers:
    """D: mean squared error with noise, less that without; negative where noise helps.

    n²/3 − (b/n)·(n − x)² for x ≤ n ≤ 2b − x, where the noise crosses the boundary but leaves
    neither cell; n²/3 for n ≤ x, where it does not even cross. 0 without noise. For more noise,
    which reaches further levels, see `error`.

    Args:
        x: distances from the nearest boundary, 0 … b.
        n: reaches of the noise, 0 … 2b − x; b: half a step. All broadcast.

    Raises:
        ValueError: something lies outside these limits.
    """
    x, n, b = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (x, n, b)))
    if ((x < 0) | (x > b) | (n < 0) | (n > (2 * b - x) * (1 + 1e-12))).any():
        raise ValueError("gain needs 0 ≤ x ≤ b and 0 ≤ n ≤ 2b − x; use error for more noise.")
    safe = np.where(n > 0, n, 1.0)
    crossing = np.where(n > x, b / safe * (n - x) ** 2, 0.0)
    return n**2 / 3 - crossing


def helps_below(n: ArrayLike, b: ArrayLike = 1.0) -> Numbers:
    """The x up to which D ≤ 0, and only up to there: n·(1 − √(n/(3b))); negative for n > 3b."""
    n, b = np.asarray(n, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return n * (1 - np.sqrt(n / (3 * b)))


def error(
    x: ArrayLike, n: ArrayLike, b: ArrayLike = 1.0, low: float = -np.inf, high: float = np.inf
) -> Numbers:
    """Mean squared error with noise, E[(Q(x + N) − N − x)²], for any x and n ≥ 0; grid of step 2b.

    (1/2n)·∫ r(u)² du over u from x − n to x + n, r being the error of rounding u: a sawtooth whose
    square has the antiderivative used here. Levels lie at the odd multiples of b from ``low`` to
    ``high``; beyond them values are clipped.
    """
    x, n, b = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (x, n, b)))
    noisy = n > 1e-9 * b
    safe = np.where(noisy, n, 1.0)
    mean = (_area(x + safe, b, low, high) - _area(x - safe, b, low, high)) / (2 * safe)
    level = np.clip((2 * np.floor(x / (2 * b)) + 1) * b, low, high)
    return np.where(noisy, mean, (x - level) ** 2)


def _area(u: Numbers, b: Numbers, low: float, high: float) -> Numbers:
    """∫ of the squared error from 0 to u: 2b³/3 for each whole cell, a part of one, a tail."""
    inner = np.clip(u, low - b, high + b)
    cells = np.floor(inner / (2 * b))
    rest = inner - (2 * cells + 1) * b
    above = np.where(u > high + b, u - np.minimum(high, u), b)
    below = np.where(u < low - b, np.maximum(low, u) - u, b)
    return cells * 2 * b**3 / 3 + (rest**3 + b**3 + above**3 - below**3) / 3


def best_reach(
    x: ArrayLike,
    weight: ArrayLike,
    b: float,
    tried: ArrayLike,
    low: float = -np.inf,
    high: float = np.inf,
) -> float:
    """The n of ``tried`` with the least mean error over values; the smallest of equals."""
    tried = np.sort(np.asarray(tried, dtype=np.float64))
    x, weight = (np.asarray(v, dtype=np.float64).reshape(-1, 1) for v in (x, weight))
    return float(tried[(weight * error(x, tried, b, low, high)).sum(0).argmin()])


# ---- measured values, lengths in steps of the grid: levels are whole numbers from low to high ----


def linear_search(
    x: ArrayLike,
    draw: ArrayLike,
    tried: ArrayLike,
    low: float = -np.inf,
    high: float = np.inf,
) -> float:
    """The paper's empirical search: the reach that left the least error with one given draw.

    The error of the values themselves, Σ(Q(x + N) − N − x)² with N = reach·draw, clipping
    included, stands for its expectation (equation 9: there are many values).

    Args:
        x: (rows, channels) in steps.
        draw: (channels,) from −1 to 1, one number for each channel.
        tried: reaches in steps; the smallest of equals is returned.
        low, high: outermost levels.
    """
    tried = np.sort(np.asarray(tried, dtype=np.float64).reshape(-1))
    x = np.asarray(x)
    noise = tried.astype(x.dtype)[:, None] * np.asarray(draw, dtype=x.dtype)
    at_once = max(1, ROOM // max(1, x.size))
    total = [
        _left(x, noise[start : start + at_once], low, high)
        for start in range(0, len(tried), at_once)
    ]
    return float(tried[np.concatenate(total).argmin()])


def _left(x: NDArray, noise: NDArray, low: float, high: float) -> Numbers:
    """(k,) summed squared error of x under k noises (k, channels)."""
    moved = x + noise[:, None]
    moved -= np.rint(moved).clip(low, high)
    return np.einsum("knc,knc->k", moved, moved, dtype=np.float64)


def cells(
    x: ArrayLike, low: float = -np.inf, high: float = np.inf, bins: int = 64
) -> tuple[Numbers, float, float]:
    """Where values lie in their rounding cells.

    Args:
        x: values in steps, any shape; low, high: outermost levels.

    Returns:
        (bins,) share of the values that are not clipped by position from −½ to ½, 0 being on a
        level; the share of those that are, further than ½ beyond an end; mean squared rounding
        error of the others × 12: 1 where they are spread evenly. (Zeros and 1, if all are clipped.)
    """
    x = np.asarray(x, dtype=np.float64).reshape(-1)
    kept = x[(x >= low - 0.5) & (x <= high + 0.5)]
    if not len(kept):
        return np.zeros(bins), 1.0, 1.0
    place = np.floor((kept + 0.5) * bins).astype(np.int64) % bins
    phase = np.bincount(place, minlength=bins) / len(kept)
    rounding = 12 * float(np.square(kept - np.rint(kept)).mean())
    return phase, 1 - len(kept) / len(x), rounding


def expected(
    x: ArrayLike, reaches: ArrayLike, low: float = -np.inf, high: float = np.inf, bins: int = 64
) -> Numbers:
    """(R,) mean of `error` over values in steps, for each reach.

    Values are counted in bins of a step/``bins``, which is off by about 1/``bins``² at most; those
    from which no noise reaches an outermost cell's end by their position in their cell alone. So
    the cost does not grow with their number.
    """
    reaches = np.asarray(reaches, dtype=np.float64).reshape(-1)
    x = np.asarray(x, dtype=np.float64).reshape(-1)
    far = reaches.max(initial=0)
    folded = (x - far >= low - 0.5) & (x + far <= high + 0.5)
    inner = _binned(x[folded] - np.floor(x[folded]), reaches, bins)
    outer = _binned(x[~folded], reaches, bins, low, high)
    return (inner + outer) / len(x)


def _binned(
    x: Numbers, reaches: Numbers, bins: int, low: float = -np.inf, high: float = np.inf
) -> Numbers:
    """(R,) sum of `error` over values in steps."""
    used, counts = np.unique(np.floor(x * bins), return_counts=True)
    centre = (used[:, None] + 0.5) / bins + 0.5  # `error` has its levels at odd halves
    return counts @ error(centre, reaches, 0.5, low + 0.5, high + 0.5)
