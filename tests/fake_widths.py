"""A finished run of one network with many bit-widths, made by hand: computed, small, no torch.

The "predictions" are logits with noise, as in `fake_runs`; activations do more damage than weights.
"""

from dataclasses import replace
from math import hypot
from pathlib import Path

import fake_runs
import numpy as np

from qlib import store
from qlib.core.records import RunRecord, RunSpec
from qlib.core.specs import checked

WIDTHS = (8, 7, 6, 5, 4, 3)
DAMAGE = {8: 0.05, 7: 0.2, 6: 0.5, 5: 1.0, 4: 1.9, 3: 3.6, 2: 12.0}  # noise on the logits
SIDES = (0.35, 0.9)  # of weights, of activations
NAIVE = 2.2  # times the damage, below the highest width
UNITS = ("patch_embed.proj", *(f"blocks.{b}" for b in range(6)), "head")
EDGES = ("patch_embed.proj", "head")
SHARE = {"blocks.0": 3.0, "blocks.5": 12.0}  # of a block's damage; the others do 1
PARAMS, MACS = 36_864, 625_000  # of each block


def spec_of(model: str = "digits-vit", **settings) -> RunSpec:
    """A run of PTMQ at 4 bits, otherwise like those of `fake_runs`."""
    return checked(RunSpec(model, "digits", "ptmq", settings=settings))


def naive() -> RunSpec:
    return spec_of(learned_at="highest")


def noise(spec: RunSpec, w: int, a: int) -> float:
    """Size of the noise at these bits."""
    worse = NAIVE if spec.settings["learned_at"] == "highest" and min(w, a) < 8 else 1.0
    tough = fake_runs.TOUGH.get(spec.model, 1.0)
    return worse * tough * hypot(SIDES[0] * DAMAGE[w], SIDES[1] * DAMAGE[a])


def logits_at(spec: RunSpec, w: int, a: int) -> np.ndarray:
    """The network's answers at these bits, the same at every call."""
    _, _, logits = fake_runs.digits()
    draw = np.random.default_rng(1000 * w + 10 * a + spec.seed)
    return logits + noise(spec, w, a) * draw.normal(0, 1, logits.shape)


def row(spec: RunSpec, w: int, a: int) -> dict[str, float]:
    """One row of `RunRecord.bit_widths`, counted from the answers."""
    _, labels, logits = fake_runs.digits()
    found = logits_at(spec, w, a)
    right, was = found.argmax(1) == labels, logits.argmax(1) == labels
    low, high = fake_runs.wilson(int(right.sum()), len(labels))
    return {
        "weight_bits": w, "act_bits": a, "top1": 100 * float(right.mean()), "top1_low": low,
        "top1_high": high, "agreement": 100 * float((found.argmax(1) == logits.argmax(1)).mean()),
        "lost": int((was & ~right).sum()), "gained": int((~was & right).sum()),
        "kl": _kl(logits, found), "weight_mb": 6 * PARAMS * w / 8e6 + 0.01,
        "gbops": 6 * MACS * w * a / 1e9 + 0.02,
    }  # fmt: skip


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    """Mean KL(p ‖ q) of two arrays of logits, nats."""
    logs = [x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (p, q)]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(1).mean())


def rows(spec: RunSpec, widths=WIDTHS, *, equal: bool = False) -> list[dict[str, float]]:
    """All combinations, or (``equal``) those with equal bits."""
    return [row(spec, w, a) for w in widths for a in widths if w == a or not equal]


def blocks(widths=WIDTHS) -> list[dict]:
    """Units in order; damage is quartered by each further bit; edge layers stay at 8."""
    made = []
    for unit in UNITS:
        edge = unit in EDGES
        for bits in (8,) if edge else widths:
            kl = 0.02 * SHARE.get(unit, 1.0) * 4.0 ** -(bits - 3) * (0.1 if edge else 1.0)
            params, macs = (600, 9000) if edge else (PARAMS, MACS)
            made.append({"unit": unit, "bits": bits, "kl": kl, "params": params, "macs": macs})
    return made


def write(folder: Path, spec: RunSpec | None = None, *, equal: bool = False, **changes) -> Path:
    """The run's folder under ``folder``, with the guesses of each width in ``preds.npz``."""
    spec = spec or spec_of()
    out = fake_runs.write_run(folder, spec)
    record = store.load(out)
    table = rows(spec, equal=equal)
    own = next(r for r in table if (r["weight_bits"], r["act_bits"]) == (4, 4))
    metrics = record.metrics | {k: v for k, v in own.items() if not k.endswith("_bits")}
    metrics["stored_mb"] = 6 * PARAMS * 33 / 8e6 + 0.01
    made = replace(record, metrics=metrics, bit_widths=table, blocks=blocks(), **changes)
    store.write_record(made, out)
    _guesses(out, made)
    return out


def _guesses(out: Path, record: RunRecord) -> None:
    preds = dict(np.load(out / "preds.npz"))
    for w in WIDTHS:
        preds[f"w{w}_top5"], preds[f"w{w}_prob"] = fake_runs.top5(logits_at(record.spec, w, w))
    preds["quant_top5"], preds["quant_prob"] = preds["w4_top5"], preds["w4_prob"]
    np.savez_compressed(out / "preds.npz", **preds)
