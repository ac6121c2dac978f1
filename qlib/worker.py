"""The process of a background job: ``python -m qlib.worker RUNS/.jobs/KEY`` runs its spec.json."""

import faulthandler
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from qlib import jobs, store
from qlib.core.records import Cancelled, Event, InvalidSpec, Report, RunSpec
from qlib.jobs import queue
from qlib.jobs.queue import CANCEL, OUT, Job
from qlib.store.disk import FULL, disk_trouble
from qlib.store.eventlog import FILE, EventLog

LOOK_EVERY = 0.1  # seconds between looks for the CANCEL flag
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")

Runner = Callable[[RunSpec, Report, Path], object]


class Reporter:
    """A job's report callback: stores each event, and stops the run when someone asked for it.

    Raises:
        Cancelled: the flag file is there.
    """

    def __init__(self, log: EventLog, flag: Path) -> None:
        self._log, self._flag, self._looked = log, flag, float("-inf")
        self.last: Event | None = None

    def __call__(self, event: Event) -> None:
        self.last = event
        self._log(event)
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            self.look()

    def look(self) -> None:
        """Raise `Cancelled` when someone asked the job to stop."""
        if self._flag.exists():
            raise Cancelled


def main(folder: Path, runner: Runner | None = None, command: Sequence[str] = jobs.WORKER) -> int:
    """Run the job of ``folder`` to its end, then start the next in the queue; 0 when it is done.

    ``runner`` does the work (default: `qlib.pipeline.run.run`); ``command`` starts the next worker.
    """
    folder = folder.absolute()
    job = queue.claim(folder)
    if job is None:
        return 0
    state, message = _work(job, runner or _run)
    queue.close(job, state, message, command)
    return 0 if state == "done" else 1


def _run(spec: RunSpec, report: Report, folder: Path) -> object:
    from qlib.pipeline.run import (
        run,  # loads torch: seconds, which a cancelled job need not wait for
    )

    return run(spec, report, folder, [folder.parents[2], store.demo_dir()])


def _work(job: Job, runner: Runner) -> tuple[str, str]:
    """Do the work and publish its folder; the state the job ends in, and why."""
    out = job.folder / OUT
    shutil.rmtree(out, ignore_errors=True)
    try:
        out.mkdir()
        with EventLog(job.folder) as log:
            report = Reporter(log, job.folder / CANCEL)
            try:
                report.look()
                runner(job.spec, report, out)
            except Exception as error:
                return _ended(error, report.last, job)
        shutil.copyfile(job.folder / FILE, out / FILE)
        store.finish(out, job.folder.parents[1], job.key)
        (job.folder / FILE).unlink()
    except Exception as error:
        return _ended(error, None, job)
    return "done", ""


def _ended(error: Exception, last: Event | None, job: Job) -> tuple[str, str]:
    if isinstance(error, Cancelled):
        return "cancelled", ""
    if not isinstance(error, InvalidSpec):
        traceback.print_exception(error)  # standard error of a worker is its log.txt
    return "failed", sentence(error, last, job.spec, job.folder)


def sentence(error: Exception, last: Event | None, spec: RunSpec, folder: Path) -> str:
    """Why a run failed, in one sentence for people: `InvalidSpec`'s own, others put into words."""
    if isinstance(error, InvalidSpec):
        return str(error)
    where = "" if last is None else f" during {' '.join(filter(None, (last.phase, last.unit)))}"
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in OUT_OF_MEMORY):
        images = f"calibration images (now {spec.calib})"
        if last is not None and last.phase == "profile":
            images = f"test images (now {last.steps or spec.test})"
        return (
            f"There was not enough memory{where}: use fewer {images}, or a smaller network, or "
            "close other programs."
        )
    if isinstance(error, OSError) and error.errno in FULL:
        return disk_trouble(error, folder)
    return f"The run stopped by a fault of its own{where}: {type(error).__name__}: {text[:300]}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m qlib.worker RUNS/.jobs/KEY")
    faulthandler.enable()  # a crash inside a C library leaves its place in log.txt
    sys.exit(main(Path(sys.argv[1])))
