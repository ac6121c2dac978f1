"""Profiles as data: whose they are, what is read back, what half a job leaves behind."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fake_worker
import pytest
from fake_profiles import profile as made_up

from qlib import store
from qlib.core.records import Event, InvalidSpec, RunSpec, ignore
from qlib.core.specs import checked
from qlib.sensitivity import profile
from qlib.store.eventlog import EventLog

BASE = checked(RunSpec("digits-vit", "digits", "brecq", 3, 3, keep_float=("head",)))


def stored(runs: Path, spec: RunSpec, rows: list[dict] | None = None) -> Path:
    rows = made_up() if rows is None else rows
    record = fake_worker.record(spec, layers=rows, data={"profile_rows": len(rows)})
    folder = runs / spec.key
    folder.mkdir(parents=True)
    store.write_record(record, folder)
    return folder


# ---- whose profile ------------------------------------------------------------------------------


@pytest.mark.parametrize("test", [None, 1, 60, 128, 5000])
def test_there_and_back(test: int | None) -> None:
    base = replace(BASE, test=test)
    spec = profile.spec_of(base)
    assert spec.analysis == "sensitivity"
    assert spec.test == min(test or profile.IMAGES, profile.IMAGES)
    assert profile.base_of(spec) == profile.base_of(base) == replace(BASE, test=None)
    assert replace(spec, analysis="", test=test) == base
    assert spec.key != base.key
    assert spec.key.startswith("digits-vit_brecq_sensitivity_W3A3_")
    assert profile.spec_of(spec) == spec
    assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_bases_are_runs_of_the_same_quantizers_the_very_one_first(tmp_path: Path) -> None:
    own, demo = tmp_path / "own", tmp_path / "demo"
    for runs, spec in (
        (own, replace(BASE, test=77)),  # the same quantizers, measured on fewer images
        (own, replace(BASE, seed=1)),
        (own, profile.spec_of(BASE)),  # an analysis has none
        (demo, replace(BASE, keep_float=())),
        (demo, BASE),
    ):
        fake = fake_worker.record(spec)
        (runs / spec.key).mkdir(parents=True)
        store.write_record(fake, runs / spec.key)
    found = profile.bases(profile.spec_of(BASE), [own, demo, tmp_path / "none"])
    assert [e.record.spec for e in found] == [replace(BASE, test=77), BASE]
    assert profile.bases(profile.spec_of(replace(BASE, seed=2)), [own, demo]) == []


# ---- files --------------------------------------------------------------------------------------


def test_rows_come_back_with_their_types(tmp_path: Path) -> None:
    rows = made_up()
    rows[0]["sqnr_db"] = math.inf
    folder = stored(tmp_path, profile.spec_of(BASE), rows)
    assert [f.name for f in sorted(folder.iterdir())] == ["profile.csv", "run.json"]
    found = profile.load(folder)
    assert found == rows == store.load(folder).layers
    assert {type(found[5][name]) for name in ("kl", "kl_a", "top1", "sqnr_db")} == {float}
    assert type(found[5]["n"]) is int
    (entry,) = store.list_runs(tmp_path)
    assert entry.record.spec.analysis == "sensitivity"


BREAKS = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-20]),
    "cut at a line": lambda file: file.write_text(
        "".join(file.read_text().splitlines(keepends=True)[:-3])
    ),
    "no table": lambda file: file.write_bytes(bytes(range(256)) + b"\n"),
    "words": lambda file: file.write_text(file.read_text().replace(",128,", ",many,")),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_profile_names_its_file(tmp_path: Path, case: str) -> None:
    folder = stored(tmp_path, profile.spec_of(BASE))
    BREAKS[case](folder / "profile.csv")
    why = "is missing" if case == "gone" else "is damaged"
    for read in (profile.load, store.load):
        with pytest.raises(InvalidSpec, match=rf"{folder.name}/profile\.csv {why}"):
            read(folder)
    (entry,) = store.list_runs(tmp_path)
    assert bool(entry.record) == (case != "gone")


def test_other_runs_and_other_tables_are_no_profile(tmp_path: Path) -> None:
    fake_worker.run(fake_worker.spec(), ignore, tmp_path)
    with pytest.raises(InvalidSpec, match="is no sensitivity run; choose one"):
        profile.load(tmp_path)
    folder = stored(tmp_path, profile.spec_of(BASE), [{"mode": "all", "split": "both", "kl": 1.0}])
    with pytest.raises(InvalidSpec, match=r"profile\.csv is damaged"):
        profile.load(folder)


# ---- half a job ---------------------------------------------------------------------------------


def test_events_tell_what_is_there_so_far(tmp_path: Path) -> None:
    assert profile.partial(tmp_path / "none") == []
    with EventLog(tmp_path) as log:
        log(Event("load", "digits-vit"))
        log(Event("profile"))
        log(Event("profile", "", 1, 9, loss=0.0, note="all none"))
        log(Event("profile", "head", 2, 9, 32, 128, note="alone both"))  # in the middle
        log(Event("profile", "head", 2, 9, loss=0.25, note="alone both"))
        log(Event("profile", "stem", 3, 9, loss=math.inf, note="alone both"))
        assert len(store.events(tmp_path)) == 5
        found = profile.partial(tmp_path)
    assert [(r["mode"], r["split"], r["layer"], r["kl"]) for r in found] == [
        ("all", "none", "", 0.0), ("alone", "both", "head", 0.25), ("alone", "both", "stem", None),
    ]  # fmt: skip
    assert [(r["index"], r["of"]) for r in found] == [(1, 9), (2, 9), (3, 9)]
    assert set(found[0]) == {*profile.COLUMNS, "index", "of"}
    assert found[1]["top1"] is None
    assert profile.worst(found) == ["head"]
    assert profile.partial(tmp_path, start=4)[0]["layer"] == "stem"


# ---- what stands out ----------------------------------------------------------------------------


def test_the_worst_layers_and_whether_two_halves_agree() -> None:
    rows = made_up()
    assert profile.worst(rows) == [f"blocks.{b}.mlp.fc2" for b in (5, 4, 3)]
    assert profile.worst(rows, 1, split="weights") == ["blocks.5.mlp.fc2"]
    assert profile.worst([]) == []
    assert profile.stable(rows)
    assert profile.summary(rows) == {"worst_shared": 3, "worst_of": 3}
    mine = [r for r in rows if (r["mode"], r["split"]) == ("alone", "both")]
    swapped = {"kl_a": mine[0]["kl_a"], "kl_b": 9.0}  # the first layer is bad in one half alone
    other = [row | swapped if row is mine[0] else row for row in rows]
    assert not profile.stable(other)
    assert profile.summary(other) == {"worst_shared": 2, "worst_of": 3}
    assert profile.stable(other, 1) is False
    two = [r for r in rows if r["layer"] in ("", "head", "blocks.0.mlp.fc2")]
    assert profile.summary(two) == {"worst_shared": 2, "worst_of": 2}


def test_profiles_are_read_without_torch() -> None:
    program = (
        "import sys, qlib.sensitivity.profile; "
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, timeout=60).returncode == 0
