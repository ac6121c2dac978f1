"""Which folders part training from test images, and at which depth the class folders lie."""

from collections.abc import Iterable
from dataclasses import dataclass

from qlib.datasets._files import Files

TRAIN = ("train", "training")  # in any case
HELD_OUT = ("test", "val", "validation", "valid", "testing")
SPLITS = (*TRAIN, *HELD_OUT)


@dataclass(frozen=True)
class Layout:
    """Names of image files by purpose; ``train`` is None where nothing separates the two.

    ``depth``: folders above the class folder; ``unused``: folders beside the split that nothing is
    taken from; ``beside``: pictures that lie beside the class folders and are left out.
    """

    train: list[str] | None
    test: list[str]
    depth: int
    unused: tuple[str, ...] = ()
    beside: int = 0


def layout_of(files: Files, strip: bool) -> Layout:
    """Look for the split at the top, below folders that merely wrap all the others.

    A zip often has one such folder (``strip``); a folder has none but a lone ``train/``.
    """
    depth = 0
    while True:
        tops = folders(files.names, depth)
        train, held_out = _called(tops, TRAIN), _called(tops, HELD_OUT)
        if train and held_out:
            return _split(files.names, depth, tops, (train, held_out))
        inner = folders(files.names, depth + 1)
        stray = any(n.count("/") <= depth + 1 for n in files.names)
        wraps = len(tops) == 1 and bool(inner) and (len(inner) > 1 or not stray)
        if not wraps or not (strip or all(top.lower() in SPLITS for top in tops)):
            classed = _classed(files.names, depth)
            return Layout(None, classed, depth, beside=len(files.names) - len(classed))
        depth += 1


def folders(names: Iterable[str], depth: int) -> set[str]:
    """The folders at ``depth`` that have pictures in or below them."""
    return {folder for n in names if (folder := class_of(n, depth)) is not None}


def class_of(name: str, depth: int) -> str | None:
    """The folder of a picture at ``depth``; None where it lies above."""
    parts = name.split("/")[depth:]
    return parts[0] if len(parts) > 1 else None


def _called(tops: set[str], words: tuple[str, ...]) -> str | None:
    """The folder that has the first of these names, in any case; the exact one before others."""
    named = [top for top in tops if top.lower() in words]
    return min(named, key=lambda t: (words.index(t.lower()), t != t.lower(), t), default=None)


def _split(names: list[str], depth: int, tops: set[str], pair: tuple[str, str]) -> Layout:
    parts = [[n for n in names if class_of(n, depth) == split] for split in pair]
    train, test = (_classed(part, depth + 1) for part in parts)
    beside = sum(map(len, parts)) - len(train) - len(test)
    return Layout(train, test, depth + 1, tuple(sorted(tops - set(pair))), beside)


def _classed(names: list[str], depth: int) -> list[str]:
    """Without stray pictures beside the class folders, if there are class folders."""
    return [n for n in names if class_of(n, depth)] or names
