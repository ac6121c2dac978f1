"""A run's specification: checked, complete, the same key for the same run, JSON both ways."""

import json
import re
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

from qlib.core import specs
from qlib.core.records import FORMAT, Event, InvalidSpec, RunRecord, RunSpec, ignore

SPEC = RunSpec("digits-vit", "digits", "brecq")


# ---- keys and JSON ------------------------------------------------------------------------------


def test_a_key_is_readable_and_a_file_name() -> None:
    assert re.fullmatch(r"digits-vit_brecq_W4A4_[0-9a-f]{10}", SPEC.key)
    odd = replace(SPEC, model="timm:hf_hub/a b.c/../deit", data="folder:/x y/z")
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", odd.key)


def test_every_field_decides_the_key() -> None:
    other = {
        "model": "digits-resnet", "data": "cifar10", "method": "qdrop", "weight_bits": 3,
        "act_bits": 8, "edge_layers": "same", "placement": "boundary", "weight_observer": "minmax",
        "act_observer": "minmax", "granularity": "tensor", "symmetric_weights": True,
        "symmetric_acts": True, "weights": "w.safetensors", "calib": 64, "calib_data": "digits",
        "test": 10, "seed": 1, "device": "cuda", "settings": {"steps": 1},
        "analysis": "sensitivity", "keep_float": ("head",), "tune_norms": True, "tune_biases": 9,
    }  # fmt: skip
    changed = {f.name for f in fields(RunSpec) if f.name in other}
    keys = {replace(SPEC, **{name: other[name]}).key for name in changed} | {SPEC.key}
    assert len(keys) == len(changed) + 1
    assert changed == set(other)


def test_a_field_added_later_changes_no_key() -> None:
    """Hashed are the fields away from their default: this key is in the names of stored runs."""
    import hashlib

    spec = replace(SPEC, weight_bits=3, settings={"steps": 5})
    said = '{"data":"digits","method":"brecq","model":"digits-vit","settings":{"steps":5},'
    said += '"weight_bits":3}'
    digest = hashlib.sha256(said.encode()).hexdigest()[:10]
    assert spec.key == f"digits-vit_brecq_W3A4_{digest}"


def test_an_analysis_says_so_in_its_key() -> None:
    key = replace(SPEC, analysis="sensitivity").key
    assert re.fullmatch(r"digits-vit_brecq_sensitivity_W4A4_[0-9a-f]{10}", key)
    assert key[-10:] != SPEC.key[-10:]


@pytest.mark.parametrize("changes", [{"tune_norms": True}, {"tune_biases": 5}])
def test_a_network_of_many_widths_is_not_tuned_for_one(changes: dict) -> None:
    with pytest.raises(InvalidSpec, match="PTMQ gives a network for many bit-widths"):
        specs.checked(replace(SPEC, method="ptmq", **changes))
    assert specs.checked(replace(SPEC, **changes)).key != specs.checked(SPEC).key


def test_layers_kept_in_float_are_a_set_of_names() -> None:
    one = specs.checked(replace(SPEC, keep_float=("b", " a", "b")))
    assert one.keep_float == ("a", "b")
    assert one.key == specs.checked(replace(SPEC, keep_float=("a", "b"))).key
    again = RunSpec.from_json(json.loads(json.dumps(one.to_json())))
    assert again == one
    assert again.keep_float == ("a", "b")
    for wrong in ("head", [1], None):
        with pytest.raises(InvalidSpec, match=r"keep_float(\[1\])? must be (a list|text); got"):
            RunSpec.from_json(SPEC.to_json() | {"keep_float": wrong})
    with pytest.raises(
        InvalidSpec, match=r"RunSpec\.analysis must be one of , sensitivity, noise; got 'x'"
    ):
        specs.checked(replace(SPEC, analysis="x"))


def test_the_order_of_settings_does_not_matter() -> None:
    one = replace(SPEC, settings={"steps": 5, "lr": 0.1})
    assert one.key == replace(SPEC, settings={"lr": 0.1, "steps": 5}).key


def test_json_both_ways() -> None:
    full = replace(specs.checked(SPEC), weights="w.pth", test=5)
    assert RunSpec.from_json(json.loads(json.dumps(full.to_json()))) == full


def test_a_strange_specification_is_refused() -> None:
    with pytest.raises(
        InvalidSpec, match=r"^This run specification has unknown fields: colour, size\.$"
    ):
        RunSpec.from_json(SPEC.to_json() | {"size": 1, "colour": 2})
    with pytest.raises(InvalidSpec, match="cannot be used: data is missing"):
        RunSpec.from_json({"model": "m"})


def test_it_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        SPEC.seed = 1


def test_a_record_goes_both_ways_and_tells_its_format() -> None:
    percent = ("top1", "top1_nearest", "top1_low", "top1_high", "top1_float", "agreement")
    costs = {"lost": 1, "gained": 0, "n": 10, "kl": 0.1, "weight_mb": 0.5, "gbops": 2.0}
    metrics = dict.fromkeys(percent, 90.0) | costs
    record = RunRecord(SPEC, metrics, {"total": 1.0}, 500.0, layers=[{"point": "a"}])
    body = json.loads(json.dumps(record.to_json()))
    assert body["format"] == FORMAT
    assert "layers" not in body
    assert RunRecord.from_json(body, record.layers) == record
    assert RunRecord.from_json(body | {"later": 1}).layers == []
    for body, words in (
        ({}, "has format None, and this version reads format 2"),
        ([], "has format None"),
        ({"format": 99}, "has format 99"),
        ({"format": 1}, r"comes from an earlier version \(format 1"),
        ({"format": FORMAT}, r"run.json is damaged: spec is missing"),
        ({"format": FORMAT, "spec": SPEC.to_json()}, "metrics is missing"),
    ):
        with pytest.raises(InvalidSpec, match=words):
            RunRecord.from_json(body)


def test_nobody_has_to_listen() -> None:
    assert ignore(Event("load")) is None


# ---- checking -----------------------------------------------------------------------------------


def test_checking_writes_out_every_setting_and_changes_nothing_twice() -> None:
    found = specs.checked(replace(SPEC, settings={"steps": "500"}))
    assert found.settings["steps"] == 500
    assert {"lr", "penalty", "batch"} <= set(found.settings)
    assert specs.checked(found) == found
    assert replace(found, settings={}) == SPEC


def test_a_default_written_out_is_the_same_run() -> None:
    default = specs.checked(SPEC).settings["steps"]
    assert specs.checked(replace(SPEC, settings={"steps": str(default)})) == specs.checked(SPEC)


WRONG = {
    "model": (
        {"model": "digits-vat"},
        "There is no model 'digits-vat'; the nearest are digits-vit",
    ),
    "data": ({"data": "cifar"}, "There is no dataset 'cifar'; the nearest are cifar10"),
    "calib": ({"calib_data": "nowhere"}, "There is no dataset 'nowhere'"),
    "method": ({"method": "breqc"}, "There is no method 'breqc'; the nearest are brecq"),
    "weight observer": ({"weight_observer": "x"}, "There is no observer 'x'; the nearest are ent"),
    "act observer": ({"act_observer": "x"}, "There is no observer 'x'"),
    "bits": ({"weight_bits": 12}, r"weight_bits must be in \[2, 8\]; got 12\."),
    "binary": ({"act_bits": 1}, r"got 1\. A uniform grid of one bit .*: binary networks need tr"),
    "setting": ({"settings": {"stepz": "1"}}, "Brecq has no setting 'stepz'; it has steps, lr"),
    "range": ({"settings": {"penalty": -1}}, r"Brecq.penalty must be at least 0; got -1"),
    "type": ({"settings": {"steps": "few"}}, r"Brecq.steps must be of type int; got 'few'"),
    "test": ({"test": 0}, "test must be at least 1, or left out for all; got 0."),
    "seed": ({"seed": -1}, r"seed must be a whole number from 0 to 9,.*5,807 \(2⁶³ − 1\); got -1"),
    "seed too long": ({"seed": 2**63}, r"from 0 to 9,223,.*; got 9223372036854775808\."),
    "seed endless": ({"seed": 10**5000}, r"from 0 to 9,223,.*; got a longer number\."),
    "seed of text": ({"seed": "1"}, "seed must be a whole number from 0 to"),
    "bits of text": ({"weight_bits": "4"}, r"weight_bits must be a whole .*; got '4' of type str"),
    "bits of floats": ({"act_bits": 4.0}, r"act_bits must be a whole number .* of type float"),
    "layers that are numbers": ({"keep_float": (3,)}, "keep_float takes names .*; got '3' of type"),
    "a layer that is none": ({"keep_float": None}, "keep_float takes names .* of type NoneType"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_in_words(case: str) -> None:
    changes, words = WRONG[case]
    with pytest.raises(InvalidSpec, match=words):
        specs.checked(replace(SPEC, **changes))


def test_a_pattern_is_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs, "model_keys", lambda: ["digits-vit", "x:NAME"])
    with pytest.raises(
        InvalidSpec, match=r"'x:NAME' is a pattern: write a real name in place of its"
    ):
        specs.source_of("models", "x:NAME")


# ---- paths --------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: it holds ``w.pth`` and ``images``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").touch()
    (tmp_path / "images").mkdir()
    return tmp_path


def test_paths_become_absolute_and_names_stay(here: Path) -> None:
    named = replace(SPEC, weights="w.pth", data="folder: images", calib_data="imagenet:./images")
    found = specs.absolute(named)
    assert found.weights == str(here / "w.pth")
    assert found.data == f"folder:{here / 'images'}"
    assert found.calib_data == f"imagenet:{here / 'images'}"
    assert specs.absolute(found) == found
    assert specs.absolute(SPEC) == SPEC


def test_one_file_makes_one_key_wherever_it_is_named_from(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = specs.absolute(replace(SPEC, weights="w.pth"))
    monkeypatch.chdir(here / "images")
    assert specs.absolute(replace(SPEC, weights=str(here / "w.pth"))).key == first.key


def test_home_is_understood(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("USERPROFILE", str(here))
    assert specs.absolute(replace(SPEC, weights="~/w.pth")).weights == str(here / "w.pth")


@pytest.mark.parametrize("changes", [{"weights": "no.pth"}, {"data": "folder:no.pth"}], ids=str)
def test_a_missing_file_is_told(here: Path, changes: dict) -> None:
    with pytest.raises(
        InvalidSpec, match=r"There is no file or folder no\.pth; check the path, or"
    ):
        specs.absolute(replace(SPEC, **changes))
