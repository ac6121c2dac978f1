"""Rules about runs: each speaks where it must and is silent just below its limit."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from prose import tells

from qlib.core.records import RunRecord, RunSpec
from qlib.guide import findings


def grid(layer="blocks.0.fc1", tensor="input", **columns) -> dict:
    return {"layer": layer, "unit": layer.rpartition(".")[0], "tensor": tensor} | columns


def outputs(*sqnr: float) -> list[dict]:
    """One output row per block, with its accumulated SQNR in dB."""
    return [
        grid(f"blocks.{i}.fc2", "output", acc_sqnr_db=value, acc_mse=1.0, acc_mse_test=1.1)
        for i, value in enumerate(sqnr)
    ]


def record(method="brecq", layers=(), **metrics) -> RunRecord:
    body = {
        "top1": 90.0, "top1_low": 88.0, "top1_high": 92.0, "top1_float": 95.0,
        "top1_nearest": 85.0, "n": 1000.0,
    }  # fmt: skip
    spec = RunSpec("digits-vit", "digits", method)
    return RunRecord(spec, body | metrics, {"total": 1.0}, 1.0, layers=list(layers))


@dataclass
class Counted:
    outlier_ratio: float
    layer: str = "blocks.1.fc2"
    tensor: str = "input"
    bits: int = 4


def preds(quant: int, nearest: int, shared: int = 100) -> dict[str, np.ndarray]:
    """Images right under both, ``quant`` under the learned rounding alone, ``nearest`` likewise."""
    n = shared + quant + nearest
    labels = np.zeros(n, int)
    sides = np.ones((2, n), int)
    sides[0, : shared + quant] = 0
    sides[1, :shared] = 0
    sides[1, shared + quant :] = 0
    return {"labels": labels, "quant_top5": sides[0, :, None], "nearest_top5": sides[1, :, None]}


def profile(none: float, weights: float, inputs: float) -> list[dict]:
    known = {"none": none, "weights": weights, "inputs": inputs}
    return [{"mode": "all", "split": split, "top1": top1} for split, top1 in known.items()]


def test_clipping_above_one_percent():
    rows = [grid(clipped=0.004), grid("blocks.2.fc1", clipped=0.02), grid("b.c", clipped=0.03)]
    found = findings.clipped(rows)
    assert tells(found.text, "3.0 %", "input", "b.c", "clipped", "1 more tensor")
    assert found.set == {"layer": "b.c"} and found.page == "distributions"
    assert findings.clipped([grid(clipped=0.01), grid(clipped=None), grid()]) is None
    assert findings.clipped([grid(tensor="output", clipped=0.5)]) is None


def test_outliers_beyond_ten_times():
    hist = {"a": Counted(9.0), "b": Counted(30.0, tensor="weight"), "c": Counted(99.0, bits=0)}
    found = findings.outliers(hist)
    assert tells(found.text, "largest", "weights", "blocks.1.fc2", "30 times", "99.9 %")
    assert found.set == {"layer": "blocks.1.fc2"} and found.page == "distributions"
    assert findings.outliers({"a": Counted(10.0)}) is None and findings.outliers({}) is None


def test_error_larger_than_rounding():
    found = findings.coarse([grid(rmse_step=0.29), grid("b.d", "left", rmse_step=0.9)])
    assert tells(found.text, "left factor", "b.d", "0.9 steps", "rounding alone", "0.29")
    assert found.set == {"layer": "b.d"}
    assert findings.coarse([grid(rmse_step=0.7)]) is None


def test_error_on_new_images():
    rows = outputs(20.0, 19.0)
    assert findings.overfit(rows) is None
    rows[1]["acc_mse_test"] = 1.6
    found = findings.overfit(rows)
    assert found.set == {"layer": "blocks.1.fc2"}
    assert tells(found.text, "blocks.1.fc2", "new images", "1.6 times", "calibration images")
    assert findings.overfit([grid(tensor="output")]) is None


def test_a_jump_within_one_block():
    assert findings.jump(outputs(30.0, 24.0, 23.0)) is None
    found = findings.jump(outputs(30.0, 28.0, 20.0, 19.0))
    assert tells(found.text, "blocks.2", "loses", "8 dB")
    assert found.set == {"layer": "blocks.2.fc2"}
    # inside a block the error may rise and fall: only the ends of blocks count
    inside = outputs(30.0, 28.0)
    inside.insert(1, grid("blocks.1.fc1", "output", acc_sqnr_db=10.0))
    assert findings.jump(inside) is None
    # from 8 bits to 2 a fall is meant
    widths = [grid(f"blocks.{i}.fc2", "weight", bits=b) for i, b in enumerate((8, 2, 2))]
    assert findings.jump([*widths, *outputs(40.0, 10.0, 9.0)]) is None
    found = findings.jump([*widths, *outputs(40.0, 10.0, 2.0)])
    assert tells(found.text, "blocks.2", "8 dB")
    assert findings.jump([]) is None


def test_learned_worse_than_nearest_by_the_same_images():
    found = findings.worse_than_nearest(record(), preds(quant=5, nearest=25))
    assert tells(found.text, "worse", "25", "nearest", "5", "p =")
    assert findings.worse_than_nearest(record(), preds(quant=25, nearest=5)) is None
    assert findings.worse_than_nearest(record(), preds(quant=5, nearest=9)) is None  # chance
    assert findings.worse_than_nearest(record("nearest"), preds(5, 25)) is None
    assert findings.worse_than_nearest(record(), None) is None


def test_activations_cost_more_than_weights():
    found = findings.lopsided(profile(95.0, 94.0, 85.0))
    assert tells(found.text, "Activations", "10.0 points", "weights", "1.0")
    assert findings.lopsided(profile(95.0, 92.0, 86.0)) is None  # exactly three times
    assert findings.lopsided(profile(95.0, 95.0, 94.5)) is None  # too little to speak of
    assert findings.lopsided(profile(95.0, 96.0, 93.0)) is not None  # weights cost nothing
    assert findings.lopsided([]) is None


def test_interval_wider_than_the_difference():
    assert findings.unproven(record()) is None  # 5 points lost, ±2
    found = findings.unproven(record(top1_float=91.0))
    assert tells(found.text, "1,000 images", "±2.0 points", "float", "1.0")
    assert findings.unproven(record(top1_float=90.0)) is None  # no difference at all


def test_the_weightiest_comes_first_and_doubt_last():
    rows = [grid(clipped=0.02), *outputs(30.0, 10.0)]
    told = findings.of(record(layers=rows, top1_float=91.0), preds=preds(5, 25))
    assert [f.name for f in told] == ["worse-than-nearest", "jump", "clipped", "unproven"]
    assert findings.of(replace(record("nearest"), layers=[])) == []


@pytest.mark.parametrize("name", ["text", "remedy"])
def test_findings_are_sentences(name):
    rows = [grid(clipped=0.02, rmse_step=2.0), *outputs(30.0, 10.0)]
    rows[-1]["acc_mse_test"] = 9.0
    hist = {"a": Counted(30.0)}
    told = findings.of(
        record(layers=rows, top1_float=91.0),
        hist=hist, profile=profile(95, 94, 80), preds=preds(5, 25),
    )  # fmt: skip
    assert len(told) == 8
    for found in told:
        assert getattr(found, name).endswith(".") and len(getattr(found, name)) < 180, found.name
