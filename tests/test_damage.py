"""Damaged run and job folders: each is told with its reason, and no page breaks.

One good folder of each kind is made; every case spoils one thing of a copy. What is wrong in
``run.json`` keeps a folder from being listed as a run at all, so all such folders are put among the
runs at once; where a companion file is wrong, the pages that read it are opened with that run.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_noise
import fake_profiles
import fake_runs
import fake_widths
import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from qlib import jobs, store
from qlib.core.records import InvalidSpec, RunSpec
from qlib.core.specs import checked
from qlib.noise import profile as noise_profile
from qlib.sensitivity import profile
from qlib.store import runfolder, tensors

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(f"pages/{path.name}" for path in (ROOT / "pages").glob("[0-9]*.py"))
START, RUN, VALUES, BLAME, NOISE, LEARNED, BITS, COMPARE = PAGES[1:]
SPEC = checked(RunSpec("digits-vit", "digits", "brecq"))
GOOD = {
    "run": lambda folder: fake_runs.write_run(folder, SPEC),
    "profile": lambda folder: fake_profiles.write(folder, SPEC),
    "noise": lambda folder: fake_noise.write(folder, SPEC),
    "widths": fake_widths.write,
}
Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, Path]:
    """A finished folder of each kind; copy before use."""
    place = tmp_path_factory.mktemp("good")
    return {kind: write(place / kind) for kind, write in GOOD.items()}


# ---- how to spoil a file ----------------------------------------------------------------------

DEEP = "[" * 100_000


def said(*path: str, value: object) -> Spoil:
    """Another value in a JSON file: its name, then the way down to the field."""

    def spoil(folder: Path) -> None:
        file = folder / path[0]
        body = json.loads(file.read_text())
        inner = body
        for step in path[1:-1]:
            inner = inner[step]
        inner[path[-1]] = value
        file.write_text(json.dumps(body))

    return spoil


def without(*path: str) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / path[0]
        body = json.loads(file.read_text())
        inner = body
        for step in path[1:-1]:
            inner = inner[step]
        del inner[path[-1]]
        file.write_text(json.dumps(body))

    return spoil


def cell(file: str, column: str, value: str) -> Spoil:
    """Another text in the first row of a table."""

    def spoil(folder: Path) -> None:
        head, first, *rest = (folder / file).read_text().splitlines()
        cells = first.split(",")
        cells[head.split(",").index(column)] = value
        (folder / file).write_text("\n".join([head, ",".join(cells), *rest]) + "\n")

    return spoil


def array(file: str, name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Spoil:
    """Another array in an archive; None: it is left out."""

    def spoil(folder: Path) -> None:
        with np.load(folder / file) as found:
            arrays = dict(found)
        made = change(arrays.pop(name))
        if made is not None:
            arrays[name] = made
        np.savez(folder / file, **arrays)

    return spoil


def first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(found: np.ndarray) -> np.ndarray:
        found = found.copy()
        found.flat[0] = value
        return found

    return change


def text(file: str, content: str | bytes) -> Spoil:
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / file).write_bytes(content)


def gone(file: str) -> Spoil:
    return lambda folder: (folder / file).unlink()


def cut(file: str) -> Spoil:
    return lambda folder: os.truncate(folder / file, (folder / file).stat().st_size // 2)


def huge(file: str) -> Spoil:
    return lambda folder: os.truncate(folder / file, 2_000_000_000)  # takes no room: it is sparse


def in_place(file: str, make: Callable[[Path], object]) -> Spoil:
    """Something that is no regular file."""

    def spoil(folder: Path) -> None:
        (folder / file).unlink()
        make(folder / file)

    return spoil


def circle(path: Path) -> None:
    path.symlink_to(path.name)


# ---- what is wrong, and the words that tell it -------------------------------------------------

NOT_A_NUMBER, ENDLESS = float("nan"), float("inf")
METRIC = ("run.json", "metrics")

RECORDS: dict[str, tuple[Spoil, str]] = {
    "empty": (text("run.json", ""), "run.json is damaged or cut off"),
    "binary": (text("run.json", bytes(range(256))), "run.json is damaged or cut off"),
    "cut": (cut("run.json"), "run.json is damaged or cut off"),
    "deep": (text("run.json", DEEP), "run.json is damaged (its lists are nested too deeply)"),
    "huge": (huge("run.json"), "run.json is damaged (it has 2,000,000,000 bytes"),
    "missing": (gone("run.json"), "run.json is missing"),
    "folder": (in_place("run.json", Path.mkdir), "run.json cannot be read (is a directory)"),
    "pipe": (in_place("run.json", os.mkfifo), "run.json cannot be read (not a regular file)"),
    "device": (in_place("run.json", lambda p: p.symlink_to("/dev/zero")), "not a regular file"),
    "circle": (in_place("run.json", circle), "run.json cannot be read (too many levels"),
    "list": (text("run.json", "[1, 2]"), "has format None"),
    "number": (text("run.json", "9" * 5000), "run.json is damaged or cut off"),
    "older": (said("run.json", "format", value=1), "comes from an earlier version (format 1"),
    "newer": (said("run.json", "format", value=99), "has format 99, and this version reads"),
    "format text": (said("run.json", "format", value="2" * 99), "has format str"),
    "metrics text": (said(*METRIC, value="good"), "metrics must be an object"),
    "metrics empty": (said(*METRIC, value={}), "metrics.agreement is missing"),
    "metrics null": (said(*METRIC, value=None), "metrics must be an object"),
    "metrics gone": (without(*METRIC), "metrics is missing"),
    "top1 null": (said(*METRIC, "top1", value=None), "metrics.top1 must be a number"),
    "top1 text": (said(*METRIC, "top1", value="91"), "metrics.top1 must be a number"),
    "top1 nan": (said(*METRIC, "top1", value=NOT_A_NUMBER), "metrics.top1 must be a "),
    "top1 infinite": (said(*METRIC, "top1", value=ENDLESS), "metrics.top1 must be a "),
    "top1 huge": (said(*METRIC, "top1", value=1e300), "metrics.top1 must be a number from 0 to"),
    "top1 list": (said(*METRIC, "top1", value=[91.0]), "metrics.top1 must be a number"),
    "top1 true": (said(*METRIC, "top1", value=True), "metrics.top1 must be a number"),
    "top1 gone": (without(*METRIC, "top1"), "metrics.top1 is missing"),
    "n zero": (said(*METRIC, "n", value=0), "metrics.n must be a number from 1"),
    "kl digits": (said(*METRIC, "kl", value=10**400), "metrics.kl must be a number from"),
    "no size": (said(*METRIC, "weight_mb", value=0.0), "metrics.weight_mb must be"),
    "seconds null": (said("run.json", "seconds", value=None), "seconds must be"),
    "total text": (said("run.json", "seconds", "total", value="1"), "seconds.total must be"),
    "spec list": (said("run.json", "spec", value=[]), "spec must be an object"),
    "spec gone": (without("run.json", "spec"), "spec is missing"),
    "model null": (said("run.json", "spec", "model", value=None), "spec.model must be text"),
    "model number": (said("run.json", "spec", "model", value=7), "spec.model must be text"),
    "model long": (said("run.json", "spec", "model", value="x" * 10**6), "at most 10,000"),
    "method null": (said("run.json", "spec", "method", value=None), "spec.method must be text"),
    "method gone": (said("run.json", "spec", "method", value="gone"), "is none of this version's"),
    "bits text": (said("run.json", "spec", "weight_bits", value="4"), "spec.weight_bits must be"),
    "bits null": (said("run.json", "spec", "act_bits", value=None), "spec.act_bits must be"),
    "bits true": (said("run.json", "spec", "act_bits", value=True), "spec.act_bits must be"),
    "bits list": (said("run.json", "spec", "weight_bits", value=[4]), "spec.weight_bits must be"),
    "bits many": (said("run.json", "spec", "weight_bits", value=99), "weight_bits must be in"),
    "analysis": (said("run.json", "spec", "analysis", value="magic"), "analysis must be one of"),
    "unknown field": (said("run.json", "spec", "colour", value=1), "unknown fields: colour"),
    "settings list": (said("run.json", "spec", "settings", value=[]), "settings must be"),
    "steps text": (said("run.json", "spec", "settings", "steps", value="x"), "settings.steps must"),
    "setting list": (said("run.json", "spec", "settings", "w", value=[]), "settings.w must be"),
    "kept text": (said("run.json", "spec", "keep_float", value="head"), "keep_float must be"),
    "test zero": (said("run.json", "spec", "test", value=0), "test must be"),
    "calib text": (said("run.json", "spec", "calib", value="all"), "spec.calib must be"),
    "peak null": (said("run.json", "peak_mb", value=None), "peak_mb must be"),
    "created null": (said("run.json", "created", value=None), "created must be text"),
    "notes text": (said("run.json", "notes", value="none"), "notes must be a list"),
    "versions list": (said("run.json", "versions", value=[1]), "versions must be an object"),
    "data list": (said("run.json", "data", value=[]), "data must be an object"),
    "classes text": (said("run.json", "data", "classes", value="ten"), "data.classes must be"),
    "hash list": (said("run.json", "data", "test_hash", value=[1]), "data.test_hash must be text"),
    "widths object": (said("run.json", "bit_widths", value={}), "bit_widths must be a list"),
    "widths numbers": (said("run.json", "bit_widths", value=[4]), "bit_widths[1] must be"),
    "blocks half": (said("run.json", "blocks", value=[{"unit": "a"}]), "blocks[1].bits is missing"),
    "no table": (gone("layers.csv"), "layers.csv is missing"),
    "table folder": (in_place("layers.csv", Path.mkdir), "layers.csv cannot be read (is a dir"),
}

DAMAGED = "is damaged"
COMPANIONS: dict[str, tuple[str, Spoil, str, list[str]]] = {
    "table empty": ("run", text("layers.csv", ""), "layers.csv is damaged", [VALUES, BLAME]),
    "table cut": ("run", cut("layers.csv"), "layers.csv is damaged", [BLAME, LEARNED]),
    "table binary": ("run", text("layers.csv", b"\xff\x00\n"), DAMAGED, [BLAME]),
    "bits text": ("run", cell("layers.csv", "bits", "four"), "row 1.bits must be", [VALUES]),
    "bits none": ("run", cell("layers.csv", "bits", ""), "row 1.bits is missing", [VALUES, BLAME]),
    "bits many": ("run", cell("layers.csv", "bits", "4e9"), "row 1.bits must be", [VALUES]),
    "scale nan": ("run", cell("layers.csv", "scale", "nan"), "row 1.scale must be", [VALUES]),
    "clipped": ("run", cell("layers.csv", "clipped", "inf"), "row 1.clipped must be", [VALUES]),
    "decibels": ("run", cell("layers.csv", "sqnr_db", "nan"), "row 1.sqnr_db must be", [BLAME]),
    "long cell": ("run", cell("layers.csv", "kind", "x" * 20_000), "row 1.kind must", [BLAME]),
    "other table": ("run", text("layers.csv", "a,b\n1,2\n"), "row 1.kind is missing", [BLAME]),
    "no guesses": ("run", gone("preds.npz"), "preds.npz is missing", [START, COMPARE]),
    "guesses cut": ("run", cut("preds.npz"), "preds.npz is damaged or cut off", [START, COMPARE]),
    "guesses text": ("run", text("preds.npz", "none"), "preds.npz is damaged", [START]),
    "labels": ("run", array("preds.npz", "labels", first(99)), "labels must lie", [COMPARE]),
    "shape": ("run", array("preds.npz", "quant_top5", np.ravel), "quant_top5 must have", [COMPARE]),
    "odds": ("run", array("preds.npz", "quant_prob", first(np.nan)), "quant_prob must", [COMPARE]),
    "no names": ("run", array("preds.npz", "class_names", lambda a: a[:0]), "class_names", [START]),
    "no ids": ("run", array("preds.npz", "ids", lambda a: None), "ids is missing", [COMPARE]),
    "thumbs": ("run", array("preds.npz", "thumb_index", first(9**9)), "thumb_index must", [START]),
    "counts cut": ("run", cut("hist.npz"), "hist.npz is damaged or cut off", [VALUES]),
    "counts folder": ("run", in_place("hist.npz", Path.mkdir), "(is a directory)", [VALUES]),
    "edges": ("run", array("hist.npz", "lo", first(np.nan)), "lo must hold finite", [VALUES]),
    "no width": ("run", array("hist.npz", "hi", lambda a: a * 0 - 9e9), "lo must lie", [VALUES]),
    "codes": ("run", array("hist.npz", "qmax", first(10**6)), "qmax must lie", [VALUES]),
    "no scale": ("run", array("hist.npz", "scale", lambda a: None), "scale is missing", [VALUES]),
    "log folder": ("run", in_place("events.jsonl", Path.mkdir), "", [LEARNED, RUN]),
    "log binary": ("run", text("events.jsonl", bytes(range(256)) * 9), "", [LEARNED, RUN]),
    "log types": (
        "run", text("events.jsonl", '{"phase": "reconstruct", "unit": 7, "step": "x"}\n[1]\n'), "",
        [LEARNED, RUN],
    ),
    "log deep": ("run", text("events.jsonl", DEEP + "\n"), "", [LEARNED, RUN]),
    "log huge": (
        "run", text("events.jsonl", '{"phase": "reconstruct", "of": 1e999, "loss": 1e999}\n'), "",
        [LEARNED],
    ),
    "profile text": ("profile", cell("profile.csv", "kl", "bad"), "row 1.kl must be", [BLAME]),
    "profile mode": ("profile", cell("profile.csv", "mode", "odd"), "row 1.mode must", [BLAME]),
    "profile cut": ("profile", cut("profile.csv"), "profile.csv is damaged", [BLAME]),
    "noise cut": ("noise", cut("noise.npz"), "noise.npz is damaged or cut off", [NOISE]),
    "noise shape": ("noise", array("noise.npz", "phase", np.ravel), "phase must have", [NOISE]),
    "noise spec": (
        "noise", array("noise.npz", "spec", lambda a: np.array(DEEP)), "noise.npz is damaged",
        [NOISE],
    ),
    "noise seeds": ("noise", array("noise.npz", "seeds", lambda a: a * 0), "calib must", [NOISE]),
    "noise inside": ("noise", array("noise.npz", "layer", lambda a: a[:0]), "layer must", [NOISE]),
}  # fmt: skip

JOBS: dict[str, tuple[Spoil, str]] = {
    "pid text": (said("job.json", "pid", value="12"), "job.json.pid must be a whole number"),
    "pid negative": (said("job.json", "pid", value=-1), "job.json.pid must be"),
    "pid huge": (said("job.json", "pid", value=10**30), "job.json.pid must be"),
    "pid true": (said("job.json", "pid", value=True), "job.json.pid must be"),
    "state": (said("job.json", "state", value="dreaming"), "job.json.state must be"),
    "state list": (said("job.json", "state", value=[1]), "job.json.state must be"),
    "submitted null": (said("job.json", "submitted", value=None), "job.json.submitted must be"),
    "submitted nan": (said("job.json", "submitted", value=NOT_A_NUMBER), "job.json.submitted"),
    "started text": (said("job.json", "started", value="now"), "job.json.started must be"),
    "ended list": (said("job.json", "ended", value=[]), "job.json.ended must be"),
    "message null": (said("job.json", "message", value=None), "job.json.message must be text"),
    "no state": (without("job.json", "state"), "job.json.state is missing"),
    "list": (text("job.json", "[]"), "job.json must be an object"),
    "deep": (text("job.json", DEEP), "nested too deeply"),
    "binary": (text("job.json", bytes(range(256))), "damaged or cut off"),
    "cut": (cut("job.json"), "damaged or cut off"),
    "missing": (gone("job.json"), "job.json cannot be read (no such file"),
    "folder": (in_place("job.json", Path.mkdir), "job.json cannot be read (is a directory)"),
    "pipe": (in_place("job.json", os.mkfifo), "job.json cannot be read (not a regular file)"),
    "older": (said("job.json", "format", value=1), "comes from an earlier version (format 1"),
    "spec list": (text("spec.json", "[]"), "spec"),
    "spec model": (said("spec.json", "model", value=None), "model must be text"),
    "spec method": (said("spec.json", "method", value="gone"), "none of this version's methods"),
    "spec missing": (gone("spec.json"), "spec.json cannot be read (no such file"),
}

OF_KIND = {"": ["layers.csv", "preds.npz", "hist.npz"], "sensitivity": ["profile.csv"],
           "noise": ["noise.npz"]}  # fmt: skip


# ---- told ---------------------------------------------------------------------------------------


def copied(source: Path, place: Path, spoil: Spoil) -> Path:
    folder = shutil.copytree(source, place)
    spoil(folder)
    return folder


@pytest.mark.parametrize("case", RECORDS)
def test_a_damaged_record_is_listed_with_its_reason(tmp_path, good, case):
    spoil, words = RECORDS[case]
    folder = copied(good["run"], tmp_path / SPEC.key, spoil)
    (entry,) = store.list_runs(tmp_path)
    assert entry.record is None and store.find(SPEC, [tmp_path]) is None
    assert words in entry.problem and SPEC.key in entry.problem
    assert len(entry.problem) < 400 and "\n" not in entry.problem
    with pytest.raises(InvalidSpec, match=SPEC.key):
        store.load(folder)


READERS = {
    "layers.csv": store.load, "preds.npz": store.load_preds, "hist.npz": tensors.load,
    "profile.csv": profile.load, "noise.npz": noise_profile.load,
}  # fmt: skip


@pytest.mark.parametrize("case", COMPANIONS)
def test_a_damaged_companion_is_told_by_its_one_reader(tmp_path, good, case):
    kind, spoil, words, _ = COMPANIONS[case]
    folder = copied(good[kind], tmp_path / good[kind].name, spoil)
    found = list(_reasons(folder, READERS))
    assert len(found) == bool(words)
    assert all(words in why and folder.name in why for why in found)
    assert store.last_event(folder) is None or store.events(folder)


def _reasons(folder: Path, readers: dict) -> Iterator[str]:
    """What the readers of the files that belong into such a folder have to say against it."""
    kind = runfolder.load_head(folder).spec.analysis
    for name in OF_KIND[kind]:
        try:
            readers[name](folder)
        except InvalidSpec as error:
            yield str(error)


@pytest.fixture
def queued(tmp_path, monkeypatch) -> Path:
    """A runs folder with one waiting job whose process cannot start."""
    monkeypatch.setenv("QLIB_JOBS", "1")
    runs = tmp_path / "runs"
    runs.mkdir()
    jobs._queue_up(runs, SPEC, 1.0)
    return runs / ".jobs" / SPEC.key


@pytest.mark.parametrize("case", JOBS)
def test_a_damaged_job_is_told_and_passed_over(queued, case):
    spoil, words = JOBS[case]
    runs = queued.parents[1]
    spoil(queued)
    assert jobs.list_jobs(runs) == []
    (why,) = jobs.broken(runs)
    assert words in why and SPEC.key in why and len(why) < 400
    with pytest.raises(InvalidSpec) as told:
        jobs.status(SPEC.key, runs)
    assert str(told.value) == why


# ---- and no page breaks -------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Empty folders for stored runs and own runs."""
    for name in ("DEMO", "RUNS"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"QLIB_{name}", str(tmp_path / name))
    return tmp_path / "DEMO", tmp_path / "RUNS"


def opened(at: AppTest, page: str, **query: str) -> str:
    """All that a page says; that it does not break."""
    at.switch_page(page)
    at.query_params.update(query)
    at.run()
    assert not at.exception, (page, at.exception[0].message)
    parts = [*at.markdown, *at.caption, *at.info, *at.warning, *at.error]
    return "\n".join(part.value for part in parts)


def app() -> AppTest:
    return AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)


def test_all_pages_open_among_all_damaged_folders(folders, good):
    """Every damaged run and job is there at once, beside one good run of each kind."""
    demo, runs = folders
    for source in good.values():
        shutil.copytree(source, demo / source.name)
    for at, (spoil, _) in enumerate(RECORDS.values()):
        copied(good["run"], runs / f"{SPEC.key}-{at:02}", spoil)
    (runs / "circle").symlink_to("circle")
    (runs / "itself").symlink_to(runs)
    jobs._queue_up(runs, SPEC, 1.0)
    job = runs / ".jobs" / SPEC.key
    for at, (spoil, _) in enumerate(JOBS.values()):
        copied(job, runs / ".jobs" / f"{SPEC.key}-{at:02}-job", spoil)
    shutil.rmtree(job)
    at = app()
    said = {page: opened(at, page) for page in PAGES}
    for case, (_, words) in RECORDS.items():
        assert words in said[COMPARE], case
    for case, (_, words) in JOBS.items():
        assert words in said[RUN], case
    assert JOBS["pid text"][1] in opened(at, RUN, job=f"{SPEC.key}-00-job")


def test_a_run_of_the_address_that_is_damaged_is_told(folders, good):
    """The page shows another run, and says why it is not the one that was asked for."""
    shutil.copytree(good["run"], folders[0] / SPEC.key)
    copied(good["run"], folders[1] / "mine", RECORDS["top1 text"][0])
    at = app()
    for page in (VALUES, BLAME, LEARNED, RUN):
        assert RECORDS["top1 text"][1] in opened(at, page, run="mine", job="mine")


def test_text_of_a_damaged_folder_makes_no_link_and_no_picture(tmp_path, good):
    evil = "![a](http://example.org/a.png) <b> `c`"
    for at, path in enumerate((("metrics", "top1"), ("spec", "analysis"), ("spec", evil))):
        copied(good["run"], tmp_path / str(at), said("run.json", *path, value=evil))
    for entry in store.list_runs(tmp_path):
        assert entry.problem and not [m for m in ("](", "://", "<", "`c") if m in entry.problem]


@pytest.mark.parametrize("page", PAGES[1:])
def test_pages_open_where_every_run_is_damaged(folders, good, page):
    for at, (spoil, _) in enumerate(list(RECORDS.values())[:40]):
        copied(good["run"], folders[1] / f"{SPEC.key}-{at:02}", spoil)
    assert opened(app(), page, run=f"{SPEC.key}-01", job=f"{SPEC.key}-01")


@pytest.mark.parametrize("case", COMPANIONS)
def test_pages_open_with_a_damaged_companion(folders, good, case):
    """The run of the address is the damaged one."""
    kind, spoil, _, pages = COMPANIONS[case]
    for name, source in good.items():
        copied(source, folders[0] / source.name, spoil if name == kind else lambda _: None)
    at = app()
    for page in pages:
        opened(at, page, m=SPEC.model, q=SPEC.method, b="W4A4", run=SPEC.key, job=SPEC.key)
