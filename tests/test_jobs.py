"""Jobs are processes that outlive the app: queue, crash, restart, cancel, and nothing half-done."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from fake_worker import COMMAND, spec

from qlib import jobs, store, worker
from qlib.core import process
from qlib.core.process import Proc
from qlib.core.records import InvalidSpec, RunSpec
from qlib.jobs import Job, queue
from qlib.sensitivity import profile

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty runs folder; whatever still runs in it at the end is killed."""
    monkeypatch.delenv("QLIB_JOBS", raising=False)
    folder = tmp_path / "runs"
    yield folder
    with queue.moving(folder):  # so that nobody starts the next one meanwhile
        for job in queue.read_all(folder):
            if job.state == "queued":
                queue.end(job, "cancelled")
            elif job.proc:
                process.kill(job.proc)


def submit(of: RunSpec, runs: Path) -> Job:
    return jobs.submit(of, runs, command=COMMAND)


def status(of: RunSpec, runs: Path) -> Job:
    return jobs.status(of.key, runs, command=COMMAND)


def wait(until: Callable[[], object], seconds: float = 60.0) -> None:
    """Look until it came true; ``seconds`` end a test that waits in vain and decide nothing."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def stepping(of: RunSpec, runs: Path) -> Callable[[], bool]:
    """Whether the job has made its first step."""
    return lambda: ((status(of, runs).last or {}).get("step") or 0) >= 1


SLOW = {"steps": 2000, "pause": 0.01}  # 20 s unless someone ends it


# ---- the usual way ------------------------------------------------------------------------------


def test_a_job_runs_to_done(runs: Path) -> None:
    job = submit(spec(), runs)
    assert job.state == "running"
    assert job.run_dir is None
    wait(lambda: status(spec(), runs).over)
    job = status(spec(), runs)
    assert (job.state, job.message, job.key) == ("done", "", spec().key)
    assert job.run_dir == runs / job.key
    assert store.load(job.run_dir).spec == spec()
    assert {f.name for f in job.run_dir.iterdir()} == {
        "run.json", "layers.csv", "preds.npz", "quantizers.safetensors", "events.jsonl",
    }  # fmt: skip
    assert [e["step"] for e in jobs.events(job.key, runs, 1)] == [1, 2, 3]
    assert json.loads((job.folder / "job.json").read_text())["state"] == "done"
    assert [e.name for e in runs.iterdir() if e.name != ".jobs"] == [job.key]


def test_a_finished_run_is_not_run_again(runs: Path) -> None:
    submit(spec(), runs)
    wait(lambda: status(spec(), runs).over)
    before = (runs / spec().key).stat().st_ino
    again = submit(spec(), runs)
    assert (again.state, again.submitted) == ("done", status(spec(), runs).submitted)
    shutil.rmtree(runs / ".jobs")  # as for a run that the command line made
    assert submit(spec(), runs).state == "done"
    assert jobs.list_jobs(runs) == []
    assert (runs / spec().key).stat().st_ino == before


def test_a_deleted_result_can_be_made_again(runs: Path) -> None:
    submit(spec(), runs)
    wait(lambda: status(spec(), runs).over)
    shutil.rmtree(runs / spec().key)
    with pytest.raises(InvalidSpec, match="There is no job and no finished run"):
        status(spec(), runs)
    assert jobs.list_jobs(runs) == []
    assert submit(spec(), runs).state == "running"
    wait(lambda: status(spec(), runs).state == "done")


def test_events_are_read_while_it_runs(runs: Path) -> None:
    of = spec(steps=2000, pause=0.01)
    submit(of, runs)
    wait(stepping(of, runs))
    first = jobs.events(of.key, runs)
    wait(lambda: jobs.events(of.key, runs, len(first)))
    assert jobs.events(of.key, runs)[: len(first)] == first


def test_the_worker_starts_quietly_in_the_project(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.parent)
    monkeypatch.setattr(process, "cores", lambda: 8)
    monkeypatch.setenv("QLIB_JOBS", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    jobs.submit(spec(), Path("runs"), command=COMMAND)  # a relative folder will do
    wait(lambda: status(spec(), runs).over)
    assert jobs.events(spec().key, runs)[0]["note"] == f"threads 2 PASSIVE in {ROOT}"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # who allows less gets less
    submit(spec(second=1), runs)
    wait(lambda: status(spec(second=1), runs).over)
    assert "threads 1" in jobs.events(spec(second=1).key, runs)[0]["note"]


# ---- the queue ----------------------------------------------------------------------------------


def test_the_second_waits_and_starts_when_nobody_looks(runs: Path) -> None:
    first, second, third = (spec(steps=20, pause=0.02, n=n) for n in range(3))
    assert submit(first, runs).state == "running"
    assert (submit(second, runs).state, submit(third, runs).place) == ("queued", 2)
    assert status(second, runs).place == 1
    assert [job.place for job in jobs.list_jobs(runs, command=COMMAND)] == [0, 1, 2]
    wait(lambda: all((runs / of.key / "run.json").exists() for of in (first, second, third)))
    wait(lambda: status(third, runs).state == "done")
    spans = [(job.started, job.ended) for job in map(lambda of: status(of, runs), (first, second))]
    assert spans[0][1] <= spans[1][0]  # one at a time
    newest_first = [job.key for job in jobs.list_jobs(runs)]
    assert newest_first == [third.key, second.key, first.key]


def test_two_slots_run_two(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLIB_JOBS", "2")
    states = [submit(spec(n=n, **SLOW), runs).state for n in range(3)]
    assert states == ["running", "running", "queued"]


def test_equal_submissions_make_one_job(runs: Path) -> None:
    seen: list[Job] = []
    threads = [
        threading.Thread(target=lambda: seen.append(submit(spec(**SLOW), runs))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(job.pid, job.submitted) for job in seen}) == 1
    assert len(seen) == 8
    assert len(jobs.list_jobs(runs, command=COMMAND)) == 1


@pytest.mark.parametrize("text", ["0", "many", "-1", "1.5"])
def test_a_wrong_number_of_slots_is_told(
    runs: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("QLIB_JOBS", text)
    with pytest.raises(InvalidSpec, match=f"QLIB_JOBS must be a whole number .* got '{text}'"):
        submit(spec(), runs)
    monkeypatch.delenv("QLIB_JOBS")


# ---- death --------------------------------------------------------------------------------------


def test_a_killed_worker_is_seen_as_crashed_with_its_last_event(runs: Path) -> None:
    of, waiting = spec(**SLOW), spec(n=2)
    submit(of, runs)
    submit(waiting, runs)
    wait(stepping(of, runs))
    os.kill(status(of, runs).pid, signal.SIGKILL)
    wait(lambda: status(of, runs).state == "crashed")
    job = status(of, runs)
    assert job.last["unit"] == "blocks.0"
    assert job.last["step"] >= 1
    assert job.message == (
        "The job's process was killed, most often because the machine ran out of memory (SIGKILL), "
        "during reconstruct blocks.0; use fewer images or a smaller network, close other programs, "
        "and start it again."
    )
    assert job.message.count(". ") == 0  # one sentence
    assert not psutil.pid_exists(job.pid)  # buried, no zombie is left
    wait(lambda: status(waiting, runs).state == "done")  # the look moved the queue
    assert submit(of, runs).state == "running"  # anew
    assert (status(of, runs).message, status(of, runs).pid == job.pid) == ("", False)


def test_a_job_survives_the_app_and_is_found_again(runs: Path) -> None:
    app = textwrap.dedent(f"""
        import sys, time
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        from pathlib import Path
        from fake_worker import COMMAND, spec
        from qlib import jobs
        jobs.submit(spec(steps=60, pause=0.02), Path({str(runs)!r}), command=COMMAND)
        print("submitted", flush=True)
        time.sleep(60)
    """)
    server = subprocess.Popen([sys.executable, "-c", app], stdout=subprocess.PIPE)
    with server:
        assert server.stdout.readline() == b"submitted\n"
        server.kill()
    of = spec(steps=60, pause=0.02)
    assert status(of, runs).state == "running"
    seen = 0
    while not status(of, runs).over:
        seen += len(jobs.events(of.key, runs, seen))
        time.sleep(0.02)
    seen += len(jobs.events(of.key, runs, seen))
    assert status(of, runs).state == "done"
    assert seen == 61


def test_a_worker_whose_starter_died_early_is_not_started_twice(runs: Path) -> None:
    """The starter was killed between starting the process and storing its number."""
    of = spec(steps=100, pause=0.01)
    runs.mkdir()
    jobs._queue_up(runs, of, time.time())
    folder = runs / ".jobs" / of.key
    orphan = subprocess.Popen([*COMMAND, str(folder)])
    wait(lambda: (folder / "events.jsonl").exists())
    assert status(of, runs).pid == orphan.pid
    late = subprocess.run([*COMMAND, str(folder)], check=True, timeout=20)
    assert late.returncode == 0  # it went home
    assert orphan.wait(20) == 0
    assert len(store.events(runs / of.key)) == 101


def test_a_job_without_a_process_is_crashed(runs: Path) -> None:
    of = spec(**SLOW)
    runs.mkdir()
    jobs._queue_up(runs, of, time.time())
    stored = queue.read(runs, of.key)
    queue.write(replace(stored, state="running"))
    assert status(of, runs).state == "crashed"
    assert "before its first step" in status(of, runs).message


def test_another_process_with_the_same_number_is_no_worker(runs: Path) -> None:
    of = spec(**SLOW)
    runs.mkdir()
    jobs._queue_up(runs, of, time.time())
    created = psutil.Process().create_time() - 3600
    queue.write(
        replace(queue.read(runs, of.key), state="running", pid=os.getpid(), created=created)
    )
    assert status(of, runs).state == "crashed"
    jobs.kill(of.key, runs, command=COMMAND)  # and this process is still here
    assert not process.alive(Proc(os.getpid(), created))


def test_a_torn_job_folder_is_passed_over_and_replaced(runs: Path) -> None:
    folder = runs / ".jobs" / spec().key
    folder.mkdir(parents=True)
    (folder / "job.json").write_text('{"state": "runn')
    assert jobs.list_jobs(runs) == []
    assert submit(spec(), runs).state == "running"
    wait(lambda: status(spec(), runs).state == "done")


def test_a_result_that_came_another_way_counts(runs: Path) -> None:
    """The worker was killed after its folder was renamed and before it could say so."""
    submit(spec(), runs)
    wait(lambda: status(spec(), runs).over)
    job = queue.read(runs, spec().key)
    queue.write(replace(job, state="running", pid=2**22 - 1, created=0.0))
    assert status(spec(), runs).state == "done"
    queue.end(job, "failed", "It failed once.")
    assert (status(spec(), runs).state, status(spec(), runs).message) == ("done", "")


@pytest.mark.parametrize("older", [False, True], ids=["new", "over an older result"])
def test_killed_at_any_moment_a_run_is_whole_or_absent(runs: Path, older: bool) -> None:
    """``chance`` picks the moment; that there were some before and some after is made sure of."""
    of, chance, ends = spec(steps=2, pause=0.01), random.Random(7 + older), {True: 0, False: 0}
    folder, target = runs / ".jobs" / of.key, runs / of.key
    if older:
        submit(of, runs)
        wait(lambda: status(of, runs).over)
    while min(ends.values()) < 2 or sum(ends.values()) < 25:
        if not older:
            shutil.rmtree(target, ignore_errors=True)
        with queue.moving(runs):
            jobs._queue_up(runs, of, time.time())
            (job,) = queue.settle(runs, COMMAND)
        gone = partial(lambda proc: not process.alive(proc), job.proc)
        wait(lambda: (folder / "events.jsonl").exists() or gone())  # noqa: B023 (called here)
        if ends[True] >= 2 or ends[False] < 2:
            time.sleep(chance.uniform(0, 0.04))
        else:  # a slow machine: wait for the end
            wait(gone)
        published = not (folder / "events.jsonl").exists()
        process.kill(job.proc)
        wait(gone)
        assert target.exists() or not older  # the older result or the new one, never none
        if target.exists():
            assert store.load(target).spec == of
            assert store.load_preds(target)["thumbs"].shape == (12, 64, 64, 3)
            assert len(store.events(target)) == 3
        assert all(entry.record for entry in store.list_runs(runs))
        assert status(of, runs).state == ("done" if target.exists() else "crashed")
        ends[published] += 1


# ---- stopping, and failing ----------------------------------------------------------------------


def test_cancel_ends_a_job_at_its_next_step(runs: Path) -> None:
    of, waiting = spec(**SLOW), spec(n=2)
    submit(of, runs)
    submit(waiting, runs)
    wait(stepping(of, runs))
    assert jobs.cancel(of.key, runs, command=COMMAND).state in ("cancelling", "cancelled")
    done = len(jobs.events(of.key, runs))
    wait(lambda: status(of, runs).state == "cancelled")
    assert len(jobs.events(of.key, runs)) <= done + 1
    assert (status(of, runs).message, status(of, runs).last["phase"]) == ("", "reconstruct")
    wait(lambda: (runs / waiting.key).exists())  # the worker itself started the next
    assert not (runs / of.key).exists()
    assert jobs.cancel(of.key, runs, command=COMMAND).state == "cancelled"  # twice does no harm
    assert submit(of, runs).state in ("queued", "running")


def test_a_cancelled_analysis_keeps_what_it_measured(runs: Path) -> None:
    """Partial rows stay readable; the analysis and the run that it is of are jobs side by side."""
    base = spec(**SLOW)
    of = profile.spec_of(base)
    assert of.key != base.key
    submit(of, runs)
    wait(lambda: len(profile.partial(runs / ".jobs" / of.key)) >= 2)
    assert submit(base, runs).place == 1
    jobs.cancel(of.key, runs, command=COMMAND)
    wait(lambda: status(of, runs).state == "cancelled")
    rows = profile.partial(status(of, runs).folder)
    assert [(r["mode"], r["split"], r["layer"]) for r in rows[:2]] == [
        ("alone", "both", "blocks.1"), ("alone", "both", "blocks.2"),
    ]  # fmt: skip
    assert rows[1]["kl"] == 0.5
    assert store.list_runs(runs) == []
    wait(lambda: status(base, runs).state == "running")


def test_a_finished_analysis_is_a_run_of_its_own(runs: Path) -> None:
    of = profile.spec_of(spec(steps=4))
    submit(of, runs)
    wait(lambda: status(of, runs).over)
    job = status(of, runs)
    assert (job.state, job.run_dir) == ("done", runs / of.key)
    assert [row["kl"] for row in profile.load(job.run_dir)] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert len(profile.partial(job.run_dir)) == 4
    assert store.find(profile.base_of(of), [runs]) is None
    assert profile.bases(of, [runs]) == []


def test_the_worker_names_the_folders_of_stored_runs(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    fake = SimpleNamespace(run=lambda *given: asked.append(given))
    monkeypatch.setitem(sys.modules, "qlib.pipeline.run", fake)
    monkeypatch.setenv("QLIB_DEMO", str(runs.parent / "demo"))
    worker._run(spec(), print, runs / ".jobs" / spec().key / "out")
    assert asked[0][3] == [runs, runs.parent / "demo"]


def test_a_waiting_job_is_cancelled_at_once(runs: Path) -> None:
    submit(spec(**SLOW), runs)
    waiting = spec(n=2)
    submit(waiting, runs)
    assert jobs.cancel(waiting.key, runs, command=COMMAND).state == "cancelled"
    assert status(waiting, runs).place == 0


def test_a_job_cancelled_before_its_first_step_does_nothing(runs: Path) -> None:
    submit(spec(**SLOW), runs)
    jobs.cancel(spec(**SLOW).key, runs, command=COMMAND)
    wait(lambda: status(spec(**SLOW), runs).over)
    assert jobs.events(spec(**SLOW).key, runs) == []


def test_who_does_not_listen_is_killed_after_a_while(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "GRACE", 0.5)
    of = spec(steps=1, fault="deaf")
    submit(of, runs)
    wait(stepping(of, runs))
    job = jobs.cancel(of.key, runs, command=COMMAND)
    assert job.state == "cancelling"
    wait(lambda: status(of, runs).over)
    assert status(of, runs).state == "cancelled"
    assert status(of, runs).message == "It did not stop within 0.5 s and was killed."
    wait(lambda: not process.alive(job.proc))


def test_kill_takes_the_whole_group(runs: Path) -> None:
    of, waiting = spec(steps=1, fault="deaf", child=True), spec(n=2)
    submit(of, runs)
    submit(waiting, runs)
    wait(stepping(of, runs))
    job = status(of, runs)
    (child,) = psutil.Process(job.pid).children()
    assert jobs.kill(of.key, runs, command=COMMAND).state == "cancelled"
    assert status(of, runs).message == "It was killed on request."
    wait(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    wait(lambda: status(waiting, runs).state == "done")
    assert jobs.kill(waiting.key, runs, command=COMMAND).state == "done"  # too late


FAULTS = {
    "refused": r"^The loss of blocks\.0 is nan at iteration 3; try a smaller learning rate\.$",
    "memory": r"^There was not enough memory during reconstruct blocks\.0: use .* \(now 256\)",
    "torch": r"^There was not enough memory during reconstruct blocks\.0",
    "disk": r"^There is no space left on the disk of .*: free some, or name another folder",
    "bug": r"^The run stopped by a fault of its own during reconstruct blocks\.0: KeyError: 'block",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_job_says_why_in_a_sentence(runs: Path, fault: str) -> None:
    of = spec(fault=fault)
    submit(of, runs)
    wait(lambda: status(of, runs).over)
    job = status(of, runs)
    assert job.state == "failed"
    with pytest.raises(InvalidSpec, match=FAULTS[fault]):
        raise InvalidSpec(job.message)
    assert "Traceback" not in job.message
    assert ("Traceback" in job.log.read_text()) == (fault != "refused")
    assert (job.run_dir, job.last["step"]) == (None, 3)
    assert store.list_runs(runs) == []
    assert submit(of, runs).submitted > job.submitted  # anew


def test_a_worker_that_cannot_be_started_is_told(runs: Path) -> None:
    job = jobs.submit(spec(), runs, command=["/no/such/python"])
    assert job.state == "failed"
    assert job.message == "The job's process could not be started: No such file or directory."


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SIGSEGV", "touched memory that is not its own"),
        ("SIGABRT", "gave up inside a compiled library"),
        ("SIGFPE", "divided by zero"),
    ],
)
@pytest.mark.parametrize("whose", ["ours", "of nobody"])
def test_a_signal_is_told_with_its_meaning_and_the_unit(
    runs: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str, whose: str
) -> None:
    if whose == "of nobody":  # started by another worker: no exit code, but the log tells
        monkeypatch.setattr(process, "exit_code", lambda proc: None)
    of = spec(fault=name)
    submit(of, runs)
    wait(lambda: status(of, runs).over)
    job = status(of, runs)
    assert job.state == "crashed"
    assert job.message.startswith(f"The job's process {words}")
    assert f"({name}), during reconstruct blocks.0; " in job.message
    assert "\n" not in job.message


def test_the_last_words_of_a_dead_worker_are_told(runs: Path) -> None:
    broken = [sys.executable, "-c", "import no_such_library"]
    jobs.submit(spec(), runs, command=broken)
    wait(lambda: jobs.status(spec().key, runs, command=broken).over)
    job = jobs.status(spec().key, runs)
    assert job.state == "crashed"
    assert job.message == (
        "The job's process ended before its first step (exit code 1); the last line of its log "
        "is: ModuleNotFoundError: No module named 'no_such_library'"
    )


def test_done_jobs_are_forgotten_and_their_runs_are_not(runs: Path) -> None:
    submit(spec(), runs)
    wait(lambda: status(spec(), runs).over)
    job = queue.read(runs, spec().key)
    queue.write(replace(job, ended=time.time() - jobs.REMEMBERED - 1))
    submit(spec(n=2), runs)
    assert [job.key for job in jobs.list_jobs(runs, command=COMMAND)] == [spec(n=2).key]
    assert status(spec(), runs).state == "done"


def test_a_worker_without_a_job_goes_home(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / ".jobs" / "none"
    folder.mkdir(parents=True)
    assert subprocess.run([*COMMAND, str(folder)], timeout=20).returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "qlib.worker"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "usage: python -m qlib.worker RUNS/.jobs/KEY\n")


def test_peak_memory_is_a_process_own(tmp_path: Path) -> None:
    """A large parent must not be charged to the small process that it starts."""
    ballast = bytearray(b"1") * 300_000_000
    command = [sys.executable, "-c", "from qlib.core.process import peak_mb; print(peak_mb())"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.peak_mb() > len(ballast) / 1e6
    assert 5 < float(done.stdout) < 150


# ---- what may come in ---------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", ".jobs", "../secret", "a/b", "unknown_W4A4"])
def test_a_key_from_an_address_bar_is_only_a_name(runs: Path, key: str) -> None:
    runs.mkdir()
    shutil.copytree(ROOT / "tests", runs.parent / "secret")
    for ask in (jobs.status, jobs.cancel, jobs.kill):
        with pytest.raises(
            InvalidSpec, match=r"There is no job and no finished run .*choose another"
        ):
            ask(key, runs)


def test_an_unwritable_runs_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(InvalidSpec, match=r"runs cannot be written \(.*\): name another folder"):
        submit(spec(), tmp_path / "runs")


def test_looking_makes_no_folder(runs: Path) -> None:
    assert jobs.list_jobs(runs) == []
    assert not runs.exists()


def test_paths_are_made_absolute_when_submitted(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").touch()
    submit(spec(**SLOW), runs)
    job = submit(replace(spec(), weights="w.safetensors"), runs)
    assert job.spec.weights == str(tmp_path / "w.safetensors")
    assert job.key == job.spec.key


def test_the_real_worker_does_a_real_run(runs: Path) -> None:
    from qlib.core.specs import checked

    pytest.importorskip("torch")
    of = checked(replace(spec(), test=20, calib=8))
    job = jobs.submit(of, runs)
    wait(lambda: jobs.status(of.key, runs).over, 120)
    job = jobs.status(of.key, runs)
    assert (job.state, job.message) == ("done", "")
    record = store.load(job.run_dir)
    assert record.metrics["n"] == 20
    phases = [event["phase"] for event in jobs.events(of.key, runs)]
    assert [phases[0], phases[-1]] == ["load", "save"]
    assert "torch" not in job.log.read_text()  # no warnings, no noise
