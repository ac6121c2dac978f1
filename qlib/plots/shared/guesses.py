"""Test pictures with the best guesses of two models, and the choice of which ones to show."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

COUNT = 6  # pictures shown


@dataclass(frozen=True)
class Guess:
    """A model's five best classes for an image, best first, with probabilities (0 to 1)."""

    names: tuple[str, ...]
    classes: tuple[int, ...]
    probs: tuple[float, ...]


@dataclass(frozen=True)
class Picture:
    """One test image: ``pixels`` is (height, width, 3) uint8; ``label`` a class index."""

    id: str
    label: int
    name: str
    pixels: np.ndarray
    float: Guess
    quant: Guess

    @property
    def verdict(self) -> str:
        """kept, lost, gained or missed: float right or wrong, then quantized right or wrong."""
        before, after = (g.classes[0] == self.label for g in (self.float, self.quant))
        return ("missed", "gained", "lost", "kept")[2 * before + after]


def read(preds: Mapping[str, np.ndarray], side: str, i: int, names: list[str]) -> Guess:
    """A model's five best guesses for one image.

    The five best classes of image ``i``; ``side``: float, quant or nearest.
    """
    classes = tuple(int(c) for c in preds[f"{side}_top5"][i] if 0 <= int(c) < len(names))
    probs = tuple(float(p) for p in preds[f"{side}_prob"][i][: len(classes)])
    return Guess(tuple(names[c] for c in classes), classes, probs)


def choose(
    runs: Sequence[Mapping[str, np.ndarray]], pool: Iterable[int], count: int = COUNT
) -> tuple[int, ...]:
    """Choose a few pictures that show what quantization changes.

    Positions of pictures that tell the story: half stay right longest, half fall at some width.

    ``runs`` are predictions (arrays as in ``preds.npz``) of one model on one test set; ``pool``
    the positions whose pictures are stored. Only images that the float model gets right count,
    unless too few are stored.
    """
    labels = np.asarray(runs[0]["labels"])
    right = np.asarray(runs[0]["float_top5"])[:, 0] == labels
    wrong = [np.asarray(r["quant_top5"])[:, 0] != labels for r in runs]
    misses = np.sum(wrong, axis=0)
    pool = sorted(set(pool), key=lambda i: (not right[i], misses[i], i))
    shaky = [i for i in pool if right[i] and misses[i] > 0][::-1]
    falls = _varied(shaky, labels, count // 2, stride=max(1, len(shaky) // (2 * count)))
    steady = _varied([i for i in pool if i not in falls], labels, count - len(falls))
    return tuple(steady + sorted(falls, key=lambda i: (misses[i], i)))


def _varied(order: list[int], labels: np.ndarray, count: int, stride: int = 1) -> list[int]:
    """``count`` positions from the front of ``order``, each of another class while that goes."""
    picked: list[int] = []
    fresh = order[::stride] + order
    for again in (False, True):
        for i in fresh:
            seen = labels[i] in labels[picked]
            if len(picked) < count and i not in picked and (again or not seen):
                picked.append(i)
    return picked
