"""Whole runs on the digits: every method, every file, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import settings
from safetensors.torch import load_file

from qlib import store
from qlib.core.records import Cancelled, Event, InvalidSpec, RunRecord, RunSpec, ignore
from qlib.core.registry import discover
from qlib.core.specs import checked
from qlib.pipeline import provenance, quantizer_file
from qlib.pipeline.experiment import load_experiment
from qlib.pipeline.quantize import quantize
from qlib.pipeline.quantizer_file import FILE
from qlib.pipeline.run import run
from qlib.store import tensors

MODEL = "digits-resnet"
ZOO = Path(__file__).parents[1] / "assets" / "zoo" / f"{MODEL}.safetensors"
pytestmark = pytest.mark.skipif(not ZOO.exists(), reason=f"{ZOO.name} has not been trained")
FILES = {"run.json", "layers.csv", "preds.npz", "hist.npz", "quantizers.safetensors"}
METRICS = {"top1", "top1_low", "top1_high", "top1_float", "top1_nearest", "agreement", "lost",
           "gained", "n", "weight_mb", "weight_mb_float", "gbops", "kl"}  # fmt: skip


def spec(method: str = "nearest", **changes: object) -> RunSpec:
    made = RunSpec(MODEL, "digits", method, calib=32, test=60, settings=settings(method, 2))
    return replace(made, weight_observer="minmax", act_observer="minmax", **changes)


@pytest.fixture(scope="module", params=discover("methods"))
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A finished run of each method: its record, its folder and its events."""
    folder, events = tmp_path_factory.mktemp(request.param), []
    return run(spec(request.param, placement="boundary"), events.append, folder), folder, events


def test_all_files_are_written_and_read_again(done) -> None:
    record, folder, _ = done
    assert {p.name for p in folder.iterdir()} == FILES
    again = store.load(folder)
    assert again.spec == record.spec == checked(record.spec)
    assert again.metrics == record.metrics
    assert len(again.layers) == len(record.layers) > 20
    assert (folder / "layers.csv").read_text().count("\n") == len(record.layers) + 1
    written = [(r["point"], r["tensor"], r.get("acc_mse")) for r in record.layers]
    assert [(r["point"], r["tensor"], r["acc_mse"]) for r in again.layers] == written
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert size < 3e6


def test_record_survives_json(done) -> None:
    record, _, _ = done
    body = json.loads(json.dumps(record.to_json(), allow_nan=False))
    assert RunRecord.from_json(body, record.layers) == record


def test_metrics_fit_together(done) -> None:
    record, _, _ = done
    found = record.metrics
    assert set(found) == METRICS | ({"stored_mb"} if record.bit_widths else set())
    assert found["n"] == 60
    assert 0 <= found["top1_low"] <= found["top1"] <= found["top1_high"] <= 100
    moved = found["top1"] - found["top1_float"]
    assert moved == pytest.approx(100 * (found["gained"] - found["lost"]) / 60)
    assert found["agreement"] <= 100 - 100 * abs(found["lost"] - found["gained"]) / 60 + 1e-9
    assert found["top1_float"] > 90
    assert 0 < found["weight_mb"] < 0.25 * found["weight_mb_float"]
    if record.spec.method == "nearest":
        assert found["top1"] == found["top1_nearest"]
    assert set(record.seconds) == {"load", "calibrate", "reconstruct", "evaluate", "total"}
    assert all(s >= 0 for s in record.seconds.values())
    assert record.peak_mb > 50
    assert set(record.data) == {
        "calib_hash", "test_hash", "calib_n", "classes", "same_source", "errors_n",
        "errors_n_test", "preprocess",
    }  # fmt: skip
    assert record.prepared == "1 × 8 × 8, bilinear, crop 1 (center), mean 0.305, std 0.376"
    assert (record.data["errors_n"], record.data["errors_n_test"]) == (32, 60)
    assert record.data["calib_n"] == 32
    assert record.data["calib_hash"] != record.data["test_hash"]
    assert record.created


def _switched(record) -> dict[str, dict[str, float]]:
    """Name of the predictions at each width → its row, where both operands have that width."""
    same = [row for row in record.bit_widths if row["weight_bits"] == row["act_bits"]]
    return {f"w{row['act_bits']}": row for row in same}


def test_predictions_have_their_keys_and_shapes(done) -> None:
    record, folder, _ = done
    with np.load(folder / "preds.npz") as found:
        preds = dict(found)
    assert set(preds) == {
        "ids", "labels", "class_names", "thumbs", "thumb_index",
        *(f"{who}_{what}" for who in ("float", "quant", "nearest", *_switched(record))
          for what in ("top5", "prob")),
    }  # fmt: skip
    assert preds["ids"].shape == preds["labels"].shape == (60,)
    assert preds["class_names"].tolist() == list("0123456789")
    for who, metric in (("float", "top1_float"), ("quant", "top1"), ("nearest", "top1_nearest")):
        top, prob = preds[f"{who}_top5"], preds[f"{who}_prob"]
        assert (top.shape, top.dtype) == ((60, 5), np.int16)
        assert (prob.shape, prob.dtype) == ((60, 5), np.float16)
        assert (np.diff(prob.astype(float), axis=1) <= 0).all()
        assert prob.astype(float).sum(1).max() <= 1.01
        right = 100 * (top[:, 0] == preds["labels"]).mean()
        assert right == pytest.approx(record.metrics[metric])
    for name, row in _switched(record).items():
        right = 100 * (preds[f"{name}_top5"][:, 0] == preds["labels"]).mean()
        assert right == pytest.approx(row["top1"])
    shown = preds["thumb_index"]
    assert preds["thumbs"].shape == (len(shown), 8, 8, 3)
    assert preds["thumbs"].dtype == np.uint8
    assert shown[:12].tolist() == list(range(12))
    changed = np.flatnonzero(preds["float_top5"][:, 0] != preds["quant_top5"][:, 0])
    assert set(shown[12:]) <= set(changed)


def test_quantizers_hold_scales_and_whole_codes(done) -> None:
    record, folder, _ = done
    tensors = load_file(folder / FILE)
    for row in (row for row in record.layers if row["tensor"] != "output"):
        point = row["point"]
        place = row["bits"] - min((r["act_bits"] for r in record.bit_widths), default=0)
        scale, zero = (_part(tensors, point, part, place) for part in ("scale", "zero_point"))
        assert float(scale.mean()) == pytest.approx(row["scale"], rel=1e-5)
        mixed = any(_names(tensors, point, part) for part in ("noise", "ratio", "column"))
        assert mixed or zero.numel() == row["channels"]
        if row["tensor"] == "weight" and not _names(tensors, point, "rounding"):
            codes = tensors[f"{point}.codes"]
            assert codes.dtype == torch.uint8
            assert codes.numel() == row["params"]
            assert int(codes.max()) < 2 ** row["bits"]
    kept = sum(name.endswith((".weight.codes", ".weight.rounding")) for name in tensors)
    assert kept == len([row for row in record.layers if row["tensor"] == "weight"])
    assert not any(t.numel() > 2000 and t.is_floating_point() for t in tensors.values())


def _names(tensors: dict[str, torch.Tensor], point: str, part: str) -> list[str]:
    """The names of one part of a point's quantizer, or of the quantizers in it."""
    return [n for n in tensors if n.startswith(f"{point}.") and n.endswith(f".{part}")]


def _part(tensors: dict[str, torch.Tensor], point: str, part: str, place: int) -> torch.Tensor:
    (name,) = _names(tensors, point, part)
    return tensors[name][place] if ".each." in name else tensors[name]  # widths stacked, rising


def test_the_plan_is_kept_and_is_what_was_done(done) -> None:
    record, folder, _ = done
    rows = {r["point"]: r["bits"] for r in record.layers if r["tensor"] != "output"}
    assert {point: b for point, b in record.plan.items() if b is not None} == rows
    assert store.load(folder).plan == record.plan


def test_each_layer_has_a_row_of_its_output(done) -> None:
    record, folder, _ = done
    rows = [row for row in store.load(folder).layers if row["tensor"] == "output"]
    seen = [row["layer"] for row in record.layers if row["kind"] != "boundary"]
    assert [row["layer"] for row in rows] == list(dict.fromkeys(seen))
    for row in rows:
        assert row["point"] == f"{row['layer']}.output"
        for suffix in ("", "_test"):
            for what in ("local", "acc"):
                assert row[f"{what}_mse{suffix}"] > 0
                assert row[f"{what}_cosine{suffix}"] == pytest.approx(1, abs=0.7)
                assert row[f"{what}_sqnr_db{suffix}"] < 80
        assert row["bits"] is row["sqnr_db"] is None
    learned = [row.get("acc_mse_nearest") for row in rows]
    moved = [r for r in record.layers if r["tensor"] == "weight" and r["flipped"] > 0]
    assert sum(mse is not None for mse in learned) == len(moved)
    assert bool(moved) <= (record.spec.method != "nearest")


def test_counted_values_name_every_tensor(done) -> None:
    record, folder, _ = done
    found = tensors.load(folder)
    rows = {row["point"]: row for row in record.layers}
    assert set(rows) <= set(found)
    for point, row in rows.items():
        hist = found[point]
        assert hist.float.sum() == hist.count > 0
        if row["tensor"] == "output":
            assert hist.bits == 0
            continue
        assert hist.bits == row["bits"]
        assert hist.codes.sum() == hist.count
        assert hist.clipped == pytest.approx(row["clipped"], abs=0.01)
        if row["channels"] == 1 and hist.bent is None:
            assert hist.scale == pytest.approx(row["scale"], rel=1e-5)
            assert hist.zero_point == row["zero_point"]


def test_a_network_of_many_widths_tells_of_each(done) -> None:
    record, _, _ = done
    if record.spec.method != "ptmq":
        assert record.bit_widths == record.blocks == []
        return
    own = {(row["weight_bits"], row["act_bits"]): row for row in record.bit_widths}
    assert len(own) == len(record.bit_widths) == 36  # small: every combination of six widths
    spec = record.spec
    here = own[spec.weight_bits, spec.act_bits]
    assert all(here[key] == record.metrics[key] for key in here if key in record.metrics)
    units = {row["unit"] for row in record.blocks}
    assert units == {row["unit"] for row in record.layers}
    assert all(row["kl"] >= -1e-9 for row in record.blocks)
    assert own[8, 8]["kl"] < own[3, 3]["kl"]
    assert own[8, 8]["gbops"] > own[4, 8]["gbops"] > own[4, 4]["gbops"]


def test_events_tell_the_phases_in_order(done) -> None:
    record, _, events = done
    phases = list(dict.fromkeys(e.phase for e in events))
    assert phases[:2] == ["load", "calibrate"]
    assert phases[-1] == "save"
    assert {"evaluate"} <= set(phases)
    learns = any(name.endswith("steps") for name in record.spec.settings)
    assert learns <= ("reconstruct" in phases) <= (record.spec.method != "nearest")
    evaluated = [e for e in events if e.phase == "evaluate" and e.step]
    switched = {f"W{row['weight_bits']}A{row['act_bits']}" for row in record.bit_widths}
    assert {e.unit for e in evaluated} == {"float", "nearest", record.spec.method} | switched
    assert all(e.step <= e.steps == 60 for e in evaluated)


# --- the same again


@pytest.mark.parametrize("method", ["nearest", "qdrop"])
def test_same_specification_gives_the_same_numbers(method: str) -> None:
    first = run(spec(method, seed=5, weight_bits=2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        second = run(spec(method, seed=5, weight_bits=2))
    assert first.metrics == second.metrics
    assert first.layers == second.layers
    assert first.data == second.data


def grids(**changes: object) -> list[dict]:
    """The rows of tensors that have a grid."""
    return [row for row in run(spec(**changes)).layers if row["tensor"] != "output"]


def test_fields_of_the_specification_reach_the_grids() -> None:
    rows = grids(weight_bits=3, act_bits=5, edge_layers="same")
    assert {(r["tensor"], r["bits"]) for r in rows} == {("weight", 3), ("input", 5)}
    rows = grids(edge_layers="float", symmetric_weights=True, symmetric_acts=True)
    assert all(r["symmetric"] for r in rows)
    assert all(r["zero_point"] == 0 for r in rows)
    assert "conv1" not in {r["layer"] for r in rows}
    rows = grids(granularity="tensor")
    assert {r["channels"] for r in rows} == {1}
    rows = grids(granularity="group")
    channels = {r["params"]: r["channels"] for r in rows if r["tensor"] == "weight"}
    assert channels[32 * 32 * 9] == 32 * 6  # a channel of 288: six groups of 48
    assert channels[16 * 16 * 9] == 16 * 3  # one of 144: three of 48


def test_symmetric_codes_are_signed_bytes(tmp_path: Path) -> None:
    run(spec(symmetric_weights=True), ignore, tmp_path)
    tensors = load_file(tmp_path / "quantizers.safetensors")
    codes = [t for n, t in tensors.items() if n.endswith(".codes")]
    assert {t.dtype for t in codes} == {torch.int8}
    assert min(int(t.min()) for t in codes) < 0


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(spec())
    assert list(tmp_path.iterdir()) == []


# --- layers kept in float


@pytest.mark.parametrize("method", ["nearest", "qdrop"])
@pytest.mark.parametrize("placement", ["inputs", "boundary"])
def test_kept_layers_have_no_grid_and_all_others_have(
    method: str, placement: str, tmp_path: Path
) -> None:
    kept = ("layer2.0.conv1", "layer2.0.conv2", "linear")
    whole = run(spec(method, placement=placement))
    part = run(spec(method, placement=placement, keep_float=kept), ignore, tmp_path)
    own = [r["point"] for r in part.layers if r["layer"] in kept]
    assert own == [f"{name}.output" for name in kept]
    rest = {r["point"] for r in whole.layers if r["layer"] not in kept}
    rest -= {"layer2.0.boundary"}  # belongs to the first layer of its block
    assert {r["point"] for r in part.layers if r["layer"] not in kept} == rest
    found = tensors.load(tmp_path)
    assert {n for n, h in found.items() if h.tensor == "weight" and not h.bits} == {
        f"{name}.weight" for name in kept
    }
    assert part.metrics["weight_mb"] > whole.metrics["weight_mb"]
    assert part.metrics["gbops"] > whole.metrics["gbops"]
    assert part.spec.key != whole.spec.key


@pytest.mark.parametrize("method", ["nearest", "adaround", "brecq", "qdrop"])
@pytest.mark.parametrize("placement", ["inputs", "boundary"])
def test_all_layers_kept_is_the_float_network_bit_for_bit(method: str, placement: str) -> None:
    names = dict.fromkeys(row["layer"] for row in run(spec()).layers)
    wanted = spec(method, placement=placement, keep_float=tuple(names))
    setup = load_experiment(checked(wanted), torch.device("cpu"), ignore)
    logits = quantize(setup, checked(wanted), ignore)
    with torch.no_grad(), setup.model.quantized(weights=False, inputs=False):
        folded = setup.predict(setup.model, "float")
    assert torch.equal(logits["quant"], folded)
    record = run(wanted)
    assert record.metrics["agreement"] == 100
    assert record.metrics["weight_mb"] == record.metrics["weight_mb_float"]
    assert {row["tensor"] for row in record.layers} == {"output"}
    assert {row["acc_mse"] for row in record.layers} == {0.0}


@pytest.mark.parametrize("changes", [{"tune_norms": True}, {"tune_biases": 3}])
@pytest.mark.parametrize("method", ["nearest", "brecq", "nupes"])
def test_what_is_tuned_follows_any_method_and_is_stored(
    method: str, changes: dict, tmp_path: Path
) -> None:
    """Integers stay; answers move; the network comes back from its file with what was tuned."""
    made = checked(spec(method, weight_bits=3, act_bits=3))
    found = {}
    for name, one in (("plain", made), ("tuned", replace(made, **changes))):
        (folder := tmp_path / name).mkdir()
        setup = load_experiment(one, torch.device("cpu"), ignore)
        found[name] = quantize(setup, one, ignore)
        quantizer_file.save(setup.model, folder / FILE)
    assert not torch.equal(found["plain"]["quant"], found["tuned"]["quant"])
    assert torch.equal(found["plain"]["nearest"], found["tuned"]["nearest"])
    plain, tuned = (load_file(tmp_path / n / "quantizers.safetensors") for n in found)
    integers = [name for name in plain if name.endswith(".codes")]
    assert all(torch.equal(plain[name], tuned[name]) for name in integers)
    assert any(name.endswith(".bias.added") for name in tuned)
    quantizer_file.load(setup.model, folder / "quantizers.safetensors")
    assert torch.equal(setup.predict(setup.model, ""), found["tuned"]["quant"])


def test_a_layer_to_keep_that_is_not_there_is_refused() -> None:
    with pytest.raises(
        InvalidSpec, match=r"no layer 'layer2.0.conv3'; the nearest are layer2\.0\.conv"
    ):
        run(spec(keep_float=("layer2.0.conv3",)))


# --- refused


def test_cuda_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidSpec, match=r"device 'cuda' was asked for.*finds no CUDA.*use 'cpu'"):
        run(spec(device="cuda"))


def test_images_of_another_task_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discover("datasets")["digits"], "classes", tuple("01234"))
    with pytest.raises(
        InvalidSpec, match=r"digits-resnet tells 10 classes apart, but digits has 5; "
    ):
        run(spec())


def test_wrong_specification_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InvalidSpec, match=r"weight_bits must be in \[2, 8\]; got 9"):
        run(spec(weight_bits=9))
    with pytest.raises(InvalidSpec, match="There is no method 'nearst'; the nearest are nearest"):
        run(replace(spec(), method="nearst"))


def test_too_many_images_are_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"\d"):
        run(spec(calib=100_000))


def test_refused_loss_leaves_the_finished_units_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = discover("methods")["adaround"]
    apply = owner.apply

    def broken(self, model, plan, data, report) -> None:
        def spoil(event: Event) -> None:
            report(event)
            if event.phase == "reconstruct" and event.index == 3:
                unit = model.layers[event.unit].weight_point.quantizer
                unit.up.data.fill_(float("nan"))

        apply(self, model, plan, data, spoil)

    monkeypatch.setattr(owner, "apply", broken)
    with pytest.raises(InvalidSpec, match=r"unit 3 of \d+\) is nan"):
        run(spec("adaround"), ignore, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["quantizers.safetensors"]


@pytest.mark.parametrize("phase", ["load", "calibrate", "evaluate", "reconstruct"])
def test_cancelled_in_any_phase_stops_at_once(phase: str, tmp_path: Path) -> None:
    heard = []

    def stop(event: Event) -> None:
        heard.append(event.phase)
        if event.phase == phase:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(spec("adaround"), stop, tmp_path)
    assert heard.count(phase) == 1
    assert heard[-1] == phase
    assert list(tmp_path.iterdir()) == []


def test_versions_name_what_numbers_depend_on() -> None:
    assert set(provenance.versions()) == {
        "python", "torch", "torchvision", "timm", "numpy", "threads",
    }  # fmt: skip
