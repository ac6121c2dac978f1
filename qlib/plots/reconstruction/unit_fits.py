"""The fits of one unit by several methods, from the events of their runs. Numbers only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlib.plots.reconstruction import loss_curve
from qlib.plots.reconstruction.loss_curve import Fit

NEIGHBOURS = 24  # other units of the run that are kept: those next to the chosen one
ROW = " … "  # between the first and the last of units that are fitted together
WINDOW = 9  # losses of a running median


@dataclass(frozen=True)
class Track:
    """One method's fits of the chosen unit.

    One method's fits of the chosen unit; a method may fit a unit in several rounds.
    """

    method: str
    title: str
    unit: str
    fits: tuple[Fit, ...]

    @property
    def penalised(self) -> bool:
        """Whether the fit had a penalty that makes the rounding hard."""
        return any(p is not None for f in self.fits for p in f.penalty)


@dataclass(frozen=True)
class UnitLoss:
    """Data of the figure: how several methods fitted one unit.

    Tracks, that of the method asked for first; ``others``: fits of its other units.

    ``broken``: units of that method whose loss stopped being a number. ``smooth``: lines are
    running medians.
    """

    tracks: tuple[Track, ...]
    others: tuple[Fit, ...] = ()
    broken: tuple[str, ...] = ()
    smooth: bool = False

    @property
    def main(self) -> Track | None:
        """The method asked for; None where it has no fit of this unit."""
        return self.tracks[0] if self.tracks else None

    @property
    def losses(self) -> list[float]:
        """All losses of all methods' fits."""
        return [x for t in self.tracks for f in t.fits for x in f.loss]


def info(
    events: Mapping[str, Sequence[Mapping[str, Any]]],
    layer: str,
    unit: str,
    *,
    titles: Mapping[str, str] | None = None,
    smooth: bool = False,
) -> UnitLoss:
    """Data of the figure, from the events of several runs.

    Curves of the methods of ``events`` (method → events of its run), in that order.

    ``layer`` and the block ``unit`` that holds it: a method that fits layer by layer shows the
    layer's fit, one that fits blocks the block's.
    """
    tracks, others, failed = [], (), ()
    for place, (method, found) in enumerate(events.items()):
        fits = loss_curve.info(found).fits
        name = fitted_as(layer, unit, (f.unit for f in fits))
        here = tuple(f for f in fits if f.unit == name)
        if here:
            tracks.append(Track(method, (titles or {}).get(method, method), name, here))
        if place == 0:
            others, failed = _around(fits, name), broken(found)
    return UnitLoss(tuple(tracks), others, failed, smooth)


def fitted_as(layer: str, unit: str, names: Iterable[str]) -> str:
    """The name under which a layer was fitted: its own, or its block's; "" if it was not."""
    known = set(names)
    return next((name for name in (layer, unit) if name in known), "")


def row_of(title: str, order: Sequence[str]) -> tuple[str, ...]:
    """The units that a title such as ``layers.2 … head`` means; empty where it means no row.

    ``order``: all units, as the network runs them.
    """
    first, mark, last = title.partition(ROW)
    if not mark or first not in order or last not in order:
        return ()
    return tuple(order[order.index(first) : order.index(last) + 1])


def broken(events: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The units with a step whose loss was infinite or not a number: those have no loss stored."""
    found = (e for e in events if e.get("phase") == "reconstruct" and e.get("unit"))
    return tuple(dict.fromkeys(e["unit"] for e in found if e.get("loss") is None))


def _around(fits: tuple[Fit, ...], name: str) -> tuple[Fit, ...]:
    """The fits of other units, those next to ``name`` if there are many."""
    at = next((i for i, f in enumerate(fits) if f.unit == name), 0)
    start = max(0, min(at - NEIGHBOURS // 2, len(fits) - NEIGHBOURS - 1))
    return tuple(f for f in fits[start : start + NEIGHBOURS + 1] if f.unit != name)


def smoothed(losses: Sequence[float], window: int = WINDOW) -> tuple[float, ...]:
    """Running median of ``window`` neighbours; fewer at both ends."""
    if len(losses) < 3:
        return tuple(losses)
    half = min(window, len(losses)) // 2
    padded = np.pad(np.asarray(losses, float), half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    return tuple(np.nanmedian(windows, axis=1).tolist())
