"""Estimates scale what finished runs took, and say so when there is nothing to scale."""

from dataclasses import replace

import pytest

from qlib.core.records import RunRecord, RunSpec
from qlib.jobs.estimate import Estimate, estimate
from qlib.noise import profile as noise_profile
from qlib.sensitivity.profile import spec_of

SPEC = RunSpec(
    "digits-vit", "digits", "brecq", settings={"steps": 100, "act_steps": 50, "batch": 32}
)
SECONDS = {"load": 5.0, "calibrate": 2.0, "reconstruct": 30.0, "evaluate": 10.0, "total": 48.0}


def record(spec: RunSpec = SPEC, created: str = "2025-01-01", **seconds: float) -> RunRecord:
    took = SECONDS | seconds
    took["total"] = sum(v for k, v in took.items() if k != "total") + 1.0
    metrics = {"n": 600, "weight_mb_float": 8.0}
    return RunRecord(spec, metrics, took, peak_mb=950.0, created=created)


def middle(found: Estimate) -> float:
    return (found.seconds_low * found.seconds_high) ** 0.5


def test_the_same_again_takes_as_long() -> None:
    found = estimate(SPEC, [record()])
    assert middle(found) == pytest.approx(48)
    assert (found.seconds_low, found.seconds_high) == pytest.approx((48 / 1.25, 48 * 1.25))
    assert (found.memory_mb, found.disk_mb) == (950.0, 3.0)
    assert found.basis == "Scaled from 1 finished run of digits-vit with BRECQ."


CHANGES = {
    "steps": ({"settings": {"steps": 1000, "act_steps": 500, "batch": 32}}, 48 + 9 * 30),
    "fewer steps": ({"settings": {"steps": 10, "act_steps": 5, "batch": 32}}, 48 - 0.9 * 30),
    "no steps": ({"settings": {"steps": 0, "act_steps": 0, "batch": 32}}, 48 - 30),
    "batch": ({"settings": {"steps": 100, "act_steps": 50, "batch": 64}}, 48 + 30),
    "images": ({"calib": 1024}, 48 + 3 * 2),
    "test": ({"test": 60}, 48 - 0.9 * 10),
    "bits": ({"weight_bits": 2}, 48),
}


@pytest.mark.parametrize("case", CHANGES)
def test_each_knob_scales_its_phase(case: str) -> None:
    changes, seconds = CHANGES[case]
    assert middle(estimate(replace(SPEC, **changes), [record()])) == pytest.approx(seconds)


def test_an_analysis_is_told_from_analyses_of_the_network() -> None:
    of = spec_of(SPEC)
    old = replace(record(of, profile=40.0, reconstruct=0.0), metrics={"n": 64.0})
    assert middle(estimate(of, [old])) == pytest.approx(5 + 2 + 2 * 10 + 2 * 40 + 1)
    assert "layer by layer: 128 test images each" in estimate(of, [old]).knobs[0]
    assert estimate(of, [record()]).seconds_low is None  # of the run, its layers not loaded
    assert estimate(SPEC, [old]).seconds_low is None


def test_the_first_analysis_is_told_from_the_passes_of_a_run() -> None:
    """Twelve layers in a row: half a pass for each, in both modes and all splits."""
    rows = [
        {"layer": f"l{i}", "unit": f"l{i}", "tensor": tensor}
        for i in range(12)
        for tensor in ("weight", "input", "output")
    ]
    run = replace(record(), layers=rows)
    found = estimate(spec_of(SPEC), [run])
    passes = 4 + 6 * sum((12 - i) / 12 for i in range(12))
    assert middle(found) == pytest.approx(passes * 10 / 3 * 128 / 600)
    assert found.basis.startswith(f"About {passes:.0f} passes through digits-vit")


def test_a_noise_analysis_is_told_from_noise_analyses_alone() -> None:
    rows = [{"layer": "l", "unit": "l", "tensor": "input"}]
    of = noise_profile.spec_of(SPEC)
    assert estimate(of, [replace(record(), layers=rows)]).seconds_low is None  # not from passes
    assert estimate(of, [record(spec_of(SPEC), profile=40.0)]).seconds_low is None
    old = replace(record(of, profile=40.0, reconstruct=0.0), metrics={"n": 64.0})
    found = estimate(of, [old])
    assert middle(found) == pytest.approx(5 + 2 + 2 * 10 + 40 + 1)  # as many rows of fewer images
    assert found.knobs[0].endswith("of the time is measuring layer by layer.")


def test_several_runs_make_a_range() -> None:
    found = estimate(SPEC, [record(), record(reconstruct=60.0)])
    assert (found.seconds_low, found.seconds_high) == pytest.approx((48 / 1.25, 78 * 1.25))
    assert "from 2 finished runs" in found.basis


def test_only_the_newest_runs_count() -> None:
    old = [record(created="2020-01-01", reconstruct=9000.0) for _ in range(9)]
    new = [record(created=f"2025-01-0{day}") for day in range(1, 6)]
    assert middle(estimate(SPEC, old + new)) == pytest.approx(48)


def test_all_test_images_are_counted_in_another_run() -> None:
    few = replace(record(replace(SPEC, test=60)), metrics={"n": 60, "weight_mb_float": 8.0})
    whole = record(replace(SPEC, model="digits-resnet"))
    assert middle(estimate(SPEC, [few, whole])) == pytest.approx(48 + 9 * 10)
    assert middle(estimate(SPEC, [few])) == pytest.approx(48)  # never counted: as many as then


def test_other_methods_help_with_a_wider_range() -> None:
    other = record(replace(SPEC, method="qdrop", settings={"steps": 300, "batch": 32}))
    found = estimate(SPEC, [other])
    assert (found.seconds_low, found.seconds_high) == pytest.approx((33 / 2, 33 * 2))
    assert "with other methods" in found.basis
    assert middle(estimate(SPEC, [other, record()])) == pytest.approx(48)  # its own count first


UNKNOWN = {
    "nothing": ([], "no finished run of digits-vit on cpu yet; start with few steps"),
    "another network": (
        [record(replace(SPEC, model="digits-resnet"))],
        "no finished run of digits-vit on cpu",
    ),
    "another device": (
        [record(replace(SPEC, device="cuda"))],
        "no finished run of digits-vit on cpu",
    ),
    "no learning": (
        [record(replace(SPEC, method="nearest", settings={}))],
        "no finished run of digits-vit with BRECQ or its like on cpu",
    ),
    "no steps": (
        [record(replace(SPEC, settings={"steps": 0}))],
        "digits-vit with BRECQ or its like",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_known_is_said(case: str) -> None:
    records, words = UNKNOWN[case]
    found = estimate(SPEC, records)
    assert (found.seconds_low, found.seconds_high, found.memory_mb) == (None, None, None)
    assert words in found.basis
    assert found.knobs == ()


def test_memory_grows_with_images_and_is_not_promised_to_shrink() -> None:
    assert estimate(replace(SPEC, calib=512), [record()]).memory_mb == 550 + 2 * 400
    assert estimate(replace(SPEC, calib=16), [record()]).memory_mb == 950


def test_knobs_name_what_takes_the_time() -> None:
    assert estimate(SPEC, [record()]).knobs == (
        "62% of the time is reconstruction: 150 steps a unit.",
        "21% of the time is measuring: all test images.",
    )
