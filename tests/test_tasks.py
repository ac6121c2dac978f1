"""Runs without an accuracy: encoders, images without labels, other classes than the folders'."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import own_nets
import pytest
import torch
from helpers import settings
from PIL import Image
from torch import nn

import qlib
from qlib import store
from qlib.core.records import InvalidSpec, RunRecord, RunSpec, ignore
from qlib.core.registry import discover
from qlib.core.rows import METRICS
from qlib.core.scores import score
from qlib.datasets.imagenet import ImageNet
from qlib.export.summary import as_json, as_text
from qlib.measure import features
from qlib.pipeline.experiment import load_experiment
from qlib.pipeline.run import run
from qlib.pipeline.task import returned

NETS = Path(__file__).with_name("own_nets.py")
IMAGES = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def spec(function: str, method: str = "nearest", **changes) -> RunSpec:
    made = RunSpec(f"{NETS}:{function}", "digits", method, calib=16, test=40,
                   settings=settings(method, 2))  # fmt: skip
    return replace(made, weight_observer="minmax", act_observer="minmax", **changes)


def stored(tmp_path, given: RunSpec) -> RunRecord:
    """Made, and read again with every check."""
    made = run(given, folder=tmp_path)
    again = store.load(tmp_path)
    assert again.metrics == made.metrics and again.task == made.task
    return again


def pictures(folder: Path, names: list[str]) -> str:
    for i, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 9 * i % 256, np.uint8)).save(file)
    return f"folder:{folder}"


# --- encoders


@pytest.mark.parametrize("method", discover("methods"))
@pytest.mark.parametrize("function", ["encoder", "tokens"])
def test_every_method_quantizes_an_encoder(method, function, tmp_path):
    record = stored(tmp_path, spec(function, method, weight_bits=8, act_bits=8))
    m = record.metrics
    assert record.task == "features" and not {"top1", "top1_float", "top1_low"} & set(m)
    assert 0.98 < m["cosine_p5"] <= m["cosine"] <= 1 and 0.9 < m["cka"] <= 1
    assert 0 <= m["knn_low"] <= m["knn"] <= m["knn_high"] <= 100 and m["knn_k"] == 20
    assert abs(m["lost"] - m["gained"]) == round(abs(m["knn"] - m["knn_float"]) * 0.4)
    assert any("no accuracy" in note for note in record.notes)
    preds = store.load_preds(tmp_path)
    assert float(preds["quant_cosine"].mean()) == pytest.approx(m["cosine"], abs=1e-6)
    right = preds["quant_top5"][:, 0] == preds["labels"]
    assert 100 * right.mean() == pytest.approx(m["knn"])


def test_numbers_of_a_run_are_those_of_its_features(tmp_path):
    given = spec("tokens", weight_bits=3, act_bits=3, seed=1)
    found, (experiment, here) = run(given, folder=tmp_path).metrics, _features(given)
    there = experiment.predict(experiment.net, "float")
    assert here.shape == there.shape == (40, 16)  # tokens are averaged
    want = features.similarity(there, here)
    assert {k: found[k] for k in want} == pytest.approx(want)
    gap = (here - there).double().square().sum(1).mean()
    mean = experiment.data.images.split(16)
    outputs = torch.cat([experiment.net(part).detach().mean(1) for part in mean]).double()
    spread = (outputs - outputs.mean(0)).square().sum(1).mean()
    assert found["kl"] == pytest.approx(float(gap / (2 * spread)), rel=1e-4)


def _features(given: RunSpec):
    from qlib.pipeline.quantize import quantize

    experiment = load_experiment(given, torch.device("cpu"), ignore)
    return experiment, quantize(experiment, given, ignore)["quant"]


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("custom", {"error": "kl", "unit": "network"}),
        ("custom", {"error": "fisher"}),
        ("custom", {"error": "cosine"}),
    ],
)
def test_errors_of_answers_have_a_meaning_for_features(method, changes, tmp_path):
    """Learning by such an error brings features nearer to float than nearest rounding does."""
    given = spec("encoder", method, weight_bits=3, act_bits=8)
    known = settings(method, 2) | changes | {"steps": 60, "batch": 16}
    m = stored(tmp_path, replace(given, settings=known)).metrics
    assert m["cosine"] > m["cosine_nearest"]


def test_biases_are_tuned_towards_the_float_features(tmp_path):
    plain = run(spec("encoder", weight_bits=3, act_bits=4)).metrics
    tuned = run(spec("encoder", weight_bits=3, act_bits=4, tune_biases=80)).metrics
    assert tuned["kl"] < 0.9 * plain["kl"]


@pytest.mark.parametrize("function", ["encoder", "seven"])
def test_sensitivity_without_labels(function, tmp_path):
    labels = "none" if function == "seven" else "given"
    base = spec(function, weight_bits=3, act_bits=3, labels=labels)
    record = stored(tmp_path, replace(base, analysis="sensitivity"))
    assert "top1" not in record.metrics
    assert ("agreement" in record.metrics) == (function == "seven")
    whole = [r for r in record.layers if r["mode"] == "all"]
    assert all(r["top1"] is None for r in whole)
    assert next(r["kl"] for r in whole if r["split"] == "none") == pytest.approx(0, abs=1e-12)
    assert next(r["kl"] for r in whole if r["split"] == "both") > 0


def test_widths_of_a_switchable_encoder(tmp_path):
    record = stored(tmp_path, spec("encoder", "ptmq"))
    by_bits = {r["act_bits"]: r for r in record.bit_widths if r["weight_bits"] == r["act_bits"]}
    assert by_bits[8]["kl"] < by_bits[3]["kl"] and by_bits[8]["cosine"] > by_bits[3]["cosine"]
    assert all("top1" not in row for row in record.bit_widths)
    assert record.blocks and all(row["kl"] >= 0 for row in record.blocks)


# --- how an encoder is known


CNN = own_nets.Cnn().eval()


def ending(*last: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), *last).eval()


def without_classes() -> nn.Module:
    net = own_nets.Cnn().eval()
    net.num_classes = 0
    return net


@pytest.mark.parametrize(
    ("net", "folders", "task", "why"),
    [
        (CNN, 10, "classes", ""),
        (CNN, 7, "classes", ""),  # a head is a head; the number is refused later
        (own_nets.Encoder().eval(), 10, "features", "ends in LayerNorm and returns 8 numbers"),
        (own_nets.Encoder().eval(), 8, "classes", ""),  # as many as folders
        (own_nets.Encoder().eval(), 0, "classes", ""),  # nothing to hold it against
        (own_nets.TokenEncoder().eval(), 10, "features", "tokens of the shape (16, 16)"),
        (ending(), 10, "features", "maps of the shape (6, 6, 6)"),
        (ending(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 10, "features", "ends in Flatten"),
        (ending(nn.Flatten(), nn.Linear(216, 4), nn.Softmax(1)), 10, "classes", ""),
        (ending(nn.Flatten(), nn.Linear(216, 4), nn.Identity()), 10, "classes", ""),
        (without_classes(), 10, "features", "num_classes is 0"),
    ],
)
def test_guess(net, folders, task, why):
    seen = returned(net, IMAGES[:2], folders=folders)
    assert seen.task == task
    assert why in " ".join(seen.notes) and bool(why) == bool(seen.notes)


def test_what_is_said_is_stronger_than_the_guess():
    assert returned(CNN, IMAGES[:2], task="features", folders=10).task == "features"
    encoder = own_nets.Encoder().eval()
    assert returned(encoder, IMAGES[:2], task="classes", folders=10).task == "classes"
    with pytest.raises(InvalidSpec, match=r"\(2, 16, 16\) .* has to return class scores"):
        returned(own_nets.TokenEncoder().eval(), IMAGES[:2], task="classes")


# --- other classes, no labels


def test_other_classes_are_refused_with_every_way_out():
    with pytest.raises(InvalidSpec) as caught:
        run(spec("seven"))
    said = str(caught.value)
    assert "7 classes apart, but digits has 10" in said
    assert all(way in said for way in ("--classes FILE", "--labels none", "--task features"))


def test_labels_left_out_give_agreement_and_no_accuracy(tmp_path):
    record = stored(tmp_path, spec("seven", labels="none"))
    m = record.metrics
    assert record.task == "unlabelled" and set(m) == {
        "agreement", "agreement_low", "agreement_high", "agreement_nearest", "n", "kl",
        "weight_mb", "weight_mb_float", "gbops",
    }  # fmt: skip
    assert m["agreement_low"] < m["agreement"] <= m["agreement_high"]
    preds = store.load_preds(tmp_path)
    assert (preds["labels"] == -1).all() and len(preds["class_names"]) == 7
    assert any("Labels were left out" in note for note in record.notes)


def test_agreement_without_labels_is_that_with_them(tmp_path):
    with_, without = (run(spec("cnn", labels=given)).metrics for given in ("given", "none"))
    assert {k: with_[k] for k in ("agreement", "kl", "n")} == {
        k: without[k] for k in ("agreement", "kl", "n")
    }


@pytest.mark.parametrize(("function", "task"), [("cnn", "unlabelled"), ("encoder", "features")])
def test_pictures_in_no_class_folders(function, task, tmp_path):
    source = pictures(tmp_path / "d", [f"{i}.png" for i in range(12)])
    (tmp_path / "r").mkdir()
    given = replace(spec(function), data=source, test=None, calib=4)
    if function == "encoder":  # ends in a norm, and there are no folders to hold eight against
        given = replace(given, task="features")
    record = stored(tmp_path / "r", given)
    assert record.task == task and record.metrics["n"] == 8
    assert not {"top1", "knn"} & set(record.metrics)
    assert any("lie in no class folders" in note for note in record.notes)
    if task == "features":
        assert "quant_top5" not in store.load_preds(tmp_path / "r")


def test_a_file_of_classes_says_that_outputs_are_classes(tmp_path):
    """It may name fewer folders than there are outputs, whatever the network ends in."""
    data = pictures(tmp_path / "d", [f"{name}/{i}.png" for name in "abc" for i in range(4)])
    (tmp_path / "classes.txt").write_text("c\nb\na\n")
    given = replace(spec("encoder"), data=data, test=None, calib=4)
    assert run(given).task == "features"  # eight numbers that end in a norm, for three folders
    named = replace(given, classes=str(tmp_path / "classes.txt"))
    record = run(named)
    assert record.task == "classes" and record.data["classes"] == 8
    assert "knn" in run(replace(named, task="features")).metrics


# --- ImageNet's larger lists of classes


@pytest.mark.parametrize("label_set", ["imagenet-22k", "imagenet-21k-goog", "imagenet-21k-miil"])
def test_folders_are_numbered_as_the_head_numbers_them(label_set, tmp_path):
    from timm.data.imagenet_info import ImageNetInfo

    ids = ImageNetInfo(label_set).label_names()
    chosen = ["n01440764", "n02123045", "n15075141"]
    pictures(tmp_path, [f"{name}/{i}.png" for name in chosen for i in range(2)])
    source = ImageNet.for_head(f"imagenet:{tmp_path}", label_set)
    test = source.test()
    assert [ids[label] for label in test.labels] == [name.split("/")[0] for name in test.ids]
    assert len(source.classes) == len(set(source.classes)) == len(ids)
    assert f"the {len(ids):,} classes of {label_set}" in source.notes[0]


def test_classes_that_a_head_lacks_are_left_out_and_told(tmp_path):
    from timm.data.imagenet_info import ImageNetInfo

    thousand, larger = (ImageNetInfo(s).label_names() for s in ("imagenet-1k", "imagenet-21k-miil"))
    lacking = sorted(set(thousand) - set(larger))[:2]
    pictures(tmp_path, [f"{name}/{i}.png" for name in ["n01440764", *lacking] for i in range(2)])
    source = ImageNet.for_head(f"imagenet:{tmp_path}", "imagenet-21k-miil")
    assert len(source.test()) == 2 and "4 test images of classes" in source.notes[0]
    (tmp_path / "n01440764").rename(tmp_path / ".gone")
    with pytest.raises(InvalidSpec, match=r"None of the 4 test images .* is of a class of"):
        ImageNet.for_head(f"imagenet:{tmp_path}", "imagenet-21k-miil").test()


def test_run_with_a_head_of_21841_classes(tmp_path):
    from timm.data.imagenet_info import ImageNetInfo

    code = (
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    num_classes = 21841\n"
        "def build():\n"
        "    return Net(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "               nn.Linear(4, 21841))\n"
    )
    (tmp_path / "net.py").write_text(code)
    data = pictures(tmp_path / "d", [f"{n}/{i}.png" for n in ("n01440764", "n02123045")
                                     for i in range(6)])  # fmt: skip
    given = replace(spec("cnn"), model=f"{tmp_path}/net.py:build", test=None, calib=4,
                    data=data.replace("folder", "imagenet"))  # fmt: skip
    (tmp_path / "r").mkdir()
    record = stored(tmp_path / "r", given)
    assert record.task == "classes" and record.metrics["n"] == 8
    assert any("imagenet-22k" in note for note in record.notes)
    ids = ImageNetInfo("imagenet-22k").label_names()
    labels = store.load_preds(tmp_path / "r")["labels"]
    assert {ids[label] for label in labels} == {"n01440764", "n02123045"}


# --- what is told


@pytest.mark.parametrize(("function", "labels"), [("encoder", "given"), ("seven", "none")])
def test_record_refuses_the_metrics_of_another_task(function, labels, tmp_path):
    record = stored(tmp_path, spec(function, labels=labels))
    body = record.to_json()
    wrong = {"classes": "top1", "unlabelled": "agreement_high", "features": "cka"}
    for task, missing in wrong.items():
        if task == record.task:
            continue
        with pytest.raises(InvalidSpec, match=rf"metrics\.{missing}.* is missing|metrics\.\w+ is"):
            RunRecord.from_json(body | {"task": task})
    with pytest.raises(InvalidSpec, match="task must be text among"):
        RunRecord.from_json(body | {"task": "poems"})
    for value in (float("inf"), "x", 1e9):
        body["metrics"]["kl" if value != 1e9 else "agreement"] = value
        with pytest.raises(InvalidSpec, match="damaged"):
            RunRecord.from_json(json.loads(json.dumps(body)))
        body = record.to_json()


@pytest.mark.parametrize(
    ("function", "labels", "words"),
    [
        ("encoder", "given", ("cosine     0.", "CKA        0.", "k-NN       ", "leave-one-out")),
        ("encoder", "none", ("cosine     0.", "Labels were left out, so no k-NN")),
        ("seven", "none", ("agreement  ", "no labels, so no accuracy")),
    ],
)
def test_lines_and_json(function, labels, words, tmp_path):
    record = run(spec(function, labels=labels))
    text = as_text(record, tmp_path)
    assert all(word in text for word in words) and "top-1" not in text and "?" not in text
    told = as_json(record, tmp_path)
    assert told["task"] == record.task and told["metrics"] == record.metrics and told["notes"]
    assert "top1" not in told["metrics"]


def test_every_kind_of_metrics_has_one_score():
    assert {task for _, task in METRICS} == {"classes", "unlabelled", "features"}
    for (analysis, _), kind in METRICS.items():
        named = dict.fromkeys([*kind.__required_keys__, *kind.__optional_keys__], 1.0)
        assert (score(named) is not None) == (analysis == "" or "top1" in named)


# --- the door


def test_door_judges_features(tmp_path):
    net = own_nets.TokenEncoder().eval()
    q = qlib.quantize(net, IMAGES, "brecq", weight_bits=4, act_bits=8, steps=2, batch=8)
    assert q(IMAGES).shape == net(IMAGES).shape  # what the network returns, not its mean
    labels = torch.arange(24) % 3
    told = q.evaluate(IMAGES, labels)
    assert told["knn_k"] == 20 and "top1" not in told
    bare = q.evaluate(IMAGES)
    assert bare == {k: told[k] for k in bare} and "knn" not in bare
    q.save(tmp_path / "q.safetensors")
    assert qlib.load(tmp_path / "q.safetensors", net).evaluate(IMAGES, labels) == told


def test_door_without_labels():
    net = own_nets.Cnn().eval()
    q = qlib.quantize(net, IMAGES, "nearest")
    with_, without = q.evaluate(IMAGES, torch.zeros(24, dtype=torch.long)), q.evaluate(IMAGES)
    assert {k: with_[k] for k in ("agreement", "kl", "n")} == {
        k: without[k] for k in ("agreement", "kl", "n")
    }
    as_features = qlib.quantize(net, IMAGES, "nearest", task="features").evaluate(IMAGES)
    assert "cosine" in as_features
