"""Uploaded files: kept inside the runs folder by their content, named by a text that has no path.

A file lies at ``RUNS/.uploads/DIGEST/NAME`` and is called ``upload:DIGEST/NAME`` on screens and in
addresses; `resolved` and `shown` translate. The same content under the same name is the same file,
so that it makes the same run. A file that is there is never written again; those that no run needs
go after a week.
"""

import ast
import hashlib
import os
import re
import shutil
import time
import uuid
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from qlib.core.records import InvalidSpec, RunSpec
from qlib.store.disk import locked, writing

FOLDER, LOCK, PREFIX = ".uploads", ".lock", "upload:"
MB = 10**6
UNUSED = 7 * 86_400.0  # seconds after which a file that no run needs goes
MOST_TOTAL = 5_000 * MB  # of all uploads
CHUNK = 2**20
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
TOKEN = re.compile(rf"{PREFIX}([0-9a-f]{{16}})/({NAME.pattern})")


@dataclass(frozen=True)
class Kind:
    """What may be uploaded: its name in a sentence, its endings, and its most bytes."""

    what: str
    endings: tuple[str, ...]
    most: int


NETWORK = Kind("A network file", (".py",), MB)
WEIGHTS = Kind("A weights file", (".safetensors", ".pth", ".pt", ".bin", ".ckpt"), 500 * MB)
PICTURES = Kind("A file of pictures", (".zip",), 500 * MB)


def save(runs: Path, kind: Kind, name: str, body: BinaryIO, used: Iterable[str] = ()) -> str:
    """Keep an uploaded file; returns what it is called: ``upload:DIGEST/NAME``.

    Args:
        name: as the visitor's machine calls it; other characters than plain ones are replaced.
        used: texts of specifications; a file that one of them names is never removed.

    Raises:
        InvalidSpec: a wrong ending, too large, not what its ending says, no room, or the runs
            folder cannot be written.
    """
    _check_name(kind, name)
    folder = runs / FOLDER
    with writing(runs):
        folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".new-{uuid.uuid4().hex}"
    try:
        with writing(runs):
            digest, size = _written(beside, body, kind, name)
        _check_content(kind, name, beside)
        safe = _safe(name)
        with locked(folder / LOCK), writing(runs):
            _tidy(folder, [*used], size)
            place = folder / digest / safe
            place.parent.mkdir(exist_ok=True)
            if not place.is_file():
                beside.replace(place)
            os.utime(place.parent)  # wanted again: its week begins anew
    finally:
        beside.unlink(missing_ok=True)
    return f"{PREFIX}{digest}/{safe}"


def resolved(text: str, runs: Path) -> str:
    """A text with the name of an upload in it, with its path in its place; other texts as they are.

    Raises:
        InvalidSpec: there is no such upload (any more).
    """

    def path(match: re.Match[str]) -> str:
        file = runs / FOLDER / match[1] / match[2]
        if not file.is_file():
            raise InvalidSpec(f"The upload {match[2]} is not here (any more); upload it again.")
        return str(file)

    return TOKEN.sub(path, text)


def shown(text: str, runs: Path) -> str:
    """The reverse of `resolved`: paths of uploads as their names."""
    return text.replace(f"{runs / FOLDER}{os.sep}", PREFIX)


def located(spec: RunSpec, runs: Path) -> RunSpec:
    """A specification with the paths of its uploads. Raises as `resolved`."""
    named = {n: getattr(spec, n) for n in ("model", "weights", "data", "calib_data", "classes")}
    return replace(spec, **{n: text and resolved(text, runs) for n, text in named.items()})


def path_of(token: str, runs: Path) -> Path:
    """Where an upload lies. Raises as `resolved`."""
    return Path(resolved(token, runs))


def functions(source: str) -> list[str]:
    """Functions of a Python file that can be called without arguments. Runs nothing of it.

    Raises:
        SyntaxError, ValueError: it is no Python.
    """
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            given = node.args
            needed = len(given.posonlyargs) + len(given.args) - len(given.defaults)
            if needed <= 0 and all(given.kw_defaults):
                found.append(node.name)
    return found


def _check_name(kind: Kind, name: str) -> None:
    if not name.lower().endswith(kind.endings):
        raise InvalidSpec(
            f"{kind.what} ends in {' or '.join(kind.endings)}; got {_safe(name)}. Choose another "
            "file, or rename it if it is one."
        )


def _written(place: Path, body: BinaryIO, kind: Kind, name: str) -> tuple[str, int]:
    """Digest and size of what was copied.

    Raises:
        InvalidSpec: it is empty, or larger than allowed.
        OSError: it cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    with place.open("xb") as out:
        while part := body.read(CHUNK):
            size += len(part)
            if size > kind.most:
                raise InvalidSpec(
                    f"{_safe(name)} is too large: {kind.what.lower()} may have "
                    f"{kind.most // MB} MB when it is uploaded. Give a path instead."
                )
            digest.update(part)
            out.write(part)
    if not size:
        raise InvalidSpec(f"{_safe(name)} is empty; choose another file.")
    return digest.hexdigest()[:16], size


def _check_content(kind: Kind, name: str, file: Path) -> None:
    if kind is PICTURES and not zipfile.is_zipfile(file):
        raise InvalidSpec(
            f"{_safe(name)} is no readable zip file; make a zip of the folder that has a folder "
            "for each class."
        )
    if kind is NETWORK:
        _check_code(name, file)


def _check_code(name: str, file: Path) -> None:
    try:
        callable_ = functions(file.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise InvalidSpec(
            f"{_safe(name)} is no Python that can be run ({error.msg}, line {error.lineno}); mend "
            "it and upload it again."
        ) from None
    except (ValueError, RecursionError):
        raise InvalidSpec(f"{_safe(name)} is no text of Python; choose another file.") from None
    if not callable_:
        raise InvalidSpec(
            f"{_safe(name)} has no function that can be called without arguments; write one that "
            "returns the network, such as def build()."
        )


def _safe(name: str) -> str:
    """A plain file name of at most 80 characters that keeps its ending."""
    last = re.split(r"[\\/]", name)[-1]
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", last).lstrip(".-") or "file"
    return plain if len(plain) <= 80 else plain[:60] + plain[-20:]


def _tidy(folder: Path, used: list[str], coming: int) -> None:
    """Remove what no run needs: all that is old, and the oldest until what comes has room.

    Raises:
        InvalidSpec: there is no room even so.
    """
    now, held = time.time(), 0
    for left in folder.glob(".new-*"):  # of a process that was killed while it wrote
        with suppress(OSError):
            if now - left.stat().st_mtime > UNUSED:
                left.unlink()
    kept = []
    for place in folder.glob("[0-9a-f]*"):
        with suppress(OSError):
            age = now - place.stat().st_mtime
            size = sum(file.stat().st_size for file in place.iterdir())
            held += size
            if not any(place.name in text for text in used):
                kept.append((age, size, place))
    for age, size, place in sorted(kept, reverse=True):
        if age > UNUSED or (held + coming > MOST_TOTAL and age > 3600):
            shutil.rmtree(place, ignore_errors=True)
            held -= size
    if held + coming > MOST_TOTAL:
        raise InvalidSpec(
            f"Uploads may hold {MOST_TOTAL // MB:,} MB together, and there is no room for this "
            "one; delete runs that use large ones, or give a path instead."
        )
