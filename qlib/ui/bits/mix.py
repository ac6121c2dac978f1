"""Mixed precision: an assignment of bits to units, its code in an address, price and rivals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from qlib.allocation import front as allocation
from qlib.allocation.front import Choice
from qlib.plots.bits import bits_front, unit_bits
from qlib.store import Finished

Rows = Sequence[Mapping[str, Any]]
Widths = Mapping[str, tuple[int, ...]]  # of the units that have several, most bits first


@dataclass(frozen=True)
class Mix:
    """A run with a table of units, and the assignment of bits that is chosen now.

    What is shown of a run with a table of units, and the assignment that is chosen now.

    ``by``: the cost that is limited, a key of `bits_front.COSTS`.
    """

    entry: Finished
    widths: Widths
    choice: Choice
    by: str

    @property
    def blocks(self) -> Rows:
        """The rows of the run's table of units."""
        return self.entry.record.blocks

    @property
    def code(self) -> str:
        """The assignment's code, as an address carries it."""
        return encode(self.choice.bits, self.widths)

    @property
    def level(self) -> int | None:
        """Equal bits for all units at no more cost: the assignment to compare with."""
        now = getattr(self.choice, self.by) * (1 + 1e-9)
        fits = [b for b, c in equal(self.blocks).items() if getattr(c, self.by) <= now]
        return max(fits, default=None)


def widths_of(blocks: Rows) -> dict[str, tuple[int, ...]]:
    """Units with several widths, in order of execution."""
    found: dict[str, list[int]] = {}
    for row in blocks:
        found.setdefault(row["unit"], []).append(int(row["bits"]))
    return {u: tuple(sorted(b, reverse=True)) for u, b in found.items() if len(b) > 1}


def encode(bits: Mapping[str, int], units: Mapping[str, Any] | Sequence[str]) -> str:
    """The code of an assignment, such as ``44685``: a digit per unit that has several widths."""
    return "".join(str(bits[unit]) for unit in units)


def decode(code: str, widths: Widths) -> dict[str, int] | None:
    """The assignment of a code; None where it does not fit this network."""
    if len(code) != len(widths) or not (code.isascii() and code.isdigit()):
        return None
    bits = dict(zip(widths, map(int, code), strict=True))
    return bits if all(bits[u] in widths[u] for u in widths) else None


def equal(blocks: Rows) -> dict[int, Choice]:
    """Equal bits for all units, for each width that all of them have; most bits first."""
    shared = set.intersection(*(set(w) for w in widths_of(blocks).values()))
    return {b: allocation.uniform(blocks, b) for b in sorted(shared, reverse=True)}


def within(choices: Sequence[Choice], by: str, budget: float) -> Choice:
    """The best assignment of a front within the budget; the cheapest where none fits."""
    fits = [c for c in choices if getattr(c, by) <= budget * (1 + 1e-9)]
    return fits[-1] if fits else choices[0]


def front(entry: Finished, by: str) -> list[Choice]:
    """The best assignments by cost, from the table of a run; worked out once.

    Raises:
        InvalidSpec: the run has no table.
    """
    return _front(*_place(entry), by, entry.record.blocks)


def _place(entry: Finished) -> tuple[str, int]:
    return str(entry.folder), (entry.folder / "run.json").stat().st_mtime_ns


@st.cache_resource(max_entries=16, show_spinner=False)
def _front(folder: str, stamp: int, by: str, _blocks: Rows) -> list[Choice]:
    return allocation.front(_blocks, by)


# ---- figures ---------------------------------------------------------------------------------


def figures(mix: Mix, dark: bool, large: bool) -> tuple[tuple[go.Figure, str], ...]:
    """Steps along the network and the front, each with its words; kept while others move."""
    return _figures(*_place(mix.entry), mix.by, mix.code, dark, large, mix)


@st.cache_resource(max_entries=64, show_spinner=False)
def _figures(
    folder: str, stamp: int, by: str, code: str, dark: bool, large: bool, _mix: Mix
) -> tuple[tuple[go.Figure, str], ...]:
    method = _mix.entry.record.spec.method
    steps = unit_bits.info(_mix.blocks, _mix.choice.bits, method=method)
    coded = lambda c: (c, encode(c.bits, _mix.widths))  # noqa: E731
    best = bits_front.info(
        [coded(c) for c in front(_mix.entry, by)],
        {b: coded(c) for b, c in equal(_mix.blocks).items()},
        coded(_mix.choice),
        method=method,
        by=by,
    )
    look = {"dark": dark, "large": large}
    return (
        (unit_bits.figure(steps, level=_mix.level, **look), unit_bits.alt(steps)),
        (bits_front.figure(best, **look), bits_front.alt(best)),
    )


def table(mix: Mix, bits: Mapping[str, int]) -> pd.DataFrame:
    """One row per unit: its width, what it does alone at each width, what it holds and computes.

    ``bits``: of the units that have several widths.
    """
    rows: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in mix.blocks:
        rows.setdefault(row["unit"], {})[int(row["bits"])] = row
    columns = sorted({b for own in mix.widths.values() for b in own})
    lines = []
    for unit, own in rows.items():
        row = next(iter(own.values()))
        line = {"Unit": unit, "Bits": bits.get(unit, int(row["bits"]))}
        line |= {f"KL at {b}": own[b]["kl"] if b in own else None for b in columns}
        lines.append(line | {"Weights": int(row["params"]), "Multiplications": int(row["macs"])})
    return pd.DataFrame(lines)
