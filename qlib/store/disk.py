"""Files that several processes share: written whole, locked; disk trouble told in one sentence."""

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qlib.core.records import InvalidSpec

PATIENCE = 30.0  # seconds to wait for a lock; ours are held for milliseconds
FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def writing(where: Path) -> Iterator[None]:
    """Turns a failed write inside the block into a sentence about ``where``.

    Raises:
        InvalidSpec: no space left, or the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InvalidSpec(disk_trouble(error, where)) from None


def disk_trouble(error: OSError, where: Path) -> str:
    """What failed and what to do, in one sentence."""
    advice = "name another folder with --runs or in QLIB_RUNS"
    if error.errno in FULL:
        return f"There is no space left on the disk of {where}: free some, or {advice}."
    reason = error.strerror or type(error).__name__
    return f"{where} cannot be written ({reason.lower()}): {advice}."


def write_json(file: Path, body: Any) -> None:
    """Written beside and renamed: a reader sees the old text or the new one, never a part."""
    beside = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        beside.write_text(json.dumps(body, indent=1) + "\n")
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """One process and one thread at a time is inside, for one lock file (made when missing).

    The system lets go of the lock when its holder dies, so there is no stale lock to find.

    Raises:
        InvalidSpec: the file cannot be written, or the lock stays taken.
    """
    with writing(file):
        handle = file.open("ab")
    with handle:
        until = time.monotonic() + PATIENCE
        while not _try_lock(handle.fileno()):
            if time.monotonic() > until:
                raise InvalidSpec(
                    f"{file} stays locked by another process; end that one, try again."
                )
            time.sleep(0.005)
        yield


def _try_lock(handle: int) -> bool:
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True
