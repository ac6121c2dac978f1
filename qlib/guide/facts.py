"""The numbers of a run by name, for texts that quote them (see `qlib.guide.lessons`)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qlib.core.records import RunRecord
from qlib.noise.profile import STAGES, LayerNoise, NoiseProfile

Rows = Sequence[Mapping[str, Any]]
HALF = 0.5  # steps: the reach for which theory gives step²/12
EVEN = 0.02  # a smaller change of the error is neither help nor harm
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
    noise: NoiseProfile | None = None,
) -> dict[str, Any]:
    """All names of one run; ``record`` with its rows of layers.

    ``hist``: tensors as `qlib.store.tensors.load` gives them; ``profile``: rows of a sensitivity
    run; ``noise``: the noise analysis that serves the run.
    """
    m, spec = record.metrics, record.spec
    layers = Layers(record.layers, hist or {})
    counts = {name: int(m[name]) for name in ("lost", "gained", "n") if name in m}
    return {
        **m,
        **counts,
        "drop": m["top1_float"] - m["top1"],
        **({"won": m["top1"] - m["top1_nearest"]} if "top1_nearest" in m else {}),
        "seconds": record.seconds["total"],
        "bits": f"W{spec.weight_bits}A{spec.act_bits}",
        "weight_bits": spec.weight_bits,
        "act_bits": spec.act_bits,
        "method": spec.method,
        "model": spec.model,
        "layers": layers,
        "worst": _worst(record.layers, profile),
        "profile": _whole(profile),
        "widths": _widths(record.bit_widths, m["top1_float"]),
        "units": _units(record.blocks),
        "noise": _noise(noise, layer) if noise else {},
        **layers.get(layer, {}),
    }


def _widths(rows: Rows, whole: float) -> dict[str, dict[str, float]]:
    """``W8A3`` → what a network of many widths does there; ``whole``: accuracy in float."""
    return {
        f"W{int(r['weight_bits'])}A{int(r['act_bits'])}": {**r, "drop": whole - r["top1"]}
        for r in rows
    }


def _units(rows: Rows) -> dict[str, Any]:
    """At the lowest width of a network of many: the unit that alone does most, and all together."""
    several = {r["unit"] for r in rows if sum(r["unit"] == o["unit"] for o in rows) > 1}
    own = [r for r in rows if r["unit"] in several]
    if not own:
        return {}
    lowest = min(r["bits"] for r in own)
    low = [r for r in own if r["bits"] == lowest]
    worst, least = (pick(low, key=lambda r: r["kl"]) for pick in (max, min))
    return {
        "n": len(low), "bits": int(lowest), "sum": sum(r["kl"] for r in low),
        "worst": worst["unit"], "kl": worst["kl"], "least": least["unit"], "least_kl": least["kl"],
    }  # fmt: skip


def _worst(rows: Rows, profile: Rows) -> dict[str, Any]:
    told = [r for r in rows if r["tensor"] == "output"]
    alone = [r for r in profile if (r["mode"], r["split"]) == ("alone", "both")]
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


def _noise(profile: NoiseProfile, layer: str) -> dict[str, Any]:
    """By layer and bits, by bits for the own layer, and counts over all layers."""
    found: dict[str, Any] = {}
    for one in profile.layers:
        found.setdefault(one.layer, {})[f"b{one.bits}"] = _noisy(one)
    counts = {f"b{bits}": _counted(profile, bits) for bits in profile.bits}
    return found | found.get(layer, {}) | {"count": counts}


def _noisy(one: LayerNoise) -> dict[str, float]:
    numbers = ("rounding", "clipped", "closed_form", "linear_search")
    found = {name: getattr(one, name) for name in numbers}
    for end, images, column in (("", "calib", 0), ("_test", "test", 1)):
        found |= {f"left{end}": one.left(one.closed_form, images)}
        found |= {f"half{end}": one.left(HALF, images)}
        stages = zip(STAGES, 100 * one.stages[:, column], strict=True)
        found |= {f"{stage}{end}": float(value) for stage, value in stages}
    return found


def _counted(profile: NoiseProfile, bits: int) -> dict[str, int]:
    """How many layers noise of half a step helps and hurts on held-out rows."""
    here = [one for one in profile.layers if one.bits == bits]
    halves = [one.left(HALF, "test") for one in here]
    return {
        "of": len(here),
        "helped": sum(share < 1 - EVEN for share in halves),
        "hurt": sum(share > 1 + EVEN for share in halves),
        "none": sum(one.closed_form == 0 for one in here),
    }
