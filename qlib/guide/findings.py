"""Findings: rules that spot what in a run deserves a look, with a remedy and a link to see it.

Rules read what a run leaves (record, rows of layers, histograms, predictions, sensitivity profile)
and answer with a `Finding` or None; what a run has not got, a rule passes over. No torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from qlib.core.checks import plain
from qlib.core.records import BASELINE, RunRecord
from qlib.core.scores import score
from qlib.measure import paired
from qlib.measure.statistics import LEVEL
from qlib.noise.profile import NoiseProfile

MOST = 5  # told at once: more would not be read
CLIPPED = 0.01  # share of a tensor's values outside the grid
OUTLIERS = 10.0  # largest value over the 99.9 % mark
COARSE, PURE = 0.7, 0.289  # error over step; 1/√12 is rounding alone
OVERFIT = 1.5  # error on new images over error on calibration images
JUMP_DB = 6.0  # lost within one block: half the precision
LOPSIDED = 3.0  # points lost by activations over points lost by weights
NOISY = 0.9  # of a layer's output error is left where noise helps enough to be told
COVERED = 0.99  # share of the multiplications that are quantized
TELLING = 1.0  # points: a smaller loss has no cause worth naming

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One noteworthy fact of a run: sentence with numbers, remedy, and where to look.

    ``weight``: how far beyond its limit, as a factor; the worst are told first.
    """

    name: str
    text: str
    remedy: str
    page: str
    set: dict[str, str] = field(default_factory=dict)
    weight: float = 1.0


def of(
    record: RunRecord,
    *,
    hist: Mapping[str, Any] | None = None,
    profile: Sequence[Row] = (),
    preds: Mapping[str, np.ndarray] | None = None,
    noise: NoiseProfile | None = None,
) -> list[Finding]:
    """All findings of a run, the weightiest first.

    ``record`` with its rows of layers; ``hist`` as `qlib.store.tensors.load`, ``profile`` as
    `qlib.sensitivity.profile.load`, ``preds`` as `qlib.store.load_preds`, ``noise`` as
    `qlib.noise.profile.load` give them.
    """
    rows = record.layers
    found = [
        worse_than_nearest(record, preds),
        lopsided(profile),
        jump(rows),
        overfit(rows),
        outliers(hist or {}),
        coarse(rows),
        clipped(rows),
        noise_helps(record, noise),
        left_in_float(record),
    ]
    ranked = sorted((f for f in found if f), key=lambda f: -f.weight)
    last = unproven(record)
    return [*doubted(record), *ranked, *([last] if last else [])]


def doubted(record: RunRecord) -> list[Finding]:
    """Rule: whatever the run itself gave as a reason not to believe its numbers, first of all."""
    return [
        Finding(doubt["name"], plain(doubt["text"]), plain(doubt["remedy"]), "compare", {}, 100.0)
        for doubt in record.doubts
    ]


def left_in_float(record: RunRecord) -> Finding | None:
    """Rule: less than 99 % of the multiplications are quantized."""
    if record.coverage is None or (share := record.coverage["quantized"]) >= COVERED:
        return None
    parts = record.coverage["float"]
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    return Finding(
        "in-float",
        f"**{100 * (1 - share):.1f} %** of the multiplications are done in float: "
        f"{', '.join(parts[:3])}{more}.",
        "Accuracy and size are those of a network that is quantized in part.",
        "distributions",
        weight=(1 - share) / (1 - COVERED),
    )


def clipped(rows: Sequence[Row]) -> Finding | None:
    """Rule: more than 1 % of a tensor's values lie outside its grid."""
    worst, many = _worst(_grids(rows), "clipped", CLIPPED)
    if worst is None:
        return None
    return Finding(
        "clipped",
        f"**{100 * worst['clipped']:.1f} %** of {_tensor(worst)} is clipped{_others(many)}.",
        "At few bits some clipping is meant; if the bulk is cut, choose the minmax observer.",
        "distributions",
        {"layer": worst["layer"]},
        worst["clipped"] / CLIPPED / 10,
    )


def outliers(hist: Mapping[str, Any]) -> Finding | None:
    """Rule: a tensor's largest value lies more than ten times beyond its 99.9 % mark."""
    quantized = [h for h in hist.values() if h.bits]
    worst = max(quantized, key=lambda h: h.outlier_ratio, default=None)
    if worst is None or worst.outlier_ratio <= OUTLIERS:
        return None
    where = _name(worst.layer, worst.tensor)
    return Finding(
        "outliers",
        f"The largest value of {where} lies **{worst.outlier_ratio:.0f} times** beyond its 99.9 % "
        "mark.",
        "A grid that reaches it wastes levels: clip (mse or percentile observer), or give this "
        "layer more bits.",
        "distributions",
        {"layer": worst.layer},
        worst.outlier_ratio / OUTLIERS,
    )


def coarse(rows: Sequence[Row]) -> Finding | None:
    """Rule: a tensor's error is larger than rounding alone can make it."""
    worst, many = _worst(_grids(rows), "rmse_step", COARSE)
    if worst is None:
        return None
    return Finding(
        "coarse",
        f"The error of {_tensor(worst)} is **{worst['rmse_step']:.2g} steps**; rounding alone "
        f"makes {PURE:.2f}{_others(many)}.",
        "The rest is clipping: widen the range with another observer, or use more bits there.",
        "distributions",
        {"layer": worst["layer"]},
        worst["rmse_step"] / COARSE,
    )


def overfit(rows: Sequence[Row]) -> Finding | None:
    """Rule: the error on images unseen by the method is at least half as large again."""
    measured = [r for r in _outputs(rows) if r.get("acc_mse") and r.get("acc_mse_test") is not None]
    ratio = {r["layer"]: r["acc_mse_test"] / r["acc_mse"] for r in measured}
    layer = max(ratio, key=ratio.__getitem__, default=None)
    if layer is None or ratio[layer] <= OVERFIT:
        return None
    return Finding(
        "overfit",
        f"At `{layer}` the error on new images is **{ratio[layer]:.1f} times** that on the "
        "calibration images.",
        "The method fits its calibration images: give it more of them, or fewer steps.",
        "sensitivity",
        {"layer": layer},
        ratio[layer] / OVERFIT,
    )


def jump(rows: Sequence[Row]) -> Finding | None:
    """Rule: one block loses more than 6 dB of what the blocks before it had kept.

    Blocks with fewer bits than the one before lose by design and are passed over.
    """
    ends: dict[str, Row] = {}
    for row in _outputs(rows):
        if row.get("acc_sqnr_db") is not None:
            ends[row["unit"]] = row
    bits = {row["unit"]: row.get("bits") for row in rows if row["tensor"] == "weight"}
    pairs = pairwise(ends.values())
    same = [(a, b) for a, b in pairs if bits.get(a["unit"]) == bits.get(b["unit"])]
    falls = [(one["acc_sqnr_db"] - two["acc_sqnr_db"], two) for one, two in same]
    fall, row = max(falls, key=lambda pair: pair[0], default=(0.0, None))
    if row is None or fall <= JUMP_DB:
        return None
    return Finding(
        "jump",
        f"Within `{row['unit']}` the network loses **{fall:.0f} dB** at once.",
        "Look there first: keep that block's worst layer in float, or give it more bits.",
        "sensitivity",
        {"layer": row["layer"]},
        fall / JUMP_DB,
    )


def worse_than_nearest(record: RunRecord, preds: Mapping[str, np.ndarray] | None) -> Finding | None:
    """Rule: learning did worse than nearest rounding, on the same images and not by chance."""
    if record.spec.method == BASELINE or not preds or f"{BASELINE}_top5" not in preds:
        return None
    if record.task == "unlabelled":  # nobody knows what is right
        return None
    pair = paired.count(paired.right(preds, "quant"), paired.right(preds, BASELINE))
    if pair.difference >= 0 or pair.p >= LEVEL:
        return None
    return Finding(
        "worse-than-nearest",
        f"Learning made it worse: **{pair.second}** images right only with nearest rounding, "
        f"{pair.first} only now (p = {pair.p:.2g}).",
        "Often too few calibration images or steps; at 8 bits there is nothing left to learn.",
        "reconstruction",
        {},
        10.0,
    )


def lopsided(profile: Sequence[Row]) -> Finding | None:
    """Rule: rounding activations alone costs over three times what weights alone cost."""
    whole = [r for r in profile if r["mode"] == "all" and r["top1"] is not None]
    top1 = {r["split"]: r["top1"] for r in whole}
    if not {"none", "weights", "inputs"} <= set(top1):
        return None
    weights, acts = (max(0.0, top1["none"] - top1[split]) for split in ("weights", "inputs"))
    if acts < TELLING or acts <= LOPSIDED * weights:
        return None
    return Finding(
        "lopsided",
        f"Activations alone cost **{acts:.1f} points**, weights alone {weights:.1f}.",
        "Spend bits on activations first; better rounding of weights cannot win this back.",
        "sensitivity",
        {},
        min(9.0, acts / max(weights, TELLING) / LOPSIDED + 1),
    )


def unproven(record: RunRecord) -> Finding | None:
    """Rule: the interval of the accuracy (of k-NN, of features) is wider than the difference."""
    main, n = score(record.metrics), record.metrics.get("n", 0)
    if main is None or main.reference is None:
        return None
    gap = abs(main.reference - main.value)
    half = (main.high - main.low) / 2
    if gap == 0 or half < gap:
        return None
    return Finding(
        "unproven",
        f"{int(n):,} images give ±{half:.1f} points; the difference to float is **{gap:.1f}**.",
        "Test on more images, or compare image by image.",
        "compare",
        {},
        0.0,
    )


def noise_helps(record: RunRecord, noise: NoiseProfile | None) -> Finding | None:
    """Rule: fixed noise would lower a layer's output error by a tenth or more at these bits."""
    bits = record.spec.act_bits
    here = [x for x in noise.layers if x.bits == bits] if noise else []
    left = {x.layer: x.left(x.closed_form, "test") for x in here if x.closed_form > 0}
    gain = [share for share in left.values() if share < 1]
    best = min(left, key=left.__getitem__, default="")
    if not best or left[best] > NOISY:
        return None
    return Finding(
        "noise",
        f"Fixed noise before rounding lowers the error of **{len(gain)} of {len(here)}** layers at "
        f"{bits} bits, most that of `{best}` (by {100 * (1 - left[best]):.0f} %).",
        "NoisyQuant searches its reach; in the other layers the best noise is none or hardly any.",
        "noisyquant",
        {"layer": best, "n_bits": str(bits)},
        (1 - left[best]) / (1 - NOISY) / 10,  # a chance, not a fault: told after those
    )


# ---- helpers ---------------------------------------------------------------------------------


def _grids(rows: Iterable[Row]) -> list[Row]:
    return [r for r in rows if r["tensor"] not in ("output", "boundary") and r.get("layer")]


def _outputs(rows: Iterable[Row]) -> list[Row]:
    return [r for r in rows if r["tensor"] == "output"]


def _worst(rows: Iterable[Row], column: str, limit: float) -> tuple[Row | None, int]:
    """The row furthest beyond a limit, and how many others are beyond it."""
    beyond = [r for r in rows if r.get(column) is not None and r[column] > limit]
    return max(beyond, key=lambda r: r[column], default=None), len(beyond) - 1


def _tensor(row: Row) -> str:
    return _name(row["layer"], row["tensor"])


def _name(layer: str, tensor: str) -> str:
    kinds = {"weight": "the weights", "input": "the input", "left": "the left factor"}
    return f"{kinds.get(tensor, 'the right factor')} of `{layer}`"


def _others(many: int) -> str:
    return f" ({many} more tensor{'s' if many > 1 else ''} beyond the limit)" if many > 0 else ""
