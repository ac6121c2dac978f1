"""A finished run for a terminal: as one JSON object, and as a few lines for people."""

import math
from pathlib import Path
from typing import Any

from qlib.records import RunRecord

WORST = 5  # tensors with the largest error that the lines name


def as_json(record: RunRecord, run_dir: Path) -> dict[str, Any]:
    """What ``run --json`` prints; numbers that are not finite become null."""
    return {
        "spec": record.spec.to_json(),
        "metrics": {name: _finite(value) for name, value in record.metrics.items()},
        "seconds": {name: _finite(value) for name, value in record.seconds.items()},
        "peak_mb": _finite(record.peak_mb),
        "run_dir": str(run_dir),
    }


def as_text(record: RunRecord, run_dir: Path) -> str:
    """What ``run`` and ``show`` print for people."""
    spec, m = record.spec, record.metrics
    settings = ", ".join(f"{name} {value}" for name, value in spec.settings.items())
    lines = [
        f"{spec.model} on {spec.data}: {spec.method} W{spec.weight_bits}A{spec.act_bits}, "
        f"edge layers {spec.edge_layers}, placement {spec.placement}, seed {spec.seed}",
        f"settings   {settings or 'none'}; {spec.calib} calibration images",
        f"top-1      {_n(m, 'top1')} % ({_n(m, 'top1_low')} to {_n(m, 'top1_high')} % with 95 % "
        f"certainty, n = {m.get('n', 0):.0f}); float {_n(m, 'top1_float')} %, "
        f"nearest {_n(m, 'top1_nearest')} %",
        f"agreement  {_n(m, 'agreement')} % with the float model; {m.get('lost', 0):.0f} images "
        f"lost, {m.get('gained', 0):.0f} gained",
        f"size       {_n(m, 'weight_mb', 3)} MB of weights, {_n(m, 'gbops', 3)} billion "
        "bit-operations per image",
        f"time       {', '.join(f'{name} {value:.1f} s' for name, value in record.seconds.items())}"
        f"; peak memory {record.peak_mb:.0f} MB",
        *_worst(record.layers),
        *(f"note       {note}" for note in record.notes),
        f"folder     {run_dir}",
    ]
    return "\n".join(lines)


def _worst(layers: list[dict[str, Any]]) -> list[str]:
    rows = [row for row in layers if isinstance(row.get("sqnr_db"), (int, float))]
    rows = sorted(rows, key=lambda row: row["sqnr_db"])[:WORST]
    if not rows:
        return []
    named = ", ".join(f"{row['point']} {row['sqnr_db']:.1f} dB" for row in rows)
    return [f"worst      {named}"]


def _n(metrics: dict[str, float], name: str, digits: int = 1) -> str:
    value = _finite(metrics.get(name))
    return "?" if value is None else f"{value:.{digits}f}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
