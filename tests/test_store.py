"""Run folders: what is written is read back, damage is told, nothing is ever seen half-written."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import fake_noise
import numpy as np
import pytest
from fake_worker import record, run, spec

from qlib import store
from qlib.core.records import Event, InvalidSpec, ignore
from qlib.noise import profile as noise_profile
from qlib.store.eventlog import KEPT

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished run folder in ``tmp_path``."""
    return publish(tmp_path)


def publish(runs: Path, **settings: object) -> Path:
    of = spec(**settings)
    with store.private(runs, of.key) as folder:
        run(of, ignore, folder)
        return store.finish(folder, runs, of.key)


# ---- reading what was written -------------------------------------------------------------------


def test_a_record_comes_back_as_it_was(finished: Path) -> None:
    assert store.load(finished) == record(spec())


def test_layers_keep_their_types(finished: Path) -> None:
    row = store.load(finished).layers[0]
    assert (row["unit"], row["bits"], row["symmetric"], row["flipped"]) == ("1", 4, False, None)
    assert isinstance(row["zero_point"], float)


def test_layers_may_be_none_or_hold_what_a_table_fears(tmp_path: Path) -> None:
    layers = [record(spec()).layers[0] | {"point": 'a,"b"\nc', "unit": "", "sqnr_db": math.inf}]
    store.write_record(record(spec(), layers=layers), tmp_path)
    assert store.load(tmp_path).layers == layers
    store.write_record(record(spec(), layers=[]), tmp_path)
    assert store.load(tmp_path).layers == []


def test_predictions_come_back(finished: Path) -> None:
    preds = store.load_preds(finished)
    assert preds["ids"].tolist() == ["a", "b"]
    assert preds["thumbs"].shape == (12, 64, 64, 3)


def test_predictions_are_never_a_pickle(tmp_path: Path) -> None:
    np.savez(tmp_path / "preds.npz", ids=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidSpec, match=r"preds.npz is damaged or cut off; delete"):
        store.load_preds(tmp_path)


# ---- damage -------------------------------------------------------------------------------------


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _cut(name: str):
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return cut


def _newer(folder: Path) -> None:
    body = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(body | {"format": 99}))


def _strange(folder: Path) -> None:
    (folder / "run.json").write_text("[1, 2]")


def _unknown_field(folder: Path) -> None:
    body = json.loads((folder / "run.json").read_text())
    body["spec"]["colour"] = "red"
    (folder / "run.json").write_text(json.dumps(body))


DAMAGE = {
    "empty": (_empty, "run.json is missing, so this is no finished run; delete"),
    "no record": (lambda f: (f / "run.json").unlink(), "run.json is missing"),
    "no layers": (lambda f: (f / "layers.csv").unlink(), "layers.csv is missing"),
    "cut record": (_cut("run.json"), "run.json is damaged or cut off; delete the folder or run"),
    "newer": (_newer, "has format 99, and this version reads format 2"),
    "strange": (_strange, "has format None"),
    "field": (_unknown_field, "unknown fields: colour"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_broken_folder_says_why(finished: Path, case: str) -> None:
    damage, words = DAMAGE[case]
    damage(finished)
    with pytest.raises(InvalidSpec, match=words):
        store.load(finished)
    (entry,) = store.list_runs(finished.parent)
    assert entry.record is None
    assert entry.key in entry.problem
    assert words in entry.problem
    assert store.find(spec(), [finished.parent]) is None


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_cut_layers_are_noticed_when_loaded(finished: Path, share: float) -> None:
    file = finished / "layers.csv"
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InvalidSpec, match=r"layers.csv is damaged or cut off"):
        store.load(finished)


def test_a_row_cut_at_a_line_end_is_noticed(finished: Path) -> None:
    with (finished / "layers.csv").open("a") as out:
        out.write("blocks.1,linear\n")
    with pytest.raises(InvalidSpec, match=r"layers.csv is damaged"):
        store.load(finished)


def test_cut_predictions_say_so(finished: Path) -> None:
    _cut("preds.npz")(finished)
    with pytest.raises(InvalidSpec, match=r"preds.npz is damaged or cut off"):
        store.load_preds(finished)
    (finished / "preds.npz").unlink()
    with pytest.raises(InvalidSpec, match=r"preds.npz is missing"):
        store.load_preds(finished)


def test_a_damaged_array_inside_a_whole_archive_says_so(finished: Path) -> None:
    with zipfile.ZipFile(finished / "preds.npz", "w") as out:
        out.writestr("ids.npy", b"no array")
    with pytest.raises(InvalidSpec, match=r"preds.npz is damaged"):
        store.load_preds(finished)


# ---- many runs ----------------------------------------------------------------------------------


def test_listing_sorts_newest_first_and_broken_last(tmp_path: Path) -> None:
    for day in (2, 9, 5):
        of = spec(day=day)
        folder = tmp_path / of.key
        folder.mkdir()
        store.write_record(record(of, created=f"2025-01-0{day}"), folder)
    (tmp_path / "zz-broken").mkdir()
    (tmp_path / ".jobs").mkdir()
    (tmp_path / "notes.txt").write_text("no run")
    entries = store.list_runs(tmp_path)
    assert [e.record.spec.settings["day"] for e in entries[:3]] == [9, 5, 2]
    assert [e.key for e in entries[3:]] == ["zz-broken"]


def test_no_folder_means_no_runs(tmp_path: Path) -> None:
    assert store.list_runs(tmp_path / "none") == []
    assert store.find(spec(), [tmp_path / "none"]) is None
    assert store.stamp(tmp_path / "none") == store.stamp(tmp_path)


def test_find_takes_the_first_folder_that_has_it(tmp_path: Path) -> None:
    own, demo = tmp_path / "own", tmp_path / "demo"
    publish(demo)
    assert store.find(spec(), [own, demo]).folder.parent == demo
    publish(own)
    assert store.find(spec(), [own, demo]).folder.parent == own
    assert store.find(spec(other=1), [own, demo]) is None


def test_stamp_changes_when_runs_change(tmp_path: Path) -> None:
    stamps = [store.stamp(tmp_path)]
    folder = publish(tmp_path)
    stamps.append(store.stamp(tmp_path))
    assert store.stamp(tmp_path) == stamps[-1]
    publish(tmp_path)  # the same run again: replaced
    stamps.append(store.stamp(tmp_path))
    (folder / "run.json").unlink()
    stamps.append(store.stamp(tmp_path))
    shutil.rmtree(folder)
    assert store.stamp(tmp_path) == stamps[0]
    assert len(set(stamps)) == 4


def test_hundreds_of_runs_are_cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list opens one small file a run; a look whether something changed opens none."""
    for number in range(300):
        of = spec(number=number)
        folder = tmp_path / of.key
        folder.mkdir()
        store.write_record(record(of, layers=[]), folder)
    opened: list[str] = []
    real = open

    def counted(file, *args, **words):
        opened.append(Path(file).name)
        return real(file, *args, **words)

    monkeypatch.setattr("io.open", counted)
    monkeypatch.setattr("builtins.open", counted)
    assert len(store.list_runs(tmp_path)) == 300
    assert opened == ["run.json"] * 300
    store.stamp(tmp_path)
    assert len(opened) == 300


def test_where_runs_live(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QLIB_RUNS", raising=False)
    assert store.runs_dir() == tmp_path / "runs"
    monkeypatch.setenv("QLIB_RUNS", "~/elsewhere")
    assert store.runs_dir() == Path.home() / "elsewhere"
    assert store.demo_dir() == Path(__file__).resolve().parents[1] / "assets" / "demo"


# ---- publishing ---------------------------------------------------------------------------------


def test_a_finished_folder_replaces_the_older_one_and_leaves_nothing(tmp_path: Path) -> None:
    folder = publish(tmp_path)
    (folder / "mark").touch()
    assert publish(tmp_path) == folder
    assert not (folder / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_file_in_the_way_is_replaced(tmp_path: Path) -> None:
    (tmp_path / spec().key).write_text("in the way")
    assert store.load(publish(tmp_path)).spec == spec()


def test_an_incomplete_folder_is_not_published(tmp_path: Path) -> None:
    older = publish(tmp_path)
    with (
        pytest.raises(InvalidSpec, match=r"run.json is missing"),
        store.private(tmp_path, spec().key) as folder,
    ):
        store.finish(folder, tmp_path, spec().key)
    assert store.load(older) == record(spec())
    assert not folder.exists()


def test_readers_never_see_a_part_while_results_are_replaced(tmp_path: Path) -> None:
    """Three writers publish the same key again and again; whoever reads finds all or nothing."""
    stop, problems = threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            try:
                publish(tmp_path)
            except Exception as error:  # a thread's error would be lost
                problems.append(error)
                return

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    whole, found = {"run.json", "layers.csv", "preds.npz", "quantizers.safetensors"}, []
    for _ in range(1_000_000):  # looks, however long they take; a hundred of them meet a folder
        if len(found) > 100 or problems:
            break
        names = _published(tmp_path / spec().key)
        if names is not None:
            found.append(names)
    stop.set()
    for writer in writers:
        writer.join()
    assert problems == []
    assert len(found) > 100
    assert all(names == whole for names in found)
    assert store.load(tmp_path / spec().key) == record(spec())
    assert [path.name for path in tmp_path.iterdir()] == [spec().key]


def _published(folder: Path) -> set[str] | None:
    """The names in a folder that had its place before and after looking; else None."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        names = set(os.listdir(handle))  # noqa: PTH208 (of the open folder, wherever it goes)
        return names if folder.stat().st_ino == os.fstat(handle).st_ino else None
    except FileNotFoundError:
        return None
    finally:
        os.close(handle)


def test_leftovers_of_dead_processes_go_and_what_is_alive_stays(tmp_path: Path) -> None:
    """However long a run has been going on: its folder is swept when its process is dead."""
    with store.private(tmp_path, "living") as living:
        dead, fresh = tmp_path / ".new-dead-1", tmp_path / ".new-fresh-2"
        for folder in (dead, fresh):
            folder.mkdir()
            (folder / "preds.npz").touch()
        signs = [path for path in tmp_path.iterdir() if path.name.endswith(".owner")]
        assert [path.name for path in signs] == [f"{living.name}.owner"]
        stray = tmp_path / ".new-dead-3.owner"  # died before it had a folder
        stray.touch()
        for path in (living, dead, *signs, stray):
            os.utime(path, (time.time() - 900_000, time.time() - 900_000))
        publish(tmp_path)
        assert living.exists() and fresh.exists()
        assert not dead.exists() and not stray.exists()
    assert {path.name for path in tmp_path.iterdir()} == {".new-fresh-2", spec().key}


def test_a_killed_owner_leaves_no_claim(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from qlib import store\n"
        "with store.private(Path(sys.argv[1]), 'key') as folder: os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == 9
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    os.utime(folder, (0, 0))
    os.utime(folder.with_name(f"{folder.name}.owner"), (0, 0))
    publish(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [spec().key]


class Killed(BaseException):
    """Nothing that is meant for errors catches it."""


@pytest.mark.parametrize("swaps", [True, False])
def test_killed_while_an_older_result_is_replaced_one_of_the_two_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    """Killed at every step of `finish` in turn; without a swap, the next start puts it back."""
    place, real = tmp_path / spec().key, Path.rename
    for step in range(1, 9):
        publish(tmp_path)
        calls = []

        def rename(path: Path, target: Path, calls: list = calls, step: int = step) -> Path:
            calls.append(path)
            if len(calls) >= step:
                raise Killed
            return real(path, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", rename)
            patched.setattr(shutil, "rmtree", lambda *a, **k: None)  # a dead process tidies nothing
            if not swaps:
                patched.setattr(store, "exchange", lambda one, other: False)
            with suppress(Killed):
                publish(tmp_path)
            if swaps:
                assert store.load(place) == record(spec())
        if not swaps:
            with store.private(tmp_path, "next"):
                assert store.load(place) == record(spec())
    assert len(calls) < step  # it came to its end: every step was a last one once


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot swap folders")
def test_the_place_of_a_result_is_never_empty(tmp_path: Path) -> None:
    publish(tmp_path)
    stop, missing = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            missing.extend([1] * (not (tmp_path / spec().key / "run.json").exists()))

    looker = threading.Thread(target=look)
    looker.start()
    for _ in range(20):
        publish(tmp_path)
    stop.set()
    looker.join()
    assert missing == []


def test_an_unwritable_place_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    words = r"file/runs cannot be written \(not a directory\): name another folder with --runs"
    with pytest.raises(InvalidSpec, match=words), store.private(tmp_path / "file" / "runs", "key"):
        pass


# ---- events -------------------------------------------------------------------------------------


class Scalar:
    """Stands in for a 0-d tensor: only float() reads it, and reading is counted."""

    read = 0

    def __float__(self) -> float:
        Scalar.read += 1
        return 0.1234567891


def test_events_come_back_with_every_field(tmp_path: Path) -> None:
    ticks = iter([10.0, 10.5, 12.25])
    with store.EventLog(tmp_path, clock=lambda: next(ticks)) as log:
        log(Event("load", "digits-vit"))
        log(Event("reconstruct", "blocks.0", 1, 4, 1, 10, loss=Scalar(), penalty=math.nan))
    first, second = store.events(tmp_path)
    assert first["t"] == 0.5
    assert second["t"] == 2.25
    assert first["mb"] > 5
    assert (first["unit"], first["step"], first["loss"], first["note"]) == (
        "digits-vit",
        0,
        None,
        "",
    )
    assert (second["of"], second["loss"], second["penalty"]) == (4, 0.1235, None)
    line = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[0])
    assert set(line) == {"phase", "unit", "t", "mb"}  # empty fields take no room


def test_a_tensor_that_learns_is_read_without_a_warning(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with store.EventLog(tmp_path) as log:
        log(Event("reconstruct", "u", 1, 1, 1, 1, loss=torch.tensor(2.0, requires_grad=True)))
    assert store.events(tmp_path)[0]["loss"] == 2.0


@pytest.mark.parametrize("steps", [1, 200, 201, 1_000, 20_000])
def test_long_reconstructions_are_thinned(tmp_path: Path, steps: int) -> None:
    Scalar.read = 0
    with store.EventLog(tmp_path) as log:
        for unit in (1, 2):
            for step in range(1, steps + 1):
                log(Event("reconstruct", f"blocks.{unit}", unit, 2, step, steps, loss=Scalar()))
    seen = store.events(tmp_path)
    own = [event["step"] for event in seen if event["index"] == 2]
    assert (own[0], own[-1]) == (1, steps)
    assert min(steps, KEPT // 2) <= len(own) <= KEPT + 2
    assert Scalar.read == len(seen)  # what is not kept is not read: reading waits for a device


def test_other_phases_are_kept_whole(tmp_path: Path) -> None:
    with store.EventLog(tmp_path) as log:
        for done in range(128, 1281, 128):
            log(Event("evaluate", "float", step=done, steps=1280))
    assert len(store.events(tmp_path)) == 10


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with store.EventLog(tmp_path) as log:
        for index in range(5):
            log(Event("calibrate", f"layer {index}"))
        assert len(store.events(tmp_path)) == 5  # flushed at once
        log(Event("save"))
    assert [event["phase"] for event in store.events(tmp_path, 5)] == ["save"]
    assert store.events(tmp_path, 6) == []


def test_a_torn_last_line_waits(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"phase": "load", "t": 1.0, "mb": 9.0}\n{"phase": "calib')
    assert [event["phase"] for event in store.events(tmp_path)] == ["load"]
    assert store.last_event(tmp_path)["t"] == 1.0
    with file.open("ab") as out:
        out.write(b'rate"}\n')
    assert [event["phase"] for event in store.events(tmp_path, 1)] == ["calibrate"]
    assert store.last_event(tmp_path)["phase"] == "calibrate"


def test_no_events_yet(tmp_path: Path) -> None:
    assert store.events(tmp_path) == []
    assert store.last_event(tmp_path) is None
    (tmp_path / "events.jsonl").touch()
    assert store.last_event(tmp_path) is None


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of files")
@pytest.mark.parametrize("most", [0, 100, 700])
def test_a_disk_that_is_full_at_any_size_is_told_and_the_older_run_stays(
    tmp_path: Path, most: int
) -> None:
    """A limit on the size of files stands for the disk: what is written breaks off at ``most``."""
    import resource

    older = publish(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = noise_profile.NoiseProfile(spec(), fake_noise.layers(1), 3, 128)
    for write in (
        lambda folder: store.write_record(record(spec()), folder),
        lambda folder: noise_profile.save(folder, noise),
    ):
        with store.private(tmp_path, spec().key) as folder:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
            try:
                with pytest.raises(InvalidSpec, match="name another"):
                    write(folder)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.load(older) == record(spec())
    assert [path.name for path in tmp_path.iterdir()] == [older.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    words = "There is no space left on the disk of .*: free some, or name another folder"
    with store.EventLog(tmp_path) as log, pytest.raises(InvalidSpec, match=words):
        log(Event("load"))


def test_an_event_log_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"none cannot be written \(no such file or directory\)"):
        store.EventLog(tmp_path / "none")
