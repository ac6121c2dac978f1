"""The job queue on disk: job folders under one lock; which job runs, waits or died.

A job folder is ``RUNS/.jobs/KEY`` with ``spec.json`` (what to run), ``job.json`` (its state),
``events.jsonl``, ``log.txt``, the flag ``CANCEL``, and ``out``: the run folder in the making.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlib import store
from qlib.core import deaths, process, specs
from qlib.core.checks import Damaged, check
from qlib.core.process import Proc
from qlib.core.records import FORMAT as VERSION
from qlib.core.records import InvalidSpec, RunSpec, check_format
from qlib.core.rows import JobRow
from qlib.store.disk import locked, read_json, read_tail, write_json, writing

FOLDER, CANCEL, LOG, OUT = ".jobs", "CANCEL", "log.txt", "out"
GRACE = 5.0  # seconds between asking a job to stop and killing it
ENDED = ("done", "failed", "cancelled", "crashed")
REMEDY = "delete the folder, or start the run again"
CUT_OFF = "a file in it is damaged or cut off"
STORED = ("state", "message", "submitted", "started", "ended", "pid", "created")


@dataclass(frozen=True)
class Job:
    """One job of the queue.

    One job. Times are seconds since the epoch; ``message`` says why it failed or crashed.

    ``state``: queued | running | cancelling | done | failed | cancelled | crashed.
    ``place``: 1 for the next to start, 0 when not waiting. ``last``: its newest event, as
    `qlib.store.events` gives it. ``folder``: its log and events; ``run_dir``: once done, its run.
    """

    key: str
    spec: RunSpec
    folder: Path
    state: str = "queued"
    message: str = ""
    place: int = 0
    submitted: float = 0.0
    started: float | None = None
    ended: float | None = None
    pid: int | None = None
    created: float | None = None  # when the process was created: tells reused pids apart
    last: dict[str, Any] | None = None

    @property
    def over(self) -> bool:
        """Whether the job has ended, in whatever way."""
        return self.state in ENDED

    @property
    def run_dir(self) -> Path | None:
        """The folder of the finished run; None before the job is done."""
        return self.folder.parents[1] / self.key if self.state == "done" else None

    @property
    def log(self) -> Path:
        """The path of the job's log."""
        return self.folder / LOG

    @property
    def proc(self) -> Proc | None:
        """The job's process; None before it was started."""
        return None if self.pid is None else Proc(self.pid, self.created or 0.0)


def slots() -> int:
    """How many jobs run at once: ``$QLIB_JOBS``, or one.

    Raises:
        InvalidSpec: it is not a whole number of at least 1.
    """
    text = os.environ.get("QLIB_JOBS") or "1"
    if not text.isdecimal() or int(text) < 1:
        raise InvalidSpec(f"QLIB_JOBS must be a whole number of at least 1; got {text!r}.")
    return int(text)


@contextmanager
def moving(runs: Path) -> Iterator[None]:
    """The lock around all state changes: one process and thread at a time.

    Raises:
        InvalidSpec: the runs folder cannot be written.
    """
    with writing(runs):
        (runs / FOLDER).mkdir(parents=True, exist_ok=True)
    with locked(runs / FOLDER / ".lock"):
        yield


def read(runs: Path, key: str) -> Job | None:
    """The job as stored; None when there is none, or none that can be read (see `problem`)."""
    try:
        return _read(runs / FOLDER / key)
    except (OSError, ValueError):
        return None


def problem(runs: Path, key: str) -> str:
    """Why a job folder cannot be used, in one sentence; "" where it can, or there is none."""
    folder = runs / FOLDER / key
    if not folder.is_dir():
        return ""
    try:
        _read(folder)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        where = Path(error.filename or folder).name
        return f"The job folder {key} is broken: {where} cannot be read ({reason}); {REMEDY}."
    except ValueError as error:
        words = str(error).rstrip(".") if isinstance(error, (Damaged, InvalidSpec)) else CUT_OFF
        return f"The job folder {key} is broken: {words}; {REMEDY}."
    return ""


def _read(folder: Path) -> Job:
    body = read_json(folder / "job.json")
    check(dict[str, Any], body, "job.json")
    check_format(body, "job folder", REMEDY)
    check(JobRow, body, "job.json")
    spec = RunSpec.from_json(read_json(folder / "spec.json"))
    specs.check_settings(spec)
    return Job(folder.name, spec, folder, **{name: body[name] for name in STORED})


def folders(runs: Path) -> list[str]:
    """The keys of all job folders, broken ones included."""
    return sorted(path.name for path in (runs / FOLDER).glob("[!.]*") if path.is_dir())


def read_all(runs: Path) -> list[Job]:
    """All jobs as stored, in order of submission; broken ones are passed over."""
    found = (read(runs, key) for key in folders(runs))
    return sorted((job for job in found if job), key=lambda job: (job.submitted, job.key))


def write(job: Job) -> Job:
    """Store the job in its folder."""
    with writing(job.folder):
        body = {name: getattr(job, name) for name in STORED} | {"format": VERSION}
        write_json(job.folder / "job.json", body)
    return job


def end(job: Job, state: str, message: str = "") -> Job:
    """Store that the job ended in ``state``, now."""
    return write(replace(job, state=state, message=message, ended=time.time(), place=0))


def settle(runs: Path, command: Sequence[str]) -> list[Job]:
    """Bring every stored state up to date and start what may start; only inside `moving`."""
    jobs = [_settled(job) for job in read_all(runs)]
    free = slots() - sum(job.state == "running" for job in jobs)
    settled, place = [], 0
    for job in jobs:
        if job.state == "queued" and free > 0:
            job, free = _start(job, command), free - 1
        elif job.state == "queued":
            place += 1
            job = replace(job, place=place)
        settled.append(job)
    return settled


def _settled(job: Job) -> Job:
    if job.state != "running":
        return job
    asked = asked_to_stop(job)
    if job.proc is None or not process.alive(job.proc):
        if store.find(job.spec, [job.folder.parents[1]]):
            return end(job, "done")
        return end(job, "cancelled") if asked is not None else end(job, "crashed", _crash(job))
    if asked is not None and asked > GRACE:
        process.kill(job.proc)
        return end(job, "cancelled", f"It did not stop within {GRACE:g} s and was killed.")
    return job


def asked_to_stop(job: Job) -> float | None:
    """Seconds since someone asked the job to stop; None when nobody did."""
    try:
        return time.time() - (job.folder / CANCEL).stat().st_mtime
    except FileNotFoundError:
        return None


def _crash(job: Job) -> str:
    """How a job's process ended, as far as its last event, exit code and log tell."""
    last = store.last_event(job.folder)
    where = "before its first step"
    if last is not None:
        where = f"during {' '.join(filter(None, (last['phase'], last['unit'])))}"
    code = None if job.proc is None else process.exit_code(job.proc)
    if signal := deaths.cause(code, _tail(job.log)):
        return f"The job's process {signal}, {where}; {deaths.remedy(signal)}."
    how = "" if code is None else f" (exit code {code})"
    if words := _last_words(job.log):
        return f"The job's process ended {where}{how}; the last line of its log is: {words}"
    return (
        f"The job's process ended {where} without a word{how}: it was killed, or the machine "
        "ran out of memory; start it again, with fewer calibration images if need be."
    )


def _last_words(log: Path) -> str:
    lines = _tail(log).split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


def _tail(log: Path) -> str:
    """The end of a log; the fault handler's stack of a deep network is within it."""
    try:
        return read_tail(log, 20_000).decode(errors="replace")
    except OSError:
        return ""


def _start(job: Job, command: Sequence[str]) -> Job:
    threads = max(1, process.cores() // slots())
    try:
        proc = process.start([*command, str(job.folder.absolute())], job.log, threads)
    except OSError as error:
        return end(job, "failed", f"The job's process could not be started: {error.strerror}.")
    return write(
        replace(
            job, state="running", pid=proc.pid, created=proc.created, started=time.time(), place=0
        )
    )


def claim(folder: Path) -> Job | None:
    """Take the job of ``folder`` for this process; None when it is not to be run (any more).

    The starter stores the worker's process, but may die before it can: so the worker tells too,
    and of two that were started for one job the second one goes home.
    """
    runs, key = folder.parents[1], folder.name
    with moving(runs):
        job = read(runs, key)
        if job is None or job.over:
            return None
        # the parent: where Python starts through a launcher, the launcher's number was stored
        mine = job.pid in (os.getpid(), os.getppid())
        if job.state == "running" and job.proc and not mine and process.alive(job.proc):
            return None
        me = process.me()
        started = job.started or time.time()
        return write(replace(job, state="running", pid=me.pid, created=me.created, started=started))


def close(job: Job, state: str, message: str, command: Sequence[str]) -> None:
    """Store how the worker's job ended, and start whoever waits."""
    with moving(job.folder.parents[1]):
        now = read(job.folder.parents[1], job.key)
        if now is not None and now.pid == job.pid and not now.over:
            end(now, state, message)
        settle(job.folder.parents[1], command)
