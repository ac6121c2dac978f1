"""The numbers of a run by name, for texts that quote them: see `qlib.lessons` for the names."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qlib.records import RunRecord

Rows = Sequence[Mapping[str, Any]]
TENSORS = ("weight", "input", "left", "right", "output")


class Layers(Mapping):
    """Layer name → tensor → its row of ``layers.csv`` with what the histograms add."""

    def __init__(self, rows: Rows, hist: Mapping[str, Any]) -> None:
        self._rows: dict[str, dict[str, dict]] = {}
        for row in rows:
            if row["tensor"] in TENSORS:
                self._rows.setdefault(row["layer"], {})[row["tensor"]] = dict(row)
        self._hist = hist

    def __getitem__(self, name: str) -> dict[str, dict]:
        rows = self._rows[name]
        return {tensor: row | self._counted(name, tensor) for tensor, row in rows.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _counted(self, name: str, tensor: str) -> dict[str, float]:
        found = self._hist.get(f"{name}.{tensor}")
        if found is None:
            return {}
        low, high = float(found.percentiles[0]), float(found.percentiles[-1])
        return {"outlier_ratio": found.outlier_ratio, "low": low, "high": high}


def of(
    record: RunRecord,
    *,
    layer: str = "",
    hist: Mapping[str, Any] | None = None,
    profile: Rows = (),
) -> dict[str, Any]:
    """All names of one run; ``record`` with its rows of layers.

    ``hist``: tensors as `qlib.tensors.load` gives them; ``profile``: rows of a sensitivity run.
    """
    m, spec = record.metrics, record.spec
    layers = Layers(record.layers, hist or {})
    counts = {name: int(m[name]) for name in ("lost", "gained", "n") if name in m}
    return {
        **m,
        **counts,
        "drop": m["top1_float"] - m["top1"],
        "won": m["top1"] - m["top1_nearest"],
        "seconds": record.seconds["total"],
        "bits": f"W{spec.weight_bits}A{spec.act_bits}",
        "weight_bits": spec.weight_bits,
        "act_bits": spec.act_bits,
        "method": spec.method,
        "model": spec.model,
        "layers": layers,
        "worst": _worst(record.layers, profile),
        "profile": _whole(profile),
        **layers.get(layer, {}),
    }


def _worst(rows: Rows, profile: Rows) -> dict[str, Any]:
    told = [r for r in rows if r["tensor"] == "output"]
    alone = [r for r in profile if (r["mode"], r["split"]) == ("only", "both")]
    hardest = max(alone, key=lambda r: r["kl"], default={})
    return {
        "local": _lowest(told, "local_sqnr_db"),
        "accumulated": _lowest(told, "acc_sqnr_db"),
        "profile": hardest.get("layer"),
        "kl": hardest.get("kl"),
    }


def _lowest(rows: Iterable[Mapping[str, Any]], column: str) -> str | None:
    known = [r for r in rows if r.get(column) is not None]
    return min(known, key=lambda r: r[column])["layer"] if known else None


def _whole(profile: Rows) -> dict[str, float]:
    """top-1 (and ``kl_…``) with nothing, weights, activations and all quantized."""
    names = {"none": "float", "weights": "weights", "inputs": "inputs", "both": "both"}
    found: dict[str, float] = {}
    for row in profile:
        if row["mode"] == "all" and row["split"] in names:
            name = names[row["split"]]
            found |= {name: row["top1"], f"kl_{name}": row["kl"]}
    return found
