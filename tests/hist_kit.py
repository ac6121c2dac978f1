"""Tensors quantized by NumPy, recorded as a run folder's ``hist.npz`` records them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BINS, CHANNEL_BINS = 256, 64
SHARES = (0, 0.1, 1, 25, 50, 75, 99, 99.9, 100)


@dataclass(frozen=True)
class Made:
    """One tensor by hand. ``values``: (n,) or, with a grid per channel, (channels, n).

    ``low`` and ``high`` end the grid (None: those of the values); ``bits`` 0 leaves it in float.
    ``quantized``: an output's values in the quantized network.
    """

    name: str
    values: np.ndarray
    bits: int = 4
    low: float | None = None
    high: float | None = None
    quantized: np.ndarray | None = None


def grid(x: np.ndarray, bits: int, low: float | None, high: float | None):
    """Scale, zero-point and codes of an asymmetric grid over ``low`` to ``high``."""
    low, high = (
        min(0.0, x.min() if low is None else low),
        max(0.0, x.max() if high is None else high),
    )
    scale = (high - low) / (2**bits - 1)
    zero = np.round(-low / scale)
    raw = np.round(x / scale) + zero
    return scale, zero, np.clip(raw, 0, 2**bits - 1), (raw < 0) | (raw > 2**bits - 1)


def record(made: Made) -> tuple[dict, dict]:
    """(row, channel arrays) of one tensor."""
    x = np.asarray(made.values, dtype=np.float64)
    nan = float("nan")
    row = {
        "name": made.name,
        "bits": made.bits,
        "qmin": 0,
        "qmax": 2**made.bits - 1 if made.bits else 0,
    }
    row |= dict.fromkeys(("scale", "zero_point", "clip_lo", "clip_hi"), nan) | {"clipped": 0.0}
    codes, y = np.zeros(256), x
    if made.quantized is not None:
        y, row["bits"], row["qmax"] = made.quantized, 0, 0
    elif made.bits:
        rows = x if x.ndim == 2 else x[None]
        parts = [grid(r, made.bits, made.low, made.high) for r in rows]
        y = np.stack([(c - z) * s for s, z, c, _ in parts]).reshape(x.shape)
        codes = np.bincount(np.concatenate([p[2] for p in parts]).astype(int), minlength=256)
        scale, zero = (float(np.median([p[i] for p in parts])) for i in (0, 1))
        row |= {
            "scale": scale,
            "zero_point": zero,
            "clipped": np.mean([p[3].mean() for p in parts]),
        }
        row |= {"clip_lo": -zero * scale, "clip_hi": (row["qmax"] - zero) * scale}
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    edges = np.linspace(low, high, BINS + 1)
    error = (y - x).ravel()
    reach = (error.min(), error.max()) if np.ptp(error) > 1e-9 else (-1.0, 1.0)
    place = np.clip(((x.ravel() - low) / (high - low) * BINS).astype(int), 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mse = np.bincount(place, error**2, BINS) / counts
    row |= {
        "lo": low, "hi": high, "float": counts, "rounded": np.histogram(y, edges)[0],
        "error_lo": reach[0], "error_hi": reach[1], "error": np.histogram(error, BINS, reach)[0],
        "mse": mse, "codes": codes, "percentiles": np.percentile(x, SHARES), "count": x.size,
    }  # fmt: skip
    channels = {}
    if made.name.endswith(".weight"):
        both = (x, y) if x.ndim == 2 else (x.reshape(1, -1), y.reshape(1, -1))
        wide = np.linspace(low, high, CHANNEL_BINS + 1)
        channels["index"] = np.arange(len(both[0]))
        for name, part in zip(("float", "rounded"), both, strict=True):
            channels[name] = np.stack([np.histogram(r, wide)[0] for r in part]).astype(np.uint16)
    return row, channels


TYPES = {
    "float": "u4", "rounded": "u4", "error": "u4", "codes": "u4", "qmin": "i4", "qmax": "i4",
    "bits": "i4", "count": "i8", "name": "U",
}  # fmt: skip


def write(folder: Path, tensors: Iterable[Made]) -> Path:
    """``hist.npz`` of a run folder; returns its path."""
    made = [record(t) for t in tensors]
    arrays = {}
    for key in made[0][0]:
        column = np.array([row[key] for row, _ in made])
        arrays["names" if key == "name" else key] = column.astype(TYPES.get(key, "f4"))
    for t, (_, channels) in enumerate(made):
        arrays |= {f"channel_{key}_{t}": array for key, array in channels.items()}
    np.savez_compressed(folder / "hist.npz", **arrays)
    return folder / "hist.npz"


def heavy(n: int, seed: int, far: float = 12.0) -> np.ndarray:
    """Normal values with one in a thousand ``far`` times as large."""
    draw = np.random.default_rng(seed)
    x = draw.normal(0, 1, n)
    x[: n // 1000] *= far / 3
    return x


def network(method: str = "nearest", bits: int = 4) -> list[Made]:
    """The tensors of the network that `fake_runs` pretends to have run.

    The inputs of blocks.2.mlp.fc2 have the largest outlier ratio; attention products are only in
    block 0.
    """
    draw = np.random.default_rng(5)
    tensors = []
    for b in range(4):
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            layer = f"blocks.{b}.{name}"
            weight = draw.normal(0, 0.05, (12, 300)) * np.linspace(0.5, 2, 12)[:, None]
            far = 60.0 if layer == "blocks.2.mlp.fc2" else 3.0 + b
            x = heavy(4000, b, far)
            out = draw.normal(0, 2, 3000)
            noise = draw.normal(0, 0.2, 3000)
            inner = 0.6 if far < 50 else 1.0
            tensors += [
                Made(f"{layer}.weight", weight, bits),
                Made(f"{layer}.input", x, bits, inner * x.min(), inner * x.max()),
                Made(f"{layer}.output", out, 0, quantized=out + noise),
            ]
        if b == 0:
            left, right = draw.normal(0, 1, 2000), draw.random(2000)
            tensors += [
                Made("blocks.0.attn.scores.left", left, bits),
                Made("blocks.0.attn.scores.right", right, bits),
                Made("blocks.0.attn.scores.output", left, 0, quantized=left + 0.1),
            ]
    return tensors
