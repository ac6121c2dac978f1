"""Rows of sensitivity profiles and of layers' outputs, made by hand: damage is known in advance."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import fake_runs

from qlib import store
from qlib.core.records import RunRecord, RunSpec
from qlib.sensitivity import profile as profiles

KINDS = ("attn.qkv", "attn.scores", "attn.mix", "attn.proj", "mlp.fc1", "mlp.fc2")
FLOAT = 97.7


def vit(blocks: int = 6) -> list[dict]:
    """Layers of a transformer in network order: layer, unit and kind."""
    rows = [{"layer": "patch_embed.proj", "unit": "patch_embed.proj", "kind": "conv"}]
    for b in range(blocks):
        for name in KINDS:
            kind = "matmul" if name in ("attn.scores", "attn.mix") else "linear"
            rows.append({"layer": f"blocks.{b}.{name}", "unit": f"blocks.{b}", "kind": kind})
    return [*rows, {"layer": "head", "unit": "head", "kind": "linear"}]


def row(mode: str, split: str, layer: Mapping | None, kl: float, halves=(1.0, 1.0)) -> dict:
    """One measurement whose other numbers follow from its KL."""
    top1 = max(10.0, FLOAT - 40 * kl)
    named = layer or {"layer": "", "unit": "", "kind": ""}
    return {
        "mode": mode, "split": split, **named, "kl": kl, "kl_a": kl * halves[0],
        "kl_b": kl * halves[1], "top1": top1, "top1_low": top1 - 3, "top1_high": top1 + 2,
        "agreement": 100 - 50 * kl, "sqnr_db": 20.0 - 30 * kl, "n": 128, "data": "test",
    }  # fmt: skip


def share(layer: str) -> float:
    """How much KL a layer does alone: the fc2 inputs are the guilty ones, later ones more so."""
    if layer.endswith("fc2"):
        return 0.08 + 0.02 * int(layer.split(".")[1])
    return 0.0004 if layer == "head" else 0.004


def profile(layers: Sequence[Mapping] | None = None, whole: float = 0.9) -> list[dict]:
    """A whole profile: 2/3 of each layer's damage comes from its inputs, half is won back."""
    layers = vit() if layers is None else layers
    parts = {"weights": 1 / 3, "inputs": 2 / 3, "both": 1.0}
    rows = [row("all", "none", None, 0.0)]
    rows += [row("all", split, None, whole * part) for split, part in parts.items()]
    for layer in layers:
        for split, part in parts.items():
            if split == "weights" and layer["kind"] == "matmul":
                continue
            kl = share(layer["layer"]) * part
            rows.append(row("alone", split, layer, kl))
            rows.append(row("left_out", split, layer, whole * part - kl / 2))
    return rows


def outputs(layers: Sequence[Mapping] | None = None) -> list[dict]:
    """``output`` rows of ``layers.csv``: constant local error, accumulated error that grows."""
    layers = vit() if layers is None else layers
    rows = []
    for i, layer in enumerate(layers):
        numbers = {}
        for end, less in (("", 0.0), ("_test", 0.5)):
            for start, db in (("local", 20.0 - less), ("acc", 20.0 - 0.4 * i - less)):
                numbers[f"{start}_sqnr_db{end}"] = db
                numbers[f"{start}_cosine{end}"] = 1 - 10 ** (-db / 10) / 2
                numbers[f"{start}_mse{end}"] = 10 ** (-db / 10)
        rows.append({"point": f"{layer['layer']}.output", "tensor": "output", **layer, **numbers})
    return rows


def table(layers: Sequence[Mapping] | None = None, kept: Sequence[str] = ()) -> list[dict]:
    """``layers.csv``: weights and inputs of all layers but the ``kept`` ones, and all outputs."""
    layers = vit() if layers is None else layers
    rows = []
    for layer in layers:
        if layer["layer"] in kept:
            continue
        product = layer["kind"] == "matmul"
        for tensor in ("left", "right") if product else ("weight", "input"):
            point = f"{layer['layer']}.{tensor}"
            rows.append({"point": point, **layer, "tensor": tensor, "bits": 3, "sqnr_db": 12.0})
    return rows + outputs(layers)


def write(folder: Path, spec: RunSpec, rows: Sequence[Mapping] | None = None) -> Path:
    """A finished profile of the run ``spec``; returns its folder."""
    rows = profile() if rows is None else list(rows)
    made = profiles.spec_of(spec)
    metrics = {"top1": 60.0, "top1_low": 55.0, "top1_high": 65.0, "top1_float": FLOAT, "n": 128}
    metrics |= {"agreement": 61.0, "kl": 0.9, "worst_shared": 3, "worst_of": 3}
    data = {"profile_rows": len(rows)}
    record = RunRecord(made, metrics, {"total": 12.0}, 500.0, layers=rows, data=data)
    out = folder / made.key
    out.mkdir(parents=True)
    store.write_record(record, out)
    return out


def write_base(folder: Path, spec: RunSpec, **changes) -> Path:
    """A finished run of `vit` with outputs, as the Sensitivity page reads it."""
    out = fake_runs.write_run(folder, spec, **changes)
    record = store.load(out)
    store.write_record(replace(record, layers=table(kept=spec.keep_float)), out)
    return out
