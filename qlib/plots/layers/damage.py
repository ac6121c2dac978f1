"""Damage per layer, from the rows of a sensitivity profile or of ``layers.csv``. Numbers only.

Two kinds of question give one `Profile` each. *Measured*: some layers of the network are
quantized and the answers are compared (modes ``only`` and ``but``). *Compared*: a layer's output
is compared with its float output (modes ``local`` and ``accumulated``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

TENTH = 0.1  # the share of the whole damage, or of noise in a signal, from which a layer is flagged
SPAN = 100.0  # two decades: from here on an axis is logarithmic
DECADES = 3  # of a logarithmic axis; smaller values stand at its foot
WHOLE = ("none", "weights", "inputs", "both")  # splits of the whole network
MODES = ("alone", "left_out", "local", "accumulated")
METRICS = {  # of the answers
    "kl": ("KL to the float logits", "nats"),
    "top1": ("top-1 accuracy", "points"),
    "agreement": ("agreement", "points"),
    "sqnr": ("SQNR of the logits", "dB"),
}
ERRORS = {  # of a layer's output
    "sqnr": ("SQNR", "dB"),
    "cosine": ("cosine distance", ""),
    "mse": ("relative MSE", ""),
}
AXES = {
    ("alone", "kl"): "KL to float (nats)",
    ("alone", "top1"): "top-1 lost (points)",
    ("alone", "agreement"): "answers changed (points)",
    ("alone", "sqnr"): "SQNR of the logits (dB), low is bad",
    ("left_out", "kl"): "KL removed (nats)",
    ("left_out", "top1"): "top-1 won back (points)",
    ("left_out", "agreement"): "answers won back (points)",
    ("left_out", "sqnr"): "SQNR of the logits won back (dB)",
    "sqnr": "error: SQNR (dB), low is bad",
    "cosine": "error: 1 − cosine",
    "mse": "error: relative MSE",
}


@dataclass(frozen=True)
class Value:
    """One layer's damage and its range; None: not known.

    ``state``: "" | kept (in float) | missing (not measured) | absent (has nothing to round).
    """

    layer: str
    unit: str
    kind: str
    value: float | None
    low: float | None = None
    high: float | None = None
    state: str = "missing"


@dataclass(frozen=True)
class Known(Value):
    """A layer whose damage is known."""

    value: float


@dataclass(frozen=True)
class Profile:
    """All layers of one run in network order, and how to read their numbers.

    ``bad``: +1 when more is worse, −1 when less is. ``flag``: the value from which a layer is
    flagged. ``whole``: the same number for the whole quantized network, where there is one.
    ``n`` images; ``data``: ``test`` or ``calib``.
    """

    method: str
    title: str
    mode: str
    metric: str
    values: tuple[Value, ...]
    axis: str
    unit: str
    bad: int = 1
    flag: float | None = None
    whole: float | None = None
    n: int = 0
    data: str = "test"
    split: str = "both"

    @property
    def known(self) -> tuple[Known, ...]:
        """The layers whose number is known."""
        return tuple(v for v in self.values if isinstance(v, Known))

    @property
    def worst(self) -> tuple[Known, ...]:
        """Known layers, those that do most damage first."""
        return tuple(sorted(self.known, key=lambda v: -self.bad * v.value))

    def flagged(self, value: Value) -> bool:
        """Whether a value is bad enough to be marked."""
        if value.value is None or self.flag is None:
            return False
        # accuracy is counted in images: a loss that chance explains flags nobody
        if self.metric == "top1" and (value.low is None or value.low <= 0):
            return False
        return self.bad * value.value >= self.bad * self.flag

    @property
    def logarithmic(self) -> bool:
        """Whether values that cannot be negative span more than two decades."""
        positive = [v.value for v in self.known if v.value > 0]
        signed = self.mode == "left_out" or self.unit in ("dB", "points")
        if signed or any(v.value < 0 for v in self.known):
            return False
        return bool(positive) and max(positive) / min(positive) > SPAN


def measured(
    rows: Sequence[Row],
    mode: str,
    metric: str,
    split: str = "both",
    *,
    method: str = "",
    title: str = "",
    layers: Sequence[Row] = (),
    kept: Sequence[str] = (),
) -> Profile:
    """Profile of the damage of quantizing each layer alone, or of leaving it alone in float.

    ``rows`` as in ``profile.csv``. ``layers``: rows with ``layer``, ``unit`` and ``kind`` that
    name the network's layers in order, for those not measured yet; ``kept``: layers that the run
    leaves in float.
    """
    ends = {r["split"]: r for r in rows if r["mode"] == "all"}
    clean, full = ends.get("none"), ends.get(split)
    here = {r["layer"]: r for r in rows if (r["mode"], r["split"]) == (mode, split)}
    order = _named(layers or here.values())
    some_split = {r["layer"] for r in rows if (r["mode"], r["split"]) == (mode, "both")}
    reference = clean if mode == "alone" else full
    values = []
    for name, (unit, kind) in order.items():
        if name in kept:
            values.append(Value(name, unit, kind, None, state="kept"))
        elif name not in here:
            # a product has no weights; a layer that was measured in no split still waits
            values.append(
                Value(name, unit, kind, None, state="absent" if name in some_split else "missing")
            )
        else:
            values.append(_value(name, unit, kind, *_triple(here[name], reference, mode, metric)))
    some = full or clean or next(iter(here.values()), {})
    return Profile(
        method, title, mode, metric, tuple(values), AXES[mode, metric], METRICS[metric][1],
        bad=-1 if (mode, metric) == ("alone", "sqnr") else 1,
        flag=_flag(mode, metric, _whole(clean, full, metric)),
        whole=_whole(clean, full, metric),
        n=int(some.get("n") or 0), data=str(some.get("data") or "test"), split=split,
    )  # fmt: skip


def compared(
    rows: Sequence[Row],
    mode: str,
    metric: str,
    data: str = "test",
    *,
    method: str = "",
    title: str = "",
    kept: Sequence[str] = (),
    n: int = 0,
) -> Profile:
    """Profile of each layer's output error; ``rows`` as in ``layers.csv``, tensor ``output``."""
    outputs = [r for r in rows if r.get("tensor") == "output"]
    start, end = {"local": "local", "accumulated": "acc"}[mode], "_test" * (data == "test")
    values = []
    for row in outputs:
        error = _error(row, start, end, metric)
        # a layer in float has no error of its own, yet passes on what reaches it
        state = "kept" if row["layer"] in kept else "missing" if error is None else ""
        values.append(_value(row["layer"], row["unit"], row["kind"], error, state=state))
    return Profile(
        method, title, mode, metric, tuple(values), f"{mode} {AXES[metric]}", ERRORS[metric][1],
        bad=-1 if metric == "sqnr" else 1, flag=_limit(metric), n=n, data=data,
    )  # fmt: skip


def ends(rows: Sequence[Row], metric: str) -> dict[str, Row]:
    """The rows of the whole network by split: none, weights, inputs, both; as far as measured."""
    by_split = {r["split"]: r for r in rows if r["mode"] == "all" and number(r, metric) is not None}
    return {s: by_split[s] for s in WHOLE if s in by_split}


def number(row: Row | None, name: str) -> float | None:
    """A finite number of a row, or None."""
    try:
        value = float((row or {}).get(name, ""))
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _named(rows) -> dict[str, tuple[str, str]]:
    return {r["layer"]: (r["unit"], r["kind"]) for r in rows if r["layer"]}


def _value(
    layer: str,
    unit: str,
    kind: str,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    state: str = "",
) -> Value:
    if value is None:
        return Value(layer, unit, kind, None, state=state)
    return Known(layer, unit, kind, value, low, high, state)


def _triple(
    row: Row, reference: Row | None, mode: str, metric: str
) -> tuple[float | None, float | None, float | None, str]:
    """(value, low, high, state) of one measured layer."""
    found: list[float | None] = []
    value = _against(row, reference, mode, metric, "")
    if metric == "kl":
        found = [_against(row, reference, mode, metric, half) for half in ("_a", "_b")]
    elif metric == "top1":
        found = [_top1(row, reference, mode, end) for end in ("_low", "_high")]
    state = "missing" if value is None else ""
    ends = [end for end in found if end is not None]
    if value is None or len(ends) < 2:
        return value, None, None, state
    return value, min(ends), max(ends), state


def _against(row: Row, reference: Row | None, mode: str, metric: str, half: str) -> float | None:
    if metric == "top1":
        return _top1(row, reference, mode, "")
    name = "sqnr_db" if metric == "sqnr" else metric + half
    here, other = number(row, name), number(reference, name)
    if here is None:
        return None
    if mode == "alone":
        return 100 - here if metric == "agreement" else here
    if other is None:
        return None
    return other - here if metric == "kl" else here - other


def _top1(row: Row, reference: Row | None, mode: str, end: str) -> float | None:
    """Points lost against float, or won back; the interval is that of the layer's accuracy."""
    here, other = number(row, "top1" + end), number(reference, "top1")
    if here is None or other is None:
        return None
    return other - here if mode == "alone" else here - other


def _whole(clean: Row | None, full: Row | None, metric: str) -> float | None:
    """The damage of the whole network, in the unit of mode ``only``."""
    if metric == "top1":
        return None if full is None or clean is None else _top1(full, clean, "alone", "")
    return None if full is None else _against(full, None, "alone", metric, "")


def _flag(mode: str, metric: str, whole: float | None) -> float | None:
    """A tenth of the whole damage; for decibels, of the noise's power."""
    if whole is None:
        return None
    if metric == "sqnr":
        return whole - 10 * math.log10(TENTH) if mode == "alone" else -10 * math.log10(1 - TENTH)
    return TENTH * whole if whole > 0 else None


def _error(row: Row, start: str, end: str, metric: str) -> float | None:
    if metric == "cosine":
        found = number(row, f"{start}_cosine{end}")
        return None if found is None else max(0.0, 1 - found)
    found = number(row, f"{start}_sqnr_db{end}")
    if found is None or metric == "sqnr":
        return found
    return 10 ** (-found / 10)


def _limit(metric: str) -> float:
    """A tenth of the signal's power; its cosine when error and signal are uncorrelated."""
    limits = {"sqnr": -10 * math.log10(TENTH), "mse": TENTH}
    return limits.get(metric, 1 - 1 / math.sqrt(1 + TENTH))
