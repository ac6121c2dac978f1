"""Lists the image files below a folder; nothing is opened, and only regular files are read."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from qlib.core.records import InvalidSpec
from qlib.datasets._decode import Unreadable
from qlib.datasets._files import MAX_FILE, Files, LeftOut, irregular, is_hidden, too_large

KINDS = (
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)


def folder(path: Path) -> Files:
    """The images below a folder, links followed.

    Names that are not UTF-8 are shown with replacement marks, and two that would then look alike
    with their bytes written out.
    """
    left_out, real_of = LeftOut(), {}
    for shown, real, regular in _walk(str(path), left_out):
        if not left_out.takes(shown):
            continue
        real_of[shown] = real
        if not regular:
            left_out.irregular[shown] = kind_of(real)

    def read(name: str) -> bytes:
        return _read(real_of[name], f"{path}: {name}")

    def size(name: str) -> int:
        try:
            return Path(real_of[name]).stat().st_size
        except OSError:
            return -1

    return Files(str(path), sorted(real_of), read, size, left_out)


def kind_of(path: str) -> str:
    """What a path that is no regular file is, in words."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return "a link to nothing"
    return next((words for holds, words in KINDS if holds(mode)), "something else")


def _walk(top: str, left_out: LeftOut) -> Iterator[tuple[str, str, bool]]:
    """(shown name, path, whether it is a regular file) of every file; hidden folders are passed."""
    seen, todo = set(), [("", top)]
    while todo:
        shown, base = todo.pop()
        real = os.path.realpath(base)
        if real in seen:  # a link back up: do not walk round for ever
            continue
        seen.add(real)
        # of a folder and a link to it, the folder counts
        entries = sorted(_entries(base), key=lambda entry: (entry.is_symlink(), entry.name))
        inner = []
        for entry, own in zip(entries, _shown([e.name for e in entries]), strict=True):
            if not entry.is_dir():
                yield shown + own, entry.path, entry.is_file()
            elif is_hidden(own):
                left_out.folders[own] = None
            else:
                inner.append((f"{shown}{own}/", entry.path))
        todo += reversed(inner)


def _entries(base: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(base) as entries:
            return list(entries)
    except OSError as error:
        raise InvalidSpec(
            f"The folder {base} cannot be read ({error.strerror}); check who may read it."
        ) from None


def _shown(names: list[str]) -> list[str]:
    """The names of one folder as text; of those that would look alike, the bytes that are none."""
    texts = [os.fsencode(name).decode("utf-8", "replace") for name in names]
    if len(set(texts)) == len(texts):
        return texts
    return [
        os.fsencode(name).decode("utf-8", "backslashreplace") if texts.count(text) > 1 else text
        for name, text in zip(names, texts, strict=True)
    ]


def _read(path: str, name: str) -> bytes:
    """The whole file, if it still is a regular one; never waits for a pipe."""
    try:
        if not Path(path).is_file():
            raise irregular(name, kind_of(path))
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise irregular(name, "something that took its place")
            if about.st_size > MAX_FILE:
                raise too_large(name, about.st_size)
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise Unreadable(name, f"not readable ({error.strerror})") from None
    if len(content) > MAX_FILE:
        raise too_large(name, len(content))
    return content
