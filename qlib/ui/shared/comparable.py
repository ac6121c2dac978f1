"""What differs between runs, and whether comparing them is fair. Pure data, no widgets."""

from collections.abc import Sequence
from typing import Any

from qlib.core.records import RunRecord

SETTING = "setting: "
ABSENT = "–"

# What must be equal for a fair ranking, and how a person says it.
FAIR = {
    "model": "backbone",
    "weights": "weights file",
    "data": "images",
    "test images": "held-out images",
    "calib": "number of calibration images",
    "calib_data": "source of calibration images",
    "seed": "seed",
    "edge_layers": "first and last layer",
    "placement": "where activations are rounded",
    "keep_float": "layers kept in float",
    "analysis": "what was measured",
    "output": "output of the network",
    "task": "classes or features",
    "labels": "labels",
}


def facts(record: RunRecord) -> dict[str, Any]:
    """Every field of the specification, the method's own settings, and the test images."""
    body = record.spec.to_json()
    settings = body.pop("settings")
    body["test images"] = f"{record.data.get('test_hash', '?')} ({int(record.metrics['n'])})"
    return body | {f"{SETTING}{k}": v for k, v in settings.items()}


def differences(records: Sequence[RunRecord]) -> dict[str, list[str]]:
    """The fields that are not the same in all runs, each with one text per run ("–" if absent)."""
    rows = [facts(r) for r in records]
    differing = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [_text(row.get(name)) for row in rows]
        # a setting that only some methods have is no difference between those that have it
        told = {v for v in values if not (name.startswith(SETTING) and v == ABSENT)}
        if len(told) > 1:
            differing[name] = values
    return differing


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def unlike(records: Sequence[RunRecord]) -> list[str]:
    """What makes a ranking unfair, in words; empty when the runs are like for like."""
    found = differences(records)
    return [words for name, words in FAIR.items() if name in found]
