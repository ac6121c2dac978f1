"""From samples of tensors to the arrays of ``hist.npz`` (`qlib.store.tensors`: what they mean)."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qlib.store.disk import writing
from qlib.store.tensors import BINS, CHANNEL_BINS, CODES, FILE, PERCENTILES

if TYPE_CHECKING:
    from qlib.measure.value_samples import Sample

TYPES = {
    "bits": np.int32, "qmin": np.int32, "qmax": np.int32, "count": np.int64, "float": np.uint32,
    "rounded": np.uint32, "error": np.uint32, "codes": np.uint32,
}  # fmt: skip
FULL = 2**16 - 1  # a channel's count that is larger is stored as this
HALF, HELD = np.uint32(0x4000), np.uint32(0xFFFF8000)  # 8 binary digits of a squared error are kept


def save(folder: Path, samples: Iterable["Sample"], images: int) -> None:
    """Write ``hist.npz``; ``images``: how many are behind activations and outputs.

    Raises:
        InvalidSpec: the folder cannot be written, or the disk is full.
    """
    found: dict[str, Any] = {**arrays(samples, images)}
    with writing(folder):
        np.savez_compressed(folder / FILE, **found)


def arrays(samples: Iterable["Sample"], images: int) -> dict[str, np.ndarray]:
    """The arrays by name; see `qlib.store.tensors.TensorHist`."""
    samples = list(samples)
    rows = [_row(sample) for sample in samples]
    by_name: dict[str, np.ndarray] = {"names": np.array([sample.name for sample in samples])}
    for name in rows[0]:
        column = np.array([row[name] for row in rows])
        by_name[name] = column.astype(TYPES.get(name, np.float32))
    for t, (sample, row) in enumerate(zip(samples, rows, strict=True)):
        if sample.rows is not None and sample.index is not None:
            by_name[f"channel_index_{t}"] = sample.index.astype(np.int32)
            for which, values in zip(("float", "rounded"), sample.rows, strict=True):
                by_name[f"channel_{which}_{t}"] = _by_row(values, row["lo"], row["hi"])
    return by_name | {"n_images": np.array(images, dtype=np.int32)}


def _row(sample: "Sample") -> dict[str, Any]:
    x, y = sample.float.astype(np.float64), sample.rounded.astype(np.float64)
    error = y - x
    lo, hi = _span(min(sample.low, y.min()), max(sample.high, y.max()))
    error_lo, error_hi = _span(error.min(), error.max())
    place = _place(x, lo, hi, BINS)
    counts = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):  # nothing counted: not a number, as it should be
        mse = np.bincount(place, error * error, BINS) / counts
    return _grid(sample) | {
        "lo": lo,
        "hi": hi,
        "float": counts,
        "rounded": np.bincount(_place(y, lo, hi, BINS), minlength=BINS),
        "error_lo": error_lo,
        "error_hi": error_hi,
        "error": np.bincount(_place(error, error_lo, error_hi, BINS), minlength=BINS),
        "mse": _rounded(mse.astype(np.float32)),
        "clipped": sample.outside / max(1, sample.seen),
        "percentiles": _percentiles(sample),
        "count": len(x),
    }


def _grid(sample: "Sample") -> dict[str, Any]:
    """What is told of the integer grid; medians where channels have grids of their own."""
    q, ends, counted = sample.quantizer, sample.ends, sample.codes
    levels = np.full(CODES, np.nan)
    if q is None or ends is None or counted is None:
        none = dict.fromkeys(("scale", "zero_point", "clip_lo", "clip_hi"), np.nan)
        codes = np.zeros(CODES, dtype=np.int64)
        return none | {"codes": codes, "levels": levels, "qmin": 0, "qmax": 0, "bits": 0}
    scheme, (low, high) = q.scheme, ends
    scale, zero = (float(t.detach().cpu().double().median()) for t in (q.scale, q.zero_point))
    if sample.levels is not None:  # a bent grid: its scale belongs to another axis
        levels[: len(sample.levels)] = sample.levels
        scale = (high - low) / scheme.steps
    return {
        "scale": scale,
        "zero_point": zero,
        "clip_lo": low,
        "clip_hi": high,
        "codes": np.bincount(counted - scheme.qmin, minlength=CODES)[:CODES],
        "levels": levels,
        "qmin": scheme.qmin,
        "qmax": scheme.qmax,
        "bits": scheme.bits,
    }


def _percentiles(sample: "Sample") -> np.ndarray:
    """At `PERCENTILES`, linear between neighbours; the ends are those of all values."""
    ordered = np.sort(sample.float)  # in single precision many times faster than a partition
    at = np.array(PERCENTILES) / 100 * (len(ordered) - 1)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, len(ordered) - 1)
    found = ordered[low] + (at - low) * (ordered[high] - ordered[low])
    found[[0, -1]] = sample.low, sample.high
    return found


def _rounded(x: np.ndarray) -> np.ndarray:
    """float32 to 1 part in 500: the digits that nobody sees would take most room in the file."""
    return ((x.view(np.uint32) + HALF) & HELD).view(np.float32)


def _span(lo: float, hi: float) -> tuple[float, float]:
    """The ends as they will be stored; never the same, so that bins have a width."""
    lo, hi = float(np.float32(lo)), float(np.float32(hi))
    room = 0.0 if hi > lo else max(1e-3 * abs(lo), 1e-6)
    return lo - room, hi + room


def _place(x: np.ndarray, lo: float, hi: float, bins: int) -> np.ndarray:
    """The bin of each value; those on the last edge lie in the last bin."""
    return ((x - lo) * (bins / (hi - lo))).astype(np.int32).clip(0, bins - 1)


def _by_row(values: np.ndarray, lo: float, hi: float) -> np.ndarray:
    """(C, n) values to (C, `CHANNEL_BINS`) counts, all rows at once."""
    place = _place(values.astype(np.float64), lo, hi, CHANNEL_BINS)
    place += CHANNEL_BINS * np.arange(len(values), dtype=np.int32)[:, None]
    counts = np.bincount(place.ravel(), minlength=CHANNEL_BINS * len(values))
    return counts.clip(max=FULL).reshape(-1, CHANNEL_BINS).astype(np.uint16)
