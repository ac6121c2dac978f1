"""Processes that outlive the app: start one in a group of its own, find it again, end it."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

ROOT = Path(__file__).resolve().parents[2]  # where ``python -m qlib.worker`` finds this package
DRIFT = 2.0  # seconds by which two processes may disagree about a third one's creation

# on Windows, where a process has no session: a group of its own and no window
_OWN_GROUP = 0
if sys.platform == "win32":
    _OWN_GROUP = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW

# Popen objects of our own children: polling them is what buries a dead child
_children: dict[int, subprocess.Popen] = {}


@dataclass(frozen=True)
class Proc:
    """A process by its number and its creation time (seconds since the epoch).

    The number alone is not enough: the system gives it to another process later.
    """

    pid: int
    created: float


def me() -> Proc:
    """The running process itself."""
    return Proc(os.getpid(), psutil.Process().create_time())


def start(command: Sequence[str], log: Path, threads: int) -> Proc:
    """Run ``command`` from the project's root, detached; what it says goes into ``log``.

    A thread count that was already set lower stays. Threads wait without spinning: on a busy
    machine spinning makes two of them slower than one.

    Raises:
        OSError: the command cannot be started.
    """
    with log.open("ab") as out:
        child = subprocess.Popen(
            [*command],
            cwd=ROOT,
            env=_environment(threads),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=os.name == "posix",
            creationflags=_OWN_GROUP,
        )
    _children[child.pid] = child
    return Proc(child.pid, psutil.Process(child.pid).create_time())


def converse(
    command: Sequence[str], log: IO[bytes], threads: int = 1
) -> tuple[subprocess.Popen, IO[bytes], IO[bytes]]:
    """Run ``command`` as `start` does, but with pipes to its standard input and output.

    It does not outlive this process if it ends when its input does, however this one dies.

    Returns:
        the process, its input and its output.

    Raises:
        OSError: the command cannot be started.
    """
    child = subprocess.Popen(
        [*command],
        cwd=ROOT,
        env=_environment(threads),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=os.name == "posix",
        creationflags=_OWN_GROUP,
    )
    if child.stdin is None or child.stdout is None:
        raise OSError("no pipes were opened to the process")
    return child, child.stdin, child.stdout


def _environment(threads: int) -> dict[str, str]:
    set_before = os.environ.get("OMP_NUM_THREADS", "")
    if set_before.isdigit() and int(set_before) > 0:
        threads = min(threads, int(set_before))
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    env["PYTHONUNBUFFERED"] = "1"  # a killed worker's log is complete
    return env


def alive(proc: Proc) -> bool:
    """Whether a process still runs; a zombie does not."""
    child = _children.get(proc.pid)
    if child is not None:
        child.poll()
    try:
        found = psutil.Process(proc.pid)
        if found.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(found.create_time() - proc.created) < DRIFT
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # denied: another person's, so not ours
        return False


def exit_code(proc: Proc) -> int | None:
    """Exit code of an ended child (negative: killed by that signal); None when not known."""
    child = _children.get(proc.pid)
    return None if child is None else child.poll()


def kill(proc: Proc) -> None:
    """End a process and everything it started, at once. Does nothing when it is gone."""
    if not alive(proc):
        return
    with suppress(ProcessLookupError, psutil.NoSuchProcess):  # it may end while we aim
        if os.name == "posix" and os.getpgid(proc.pid) == proc.pid:
            os.killpg(proc.pid, signal.SIGKILL)
            return
        root = psutil.Process(proc.pid)
        for process in [*root.children(recursive=True), root]:
            process.kill()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_mb() -> float:
    """The most resident memory that this process ever had, in 10⁶ bytes.

    Linux lets ``getrusage`` carry the peak of the process that started this one across: a small
    job after a large one would be charged with it. The kernel's own mark has no such memory.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        mark = next(line for line in lines if line.startswith("VmHWM:"))
        return int(mark.split()[1]) * 1024 / 1e6
    except (FileNotFoundError, StopIteration):
        if sys.platform == "win32":
            return psutil.Process().memory_info().peak_wset / 1e6
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes
