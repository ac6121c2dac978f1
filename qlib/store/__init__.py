"""The folders that hold runs: find, list, publish in one step. No torch: the app reads here."""

import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qlib.core.paths import ASSETS
from qlib.core.records import InvalidSpec, RunRecord, RunSpec
from qlib.store.disk import writing
from qlib.store.eventlog import EventLog, events, last_event
from qlib.store.runfolder import broken, load, load_head, load_preds, table, write_record

__all__ = [
    "Entry", "EventLog", "Finished", "demo_dir", "events", "find", "finish", "last_event",
    "list_runs", "load", "load_preds", "private", "runs_dir", "stamp", "write_record",
]  # fmt: skip

STALE = 86_400.0  # seconds after which a private folder that nobody published is swept away
OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}  # why a rename finds its place taken


@dataclass(frozen=True)
class Entry:
    """One folder of a runs folder: a `Finished` run, or why it cannot be read."""

    folder: Path
    record: RunRecord | None
    problem: str = ""

    @property
    def key(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class Finished(Entry):
    """A run that can be read; ``record`` is without its layers."""

    record: RunRecord


def runs_dir() -> Path:
    """Where this person's runs live: ``$QLIB_RUNS``, or ``runs`` in the current folder.

    For the app and the command line; library code takes the folder as an argument.
    """
    return Path(os.environ.get("QLIB_RUNS") or "runs").expanduser().absolute()


def demo_dir() -> Path:
    """The stored runs that come with the project; ``$QLIB_DEMO`` shows others in their place."""
    return Path(os.environ.get("QLIB_DEMO") or ASSETS / "demo").expanduser().absolute()


def list_runs(folder: Path) -> list[Entry]:
    """Every run of a runs folder, newest first, broken ones last; empty when there is no folder.

    Reads ``run.json`` alone: cheap for hundreds of runs. See `stamp` for when to read again.
    """
    entries = [_entry(path) for path in _folders(folder)]
    return sorted(entries, key=lambda e: (str(e.record.created) if e.record else "", e.key))[::-1]


def find(spec: RunSpec, folders: Iterable[Path]) -> Finished | None:
    """The first readable finished run of this very specification (a checked one)."""
    entries = (_entry(folder / spec.key) for folder in folders)
    return next((entry for entry in entries if isinstance(entry, Finished)), None)


def stamp(folder: Path) -> str:
    """A short text that changes when runs of the folder come, go or are replaced; very cheap."""
    seen = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
        for entry in found:
            if not entry.name.startswith(".") and entry.is_dir():
                with suppress(FileNotFoundError):  # went while we looked
                    state = entry.stat()
                    seen.append((entry.name, state.st_ino, state.st_mtime_ns))
    return hashlib.sha256(repr(sorted(seen)).encode()).hexdigest()[:16]


@contextmanager
def private(runs: Path, key: str) -> Iterator[Path]:
    """A new folder beside the runs that no listing shows; what is still in it at the end goes.

    Raises:
        InvalidSpec: the runs folder cannot be written.
    """
    folder = runs / f".new-{key}-{uuid.uuid4().hex[:8]}"
    with writing(runs):
        runs.mkdir(parents=True, exist_ok=True)
        _sweep(runs)
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finish(folder: Path, runs: Path, key: str) -> Path:
    """Publish a private folder as ``runs/key`` by one rename; an older result is moved aside first.

    Whoever looks sees the old folder, for a moment none, then the new one: never a part.

    Raises:
        InvalidSpec: the folder would not load again, or the runs folder cannot be written.
    """
    load(folder)
    target, aside = runs / key, runs / f".old-{key}-{uuid.uuid4().hex[:8]}"
    try:
        with writing(runs):
            while True:  # again when someone else publishes the same key at the same moment
                try:
                    return folder.rename(target)
                except OSError as error:
                    if error.errno not in OCCUPIED:
                        raise
                aside.mkdir(exist_ok=True)
                with suppress(FileNotFoundError):
                    target.rename(aside / uuid.uuid4().hex[:8])
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sweep(runs: Path) -> None:
    """Remove private folders that a killed process left behind a day or longer ago."""
    for folder in [*runs.glob(".new-*"), *runs.glob(".old-*")]:
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > STALE:
                shutil.rmtree(folder, ignore_errors=True)


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            return sorted(Path(e) for e in found if e.is_dir() and not e.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _entry(folder: Path) -> Entry:
    try:
        record = load_head(folder)
    except InvalidSpec as error:
        return Entry(folder, None, str(error))
    file = folder / table(record)
    try:
        file.stat()
    except OSError as error:
        return Entry(folder, None, broken(file, error))
    return Finished(folder, record)
