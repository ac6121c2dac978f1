"""Jobs in the background: submit, status, events, cancel, kill, list_jobs. No torch.

A job is a process, ``python -m qlib.worker RUNS/.jobs/KEY``, that outlives the app. All that is
known of it is on disk, so any process that is given the same runs folder sees the same jobs.
``$QLIB_JOBS`` (default 1) run at once, the others wait in order of submission.
"""

import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlib import store
from qlib.core import process, specs
from qlib.core.records import InvalidSpec, RunSpec
from qlib.jobs import queue
from qlib.jobs.queue import CANCEL, ENDED, FOLDER, Job
from qlib.store.disk import write_json, writing
from qlib.store.runfolder import load_head

__all__ = [
    "ENDED",
    "Job",
    "broken",
    "cancel",
    "events",
    "kill",
    "list_jobs",
    "problem",
    "status",
    "submit",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # a key may come from an address bar
REMEMBERED = 86_400.0  # seconds that the list of jobs names a job that is done
WORKER = (sys.executable, "-m", "qlib.worker")


def submit(spec: RunSpec, runs: Path, *, command: Sequence[str] = WORKER) -> Job:
    """Queue a checked specification, and start it if a place is free.

    An equal one that is finished, queued, running or being cancelled is returned as it is; one
    that failed, was cancelled or crashed starts anew. Paths in it become absolute (see
    `qlib.core.specs.absolute`): the worker runs in another folder. ``command`` is what runs a job
    folder given as its last argument.

    Raises:
        InvalidSpec: a file or folder that it names is missing; the runs folder cannot be written;
            ``$QLIB_JOBS`` is no number.
    """
    spec = specs.absolute(spec)
    if store.find(spec, [runs]):
        return status(spec.key, runs, command=command)
    with queue.moving(runs):
        jobs = queue.settle(runs, command)
        old = next((job for job in jobs if job.key == spec.key), None)
        if old is None or old.over:
            _forget(jobs, time.time())
            latest = max((job.submitted for job in jobs), default=0.0)
            _queue_up(runs, spec, max(time.time(), latest + 1e-3))
            queue.settle(runs, command)
    return status(spec.key, runs, command=command)


def _queue_up(runs: Path, spec: RunSpec, now: float) -> None:
    folder = runs / FOLDER / spec.key
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CANCEL).unlink(missing_ok=True)
        write_json(folder / "spec.json", spec.to_json())
    queue.write(Job(spec.key, spec, folder, submitted=now))


def status(key: str, runs: Path, *, command: Sequence[str] = WORKER) -> Job:
    """The state of a job now: notices a dead process, ends one that would not stop, starts others.

    Raises:
        InvalidSpec: there is neither a job nor a finished run of this key.
    """
    job = queue.read(runs, _plain(key, runs))
    if job and not job.over and _needs_care(job):
        with queue.moving(runs):
            jobs = queue.settle(runs, command)
        job = next((job for job in jobs if job.key == key), None)
    if job is not None and not job.over:
        return _seen(job)
    if (found := _ended(key, runs, job)) is None:
        raise InvalidSpec(queue.problem(runs, key) or _unknown(key, runs))
    return found


def events(key: str, runs: Path, start: int = 0) -> list[dict[str, Any]]:
    """The job's events from number ``start`` on, while it runs and after; see `store.events`.

    Raises:
        InvalidSpec: the key is no file name.
    """
    job = queue.read(runs, _plain(key, runs))
    folders = [runs / FOLDER / key, runs / key]
    if job is None or job.over:  # an ended job's log may be older than the run
        folders.reverse()
    return next((found for f in folders if (found := store.events(f, start))), [])


def cancel(key: str, runs: Path, *, command: Sequence[str] = WORKER) -> Job:
    """Ask the job to stop: it does so at its next step, or is killed by a look after 5 s.

    Raises:
        InvalidSpec: as `status`.
    """
    with _live(key, runs, command) as job:
        if job and job.state == "queued":
            queue.end(job, "cancelled")
        elif job and queue.asked_to_stop(job) is None:
            with writing(job.folder):
                (job.folder / CANCEL).touch()
    return status(key, runs, command=command)


def kill(key: str, runs: Path, *, command: Sequence[str] = WORKER) -> Job:
    """End the job's process at once, with all that it started.

    Raises:
        InvalidSpec: as `status`.
    """
    with _live(key, runs, command) as job:
        if job:
            if job.proc is not None:
                process.kill(job.proc)
            queue.end(job, "cancelled", "It was killed on request.")
            queue.settle(runs, command)
    return status(key, runs, command=command)


@contextmanager
def _live(key: str, runs: Path, command: Sequence[str]) -> Iterator[Job | None]:
    """The job under the lock, brought up to date; None when it is over or unknown."""
    with queue.moving(runs):
        found = (job for job in queue.settle(runs, command) if job.key == key)
        yield next((job for job in found if not job.over), None)


def list_jobs(runs: Path, *, command: Sequence[str] = WORKER) -> list[Job]:
    """All jobs: running ones, then waiting ones in order, then ended ones, newest first."""
    jobs = queue.read_all(runs)
    if any(not job.over for job in jobs):
        with queue.moving(runs):
            jobs = queue.settle(runs, command)
    live = [_seen(job) for job in jobs if not job.over]
    ended = [found for job in jobs if job.over and (found := _ended(job.key, runs, job))]
    live.sort(key=lambda job: (job.place, job.submitted))
    return live + sorted(ended, key=lambda job: job.ended or 0.0, reverse=True)


def broken(runs: Path) -> list[str]:
    """Why each job folder that is passed over cannot be used, one sentence a folder."""
    return [why for key in queue.folders(runs) if (why := queue.problem(runs, key))]


def problem(key: str, runs: Path) -> str:
    """Why a job folder cannot be used; "" where it can, or there is none."""
    return queue.problem(runs, key) if NAME.fullmatch(key) else ""


def _plain(key: str, runs: Path) -> str:
    if not NAME.fullmatch(key):
        raise InvalidSpec(_unknown(key, runs))
    return key


def _unknown(key: str, runs: Path) -> str:
    return f"There is no job and no finished run {key!r} in {runs}; choose another, or start it."


def _needs_care(job: Job) -> bool:
    """Whether its stored state may be out of date; a healthy running job is a cheap look."""
    if job.state != "running" or job.proc is None or not process.alive(job.proc):
        return True
    asked = queue.asked_to_stop(job)
    return asked is not None and asked > queue.GRACE


def _seen(job: Job) -> Job:
    """With what is read and not stored: the newest event, and that it was asked to stop."""
    if job.state == "running" and queue.asked_to_stop(job) is not None:
        job = replace(job, state="cancelling")
    return replace(job, last=store.last_event(job.folder))


def _ended(key: str, runs: Path, job: Job | None) -> Job | None:
    """An ended job: done where a finished run is there, whoever made it; None when all is gone."""
    try:
        spec = load_head(runs / key).spec
    except InvalidSpec:
        return None if job is None or job.state == "done" else _seen(job)
    job = job or Job(key, spec, runs / FOLDER / key)
    return replace(job, state="done", message="", last=store.last_event(runs / key))


def _forget(known: list[Job], now: float) -> None:
    """Drop what only says of a run that it was done, some time ago: the run itself says more."""
    for job in known:
        if job.state == "done" and now - (job.ended or 0.0) > REMEMBERED:
            shutil.rmtree(job.folder, ignore_errors=True)
