"""The open door: any network is quantized in one call, looked at, saved and loaded."""

import copy
import json
import math
import pickle
import re
from pathlib import Path

import own_nets
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import qlib
from qlib.__main__ import main
from qlib.core.records import InvalidSpec

NETS = {"cnn": own_nets.Cnn, "transformer": own_nets.Transformer}
SETTINGS = {
    "nearest": {},
    "brecq": {"steps": 4, "batch": 8},
    "ptq4vit": {},
    "ptmq": {"steps": 4, "batch": 8, "lowest": 3, "highest": 5},
}
FILE = Path(own_nets.__file__)


def made(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETS[name]().eval()


def images(n: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def quantized(name: str = "cnn", method: str = "nearest", **changes) -> qlib.Quantized:
    return qlib.quantize(made(name), images(), method, **SETTINGS[method] | changes)


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("name", NETS)
def test_own_network_is_quantized_saved_and_loaded(name, method, tmp_path):
    net, x = made(name), images(8, seed=2)
    before, state = net(x), copy.deepcopy(net.state_dict())
    chance = torch.random.get_rng_state()
    q = qlib.quantize(net, images(), method, 3, 3, **SETTINGS[method])
    assert torch.equal(chance, torch.random.get_rng_state())
    assert torch.equal(net(x), before) and not torch.equal(q(x), before)
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())

    labels = before.argmax(1)
    found = q.evaluate(x, labels)
    assert found["n"] == 8 and found["top1_float"] == 100
    assert found["top1_low"] <= found["top1"] == found["agreement"] <= found["top1_high"]

    rows = q.layers()
    weights = rows[rows.tensor == "weight"]
    assert list(weights.layer) == list(q.model.weighted())
    assert set(weights.bits) == {3, 8} and (rows.tensor == "output").sum() == len(q.model.layers)

    q.save(tmp_path / "net.safetensors")
    again = qlib.load(tmp_path / "net.safetensors", made(name))
    assert torch.equal(again(x), q(x))
    assert again.spec == q.spec and again.coverage == q.coverage
    assert len(again.layers(images())) == len(rows)


@pytest.mark.parametrize("name", NETS)
def test_bits_are_switched_where_the_method_allows(name, tmp_path):
    q, x = quantized(name, "ptmq"), images(8, seed=2)
    at = {bits: q.bits(bits)(x) for bits in (3, 5)}
    mixed = q.bits(5, 3)(x)
    assert not torch.equal(at[3], at[5]) and not torch.equal(mixed, at[5])
    q.save(tmp_path / "net.safetensors")
    again = qlib.load(tmp_path / "net.safetensors", made(name))
    assert torch.equal(again(x), mixed)
    assert all(torch.equal(again.bits(bits)(x), at[bits]) for bits in at)
    with pytest.raises(InvalidSpec, match=r"not made for 7 bits; it can be switched to 3, 4, 5"):
        q.bits(7)
    fixed = quantized(name, "ptmq", weight_set="fixed")
    assert not torch.equal(fixed.bits(4, 3)(x), fixed.bits(4, 5)(x))
    with pytest.raises(InvalidSpec, match="weights of this network are fixed at 4 bits"):
        fixed.bits(3)
    with pytest.raises(InvalidSpec, match="has one bit-width; quantize it with a method for sev"):
        quantized(name).bits(4)


def test_same_seed_same_network():
    first, again, other = (quantized(method="brecq", seed=seed)(images()) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(mode, tmp_path):
    net, want = made("cnn"), quantized(method="brecq")(images())
    with mode():
        q = qlib.quantize(net, images(), "brecq", **SETTINGS["brecq"])
        q.save(tmp_path / "net.safetensors")
        again = qlib.load(tmp_path / "net.safetensors", net)
        assert torch.equal(q(images()), want) and torch.equal(again(images()), want)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert not torch.is_grad_enabled()


class Encoder(nn.Module):
    """With PyTorch's own layers, which in eval mode have a shortcut past their linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 2, stride=2)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize("method", ["nearest", "brecq"])
def test_pytorchs_encoder_is_quantized_and_not_passed_by(method):
    net = Encoder().eval()
    kept = [f"encoder.layers.{n}.linear{i}" for n in (0, 1) for i in (1, 2)]
    q = qlib.quantize(net, images(), method, 2, 2, **SETTINGS[method])
    assert set(kept) < set(q.model.weighted())
    less = qlib.quantize(net, images(), method, 2, 2, keep_float=kept, **SETTINGS[method])
    with torch.no_grad():
        assert not torch.equal(q(images()), less(images()))


def test_result_is_copied_and_pickled():
    q = quantized("cnn", placement="boundary")
    for again in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert torch.equal(again(images()), q(images()))


def test_events_are_reported():
    heard = []
    quantized(method="brecq", report=heard.append)
    assert {event.phase for event in heard} >= {"calibrate", "reconstruct"}


def test_coverage_counts_what_stays_in_float():
    assert quantized("cnn").coverage == 1
    assert quantized("transformer").coverage == 1  # products of attention included
    kept = quantized("cnn", keep_float=["cells.0.first", "cells.0.second"]).coverage
    cells, rest = 2 * 8 * 72 * 64, 8 * 9 * 64 + 80
    assert kept == pytest.approx((cells + rest) / (2 * cells + rest))
    assert quantized("cnn", edge_layers="float").coverage == pytest.approx(
        2 * cells / (2 * cells + rest)
    )


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        return self.head(input=x.flatten(1))


def test_layers_called_by_keyword_are_quantized_alike():
    net = ByKeyword().eval()
    plain = nn.Sequential(nn.Flatten(), net.head)
    q, same = (qlib.quantize(side, HERE, "nearest", 3, 3) for side in (net, plain))
    assert q.coverage == 1
    assert torch.equal(q(HERE), same(HERE)) and not torch.equal(q(HERE), net(HERE))


# --- bad input


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Scores(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


HERE = images()
WRONG = {
    "no network": (lambda: "cnn", HERE, r"net must be a torch.nn.Module; got str"),
    "half": (lambda: made("cnn").half(), HERE, r"weights of type float16.*call net\.float\(\)"),
    "elsewhere": (
        lambda: made("cnn").to("meta"),
        HERE,
        r"network is on meta and the images are on cpu; move one of them",
    ),
    "no tensor": (lambda: made("cnn"), [1, 2], r"images must be a float32 tensor.*got list"),
    "one image": (lambda: made("cnn"), HERE[0], r"got the shape \(1, 8, 8\)"),
    "no image": (lambda: made("cnn"), HERE[:0], r"got the shape \(0, 1, 8, 8\)"),
    "bytes": (lambda: made("cnn"), HERE.byte(), r"got uint8\. Convert them with images\.float"),
    "not finite": (lambda: made("cnn"), HERE / 0, r"some values are infinite or NaN"),
    "channels": (lambda: made("cnn"), HERE.expand(-1, 3, -1, -1), r"cannot take .* \(3, 8, 8\)"),
    "a pair": (
        lambda: Pair().eval(),
        HERE,
        r"returns a tuple and no tensor: there are '0' of shape",
    ),
    "pixels": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(0)).eval(),
        HERE,
        r"tensor of shape \(256,\) and type float32 for 2 images; it has to return class scores",
    ),
    "one layer": (lambda: nn.Conv2d(1, 2, 1).eval(), HERE, r"is a single Conv2d, whose place"),
    "no layers": (lambda: Scores().eval(), HERE, r"nothing to quantize; choose another one"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_sentence(case):
    make, given, match = WRONG[case]
    with pytest.raises(InvalidSpec, match=match) as caught:
        qlib.quantize(make(), given, "nearest")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"method": None}, r"There is no method None"),
        ({"method": "breqc"}, r"no method 'breqc'; the nearest are brecq"),
        ({"method": "brecq", "stepz": 3}, r"has no setting 'stepz'; it has .*steps"),
        ({"method": "brecq", "steps": -1}, r"steps must be"),
        ({"act_observer": "mze"}, r"no observer 'mze'; the nearest are mse"),
        ({"allocator": "sane"}, r"no allocator 'sane'; the nearest are same"),
        ({"keep_float": "cells.0.frist"}, r"no layer 'cells.0.frist'; the nearest are cells.0.f"),
        ({"keep_float": [3]}, r"keep_float takes names of layers, .* got '3' of type int"),
        ({"seed": 10**30}, r"seed must be a whole number from 0 to 9,223"),
        ({"seed": 0.5}, r"seed must be a whole number from 0 to 9,223"),
        ({"weight_bits": "4"}, r"weight_bits must be a whole number .* got '4' of type str"),
        ({"keep_float": ["cells.0.frist"]}, r"no layer 'cells.0.frist'; the nearest are cells.0.f"),
        ({"weight_bits": 1}, r"weight_bits must be in \[2, 8\]; got 1"),
    ],
)
def test_wrong_settings_are_one_sentence(changes, match):
    with pytest.raises(InvalidSpec, match=match):
        qlib.quantize(made("cnn"), HERE, **{"method": "nearest"} | changes)


@pytest.mark.parametrize(
    ("scale", "why"), [(math.nan, "is not finite"), ([1.0, 2.0], "has 2 scales, and activations")]
)
def test_scales_that_no_grid_can_have_are_refused(tmp_path, scale, why):
    file = tmp_path / "net.safetensors"
    quantized().save(file)
    with safe_open(file, "pt") as opened:
        words = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    spoilt = next(name for name in tensors if name.endswith(".input.scale"))
    save_file(tensors | {spoilt: torch.tensor(scale)}, file, words)
    with pytest.raises(InvalidSpec, match=f"{spoilt.removesuffix('.scale')}.*{why}"):
        qlib.load(file, made("cnn"))


def test_what_cannot_be_evaluated_or_loaded(tmp_path):
    q, file = quantized(), tmp_path / "net.safetensors"
    with pytest.raises(InvalidSpec, match=r"labels must be a tensor of 16 class numbers.*\(3,\)"):
        q.evaluate(HERE, torch.zeros(3))
    for labels, match in (
        (torch.zeros(16), r"got float32\. Convert them with labels\.long"),
        (torch.full((16,), 10), r"from 0 to 9; got 10 to 10"),
        (torch.full((16,), -1), r"from 0 to 9; got -1 to -1"),
    ):
        with pytest.raises(InvalidSpec, match=match):
            q.evaluate(HERE, labels)
    wide = HERE.expand(-1, 3, -1, -1)
    for call in (lambda: q.evaluate(wide, torch.zeros(16).long()), lambda: q.layers(wide)):
        with pytest.raises(InvalidSpec, match=r"cannot take images .* \(3, 8, 8\)"):
            call()
    with pytest.raises(InvalidSpec, match="cannot be written"):
        q.save(tmp_path / "nowhere" / "net.safetensors")
    with pytest.raises(InvalidSpec, match=r"There is no file .*net\.safetensors; check the path"):
        qlib.load(file, made("cnn"))
    q.save(file)
    other = made("cnn")
    other.head.bias.data += 1
    for net in (other, made("transformer")):
        with pytest.raises(InvalidSpec, match="made from a Cnn with other weights or layers than"):
            qlib.load(file, net)
    loaded = qlib.load(file, made("cnn").train())
    assert "came in training mode" in loaded.model.notes[-1]
    assert torch.equal(loaded(HERE), q(HERE))
    with pytest.raises(InvalidSpec, match=r"does not have its calibration images; say layers\("):
        qlib.load(file, made("cnn")).layers()
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InvalidSpec, match="is damaged"):
        qlib.load(file, made("cnn"))


@pytest.mark.parametrize(
    ("word", "text"),
    [("spec", ""), ("spec", "[]"), ("image_shape", "null"), ("image_shape", "[1, 8, -8]")],
)
def test_damaged_words_of_a_file_are_one_sentence(word, text, tmp_path):
    file = tmp_path / "net.safetensors"
    quantized().save(file)
    with safe_open(file, "pt") as opened:
        words = opened.metadata() | {word: text}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, words)
    with pytest.raises(InvalidSpec, match=r"is damaged|cannot be used"):
        qlib.load(file, made("cnn"))


# --- the same from a file


def run(tmp_path: Path, model: str, capsys, *more: str) -> tuple[int, str, str]:
    code = main(["run", "--model", model, "--data", "digits", "--calib", "8", "--test", "20",
                 "--runs", str(tmp_path), "--json", *more])  # fmt: skip
    return code, *capsys.readouterr()


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("name", NETS)
def test_command_line_takes_a_function(name, method, tmp_path, capfd):
    more = [part for k, v in SETTINGS[method].items() for part in ("--set", f"{k}={v}")]
    code, out, err = run(tmp_path, f"{FILE}:{name}", capfd, "--method", method, *more)
    assert code == 0, err
    found = json.loads(out)
    assert found["spec"]["model"] == f"{FILE}:{name}" and found["metrics"]["n"] == 20
    record = json.loads((Path(found["run_dir"]) / "run.json").read_text())
    assumed = [note for note in record["notes"] if "came without preprocessing" in note]
    assert len(assumed) == (name == "cnn")


def test_what_was_told_of_weights_is_in_the_record(tmp_path, capfd):
    trained = made("cnn")
    wrong = {k: torch.zeros_like(v) for k, v in trained.state_dict().items()}
    sets = {"state_dict": wrong, "state_dict_ema": trained.half().state_dict(), "epoch": 3}
    torch.save(sets, tmp_path / "last.ckpt")
    results = []
    for key in ("", "#state_dict"):
        code, out, err = run(
            tmp_path, f"{FILE}:cnn", capfd, "--method", "nearest",
            "--weights", f"{tmp_path / 'last.ckpt'}{key}",
        )  # fmt: skip
        assert code == 0, err
        results.append(json.loads(out))
    average, plain = results
    assert average["run_dir"] != plain["run_dir"]  # the choice is part of the key
    assert plain["spec"]["weights"].endswith("last.ckpt#state_dict")
    for part in ("under 'state_dict_ema'", "last.ckpt#state_dict", "from float16", "epoch (int)"):
        assert any(part in note for note in average["notes"]), part
    record = json.loads((Path(average["run_dir"]) / "run.json").read_text())
    assert record["notes"] == average["notes"]
    assert record["data"]["preprocess"] == average["preprocess"]
    assert average["preprocess"]["input_size"] == [1, 8, 8]
    assert main(["show", average["run_dir"]]) == 0
    assert "images     1 × 8 × 8, bilinear, crop 1" in capfd.readouterr().out


def test_one_layer_may_be_named_by_itself():
    one = quantized("cnn", keep_float="cells.0.first")
    assert one.spec.keep_float == ("cells.0.first",)
    assert one.spec == quantized("cnn", keep_float=["cells.0.first"]).spec


def test_changed_code_is_another_run(tmp_path):
    from qlib.core import specs
    from qlib.core.records import RunSpec, ignore
    from qlib.pipeline.experiment import load_experiment

    file = tmp_path / "net.py"
    file.write_text(FILE.read_text())
    spec = specs.absolute(specs.checked(RunSpec(f"{file}:cnn", "digits", "nearest", calib=8)))
    assert specs.absolute(spec) == spec and spec.key.startswith("net.py-cnn_nearest")
    file.write_text(FILE.read_text() + "\nMORE = 1\n")
    assert specs.absolute(spec).key != spec.key
    with pytest.raises(InvalidSpec, match="has changed since this run was asked for"):
        load_experiment(spec, torch.device("cpu"), ignore)


def test_weights_may_be_a_file_beside_it(tmp_path):
    from qlib.models.file import File

    save_file(made("cnn").state_dict(), tmp_path / "w.safetensors")
    built = File().build(f"{FILE}:cnn", str(tmp_path / "w.safetensors"))
    assert torch.equal(built.module(HERE), made("cnn")(HERE))
    with pytest.raises(InvalidSpec, match=r"are not of own_nets.py:transformer: missing"):
        File().build(f"{FILE}:transformer", str(tmp_path / "w.safetensors"))


CODE = """
import helper_beside
from torch import nn
number = 3
def raises():
    x = 1
    raise KeyError("lost")
def nothing(): pass
def text(): return "net"
def triple(): return nn.Identity(), 1, 2
def strange(): return nn.Identity(), {"size": 3}
def mean(): return nn.Identity(), {"input_size": (1, 8, 8), "mean": (0, 1)}
def std(): return nn.Identity(), {"input_size": (1, 8, 8), "std": (0,)}
def size(): return nn.Identity(), {"input_size": 8}
def double(): return nn.Linear(1, 1).double()
def needs(width): return nn.Identity()
def leaves(): raise SystemExit
"""


@pytest.mark.parametrize(
    ("function", "match"),
    [
        ("nowhere", r"own\.py has no function 'nowhere'; write one that returns the network"),
        ("number", r"own\.py has no function 'number'"),
        ("raises", r"raises\(\) stopped in line 7 of own\.py with KeyError: 'lost'; mend"),
        ("mean", r"mean \(0, 1\) and the std None; each needs 1 numbers"),
        ("std", r"mean None and the std \(0,\); each needs 1 numbers"),
        ("size", r"has input_size; it needs input_size \(channels, height, width\)"),
        ("double", r"weights of type float64, and float32 is needed"),
        ("leaves", r"leaves\(\) stopped in line 17 of own\.py with SystemExit; mend"),
        ("needs", r"needs\(\) stopped in own\.py with TypeError: .*width"),
        ("nothing", r"own\.py:nothing returned nothing; it has to return a torch\.nn\.Module"),
        ("text", r"returned an object of type str; it has to"),
        ("triple", r"returned a tuple of Identity, int, int; it has to"),
        ("strange", r"preprocessing that own\.py:strange returned has size; it needs input_size"),
    ],
)
def test_function_that_gives_no_network(function, match, tmp_path, capfd):
    (tmp_path / "helper_beside.py").write_text("")
    (tmp_path / "own.py").write_text(CODE)
    code, out, err = run(tmp_path, f"{tmp_path}/own.py:{function}", capfd, "--method", "nearest")
    assert code == 2 and not out and err.count("\n") == 1
    assert re.search(match, err), err


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("gone.py:build", "There is no file gone.py; check the path"),
        ("net.py", "net.py names no function; write the file and, after a colon"),
        ("net.py:", "names no function"),
        ("./net.txt:build", r"./net.txt is no Python file by its name; .* has to end in .py"),
        ("FILE.py:BUILD", "is a pattern"),
    ],
)
def test_name_that_is_no_file_and_function(name, match, tmp_path, capfd):
    code, out, err = run(tmp_path, name, capfd, "--method", "nearest")
    assert code == 2 and match.split(" .*")[0] in err and not out


def test_broken_file_is_named_with_its_line(tmp_path, capfd):
    (tmp_path / "own.py").write_text("x = 1\ndef build(:\n")
    code, _, err = run(tmp_path, f"{tmp_path}/own.py:build", capfd, "--method", "nearest")
    assert code == 2 and "own.py stopped in line 2 of own.py with SyntaxError" in err


@pytest.mark.parametrize(
    ("function", "told"), [("pair", "choose the output"), ("pixels", "class scores")]
)
def test_network_from_a_file_that_gives_no_scores(function, told, tmp_path, capfd):
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "class Pair(nn.Sequential):\n"
        "    def forward(self, x): return x, x\n"
        "def pair(): return Pair()\n"
        "def pixels(): return nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(0))\n"
    )
    code, _, err = run(tmp_path, f"{tmp_path}/own.py:{function}", capfd, "--method", "nearest")
    assert code == 2 and told in err and err.count("\n") == 1
