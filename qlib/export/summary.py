"""A finished run for a terminal: as one JSON object, and as a few lines for people."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qlib.core.records import RunRecord, RunSpec
from qlib.core.rows import LayerRow
from qlib.sensitivity import profile

WORST = 5  # tensors with the largest error that the lines name

Row = Mapping[str, Any]  # of an analysis


def as_json(record: RunRecord, run_dir: Path) -> dict[str, Any]:
    """The JSON object of a run that ``run --json`` prints; non-finite numbers become null.

    A sensitivity run has ``worst`` too: the layers that alone do the most damage, the worst first.
    A noise run has ``helped``: for each number of bits the layers that noise helps most.
    """
    named = {"sensitivity": _worst_layers, "noise": _helped_layers}.get(record.spec.analysis)
    coverage = {"coverage": record.coverage} if record.coverage else {}
    return (
        (named(record.layers) if named else {})
        | coverage
        | {
            "spec": record.spec.to_json(),
            "task": record.task,
            "metrics": {name: _finite(value) for name, value in record.metrics.items()},
            "seconds": {name: _finite(value) for name, value in record.seconds.items()},
            "peak_mb": _finite(record.peak_mb),
            "preprocess": record.data.get("preprocess"),
            "pictures": record.pictures,
            "doubts": record.doubts,
            "notes": record.notes,
            "run_dir": str(run_dir),
        }
    )


def as_text(record: RunRecord, run_dir: Path) -> str:
    """Lines for people about a run, as ``run``, ``sensitivity``, ``noise`` and ``show`` print."""
    spec = record.spec
    body = {"sensitivity": _layer_by_layer, "noise": _noise}.get(spec.analysis, _measured)
    settings = ", ".join(f"{name} {value}" for name, value in spec.settings.items())
    lines = [
        f"{spec.model} on {spec.data}: {_recipe(spec)}, seed {spec.seed}",
        f"settings   {settings or 'none'}; {spec.calib} calibration images",
        *([f"images     {record.prepared}"] if record.prepared else []),
        *_bits(record),
        *([f"coverage   {covered(record)}"] if record.coverage else []),
        *body(record),
        f"time       {', '.join(f'{name} {value:.1f} s' for name, value in record.seconds.items())}"
        f"; peak memory {record.peak_mb:.0f} MB",
        *(_worst(record.layers) if not spec.analysis else ()),
        *(f"doubt      {doubt['text']} {doubt['remedy']}" for doubt in record.doubts),
        *(f"note       {note}" for note in record.notes),
        f"folder     {run_dir}",
    ]
    return "\n".join(lines)


def covered(record: RunRecord, most: int = 3) -> str:
    """In words: the share of multiplications that are quantized, and up to ``most`` that are not.

    Empty where the record says nothing of it.
    """
    if not record.coverage:
        return ""
    share, parts = 100 * record.coverage["quantized"], record.coverage["float"]
    if not parts:
        return "all multiplications are quantized"
    shown = f"{share:.4g}" if share >= 99.95 else f"{share:.1f}"
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return f"{shown} % of multiplications are quantized; in float: {', '.join(parts[:most])}{more}"


def _recipe(spec: RunSpec) -> str:
    if spec.analysis == "noise":  # one for all methods, bits and placements
        return f"noise before rounding, grids by {spec.act_observer}"
    widths = f"{spec.method} W{spec.weight_bits}A{spec.act_bits}"
    return f"{widths}, edge layers {spec.edge_layers}, placement {spec.placement}"


def _bits(record: RunRecord) -> list[str]:
    """Who gave the layers their bits, and what they got."""
    if not record.plan:
        return []
    sides: dict[str, set[int]] = {"weights": set(), "activations": set()}
    for point, bits in record.plan.items():
        if bits is not None:
            sides["weights" if point.endswith(".weight") else "activations"].add(bits)
    told = (f"{side} {', '.join(map(str, sorted(b))) or 'in float'}" for side, b in sides.items())
    return [f"bits       allocator {record.spec.allocator}: {'; '.join(told)}"]


def _measured(record: RunRecord) -> list[str]:
    m = record.metrics
    lines = {"features": _features, "unlabelled": _unlabelled}.get(record.task, _accuracy)(m)
    return [
        *lines,
        f"size       {_n(m, 'weight_mb', 3)} MB of weights, {_n(m, 'gbops', 3)} billion "
        "bit-operations per image",
    ]


def _unlabelled(m: dict[str, float]) -> list[str]:
    return [
        f"agreement  {_n(m, 'agreement')} % with the float model ({_n(m, 'agreement_low')} to "
        f"{_n(m, 'agreement_high')} % with 95 % certainty, n = {m.get('n', 0):.0f}); nearest "
        f"{_n(m, 'agreement_nearest')} %; no labels, so no accuracy",
        f"KL         {_n(m, 'kl', 4)} nats",
    ]


def _features(m: dict[str, float]) -> list[str]:
    lines = [
        f"cosine     {_n(m, 'cosine', 4)} to the float features ({_n(m, 'cosine_low', 4)} to "
        f"{_n(m, 'cosine_high', 4)} with 95 % certainty, n = {m.get('n', 0):.0f}), 5th percentile "
        f"{_n(m, 'cosine_p5', 4)}; nearest {_n(m, 'cosine_nearest', 4)}",
        f"CKA        {_n(m, 'cka', 4)} to the float features; nearest {_n(m, 'cka_nearest', 4)}",
    ]
    if "knn" in m:
        lines.append(
            f"k-NN       {_n(m, 'knn')} % ({_n(m, 'knn_low')} to {_n(m, 'knn_high')} %), k = "
            f"{_n(m, 'knn_k', 0)}, leave-one-out; float {_n(m, 'knn_float')} %, nearest "
            f"{_n(m, 'knn_nearest')} %"
        )
    return lines


def _accuracy(m: dict[str, float]) -> list[str]:
    return [
        f"top-1      {_n(m, 'top1')} % ({_n(m, 'top1_low')} to {_n(m, 'top1_high')} % with 95 % "
        f"certainty, n = {m.get('n', 0):.0f}); float {_n(m, 'top1_float')} %, "
        f"nearest {_n(m, 'top1_nearest')} %",
        f"agreement  {_n(m, 'agreement')} % with the float model; {m.get('lost', 0):.0f} images "
        f"lost, {m.get('gained', 0):.0f} gained",
    ]


def _found(record: RunRecord) -> Sequence[Row]:
    """What an analysis measured: rows of its own kind."""
    return record.layers


def _layer_by_layer(record: RunRecord) -> list[str]:
    """The whole network in each split, then the layers that alone do the most damage."""
    rows = _found(record)
    n = int(record.metrics.get("n", 0))
    kl = {(row["mode"], row["split"], row["layer"]): row["kl"] for row in rows}
    whole = ", ".join(f"{s} {kl['all', s, '']:.3g}" for s in profile.PARTS if ("all", s, "") in kl)
    named = (f"{layer} {kl['alone', 'both', layer]:.3g}" for layer in profile.worst(rows, WORST))
    trust = "agree" if profile.stable(rows) else "differ: measure more images to be sure"
    return [
        f"KL         {whole} nats away from the float network's answers (n = {n})",
        f"worst      {', '.join(named)} nats, each layer quantized alone",
        f"halves     the worst {profile.WORST} layers of two halves of the images {trust}",
    ]


def _noise(record: RunRecord) -> list[str]:
    """How many layers every draw helps at each number of bits, and which ones most."""
    from qlib.noise.profile import helped

    rows = _found(record)
    lines = []
    for bits in sorted({row["bits"] for row in rows}):
        here = [row for row in rows if row["bits"] == bits]
        better = helped(here, bits, n=len(here))
        most = (f"{row['layer']} {100 * (row['left_test'] - 1):.0f} %" for row in better[:3])
        named = f"; most {', '.join(most)} of the error" if better else ""
        lines.append(f"noise      {bits} bits: helps {len(better)} of {len(here)} layers{named}")
    return lines


def _worst_layers(rows: Sequence[Row]) -> dict[str, Any]:
    return {"worst": profile.worst(rows)}


def _helped_layers(rows: Sequence[Row]) -> dict[str, Any]:
    from qlib.noise.profile import helped

    widths = sorted({row["bits"] for row in rows})
    return {"helped": {str(b): [row["layer"] for row in helped(rows, b)] for b in widths}}


def _worst(layers: Sequence[LayerRow]) -> list[str]:
    known = [(db, row["point"]) for row in layers if (db := row.get("sqnr_db")) is not None]
    if not known:
        return []
    known = sorted(known, key=lambda pair: pair[0])[:WORST]
    named = ", ".join(f"{point} {db:.1f} dB" for db, point in known)
    return [f"worst      {named}"]


def _n(metrics: dict[str, float], name: str, digits: int = 1) -> str:
    value = _finite(metrics.get(name))
    return "?" if value is None else f"{value:.{digits}f}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
