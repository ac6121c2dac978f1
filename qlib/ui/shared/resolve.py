"""The nearest stored run for what an address asks, with notes on what differs. Pure."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from qlib.core import catalogue
from qlib.core.records import BASELINE, RunRecord, network_name
from qlib.core.scores import score
from qlib.store import Finished
from qlib.ui.shared.answers import bits_label

FIRST_MODEL, FIRST_BITS = "digits-vit", "W2A2"
_LABEL = re.compile(r"[wW]?(\d+)(?:[aA](\d+))?$")
_KEY = re.compile(r"(.+?)_([a-z0-9]+)(?:_sensitivity|_noise)?_(W\d+A\d+)_[0-9a-f]{10}$")


@dataclass(frozen=True)
class Choice:
    """The run to show; ``notes`` say where that is not what was asked for (Markdown)."""

    entry: Finished
    notes: tuple[str, ...] = ()

    @property
    def spec(self):
        """The specification of the chosen run."""
        return self.entry.record.spec

    @property
    def params(self) -> dict[str, str]:
        """The address parameters of the run: backbone, method and bits."""
        bits = bits_label(self.entry.record)
        return {"m": self.spec.model, "q": self.spec.method, "b": bits}


def choose(
    asked: Mapping[str, str], entries: Sequence[Finished], titles: Mapping[str, str]
) -> Choice | None:
    """The stored run that fits best; None when there is none at all.

    ``entries``: readable quantization runs, preferred ones first.
    """
    if not entries:
        return None
    notes: list[str] = []
    asked = dict(asked)
    if key := asked.pop("run", ""):
        found = next((e for e in entries if e.key == key), None)
        if found:
            return Choice(found)
        notes.append(f"There is no run `{key}` here.")
        if parts := _KEY.match(key):
            asked = dict(zip("mqb", parts.groups(), strict=True)) | asked
    model, said = _one(asked.get("m"), models(entries), "backbone")
    notes += said
    here = [e for e in entries if e.record.spec.model == model]
    method, said = _method(asked, here, titles)
    notes += said
    of_method = [e for e in here if e.record.spec.method == method]
    bits, said = _bits(asked.get("b"), widths(of_method), titles.get(method, method))
    entry = next(e for e in of_method if bits_label(e.record) == bits)
    if notes and notes[0].startswith("There is no run"):
        name = f"{titles.get(method, method)} {bits} of `{network_name(model)}`"
        return Choice(entry, (f"{notes[0]} Shown instead: {name}.",))
    return Choice(entry, (*notes, *said))


def models(entries: Sequence[Finished]) -> list[str]:
    """The backbones that have runs; the one to begin with first."""
    names = {e.record.spec.model for e in entries}
    return sorted(names, key=lambda name: (name != FIRST_MODEL, name))


def methods(entries: Sequence[Finished]) -> list[str]:
    """The methods that have runs; the baseline first."""
    names = {e.record.spec.method for e in entries}
    return sorted(names, key=catalogue.baseline_first)


def widths(entries: Sequence[Finished]) -> list[str]:
    """The labels ``W4A4`` of the runs, most bits first."""
    pairs = {(e.record.spec.weight_bits, e.record.spec.act_bits) for e in entries}
    return [f"W{w}A{a}" for w, a in sorted(pairs, reverse=True)]


def best(records: Sequence[RunRecord], bits: str | None = None) -> str:
    """The learned method with the highest accuracy at ``bits`` (or anywhere, where none has it).

    Of equally accurate ones that with the lower KL divergence.
    """
    learned = [r for r in records if r.spec.method != BASELINE] or list(records)
    fitting = [r for r in learned if bits_label(r) == bits] or learned
    return max(fitting, key=_rank).spec.method


def _rank(record: RunRecord) -> tuple[float, float]:
    found = score(record.metrics)
    return found.value if found else -math.inf, -record.metrics.get("kl", math.inf)


def bits_of(text: str | None) -> tuple[int, ...]:
    """Bits of weights and activations of ``W4A8`` or ``4``; () where one is not 2 to 8."""
    bits = tuple(map(int, _pair(text) or ()))
    return bits if all(2 <= b <= 8 for b in bits) else ()


def label(text: str | None) -> str | None:
    """A label of bits in its usual form: ``W4A8`` of ``w4a8``, ``W4A4`` of ``4``; else None."""
    pair = _pair(text)
    return f"W{pair[0]}A{pair[1]}" if pair else None


def _pair(text: str | None) -> tuple[str, str] | None:
    found = _LABEL.match(text or "")
    return (found[1], found[2] or found[1]) if found else None


def _one(wanted: str | None, known: list[str], what: str) -> tuple[str, list[str]]:
    if wanted in known:
        return wanted, []
    if wanted is None:
        return known[0], []
    near = get_close_matches(wanted, known, 1, 0.5) or known
    return near[0], [f"No stored run has the {what} `{wanted}`. Shown instead: `{near[0]}`."]


def _method(asked, here: Sequence[Finished], titles) -> tuple[str, list[str]]:
    known, wanted = methods(here), asked.get("q")
    if wanted == "best":
        return best([e.record for e in here], label(asked.get("b"))), []
    by_title = {titles.get(key, key).lower(): key for key in known}
    wanted = by_title.get((wanted or "").lower(), wanted)
    if wanted is None or wanted in known:
        return wanted or known[0], []
    name = titles.get(known[0], known[0])
    return known[0], [f"No stored run of this backbone is made by `{wanted}`. Shown: {name}."]


def _bits(wanted: str | None, known: list[str], title: str) -> tuple[str, list[str]]:
    target = label(wanted)
    if target and target in known:
        return target, []
    near = min(known, key=lambda other: _distance(target or FIRST_BITS, other))
    if wanted is None:
        return near, []
    asked = target or f"`{wanted}`"
    return near, [f"{title} is not stored at {asked}. Shown instead: {near}."]


def _distance(one: str, other: str) -> tuple[int, int]:
    """How far two widths lie apart; of two equally near the one with more bits wins."""
    (w, a), (v, b) = (map(int, text[1:].split("A")) for text in (one, other))
    return abs(w - v) + abs(a - b), -(v + b)


def entry_for(siblings: Sequence[Finished], method: str, bits: str) -> Finished | None:
    """The first of ``siblings`` made by ``method`` at ``bits`` (``W4A4``)."""
    fits = (e for e in siblings if e.record.spec.method == method and bits_label(e.record) == bits)
    return next(fits, None)


def layers_of(record: RunRecord) -> list[str]:
    """The names of the layers of a record (with its rows), in execution order."""
    outputs = [row["layer"] for row in record.layers if row["tensor"] == "output"]
    rows = outputs or [row["layer"] for row in record.layers if row["tensor"] != "boundary"]
    return list(dict.fromkeys(rows))


def worst_layer(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The layer of the tensor that rounding hurts most (lowest SQNR): the one to look at first."""
    tensors = [r for r in rows if r["tensor"] != "boundary" and r.get("sqnr_db") is not None]
    tensors = [r for r in tensors if r["tensor"] != "output"]
    return min(tensors, key=lambda r: r["sqnr_db"])["layer"] if tensors else None


def nearest_layer(wanted: str | None, known: Sequence[str], first: str | None) -> tuple[str, str]:
    """The layer to show, and a note when it is not the one asked for."""
    start = first if first and first in known else known[0]
    if wanted is None or wanted in known:
        return wanted or start, ""
    near = (get_close_matches(wanted, known, 1, 0.6) or [start])[0]
    return near, f"This backbone has no layer `{wanted}`. Shown instead: `{near}`."
