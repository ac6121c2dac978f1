"""Image files in class folders: which part calibrates, which part tests, never both."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qlib.core.records import InvalidSpec
from qlib.datasets._archive import Files, open_files
from qlib.datasets._draw import draw_calibration, draw_test, subset
from qlib.datasets.base import Images

TRAIN = "train"
HELD_OUT = ("test", "val", "validation", "valid")
SPLITS = (TRAIN, *HELD_OUT)


@dataclass(frozen=True)
class Layout:
    """Names of image files by purpose; ``train`` is None where nothing separates the two."""

    train: list[str] | None
    test: list[str]
    depth: int  # folders above the class folder


class Tree:
    """The images below one path, with the class as the first folder.

    ``train/`` beside ``test/`` or ``val/`` is respected. Without them there is one pool: what
    `calibration` draws leaves the images of `test`, and the other way round.
    """

    def __init__(self, path: Path, index: Callable[[list[str], str], dict[str, int]]) -> None:
        """``index(folders, where)`` gives each class folder its class index."""
        files = open_files(path)
        layout = _layout(files, strip=not path.is_dir())
        self.folders = sorted(_folders([*(layout.train or []), *layout.test], layout.depth))
        self.where = files.where
        numbers = index(self.folders, self.where)
        self._test = _images(files, layout.test, layout.depth, numbers)
        self._train = None
        if layout.train is not None:
            self._train = _images(files, layout.train, layout.depth, numbers)
        self._drawn: set[str] = set()
        self._tested: set[str] = set()

    def calibration(self, n: int, seed: int, *, balanced: bool = False) -> Images:
        """``n`` images that no earlier `test` has handed out; labels may be None.

        Raises:
            InvalidSpec: fewer than ``n`` are there.
        """
        if self._train is not None:
            return draw_calibration(self._train, n, seed, self.where, balanced=balanced)
        free = _without(self._test, self._tested)
        if self._tested and n > len(free):
            raise InvalidSpec(
                f"{n} calibration images were asked of {self.where}, and {len(free)} are left "
                "after the test images; draw the calibration images first, or fewer."
            )
        drawn = draw_calibration(free, n, seed, self.where, balanced=balanced)
        self._drawn.update(drawn.ids)
        return drawn

    def test(self, n: int | None) -> Images:
        """All labelled images, or a fixed ``n`` of them, that `calibration` has not drawn.

        Raises:
            InvalidSpec: fewer than ``n`` are left, or they have no labels.
        """
        if self._test.labels is None:
            raise InvalidSpec(
                f"The images in {self.where} lie in no class folders, so they have no labels to "
                "test with; sort them into sub-folders, one a class."
            )
        free = _without(self._test, self._drawn)
        if not len(free):
            raise InvalidSpec(
                f"All {len(self._test)} images in {self.where} were drawn for calibration, and "
                "none is left to test with; calibrate with fewer, or with other data."
            )
        images = draw_test(free, n, self.where)
        if self._train is None:
            self._tested.update(images.ids)
        return images


def source_path(name: str) -> Path:
    """The path in a name such as ``folder:PATH``.

    Raises:
        InvalidSpec: nothing after the colon.
    """
    kind, _, path = name.partition(":")
    if not path.strip():
        raise InvalidSpec(
            f"{name!r} names no place; write {kind}:PATH with a folder or a zip file."
        )
    return Path(path.strip()).expanduser()


def _layout(files: Files, strip: bool) -> Layout:
    """Look for the split at the top, below folders that merely wrap all the others.

    A zip often has one such folder (``strip``); a folder has none but a lone ``train/``.
    """
    depth = 0
    while True:
        tops = _folders(files.names, depth)
        held_out = next((s for s in HELD_OUT if s in tops), None)
        if TRAIN in tops and held_out:
            train, test = (
                [n for n in files.names if _class_of(n, depth) == split]
                for split in (TRAIN, held_out)
            )
            return Layout(_classed(train, depth + 1), _classed(test, depth + 1), depth + 1)
        inner = _folders(files.names, depth + 1)
        stray = any(n.count("/") <= depth + 1 for n in files.names)
        wraps = len(tops) == 1 and bool(inner) and (len(inner) > 1 or not stray)
        if not wraps or not (strip or tops <= set(SPLITS)):
            return Layout(None, _classed(files.names, depth), depth)
        depth += 1


def _folders(names: list[str], depth: int) -> set[str]:
    return {folder for n in names if (folder := _class_of(n, depth)) is not None}


def _classed(names: list[str], depth: int) -> list[str]:
    """Without stray pictures beside the class folders, if there are class folders."""
    return [n for n in names if _class_of(n, depth)] or names


def _class_of(name: str, depth: int) -> str | None:
    parts = name.split("/")[depth:]
    return parts[0] if len(parts) > 1 else None


def _images(files: Files, names: list[str], depth: int, numbers: dict[str, int]) -> Images:
    import numpy as np

    own = [numbers[folder] for n in names if (folder := _class_of(n, depth)) is not None]
    labels = np.array(own, np.int64) if len(own) == len(names) else None
    return Images(names, labels, lambda i: files.image(names[i]))


def _without(images: Images, ids: set[str]) -> Images:
    return subset(images, [i for i, name in enumerate(images.ids) if name not in ids])
