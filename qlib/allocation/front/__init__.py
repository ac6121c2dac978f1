"""Mixed precision at run time: the best bit-width for each unit, from a table looked up.

The table (`RunRecord.blocks`) has one row for each unit and width:

| column | meaning |
|---|---|
| unit, bits | the unit, in order of execution, and the width of its weights and activations |
| kl | mean KL(float ‖ only this unit quantized, at this width), nats, calibration images |
| params, macs | the unit's weights, and its multiply–accumulates for one image |
| weight_bytes, bops | what the unit costs at this width, as `qlib.network.costs.costs` counts |

``weight_bytes`` (scales included) and ``bops`` are params · bits / 8 and macs · bits² where a table
does not have them. A unit with one row keeps its width whatever is asked, such as an edge layer.

Damage is predicted as the sum of what each unit does alone (ZeroQ, Cai et al., CVPR 2020, arXiv
2001.00281). That is an assumption: damages of units meet inside the network. So a prediction ranks
assignments; what the one that is taken really does has to be measured. No torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlib.allocation import _knapsack
from qlib.core.records import InvalidSpec

COSTS = ("weight_mb", "gbops")
SCALE = {"weight_mb": 8e6, "gbops": 1e9, "kl": 1.0}  # what a sum is divided by
MOST = 1000  # choices that a front shows

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """An assignment of a bit-width to each unit that has several, with its cost.

    ``widths`` are as `qlib.network.switching.set_bits` takes them.

    ``kl``: predicted, nats; ``weight_mb``: 10⁶ bytes; ``gbops``: 10⁹ bit-operations for one image.
    """

    bits: dict[str, int]
    kl: float
    weight_mb: float
    gbops: float


@dataclass(frozen=True)
class _Unit:
    """One unit's widths in the order of their rows, and what they add to each sum."""

    name: str
    bits: list[int]
    sums: dict[str, np.ndarray]  # kl in nats; weight_mb in bits and gbops in ones, whole numbers


def priced(blocks: Sequence[Row], bits: Mapping[str, int]) -> Choice:
    """Predicted damage and cost of any assignment; units with one width need not be named.

    Raises:
        InvalidSpec: a unit without a width, a width that was not measured, an unknown unit,
            no table.
    """
    units = _units(blocks)
    names = [unit.name for unit in units]
    strange = sorted(set(bits) - set(names))
    if strange:
        raise InvalidSpec(f"This network has no unit {strange[0]!r}; it has {_list(names)}.")
    return _choice(units, [_place(unit, bits) for unit in units])


def uniform(blocks: Sequence[Row], bits: int) -> Choice:
    """The assignment with one width for all units that have several; see `priced`."""
    units = _units(blocks)
    same = {unit.name: bits for unit in units if len(unit.bits) > 1}
    return _choice(units, [_place(unit, same) for unit in units])


def front(blocks: Sequence[Row], by: str = "weight_mb", most: int | None = MOST) -> list[Choice]:
    """Assignments that no other beats in both predicted kl and one cost, the cheapest first.

    Out of all assignments, exactly where blocks repeat or are few; else as near as
    `_knapsack.front` says (40 units, 6 widths: 0.12 % of the span of costs).

    Args:
        by: the cost, "weight_mb" or "gbops".
        most: longer fronts keep the lowest kl in each of this many equal parts of the span of
            costs; None keeps all.

    Raises:
        InvalidSpec: there is no table.
    """
    units = _units(blocks)
    picks = _search(units, by)
    if most is not None and len(picks) > most:
        picks = picks[_knapsack.thinned(_sums(units, picks, by), most)]
    return _choices(units, picks)


def cheapest(
    blocks: Sequence[Row],
    *,
    kl: float | None = None,
    weight_mb: float | None = None,
    gbops: float | None = None,
) -> Choice:
    """The best assignment within one limit; as exact as `front`.

    Args:
        kl: the smallest network that predicts no more (by bit-operations, where weights keep one
            width and all sizes are equal).
        weight_mb, gbops: the lowest kl that costs no more. Without any limit: the lowest kl.

    Raises:
        ValueError: more than one limit.
        InvalidSpec: nothing fits the limit, or there is no table.
    """
    limits = {"kl": kl, "weight_mb": weight_mb, "gbops": gbops}
    given = {name: value for name, value in limits.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"One limit at a time; got {_list(given)}.")
    units = _units(blocks)
    if not given:
        return _choice(units, [int(unit.sums["kl"].argmin()) for unit in units])
    (name, limit), first = given.popitem(), kl is not None
    picks = _search(units, _switched_cost(units) if first else name)
    found = _sums(units, picks, name) / SCALE[name]
    fits = np.flatnonzero(found <= limit * (1 + 1e-12))
    if not len(fits):
        raise InvalidSpec(
            f"No choice of bit-widths has {name} of {limit:.4g} or less; the least is "
            f"{found.min():.4g}, so allow at least that."
        )
    return _choice(units, picks[fits[0] if first else fits[-1]].tolist())


def _units(blocks: Sequence[Row]) -> list[_Unit]:
    if not blocks:
        raise InvalidSpec(
            "This run has no table of units and bit-widths; choose a run of a method for several "
            "bit-widths, such as PTMQ."
        )
    rows: dict[str, list[Row]] = {}
    try:
        for row in blocks:
            rows.setdefault(row["unit"], []).append(row)
        units = [_unit(name, own) for name, own in rows.items()]
    except (KeyError, TypeError, ValueError):
        units = []
    if not units or not all(np.isfinite(unit.sums["kl"]).all() for unit in units):
        raise InvalidSpec(
            "This run's table of units and bit-widths is damaged; make the run again."
        )
    return units


def _unit(name: str, rows: list[Row]) -> _Unit:
    bits = [8 * r.get("weight_bytes", r["params"] * r["bits"] / 8) for r in rows]
    bops = [r.get("bops", r["macs"] * r["bits"] ** 2) for r in rows]
    whole = {"weight_mb": bits, "gbops": bops}
    sums = {cost: np.rint(np.array(v, float)).astype(np.int64) for cost, v in whole.items()}
    sums["kl"] = np.array([r["kl"] for r in rows], float)
    return _Unit(name, [int(r["bits"]) for r in rows], sums)


def _place(unit: _Unit, bits: Mapping[str, int]) -> int:
    """Where in its rows a unit has the width that is asked for."""
    if unit.name not in bits and len(unit.bits) == 1:
        return 0
    wanted = bits.get(unit.name)
    if wanted not in unit.bits:
        said = "was given no bit-width" if wanted is None else f"was not measured at {wanted} bits"
        raise InvalidSpec(f"Unit {unit.name!r} {said}; choose one of {_list(unit.bits)}.")
    return unit.bits.index(wanted)


def _choices(units: list[_Unit], picks: np.ndarray) -> list[Choice]:
    """Of (choices, units) places."""
    names = [unit.name for unit in units if len(unit.bits) > 1]
    several = [np.array(u.bits)[picks[:, i]] for i, u in enumerate(units) if len(u.bits) > 1]
    widths = np.array(several, int).reshape(len(names), len(picks)).T.tolist()
    sums = [(_sums(units, picks, name) / SCALE[name]).tolist() for name in ("kl", *COSTS)]
    return [
        Choice(dict(zip(names, bits, strict=True)), *told)
        for bits, *told in zip(widths, *sums, strict=True)
    ]


def _choice(units: list[_Unit], places: Sequence[int]) -> Choice:
    return _choices(units, np.array([places]))[0]


def _search(units: list[_Unit], by: str) -> np.ndarray:
    """(choices, units) places of the whole front, the cheapest first."""
    if by not in COSTS:
        raise ValueError(f"by must be one of {COSTS}; got {by!r}.")
    return _knapsack.front([u.sums[by] for u in units], [u.sums["kl"] for u in units])


def _sums(units: list[_Unit], picks: np.ndarray, name: str) -> np.ndarray:
    return _knapsack.total([unit.sums[name] for unit in units], picks)


def _switched_cost(units: list[_Unit]) -> str:
    """The size, or where it is the same for all widths the bit-operations."""
    return "weight_mb" if any(np.ptp(u.sums["weight_mb"]) for u in units) else "gbops"


def _list(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))
