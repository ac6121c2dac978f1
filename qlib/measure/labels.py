"""Do the labels fit what a network answers? Accuracy against chance, and other orders of classes.

A network whose labels are numbered in another order answers well and is counted wrong. The order
that would explain its answers best is found by the assignment problem on the confusion table
(Kuhn 1955). As the best of all orders flatters, it is found on one half of the images and scored on
the other, both ways. No torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom

from qlib.measure import paired

RARE = 0.05  # above chance is what chance alone gives more rarely than this
POWER = 0.01  # and a network half-way to perfect would be as bad as this more rarely than this
CLEAR = 1e-3  # p of the paired test between the two orders
GAIN = 5.0  # points that another order has to win
EXPLAINS = 0.3  # of the way from chance to perfect, that the other order has to reach
LARGEST = 25_000_000  # cells of a confusion table: beyond, no other order is tried
FEWEST = 4  # images of a labelled class on average: with fewer, no other order is tried


@dataclass(frozen=True)
class Fit:
    """How labels and answers fit together.

    ``accuracy``, ``reordered`` in percent of ``n`` images; ``reordered``: accuracy under the best
    other order of classes, on images that did not choose it; None: too few images to tell.
    ``order``: label -> the output that means it, from all images, for labelled classes; empty where
    no other order explains the answers.
    """

    n: int
    classes: int
    accuracy: float
    at_chance: bool
    reordered: float | None
    order: dict[int, int]

    @property
    def doubtful(self) -> bool:
        """Whether the labels probably do not fit."""
        return self.at_chance or bool(self.order)


def fit(labels: Sequence[int] | np.ndarray, guesses: np.ndarray, classes: int) -> Fit:
    """Compare labels with first guesses, both (n,) class indices below ``classes``."""
    labels, guesses = np.asarray(labels), np.asarray(guesses)
    hits = labels == guesses
    n, right = len(labels), int(hits.sum())
    at_chance = is_chance(right, n, classes)
    reordered, order = None, {}
    if _enough(labels, guesses):
        other = _crossed(labels, guesses)
        reordered = 100 * float(other.mean())
        if _explains(hits, other, classes):
            order = best_order(labels, guesses)
    return Fit(n, classes, 100 * right / max(1, n), at_chance, reordered, order)


def is_chance(right: int, n: int, classes: int) -> bool:
    """Whether ``right`` of ``n`` is no better than guessing among ``classes``.

    Not significantly above 1/classes, and so few that a network half-way between guessing and
    perfect would hardly ever be that bad: with very few images nothing is said.
    """
    if classes < 2 or n < 1:
        return False
    chance = 1 / classes
    above = binom.sf(right - 1, n, chance) <= RARE
    return bool(not above and binom.cdf(right, n, (1 + chance) / 2) < POWER)


def best_order(labels: np.ndarray, guesses: np.ndarray) -> dict[int, int]:
    """Label -> output, one to one, that makes most of the images right; labelled classes only.

    Equal solutions prefer the label's own number, so that classes without evidence stay.
    """
    rows, row_of = np.unique(labels, return_inverse=True)
    columns, column_of = np.unique(np.concatenate([guesses, labels]), return_inverse=True)
    table = np.zeros((len(rows), len(columns)))
    np.add.at(table, (row_of, column_of[: len(guesses)]), 1)
    table += 0.5 / len(rows) * (rows[:, None] == columns)  # less than one image, all together
    chosen = linear_sum_assignment(table, maximize=True)
    return {int(rows[r]): int(columns[c]) for r, c in zip(*chosen, strict=True)}


def _enough(labels: np.ndarray, guesses: np.ndarray) -> bool:
    rows = len(np.unique(labels))
    cells = rows * (len(np.unique(guesses)) + rows)
    return rows > 1 and len(labels) >= FEWEST * rows and cells <= LARGEST


def _crossed(labels: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    """(n,) whether an image is right under the best order of the half that it is not in."""
    half = np.zeros(len(labels), int)
    by_label = np.argsort(labels, kind="stable")
    half[by_label] = np.arange(len(labels)) % 2  # each class falls into both halves alike
    right = np.zeros(len(labels), bool)
    for side in (0, 1):
        here, there = half == side, half != side
        order = best_order(labels[here], guesses[here])
        meant = np.array([order.get(int(label), label) for label in labels[there]])
        right[there] = meant == guesses[there]
    return right


def _explains(hits: np.ndarray, other: np.ndarray, classes: int) -> bool:
    """Is the other order better by a clear margin, and good at all?"""
    pair = paired.count(other, hits)
    chance = 1 / classes
    good = float(other.mean()) >= chance + EXPLAINS * (1 - chance)
    return good and pair.difference >= GAIN and pair.p < CLEAR
