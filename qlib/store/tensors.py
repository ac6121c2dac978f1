"""The binned tensors of a run, read from its ``hist.npz``. No torch: pages and figures use it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qlib.core.checks import Damaged
from qlib.core.records import InvalidSpec
from qlib.store.arrays import NUMBERS, TEXT, WHOLE, check_array, load_arrays
from qlib.store.runfolder import broken

FILE = "hist.npz"
BINS = 256
CHANNEL_BINS = 64
CHANNELS = 128  # of a weight, evenly chosen among more
PERCENTILES = (0, 0.1, 1, 25, 50, 75, 99, 99.9, 100)
CODES = 256
_PER_BIN = {"float": BINS, "rounded": BINS, "error": BINS, "mse": BINS, "codes": CODES}
_NUMBERS = (
    "lo", "hi", "error_lo", "error_hi", "qmin", "qmax", "bits", "scale", "zero_point", "clip_lo",
    "clip_hi", "clipped", "count",
)  # fmt: skip
_WHOLE = ("qmin", "qmax", "bits", "count")
_GAPS = ("mse", "scale", "zero_point", "clip_lo", "clip_hi")  # not a number where there is none

Real = float  # under this name where a class has a field called float


@dataclass(frozen=True)
class Channels:
    """Output channels of a weight, on even bins over the same range as the whole tensor.

    ``index`` (C,): which channels; ``float``, ``rounded`` (C, 64): counts.
    """

    index: np.ndarray
    edges: np.ndarray  # (65,)
    float: np.ndarray
    rounded: np.ndarray


@dataclass(frozen=True)
class TensorHist:
    """Counts of one tensor's values, before and after rounding.

    Attributes:
        name, layer, tensor: ``blocks.0.mlp.fc1.input``, ``blocks.0.mlp.fc1``, ``input``.
        edges: (257,) even bins that cover both kinds of value.
        float, rounded: (256,) counts. For an ``output``: of the float and of the fully quantized
            network; else of the float network's values, and of the same values after rounding.
        error_edges, error: (257,), (256,): counts of rounded − float.
        mse: (256,) mean squared error of the values in each float bin, NaN where there are none.
        codes: (256,) counts of code − qmin; zeros for outputs and for tensors left in float.
        bits: 0 where there is no grid (outputs, tensors left in float).
        scale, zero_point, clip_lo, clip_hi: medians where channels have grids of their own; the
            clip edges are the lowest and the highest level. NaN where there is no grid. Where
            levels are not evenly spaced, ``scale`` is their mean distance.
        clipped: share of the values further outside than half a step, 0 to 1.
        percentiles: (9,) of the float values at `PERCENTILES`; the ends are exact.
        count: how many elements were counted (of large tensors an even sample).
    """

    name: str
    layer: str
    tensor: str
    edges: np.ndarray
    float: np.ndarray
    rounded: np.ndarray
    error_edges: np.ndarray
    error: np.ndarray
    mse: np.ndarray
    codes: np.ndarray
    qmin: int
    qmax: int
    bits: int
    scale: Real
    zero_point: Real
    clip_lo: Real
    clip_hi: Real
    clipped: Real
    percentiles: np.ndarray
    count: int
    channels: Channels | None = None
    bent: np.ndarray | None = None  # (256,) levels that are not evenly spaced, then NaN

    @property
    def levels(self) -> np.ndarray:
        """Real values of the codes qmin … qmax, ascending; empty where there is no grid."""
        if not self.bits:
            return np.empty(0)
        if self.bent is not None:
            return self.bent[: self.qmax - self.qmin + 1].astype(np.float64)
        return (np.arange(self.qmin, self.qmax + 1) - self.zero_point) * self.scale

    @property
    def outlier_ratio(self) -> Real:
        """max|x| over max(|p0.1|, |p99.9|): how far the extremes lie beyond the bulk, 1 or more."""
        bulk = np.abs(self.percentiles[[1, 7]]).max()
        far = np.abs(self.percentiles[[0, 8]]).max()
        return float(far / bulk) if bulk > 0 else (1.0 if far == 0 else float("inf"))


def load(folder: Path) -> dict[str, TensorHist]:
    """The tensors of a run folder by name, layers in order of execution.

    Raises:
        InvalidSpec: missing (runs of older versions have none), damaged or cut off; the file is
            named.
    """
    file = folder / FILE
    if not os.path.lexists(file):
        raise InvalidSpec(
            f"{folder.name}/{FILE} is missing: this run was made before value counts were kept; "
            "run it again to see them."
        )
    arrays = load_arrays(file)
    try:
        return _tensors(arrays)
    except Damaged as error:
        raise InvalidSpec(broken(file, error)) from None


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, TensorHist]:
    names = [str(name) for name in check_array(arrays, "names", (-1,), TEXT)]
    t = len(names)
    for name, width in _PER_BIN.items():
        check_array(arrays, name, (t, width), gaps=name in _GAPS)
    for name in _NUMBERS:
        check_array(arrays, name, (t,), WHOLE if name in _WHOLE else NUMBERS, gaps=name in _GAPS)
    check_array(arrays, "percentiles", (t, len(PERCENTILES)))
    if "levels" in arrays:
        check_array(arrays, "levels", (t, CODES), gaps=True)
    _check_grids(arrays)
    return {name: _tensor(arrays, t, name) for t, name in enumerate(names)}


def _check_grids(arrays: dict[str, np.ndarray]) -> None:
    """Bins need a width, codes a place; a tensor with bits needs the numbers of its grid."""
    for low, high in (("lo", "hi"), ("error_lo", "error_hi")):
        if not (arrays[low] < arrays[high]).all():
            raise Damaged(f"{low} must lie below {high}")
    steps = arrays["qmax"].astype(np.int64) - arrays["qmin"]
    if not ((steps >= 0) & (steps < CODES)).all():
        raise Damaged(f"qmax must lie 0 to {CODES - 1} above qmin")
    for name in ("scale", "zero_point", "clip_lo", "clip_hi"):
        if np.isnan(arrays[name][arrays["bits"] != 0]).any():
            raise Damaged(f"{name} must hold finite numbers")


def _tensor(arrays: dict[str, np.ndarray], t: int, name: str) -> TensorHist:
    layer, _, tensor = name.rpartition(".")
    bent = arrays["levels"][t] if "levels" in arrays else np.full(CODES, np.nan)
    lo, hi = float(arrays["lo"][t]), float(arrays["hi"][t])
    parts: dict[str, Any] = {part: arrays[part][t] for part in _PER_BIN}
    parts |= {part: int(arrays[part][t]) for part in ("qmin", "qmax", "bits", "count")}
    parts |= {
        part: float(arrays[part][t])
        for part in ("scale", "zero_point", "clip_lo", "clip_hi", "clipped")
    }
    return TensorHist(
        name,
        layer,
        tensor,
        edges=np.linspace(lo, hi, BINS + 1),
        error_edges=np.linspace(arrays["error_lo"][t], arrays["error_hi"][t], BINS + 1),
        channels=_channels(arrays, t, lo, hi),
        bent=None if np.isnan(bent).all() else bent,
        percentiles=arrays["percentiles"][t],
        **parts,
    )


def _channels(arrays: dict[str, np.ndarray], t: int, lo: float, hi: float) -> Channels | None:
    index = arrays.get(f"channel_index_{t}")
    if index is None:
        return None
    check_array(arrays, f"channel_index_{t}", (-1,), WHOLE)
    shape = (len(index), CHANNEL_BINS)
    names = (f"channel_float_{t}", f"channel_rounded_{t}")
    counts = [check_array(arrays, name, shape, WHOLE) for name in names]
    return Channels(index, np.linspace(lo, hi, CHANNEL_BINS + 1), *counts)
