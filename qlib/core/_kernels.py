"""Loops that are compiled when first called, and kept on disk after that: see `qlib.core.fused`.

Arrays are flat float32 of one length n unless said otherwise; ``scale``, ``low`` and ``high`` are
numbers in float32. A compiler makes these loops wide if nothing in them branches, every number is
read before it is chosen, and arrays are cut as slices. Divisions are exact, so rounding is that of
`qlib.core.functional` to the last bit; only sums are reordered.
"""

import numpy as np
from numba import njit

ZERO, ONE = np.float32(0), np.float32(1)
BLOCK = 4096  # numbers that are added up in float32 before they join a sum in float64


def compiler(*fastmath: str):
    """A decorator that compiles a loop; ``fastmath``: what it may do to sums, in LLVM's words."""
    return njit(cache=True, nogil=True, error_model="numpy", fastmath=set(fastmath))


compiled = compiler("reassoc", "nsz")


@compiled
def round_to(x, keep, y, scale, low, high):
    """y = s·clamp(⌊x/s⌉, low, high). ``keep``: (n,) bytes, x untouched where 0; or None."""
    if keep is None:
        for i in range(x.size):
            value = x[i]
            steps = min(max(np.rint(value / scale), low), high)
            y[i] = steps * scale if value == value else value
    else:
        for i in range(x.size):
            value, kept = x[i], keep[i]
            steps = min(max(np.rint(value / scale), low), high)
            y[i] = steps * scale if kept != 0 and value == value else value


@compiled
def round_back(grad, x, keep, into, scale, low, high):
    """Writes the gradient for x of `round_to` into ``into``, unless that is None.

    Returns:
        Σ grad·∂y/∂s, and Σ grad over all that is clipped.
    """
    slope, clipped = 0.0, 0.0
    for start in range(0, x.size, BLOCK):
        gs, xs = grad[start : start + BLOCK], x[start : start + BLOCK]
        ys = None if into is None else into[start : start + BLOCK]
        slope_here, clipped_here = ZERO, ZERO
        if keep is None:
            for i in range(xs.size):
                g, ratio = gs[i], xs[i] / scale
                raw = np.rint(ratio)
                steps = min(max(raw, low), high)
                out = ZERO if raw == steps else g
                slope_here += g * steps - (g - out) * ratio
                clipped_here += out
                if ys is not None:
                    ys[i] = g - out
        else:
            ks = keep[start : start + BLOCK]
            for i in range(xs.size):
                g, ratio, share = gs[i], xs[i] / scale, np.float32(ks[i])
                raw = np.rint(ratio)
                steps = min(max(raw, low), high)
                kept = share * g
                out = kept * (ZERO if raw == steps else ONE)
                slope_here += kept * steps - (kept - out) * ratio
                clipped_here += out
                if ys is not None:
                    ys[i] = g - out
        slope += slope_here
        clipped += clipped_here
    return slope, clipped


@compiled
def choose(x, other, keep, y):
    """y = x where ``keep``, bytes, is not 0, else ``other``."""
    for i in range(y.size):
        value, instead, kept = x[i], other[i], keep[i]
        y[i] = value if kept != 0 else instead


@compiled
def choose_back(grad, keep, into):
    """The gradient for x of `choose`."""
    for i in range(into.size):
        into[i] = grad[i] * np.float32(keep[i])


@compiled
def mix_rows(x, other, at, keep, y, scale, low, high):
    """`round_to` of chosen rows, with rows of ``other`` in place of what is not kept.

    ``x``, ``other``: (images, m); ``at``: (batch,) which rows; ``keep``, ``y``: (batch · m,).
    """
    m = x.shape[1]
    for b in range(at.size):
        xs, others = x[at[b]], other[at[b]]
        ks, ys = keep[b * m : (b + 1) * m], y[b * m : (b + 1) * m]
        for i in range(m):
            value, instead, kept = xs[i], others[i], ks[i]
            steps = min(max(np.rint(value / scale), low), high)
            rounded = steps * scale if value == value else value
            ys[i] = rounded if kept != 0 else instead


@compiled
def mix_back(grad, x, at, keep, scale, low, high):
    """Σ grad·∂y/∂s of `mix_rows`."""
    m, slope = x.shape[1], 0.0
    for b in range(at.size):
        xs, ks, gs = x[at[b]], keep[b * m : (b + 1) * m], grad[b * m : (b + 1) * m]
        slope_here = ZERO
        for i in range(m):
            g, ratio, share = gs[i], xs[i] / scale, np.float32(ks[i])
            raw = np.rint(ratio)
            steps = min(max(raw, low), high)
            kept = share * g
            slope_here += kept * steps - (kept if raw == steps else ZERO) * ratio
        slope += slope_here
    return slope


@compiled
def divide_to(x, by, y, scale, low, high):
    """`round_to` of x / by, row by row. All (rows, m); ``scale``, ``low``, ``high``: (rows,)."""
    for row in range(x.shape[0]):
        xs, bys, ys = x[row], by[row], y[row]
        step, least, most = scale[row], low[row], high[row]
        for i in range(xs.size):
            value = xs[i] / bys[i]
            steps = min(max(np.rint(value / step), least), most)
            ys[i] = steps * step if value == value else value


@compiled
def divide_back(grad, x, by, into, slope, scale, low, high):
    """Writes the gradients of `divide_to` for ``by`` into ``into``, and for s into ``slope``."""
    for row in range(x.shape[0]):
        gs, xs, bys, ys = grad[row], x[row], by[row], into[row]
        step, least, most = scale[row], low[row], high[row]
        slope_here = ZERO
        for i in range(xs.size):
            g, divisor = gs[i], bys[i]
            value = xs[i] / divisor
            ratio = value / step
            raw = np.rint(ratio)
            steps = min(max(raw, least), most)
            inside = g if raw == steps else ZERO
            slope_here += g * steps - inside * ratio
            ys[i] = -inside * value / divisor
        slope[row] = slope_here


@compiled
def gaps(x, target, at, gap):
    """Writes x − rows ``at`` of ``target`` (images, m) into ``gap``. Returns the sum of squares."""
    m, total = target.shape[1], 0.0
    for b in range(at.size):
        ts = target[at[b]]
        xs, here = x[b * m : (b + 1) * m], gap[b * m : (b + 1) * m]
        square = ZERO
        for i in range(m):
            difference = xs[i] - ts[i]
            here[i] = difference
            square += difference * difference
        total += square
    return total


@compiled
def distil(low, middle, high, target, parts, weights, whole, into_low, into_middle, into_high):
    """Σ (mixture − target)² + w₁·Σ (low − high)² + w₂·Σ (middle − high)², and half its gradients.

    ``parts``: of low, middle and high in the mixture; ``whole``: 1 if what is compared teaches the
    high output too, else 0.
    """
    (a, b, c), (to_low, to_middle), total = parts, weights, 0.0
    for start in range(0, target.size, BLOCK):
        ls, ms, hs = (
            low[start : start + BLOCK],
            middle[start : start + BLOCK],
            high[start : start + BLOCK],
        )
        ts, fl = target[start : start + BLOCK], into_low[start : start + BLOCK]
        fm, fh = into_middle[start : start + BLOCK], into_high[start : start + BLOCK]
        here = ZERO
        for i in range(ts.size):
            x, y, z = ls[i], ms[i], hs[i]
            gap = a * x + b * y + c * z - ts[i]
            below, between = x - z, y - z
            pull, draw = to_low * below, to_middle * between
            here += gap * gap + pull * below + draw * between
            fl[i] = a * gap + pull
            fm[i] = b * gap + draw
            fh[i] = c * gap - whole * (pull + draw)
        total += here
    return total


@compiled
def soften(sigma, base, step, y, zeta, gamma):
    """y = base + h·step with h = clamp(sigma·(ζ − γ) + γ, 0, 1)."""
    for i in range(y.size):
        h = min(max(sigma[i] * (zeta - gamma) + gamma, ZERO), ONE)
        y[i] = base[i] + h * step[i]


@compiled
def soften_back(grad, sigma, step, into, zeta, gamma):
    """The gradient of `soften` for V, where sigma = σ(V)."""
    for i in range(into.size):
        s = sigma[i]
        h = s * (zeta - gamma) + gamma
        slope = (zeta - gamma) * s * (ONE - s)
        into[i] = grad[i] * step[i] * (slope if h > ZERO and h < ONE else ZERO)


@compiled
def undecided(sigma, size, zeta, gamma):
    """size = |2h − 1| with h as in `soften`."""
    for i in range(size.size):
        h = min(max(sigma[i] * (zeta - gamma) + gamma, ZERO), ONE)
        size[i] = abs(h + h - ONE)


@compiled
def push_back(sigma, slope, into, zeta, gamma, weight):
    """into −= weight · ``slope`` · sign(2h − 1) · ∂h/∂V."""
    for i in range(into.size):
        s = sigma[i]
        h = s * (zeta - gamma) + gamma
        rise = (zeta - gamma) * s * (ONE - s) * np.copysign(slope[i], h - ONE / 2)
        into[i] -= weight * (rise if h > ZERO and h < ONE else ZERO)
