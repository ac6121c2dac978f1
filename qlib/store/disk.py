"""Files that several processes share: read with size limits, written atomically, locked."""

import ctypes
import errno
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qlib.core.checks import Damaged
from qlib.core.records import InvalidSpec

MOST = 64_000_000  # bytes of one file of text
SIGN = ".owner"  # ends the name of the file that says that a folder is worked in
PATIENCE = 30.0  # seconds to wait for a lock; ours are held for milliseconds
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # from Linux's <fcntl.h> and <linux/fs.h>
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


def read_bytes(file: Path, most: int = MOST) -> bytes:
    """All bytes of a regular file: no pipe or device, which might never end.

    Raises:
        OSError: missing, unreadable, no regular file.
        ValueError: larger than ``most`` bytes.
    """
    check_file(file, most)
    return file.read_bytes()


def check_file(file: Path, most: int = MOST) -> None:
    """Check that ``file`` is a regular one and not too large; raises as `read_bytes`."""
    status = file.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(file))
    if status.st_size > most:
        raise Damaged(f"it has {status.st_size:,} bytes, more than the {most:,} that are read")


def read_tail(file: Path, size: int) -> bytes:
    """The last bytes of a regular file, however large. Raises OSError as `read_bytes`."""
    check_file(file, sys.maxsize)
    with file.open("rb") as opened:
        opened.seek(max(0, opened.seek(0, 2) - size))
        return opened.read()


def read_json(file: Path, most: int = MOST) -> Any:
    """The parsed content of a JSON file. Raises as `read_bytes`, and ValueError for bad JSON."""
    try:
        return json.loads(read_bytes(file, most))
    except RecursionError:
        raise Damaged("its lists are nested too deeply") from None


def write_json(file: Path, body: Any) -> None:
    """Write a JSON file atomically: a reader sees the old text or the new one, never a part."""
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


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Inside, `has_owner` says of ``folder`` that someone works in it; the folder need not exist.

    The sign is a lock on a file beside it, which goes with the process however that ends.

    Raises:
        InvalidSpec: as `locked`.
    """
    file = _sign(folder)
    try:
        with locked(file):
            yield
    finally:
        file.unlink(missing_ok=True)


def has_owner(folder: Path) -> bool:
    """Whether a living process works in ``folder``; the sign of a dead one is removed."""
    file = _sign(folder)
    try:
        handle = file.open("r+b")
    except FileNotFoundError:
        return False
    except OSError:
        return True  # another person's
    with handle:
        if not _try_lock(handle.fileno()):
            return True
    file.unlink(missing_ok=True)
    return False


def _sign(folder: Path) -> Path:
    return folder.with_name(folder.name + SIGN)


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders atomically where the system can; returns whether it did."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if swap is None:
        return False
    here = AT_FDCWD
    return swap(here, os.fsencode(one), here, os.fsencode(other), RENAME_EXCHANGE) == 0
