"""Draws images at random in a way that no library's version can change."""

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING

from qlib.core.records import InvalidSpec
from qlib.datasets.base import Images

if TYPE_CHECKING:
    import numpy as np


Usable = Callable[[int], bool]  # position of an image -> whether it can be read


def shuffled(ids: Iterable[str], seed: int | str) -> list[int]:
    """Positions of ``ids`` in an order that depends on ``seed`` and the names alone.

    Sorted by the SHA-256 of seed and name: the same everywhere and for ever, and the first 64 of
    a larger draw are the draw of 64.
    """
    keys = [sha256(f"{seed}|{name}".encode()).digest() for name in ids]
    return sorted(range(len(keys)), key=keys.__getitem__)


def subset(images: Images, rows: Sequence[int]) -> Images:
    """The images at ``rows``, in that order, still opened one at a time."""
    rows = list(rows)
    labels = None if images.labels is None else images.labels[rows]

    def open_(index: int):
        return images.open(rows[index])

    file = images.file
    return Images([images.ids[i] for i in rows], labels, open_, file and (lambda i: file(rows[i])))


def draw_calibration(
    images: Images,
    n: int,
    seed: int,
    where: str,
    *,
    balanced: bool = False,
    usable: Usable | None = None,
) -> Images:
    """Draw ``n`` images for calibration.

    ``n`` of ``images`` in the order of the draw; ``balanced``: one class after the other;
    ``usable``: others are passed over.

    Raises:
        InvalidSpec: fewer than ``n`` are there, or they have no labels to balance by.
    """
    if n < 1 or n > len(images):
        raise InvalidSpec(
            f"{n} calibration images were asked of {where}, which has {len(images)} for that; "
            f"choose from 1 to {len(images)}."
        )
    order = shuffled(images.ids, seed)
    if balanced:
        if images.labels is None:
            raise InvalidSpec(
                f"The images of {where} have no classes, so they cannot be balanced; sort them "
                "into one folder for each class, or choose calibration images at random."
            )
        order = in_turns(order, images.labels)
    return subset(images, _first(order, n, usable, where))


def in_turns(order: Sequence[int], labels: "Sequence[int] | np.ndarray") -> list[int]:
    """The positions in ``order``, each class taking its turn: counts differ by one at most.

    A class that has no more images is passed over.
    """
    seen: dict[int, int] = {}
    turns = []
    for place, row in enumerate(order):
        turn = seen[int(labels[row])] = seen.get(int(labels[row]), 0) + 1
        turns.append((turn, place, row))
    return [row for _, _, row in sorted(turns)]


def draw_test(images: Images, n: int | None, where: str, *, usable: Usable | None = None) -> Images:
    """All of ``images`` for testing, or the same random ``n`` every time, in their own order.

    ``usable``: others are passed over.

    Raises:
        InvalidSpec: fewer than ``n`` are there.
    """
    if n is None:
        rows = range(len(images))
        return subset(images, [i for i in rows if usable(i)]) if usable else images
    if n < 1 or n > len(images):
        raise InvalidSpec(
            f"{n} test images were asked of {where}, which has {len(images)} for that; choose "
            f"from 1 to {len(images)}, or leave the number out for all."
        )
    return subset(images, sorted(_first(shuffled(images.ids, "test"), n, usable, where)))


def _first(order: Sequence[int], n: int, usable: Usable | None, where: str) -> list[int]:
    """The first ``n`` positions in ``order`` that are usable."""
    rows = list(islice(filter(usable, order), n)) if usable else list(order[:n])
    if len(rows) < n:
        raise InvalidSpec(
            f"{n} images were asked of {where}, and only {len(rows)} of its {len(order)} can be "
            f"read; ask for at most {len(rows)}."
        )
    return rows
