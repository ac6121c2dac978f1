"""The same test images under two networks: who is right where. From ``preds.npz``, no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from qlib.core.records import InvalidSpec, RunRecord
from qlib.measure.statistics import exact_paired, paired_difference

Preds = Mapping[str, np.ndarray]
NEEDED = ("ids", "labels", "class_names", "float_top5", "float_prob", "quant_top5", "quant_prob")


@dataclass(frozen=True)
class Pair:
    """Counts of images by who is right: both networks, only the first, only the second, neither."""

    both: int
    first: int
    second: int
    neither: int

    @property
    def n(self) -> int:
        """The number of images."""
        return self.both + self.first + self.second + self.neither

    @property
    def p(self) -> float:
        """Two-sided, exact: how often chance alone would split the differing images so unevenly."""
        return exact_paired(self.first, self.second)

    @property
    def difference(self) -> float:
        """Top-1 of the first minus that of the second, in points (percent)."""
        return 100 * (self.first - self.second) / max(1, self.n)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % score interval of `difference`, in points."""
        low, high = paired_difference(self.first, self.second, self.n)
        return 100 * low, 100 * high


def checked(preds: Preds, run: str) -> Preds:
    """The arrays, if they are what a run stores: one row per image.

    Raises:
        InvalidSpec: an array is missing or has another length; ``run`` is named.
    """
    if "quant_cosine" in preds and "float_top5" not in preds:
        raise InvalidSpec(
            f"{run} compares features of images without classes, so it has no answers to pair; "
            "choose runs with labels."
        )
    missing = [name for name in NEEDED if name not in preds]
    if missing:
        raise InvalidSpec(f"preds.npz of {run} lacks {', '.join(missing)}; make the run again.")
    rows = {len(preds[name]) for name in NEEDED if name != "class_names"}
    if len(rows) != 1 or preds["float_top5"].ndim != 2 or preds["quant_top5"].ndim != 2:
        raise InvalidSpec(f"preds.npz of {run} has arrays of unequal length; make the run again.")
    return preds


def labelled(preds: Preds) -> bool:
    """Whether the images have labels; without them nobody knows which answer is right."""
    return bool((np.asarray(preds["labels"]) >= 0).all())


def right(preds: Preds, side: str) -> np.ndarray:
    """(n,) whether the first guess is the true class; ``side``: float, quant or nearest.

    Of an image without a label (−1) the float network's guess counts as the true class.
    """
    labels = np.asarray(preds["labels"])
    if not labelled(preds):
        labels = np.where(labels < 0, np.asarray(preds["float_top5"])[:, 0], labels)
    return np.asarray(preds[f"{side}_top5"])[:, 0] == labels


def count(first: np.ndarray, second: np.ndarray) -> Pair:
    """Two (n,) arrays of right and wrong, of the same images in the same order."""
    return Pair(
        int((first & second).sum()),
        int((first & ~second).sum()),
        int((second & ~first).sum()),
        int((~first & ~second).sum()),
    )


def against_float(preds: Preds) -> Pair:
    """The float network first, the quantized second: ``first`` images lost, ``second`` gained."""
    return count(right(preds, "float"), right(preds, "quant"))


def changed(preds: Preds) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the images lost and of those gained by quantization."""
    before, after = right(preds, "float"), right(preds, "quant")
    return np.flatnonzero(before & ~after), np.flatnonzero(after & ~before)


def agrees(preds: Preds) -> np.ndarray:
    """(n,) whether the quantized network's first guess is the float network's."""
    return np.asarray(preds["quant_top5"])[:, 0] == np.asarray(preds["float_top5"])[:, 0]


def hits(preds: Preds) -> np.ndarray:
    """(n,) whether the quantized network's first guess is the true class."""
    return right(preds, "quant")


def between(
    one: RunRecord,
    preds: Preds,
    other: RunRecord,
    others: Preds,
    judge: Callable[[Preds], np.ndarray] = hits,
) -> Pair:
    """Two runs on the same test images, matched by their ids.

    ``judge`` gives (n,) which images count for a run: `hits`, or `agrees`.

    Raises:
        InvalidSpec: the runs were not tested on the same images.
    """
    if one.data.get("test_hash") != other.data.get("test_hash"):
        raise InvalidSpec(
            "These runs were tested on different images, so no paired test can be made; "
            "choose runs with the same data, seed and number of test images."
        )
    order, match = np.argsort(preds["ids"]), np.argsort(others["ids"])
    same = len(order) == len(match) and all(
        np.array_equal(np.asarray(preds[k])[order], np.asarray(others[k])[match])
        for k in ("ids", "labels")
    )
    if not same:
        raise InvalidSpec(
            "The stored predictions of these runs name different images, although their records "
            "say the same; make both runs again."
        )
    return count(judge(preds)[order], judge(others)[match])
