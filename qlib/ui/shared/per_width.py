"""A run of one network with many bit-widths, split into one entry for each width."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qlib.core import catalogue
from qlib.core.records import RunRecord
from qlib.store import Finished


def entries(known: Sequence[Finished]) -> list[Finished]:
    """Each run, followed by itself at its other widths of equal weight and activation bits.

    These share the folder; bits and numbers of their records are those of the width. Networks of
    many widths that show what goes wrong otherwise come last.
    """
    order = sorted(known, key=_contrast)
    return [one for entry in order for one in (entry, *_others(entry))]


def side(record: RunRecord, preds: Mapping[str, Any]) -> str:
    """The prefix of this width's guesses in ``preds.npz``: ``w3``, or ``quant``."""
    name = f"w{record.spec.act_bits}"
    return name if record.bit_widths and f"{name}_top5" in preds else "quant"


def is_other(entry: Finished) -> bool:
    """Whether the entry is about another width than the run's own, which its files describe."""
    return at_other(entry.record)


def at_other(record: RunRecord) -> bool:
    """Whether the record is about another width than the run's own."""
    return bool(record.bit_widths) and "top1_nearest" not in record.metrics


def _contrast(entry: Finished) -> bool:
    return catalogue.is_contrast(entry.record.spec)


def _others(entry: Finished) -> list[Finished]:
    spec = entry.record.spec
    own = spec.weight_bits, spec.act_bits
    rows = [r for r in entry.record.bit_widths if r["weight_bits"] == r["act_bits"]]
    return [
        replace(entry, record=_at(entry.record, row))
        for row in rows
        if (row["weight_bits"], row["act_bits"]) != own
    ]


def _at(record: RunRecord, row: Mapping[str, Any]) -> RunRecord:
    bits = {name: int(row[name]) for name in ("weight_bits", "act_bits")}
    told = {name: value for name, value in record.metrics.items() if name != "top1_nearest"}
    told |= {name: value for name, value in row.items() if name not in bits}
    return replace(record, spec=replace(record.spec, **bits), metrics=told)
