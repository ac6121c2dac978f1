"""Run folders: listing, finding and publishing them. No torch: the app reads here."""

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
from qlib.store.arrays import load_preds
from qlib.store.disk import SIGN, check_file, exchange, has_owner, owned, writing
from qlib.store.eventlog import EventLog, events, last_event
from qlib.store.runfolder import broken, load, load_head, table, write_record

__all__ = [
    "Entry", "EventLog", "Finished", "demo_dir", "events", "find", "finish", "last_event",
    "list_runs", "load", "load_preds", "private", "runs_dir", "stamp", "write_record",
]  # fmt: skip

FRESH = 60.0  # seconds in which a folder may not have its owner's sign yet
OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}  # why a rename finds its place taken


@dataclass(frozen=True)
class Entry:
    """One run of a runs folder: a `Finished` one, or the reason why it cannot be read."""

    folder: Path
    record: RunRecord | None
    problem: str = ""

    @property
    def key(self) -> str:
        """The run's key: the name of its folder."""
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
    entries = [_entry(Path(found)) for found in _folders(folder)]
    return sorted(entries, key=lambda e: (e.record.created if e.record else "", e.key))[::-1]


def find(spec: RunSpec, folders: Iterable[Path]) -> Finished | None:
    """The first readable finished run of this checked specification; None without one."""
    entries = (_entry(folder / spec.key) for folder in folders)
    return next((entry for entry in entries if isinstance(entry, Finished)), None)


def stamp(folder: Path) -> str:
    """A short text that changes when runs of the folder come, go or are replaced; very cheap."""
    seen = []
    for entry in _folders(folder):
        with suppress(FileNotFoundError):  # went while we looked
            state = entry.stat()
            seen.append((entry.name, state.st_ino, state.st_mtime_ns))
    return hashlib.sha256(repr(sorted(seen)).encode()).hexdigest()[:16]


@contextmanager
def private(runs: Path, key: str) -> Iterator[Path]:
    """A new hidden folder beside the runs, removed with its files at the end of a ``with`` block.

    Raises:
        InvalidSpec: the runs folder cannot be written.
    """
    folder = runs / f".new-{key}-{uuid.uuid4().hex[:8]}"
    with writing(runs):
        runs.mkdir(parents=True, exist_ok=True)
        _sweep(runs)
    with owned(folder):
        with writing(runs):
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def finish(folder: Path, runs: Path, key: str) -> Path:
    """Publish a private folder as ``runs/key``; an older result gives way in the same step.

    Whoever looks sees the older folder, then the new one: never a part. Where the system cannot
    swap folders there is none for a moment, and if the process dies just then, the next `private`
    puts the older one back.

    Raises:
        InvalidSpec: the folder would not load again, or the runs folder cannot be written.
    """
    load(folder)
    target, aside = runs / key, runs / f".old-{key}-{uuid.uuid4().hex[:8]}"
    try:
        with writing(runs):
            while not _placed(folder, target):  # again when someone else publishes just now
                aside.mkdir(exist_ok=True)
                with suppress(FileNotFoundError):
                    target.rename(aside / uuid.uuid4().hex[:8])
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _placed(folder: Path, target: Path) -> bool:
    """Put ``folder`` at its place, if that is free or what is there can be swapped out."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in OCCUPIED:
            raise
        if not exchange(folder, target):
            return False
        _remove(folder)
    return True


def _remove(path: Path) -> None:
    """A folder, or a file that was in a run's place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sweep(runs: Path) -> None:
    """Tidy up after processes that were killed; living ones keep what they work in."""
    for path in runs.glob(".new-*"):
        folder = path.with_name(path.name.removesuffix(SIGN))
        if not _young(path) and not has_owner(folder):
            shutil.rmtree(folder, ignore_errors=True)
    for aside in runs.glob(".old-*"):
        _put_back(aside, runs / aside.name[len(".old-") : -len("-12345678")])


def _young(path: Path) -> bool:
    """May its owner be just about to give its sign?"""
    try:
        return abs(time.time() - path.stat().st_mtime) < FRESH
    except OSError:  # it went while we looked
        return True


def _put_back(aside: Path, target: Path) -> None:
    """An older result whose replacement never came; a living `finish` moves it aside again."""
    with suppress(OSError):  # the other process was quicker
        for older in aside.iterdir():
            if not target.exists():
                older.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    """The folders of a runs folder that may be runs; none where it cannot be listed."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".") and _is_dir(entry)]
    except OSError:
        return []


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _entry(folder: Path) -> Entry:
    try:
        record = load_head(folder)
    except InvalidSpec as error:
        return Entry(folder, None, str(error))
    file = folder / table(record)
    try:
        check_file(file)
    except (OSError, ValueError) as error:
        return Entry(folder, None, broken(file, error))
    return Finished(folder, record)
