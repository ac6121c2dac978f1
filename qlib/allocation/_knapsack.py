"""One option of each group: the exact front of two sums, by dynamic programming. NumPy alone.

Known as the multiple-choice knapsack problem (Kellerer, Pferschy and Pisinger, Knapsack Problems,
2004, chapter 11); here the whole curve is found and not one point of it.
"""

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

STEPS = 2**23  # additions that one search may take; a finer grid of costs is rounded to fit

Costs = Sequence[NDArray[np.int64]]
Harms = Sequence[NDArray[np.float64]]
Picks = NDArray[np.int64]


def front(costs: Costs, harms: Harms) -> Picks:
    """All choices that no other beats in both sums: (choices, groups) places of options.

    The lowest harm of each sum of costs is kept, one group more at a time. Exact while the sums
    fit a grid of ``STEPS`` ÷ options cells. Sums that are finer are rounded to it: then for every
    choice there is one here with no more harm and a cost that is higher by at most groups ÷ cells
    of the whole span; costs told of it are its own.

    Args:
        costs, harms: for each group the (options,) costs, whole numbers, and harms, both added up.

    Returns:
        cheapest first, so harms fall from row to row.
    """
    moves = _cells(costs)
    best, taken = np.zeros(1), []
    for harm, move in zip(harms, moves, strict=True):
        best, pick = _with(best, harm, move)
        taken.append(pick)
    at = falling(best)
    picks = np.empty((len(at), len(costs)), np.int64)
    for i in range(len(costs) - 1, -1, -1):
        picks[:, i] = taken[i][at]
        at = at - moves[i][picks[:, i]]
    cost, harm = total(costs, picks), total(harms, picks)  # where cells are rounded, the true ones
    order = np.lexsort((harm, cost))
    return picks[order][falling(harm[order])]


def total(values: Costs | Harms, picks: Picks) -> NDArray:
    """(choices,) sums of what was picked."""
    return reduce(np.add, [value[picks[:, i]] for i, value in enumerate(values)])


def falling(values: NDArray) -> NDArray[np.int64]:
    """Places of the values that are below all before them."""
    lowest = np.minimum.accumulate(values)
    return np.flatnonzero(values < np.concatenate([[math.inf], lowest[:-1]]))


def thinned(costs: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Places of the last of ascending costs in each of ``most`` equal parts of their span."""
    part = (costs - costs[0]) * most // (costs[-1] - costs[0] + 1)
    return np.flatnonzero(np.append(part[1:] != part[:-1], True))


def _cells(costs: Costs) -> list[NDArray[np.int64]]:
    """How many cells of the grid each option adds, above its group's cheapest."""
    above = [cost - cost.min() for cost in costs]
    span = int(sum(a.max() for a in above))
    common = int(np.gcd.reduce(np.concatenate(above))) or 1
    cells = max(1, STEPS // sum(map(len, above)))
    if span // common <= cells:
        return [a // common for a in above]
    return [np.rint(a * (cells / span)).astype(np.int64) for a in above]


def _with(
    best: NDArray[np.float64], harm: NDArray[np.float64], move: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """The lowest harm in each cell with one group more, and the option of it that gives this."""
    n = len(best)
    found = np.full(n + int(move.max()), math.inf)
    pick = np.zeros(len(found), np.int8)
    for place, (more, by) in enumerate(zip(harm.tolist(), move.tolist(), strict=True)):
        here, asked = found[by : by + n], best + more
        better = asked < here
        np.copyto(here, asked, where=better)
        np.copyto(pick[by : by + n], np.int8(place), where=better)
    return found, pick
