"""Loops for power grids, as in `qlib.core._kernels`; logarithms and powers on the way.

log2 and exp2 are polynomials on a short interval; their own error is below 1e-7, like that of
PyTorch's. While something is learned a value this close to a tie may so go to the other level.
"""

import math

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from qlib.core._kernels import BLOCK, ZERO, compiler

compiled = compiler("reassoc", "nsz", "contract")


def _polynomial(function, degree, ends):
    """Coefficients in float32, the constant first, of nearly the best fit between ``ends``."""
    found = Chebyshev.interpolate(function, degree, domain=ends).convert(kind=Polynomial)
    return tuple(np.float32(c) for c in found.coef)


ROOT = 2**0.5
# log2(1 + z)/z where 1 + z lies between the root of a half and that of 2, and 2^f
L0, L1, L2, L3, L4, L5, L6, L7 = _polynomial(
    lambda z: np.log1p(z) / (z * np.log(2)), 7, [1 / ROOT - 1, ROOT - 1]
)
E0, E1, E2, E3, E4, E5, E6 = _polynomial(np.exp2, 6, [-0.5, 0.5])
MANTISSA, BIAS = np.int32(23), np.int32(127)  # of float32
UNSIGNED = np.int32(0x7FFFFFFF)
START = np.float32(1 / ROOT).view(np.int32)
NAN = np.float32("nan")
LARGEST = np.float32(126)  # an exponent that is still far from both ends of float32


@compiled
def _logarithms(x, least, logs, bits):
    """``logs`` = log2 max(|x|, least). ``bits``: room for n int32."""
    given, rest = x.view(np.int32), bits.view(np.float32)
    floor = np.int32(least)
    for i in range(x.size):
        size = max(np.int32(given[i] & UNSIGNED), floor)
        exponent = np.int32(np.int32(size - START) >> MANTISSA)
        bits[i] = size - np.int32(exponent << MANTISSA)
        logs[i] = np.float32(exponent)
    for i in range(x.size):
        z = rest[i] - np.float32(1)
        high = L4 + z * (L5 + z * (L6 + z * L7))
        logs[i] += z * (L0 + z * (L1 + z * (L2 + z * (L3 + z * high))))


@compiled
def _ratios(x, logs, exponent, log_scale, ratios, bits):
    """``ratios`` = sign(x)·2^(exponent · logs − log_scale)."""
    power = bits.view(np.float32)
    for i in range(x.size):
        log = logs[i] * exponent - log_scale
        log = min(max(log, -LARGEST), LARGEST)
        whole = np.rint(log)
        f = log - whole
        ratios[i] = E0 + f * (E1 + f * (E2 + f * (E3 + f * (E4 + f * (E5 + f * E6)))))
        bits[i] = np.int32(np.int32(whole) + BIAS) << MANTISSA
    for i in range(x.size):
        ratios[i] = np.copysign(ratios[i] * power[i], x[i])


@compiled
def _codes(ratios, codes, low, high):
    """Codes − low of φ(x)/s."""
    for i in range(ratios.size):
        steps = np.rint(ratios[i])
        steps = steps if steps > low else low
        steps = steps if steps < high else high
        codes[i] = np.int32(steps - low)


@compiled
def bend_to(x, y, a, log_scale, least, tiny, low, high):
    """y = x on a power grid: the codes of φ(x)/s = sign(x)·2^(a·log2|x| − log2 s), at most 256.

    ``least``: bits of the smallest |x| that is told from 0. ``tiny``: see `bend_back`.
    """
    if log_scale != log_scale:
        y[:] = NAN
        return
    codes, bits = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.int32)
    logs, ratios = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    levels = np.empty(int(high - low) + 1, np.float32)
    for code in range(levels.size):
        k = float(low) + code
        levels[code] = np.copysign(2.0 ** ((math.log2(abs(k)) + log_scale) / a), k) if k else 0.0
    for start in range(0, x.size, BLOCK):
        xs, ys = x[start : start + BLOCK], y[start : start + BLOCK]
        _logarithms(xs, least, logs, bits[: xs.size])
        _ratios(xs, logs, a, log_scale, ratios, bits[: xs.size])
        _codes(ratios[: xs.size], codes, low, high)
        for i in range(xs.size):
            ys[i] = levels[codes[i]]
        strange = 0
        for i in range(xs.size):
            strange += xs[i] != xs[i]
        if strange:  # a loop that looks at each would be slower
            for i in range(xs.size):
                ys[i] = ys[i] if xs[i] == xs[i] else xs[i]


@compiled
def bend_back(grad, x, into, a, log_scale, least, tiny, low, high):
    """Writes the gradient for x of `bend_to` into ``into``.

    ``tiny`` stands for |v| at v = 0 in the slope of a level, (1/a)·|v|^(1/a − 1).

    Returns:
        Σ grad·∂y/∂ln s and Σ grad·∂y/∂a for a scale that stays.
    """
    codes, bits = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.int32)
    logs, ratios = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    slopes = np.empty(int(high - low) + 1, np.float32)  # times s
    growths = np.empty(slopes.size, np.float32)
    for code in range(slopes.size):
        k = float(low) + code
        log = math.log2(abs(k)) + log_scale if k else math.log2(tiny)
        slopes[code] = 2.0 ** (log * (1 / a - 1) + log_scale) / a
        growths[code] = np.copysign(2.0 ** (log / a), k) * -log * math.log(2) / a**2 if k else 0.0
    for_scale, grown, moved = 0.0, 0.0, 0.0
    for start in range(0, x.size, BLOCK):
        gs, xs = grad[start : start + BLOCK], x[start : start + BLOCK]
        ys = into[start : start + BLOCK]
        _logarithms(xs, least, logs, bits[: xs.size])
        _ratios(xs, logs, a, log_scale, ratios, bits[: xs.size])
        _codes(ratios[: xs.size], codes, low, high)
        for i in range(xs.size):
            g, raw = gs[i], np.rint(ratios[i])
            ys[i] = g if raw == np.float32(codes[i]) + low else ZERO
        scale_here, grown_here, moved_here = ZERO, ZERO, ZERO
        for i in range(xs.size):
            g, code = gs[i], codes[i]
            slope = slopes[code]
            through = ys[i] * slope * ratios[i]
            scale_here += g * slope * (np.float32(code) + low) - through
            grown_here += g * growths[code]
            moved_here += through * logs[i]
        for_scale += scale_here
        grown += grown_here
        moved += moved_here
    return for_scale, grown + moved * math.log(2)


@compiled
def place(latent, y, reach, far, a, low, high):
    """y = m·sign(k)·(|k|/K)^(1/a) with k = ⌊v⌉ from low to high, at most 256 of them.

    ``latent``, ``y``: v and y, (rows, m); ``reach``, ``far``: m and K, (rows,).
    """
    codes, levels = np.empty(latent.shape[1], np.uint8), np.empty(int(high - low) + 1, np.float32)
    for code in range(levels.size):
        k = float(low) + code
        levels[code] = np.copysign(abs(k) ** (1 / a), k) if k else 0.0
    for row in range(latent.shape[0]):
        vs, ys = latent[row], y[row]
        size = np.float32(reach[row] * far[row] ** (-1 / a))
        for i in range(vs.size):
            codes[i] = np.int32(np.rint(min(max(vs[i], low), high)) - low)
        for i in range(vs.size):
            ys[i] = levels[codes[i]] * size


@compiled
def place_back(grad, latent, into, reach, far, a, low, high):
    """Writes the gradient for v of `place` into ``into``: y/(a·k), at 0 the first level.

    Returns:
        Σ grad·∂y/∂a, that is −Σ grad·y·ln(|k|/K)/a².
    """
    codes = np.empty(latent.shape[1], np.uint8)
    levels = np.empty(int(high - low) + 1, np.float32)
    slopes, logs = np.empty(levels.size, np.float32), np.empty(levels.size, np.float32)
    for code in range(levels.size):
        k = float(low) + code
        levels[code] = np.copysign(abs(k) ** (1 / a), k) if k else 0.0
        slopes[code] = abs(k) ** (1 / a - 1) / a if k else 1.0
        logs[code] = math.log(abs(k)) if k else 0.0
    total = 0.0
    for row in range(latent.shape[0]):
        gs, vs, ys = grad[row], latent[row], into[row]
        size = np.float32(reach[row] * far[row] ** (-1 / a))
        for i in range(vs.size):
            codes[i] = np.int32(np.rint(min(max(vs[i], low), high)) - low)
        plain, weighed = ZERO, ZERO
        for i in range(vs.size):
            g, code = gs[i], codes[i]
            ys[i] = g * slopes[code] * size
            part = g * levels[code]
            plain += part
            weighed += part * logs[code]
        total += float(size) * (float(weighed) - float(plain) * math.log(far[row]))
    return -total / a**2
