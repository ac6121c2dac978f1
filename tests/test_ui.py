"""Sentences, comparisons and progress that the pages show: pure functions, checked by example."""

from dataclasses import replace

import fake_runs
import pytest
from prose import tells

from qlib import store
from qlib.core.records import RunRecord, RunSpec
from qlib.core.registry import discover
from qlib.ui.shared import answers, comparable, timeline
from qlib.ui.shared.glossary import WORDS

TITLES = {"nearest": "Nearest", "brecq": "BRECQ", "qdrop": "QDrop"}


def record(method="brecq", top1=90.0, half=2.0, **spec) -> RunRecord:
    metrics = {
        "top1": top1,
        "top1_low": top1 - half,
        "top1_high": top1 + half,
        "top1_float": 95.0,
        "agreement": top1 + 1,
        "lost": float(max(0, round(15 * (95 - top1)))),  # of 1500
        "gained": float(max(0, round(15 * (top1 - 95)))),
        "n": 1500.0,
    }
    data = {"test_hash": "t", "same_source": True, "calib_n": 256}
    made = RunSpec("digits-vit", "digits", method, **spec)
    return RunRecord(made, metrics, {"total": 1.0}, 1.0, data=data)


# ---- answers --------------------------------------------------------------------------------


def test_start_answer_says_what_was_lost():
    said = answers.start_answer(record("nearest", 80.0), "Nearest")
    assert tells(said, "nearest", "16 levels", "4 bits", "digits-vit", "80.0 %", "1,500 images")
    assert tells(said, "80.0 %", "95 %", "78.0–82.0", "float", "95.0 %", "lost 15 points")


def counted(lost, gained, half=2.0) -> str:
    """The answer for a run of 1500 images with so many lost and gained."""
    one = record("brecq", 95 + (gained - lost) / 15, half, weight_bits=6, act_bits=6)
    changed = {"lost": float(lost), "gained": float(gained)}
    return answers.start_answer(replace(one, metrics=one.metrics | changed), "BRECQ")


def test_start_answer_takes_the_loss_from_the_paired_test():
    """15 of 1500 images lost and none gained is a loss, however wide the run's own interval is."""
    assert tells(counted(15, 0), "BRECQ", "6 bits", "digits-vit", "It lost 1.0 point")
    # 5 of 5 lost: p = 2/32; a narrow interval that leaves float out proves nothing
    unsure = counted(5, 0, half=0.1)
    assert tells(unsure, "No loss", "lost 5", "gained 0", "exact p = 0.062")
    assert tells(counted(0, 0), "Nothing was lost")
    gain = counted(2, 3)
    assert tells(gain, "No loss", "lost 2", "gained 3") and "p =" not in gain


def test_mixed_bits_are_named():
    said = answers.start_answer(record("nearest", 80.0, weight_bits=4, act_bits=8), "Nearest")
    assert "W4A8" in said


def test_source_line_tells_the_conditions():
    line = answers.source_line(record(edge_layers="float", placement="boundary", seed=3))
    calibrated = "calibrated", "same source", 256
    assert tells(line, "1,500 held-out images", "digits", *calibrated)
    assert tells(line, "first and last layer", "float", "block boundaries", "seed 3")


def test_handles_tell_equal_looking_runs_apart():
    one, two = record(seed=0), record(seed=1)
    assert answers.label(one, TITLES) == answers.label(two, TITLES) == "BRECQ W4A4"
    assert answers.handle(one, TITLES) != answers.handle(two, TITLES)


# ---- likeness -------------------------------------------------------------------------------


def test_only_differing_fields_are_listed():
    one = record("brecq", settings={"steps": 100, "act_steps": 5})
    two = record("adaround", settings={"steps": 200}, seed=1)
    assert comparable.differences([one, two]) == {
        "method": ["brecq", "adaround"],
        "seed": ["0", "1"],
        "setting: steps": ["100", "200"],
    }


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 1}, "seed"),
        ({"edge_layers": "same"}, "first and last layer"),
        ({"placement": "boundary"}, "where activations are rounded"),
        ({"calib": 32}, "number of calibration images"),
    ],
)
def test_unlike_runs_are_named(change, word):
    assert comparable.unlike([record(), record(**change)]) == [word]
    assert comparable.unlike([record(), record("nearest", weight_bits=8)]) == []


def test_other_test_images_are_unlike():
    other = replace(record(), data={"test_hash": "u"})
    assert comparable.unlike([record(), other]) == ["held-out images"]


# ---- timeline -------------------------------------------------------------------------------


def test_timeline_of_a_whole_run():
    events = fake_runs.reconstruction_events("brecq")
    first = timeline.read(events[:1], learns=True)
    assert (first.stages[first.stage], first.left) == ("Load", None)
    last = timeline.read(events, learns=True)
    assert last.stages[last.stage] == "Evaluate" and last.mb == 610.0


def fit(place, t, step=1, of=4):
    return {
        "phase": "reconstruct", "unit": f"b{place}", "index": place, "of": of, "step": step,
        "steps": 10, "t": t, "mb": 5.0,
    }  # fmt: skip


def test_time_left_only_from_measured_units():
    begun = timeline.read([fit(1, 10.0), fit(1, 12.0, 5)], learns=True)
    assert begun.left is None and begun.share == pytest.approx(0.5 / 4)
    later = timeline.read([fit(1, 10.0), fit(2, 14.0), fit(3, 18.0), fit(3, 19.0, 5)], learns=True)
    assert later.left == pytest.approx(4.0 * 2 - 1.0)  # four seconds a unit, two of them to go
    assert (later.index, later.of, later.round) == (3, 4, 1)
    assert tells(later.text, "3 of 4", "b3", "5 of 10")


def test_second_round_measures_anew():
    first = [fit(p, 10.0 * p) for p in (1, 2, 3, 4)]
    again = timeline.read([*first, fit(1, 50.0)], learns=True)
    assert (again.round, again.left) == (2, None)
    between = timeline.read([*first, {"phase": "calibrate", "note": "activations"}], learns=True)
    assert between.stages[between.stage] == "Reconstruct"


def test_baseline_test_is_part_of_calibration():
    events = [{"phase": "evaluate", "unit": "nearest", "step": 1, "steps": 2}]
    early = timeline.read(events, learns=True)
    assert early.stages[early.stage] == "Calibrate" and early.share == 0.5
    plain = timeline.read(events, learns=False)
    assert plain.stages == timeline.PLAIN and plain.stages[plain.stage] == "Evaluate"
    assert timeline.read([], learns=True).text == "Starting"


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.2, "8 s"), (125, "2 min 05 s"), (4320, "1 h 12 min"), (0, "0 s")]
)
def test_span(seconds, text):
    assert timeline.span(seconds) == text


# ---- words ----------------------------------------------------------------------------------


def test_every_word_is_a_plain_sentence():
    assert WORDS
    for term, text in WORDS.items():
        assert text.endswith(".") and len(text) < 330, term


def test_fake_runs_are_what_the_store_reads(tmp_path):
    made = fake_runs.write_run(tmp_path, RunSpec("digits-vit", "digits", "brecq"))
    found = store.load(made)
    tensors = [row["tensor"] for row in found.layers]
    assert found.spec.method in discover("methods")
    assert len(tensors) == 48 and tensors.count("output") == 16
    assert store.load_preds(made)["thumbs"].shape[1:] == (8, 8, 3)
