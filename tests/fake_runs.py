"""Writes run folders that look like finished runs, so that pages can be tested without running any.

The pictures are real digits; the "predictions" are logits with noise that grows as bits shrink.
"""

import csv
import json
from functools import cache
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory

import hist_kit
import numpy as np

from qlib.core.records import RunRecord, RunSpec
from qlib.core.specs import checked

MODELS = ("digits-vit", "digits-resnet", "digits-mobilenet")
METHODS = ("nearest", "adaround", "brecq", "qdrop")
BITS = (8, 6, 5, 4, 3, 2)
NOISE = {8: 0.05, 6: 0.5, 5: 1.1, 4: 2.6, 3: 4.6, 2: 14.0}
TOUGH = {"digits-vit": 1.0, "digits-resnet": 0.75, "digits-mobilenet": 1.5}
GAIN = {"nearest": 1.0, "adaround": 0.62, "brecq": 0.45, "qdrop": 0.4}
SIZE_MB = {"digits-vit": 0.84, "digits-resnet": 0.57, "digits-mobilenet": 0.36}


@cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """597 digits: pictures (n, 8, 8, 3) uint8, labels, and the float model's logits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images[1200:] / 16 * 255).astype(np.uint8)
    labels = data.target[1200:].astype(np.int64)
    draw = np.random.default_rng(3)
    logits = draw.normal(0, 1.6, (len(labels), 10))
    logits[np.arange(len(labels)), labels] += draw.normal(8.0, 2.6, len(labels))
    return np.repeat(images[..., None], 3, axis=3), labels, logits


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share, in percent."""
    p, mid = right / n, 1 + z * z / n
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / mid
    return 100 * ((p + z * z / (2 * n)) / mid - half), 100 * ((p + z * z / (2 * n)) / mid + half)


def top5(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best five classes and their softmax probabilities."""
    e = np.exp(logits - logits.max(1, keepdims=True))
    probs = e / e.sum(1, keepdims=True)
    order = np.argsort(-probs, axis=1)[:, :5]
    return order.astype(np.int16), np.take_along_axis(probs, order, 1).astype(np.float16)


def write_run(folder: Path, spec: RunSpec, **changes) -> Path:
    """One finished run folder for ``spec`` under ``folder``; returns its path."""
    images, labels, logits = digits()
    n = spec.test or len(labels)
    images, labels, logits = images[:n], labels[:n], logits[:n]
    noise = {m: _noisy(logits, spec, m) for m in {spec.method, "nearest"}}
    quant, nearest = noise[spec.method], noise["nearest"]
    out = folder / spec.key
    out.mkdir(parents=True)
    record = _record(spec, labels, logits, quant, nearest, **changes)
    (out / "run.json").write_text(json.dumps(record.to_json()))
    _write_preds(out, images, labels, {"float": logits, "quant": quant, "nearest": nearest})
    _write_layers(out, spec)
    (out / "hist.npz").write_bytes(_hist(spec.method, spec.weight_bits))
    events = reconstruction_events(spec.method)
    (out / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return out


@cache
def _hist(method: str, bits: int) -> bytes:
    with TemporaryDirectory() as folder:
        return hist_kit.write(Path(folder), hist_kit.network(method, bits)).read_bytes()


def _noisy(logits: np.ndarray, spec: RunSpec, method: str) -> np.ndarray:
    bits = (spec.weight_bits + spec.act_bits) // 2
    scale = NOISE.get(bits, 0.2) * GAIN.get(method, 0.7) * TOUGH.get(spec.model, 1.0)
    draw = np.random.default_rng(100 * bits + spec.seed + sum(map(ord, method + spec.model)))
    return logits + scale * draw.normal(0, 1, logits.shape)


def _record(spec, labels, logits, quant, nearest, **changes) -> RunRecord:
    n = len(labels)
    right = {k: v.argmax(1) == labels for k, v in (("f", logits), ("q", quant), ("n", nearest))}
    low, high = wilson(int(right["q"].sum()), n)
    float_mb = SIZE_MB.get(spec.model, 1.0)
    metrics = {
        "top1": 100 * right["q"].mean(),
        "top1_low": low,
        "top1_high": high,
        "top1_float": 100 * right["f"].mean(),
        "top1_nearest": 100 * right["n"].mean(),
        "agreement": 100 * (quant.argmax(1) == logits.argmax(1)).mean(),
        "lost": int((right["f"] & ~right["q"]).sum()),
        "gained": int((~right["f"] & right["q"]).sum()),
        "n": n,
        "weight_mb": float_mb * spec.weight_bits / 32 * 1.03,
        "weight_mb_float": float_mb,
        "gbops": 0.0125 * spec.weight_bits * spec.act_bits,
        "kl": 0.01 * 2.0 ** (8 - spec.weight_bits),
    }
    work = {"nearest": 0.0, "adaround": 46.0, "brecq": 31.0, "qdrop": 38.0}.get(spec.method, 20.0)
    seconds = {"load": 1.9, "calibrate": 1.4, "reconstruct": work, "evaluate": 0.9}
    body = {
        "metrics": {k: float(v) for k, v in metrics.items()},
        "seconds": seconds | {"total": sum(seconds.values())},
        "peak_mb": 612.0,
        "versions": {"torch": "2.15.0", "timm": "1.0.31", "python": "3.11.7"},
        "data": {
            "calib_hash": f"c{spec.calib}-{spec.seed}",
            "test_hash": f"t{n}",
            "calib_n": spec.calib,
            "classes": 10,
            "same_source": True,
        },
        "created": "2026-11-20T12:00:00",
    }
    return RunRecord(spec=spec, **(body | changes))


def _write_preds(out: Path, images, labels, sides) -> None:
    n = len(labels)
    arrays = {"ids": np.array([f"digits/{i:04d}" for i in range(n)]), "labels": labels}
    for side, logits in sides.items():
        arrays[f"{side}_top5"], arrays[f"{side}_prob"] = top5(logits)
    changed = np.nonzero(arrays["float_top5"][:, 0] != arrays["quant_top5"][:, 0])[0][:12]
    index = np.unique(np.concatenate([np.arange(min(12, n)), changed]))
    arrays |= {
        "class_names": np.array([str(d) for d in range(10)]),
        "thumbs": images[index],
        "thumb_index": index.astype(np.int64),
    }
    np.savez_compressed(out / "preds.npz", **arrays)


LAYERS = [(b, n) for b in range(4) for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]


def _write_layers(out: Path, spec: RunSpec) -> None:
    rows = []
    for at, (b, name) in enumerate(LAYERS):
        place = {"layer": f"blocks.{b}.{name}", "unit": f"blocks.{b}", "kind": "linear"}
        for tensor in ("weight", "input", "output"):
            row = {"point": f"{place['layer']}.{tensor}", **place, "tensor": tensor}
            make = _output_row if tensor == "output" else _tensor_row
            rows.append(row | make(spec, at, b, tensor))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (out / "layers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)


def _tensor_row(spec: RunSpec, at: int, b: int, tensor: str) -> dict:
    weight, learned = tensor == "weight", spec.method != "nearest"
    row = {
        "bits": spec.weight_bits if weight else spec.act_bits,
        "symmetric": False,
        "scale": 0.05,
        "zero_point": 7,
        "channels": 64 if weight else 1,
        "macs": 1048576 if weight else "",
        "params": 12288 if weight else "",
        "sqnr_db": 6.02 * spec.weight_bits - 3 - b,
        "clipped": 0.002,
        "flipped": (0.11 if learned else 0.0) if weight else "",
        "rmse_step": 0.29 + (0.05 if weight and learned else 0.0) + 0.002 * at,
    }
    if weight:
        row["mse_nearest"] = 0.289**2 * 0.05**2
        row["mse"] = row["mse_nearest"] * (1.4 if learned else 1.0)
    return row


def _output_row(spec: RunSpec, at: int, b: int, tensor: str) -> dict:
    """Errors that grow along the network; held-out images fare a little worse."""
    gain, found = GAIN.get(spec.method, 0.7), {}
    for suffix, worse in (("", 1.0), ("_test", 1.1)):
        local = worse * gain * 0.3 * 4.0 ** -(spec.weight_bits - 2)
        for what, mse in (("local", local), ("acc", local * (1 + 0.2 * at))):
            found[f"{what}_mse{suffix}"] = mse
            found[f"{what}_sqnr_db{suffix}"] = -10 * np.log10(mse)
            found[f"{what}_cosine{suffix}"] = 1 / np.sqrt(1 + mse)
    if spec.method != "nearest":
        found["acc_mse_nearest"] = found["acc_mse"] * (1.8 if at % 5 else 0.9)
    return found


def reconstruction_events(method: str, units: int = 4, steps: int = 120) -> list[dict]:
    """The events of one run, as in ``events.jsonl``."""
    events = [
        {"phase": "load", "t": 0.1, "mb": 80.0},
        {"phase": "calibrate", "t": 2.0, "mb": 420.0},
    ]
    t = 3.4
    for u in range(units if method != "nearest" else 0):
        draw = np.random.default_rng(u)
        for step in range(0, steps, 2):
            t += 0.12
            loss = 0.02 * (u + 1) * (0.2 + 0.8 * np.exp(-step / 25)) * draw.uniform(0.85, 1.15)
            told = _rounding(step, steps) if step % 12 == 0 or step == steps - 2 else {}
            events.append(
                {
                    "phase": "reconstruct",
                    "unit": f"blocks.{u}",
                    "index": u,
                    "of": units,
                    "step": step,
                    "steps": steps,
                    "loss": float(loss),
                    "penalty": float(1 - step / steps),
                    "t": round(t, 3),
                    "mb": 500.0 + 10 * u,
                    **told,
                }
            )
    return [*events, {"phase": "evaluate", "t": round(t + 0.4, 3), "mb": 610.0}]


def _rounding(step: int, steps: int, weights: int = 36_864) -> dict:
    """Soft rounding that leaves the middle for both ends, and a tenth of the weights flipped."""
    done = step / steps
    spread = np.full(20, (1 - done) / 20) + done * np.eye(20)[[0, 19]].mean(0)
    soft = np.floor(spread * weights).astype(int)
    soft[0] += weights - soft.sum()
    return {"soft": soft.tolist(), "flipped": round(0.1 * done, 4)}


def write_demo(folder: Path, models=MODELS, methods=METHODS, bits=BITS) -> Path:
    """A whole set of demo runs: every model, method and bit-width (W = A)."""
    for model in models:
        for method in methods:
            for b in bits:
                spec = RunSpec(model, "digits", method, weight_bits=b, act_bits=b)
                write_run(folder, checked(spec))
    return folder
