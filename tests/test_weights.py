"""Weights files: nothing in them is run; matched by the network's own names, told, or refused."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qlib.core import weights_key
from qlib.core.records import InvalidSpec
from qlib.models._weights import load_weights, read_weights

State = dict[str, Tensor]


class Net(nn.Module):
    """A convolution, a batch norm, a constant mask, and a linear layer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
            self.head = nn.Linear(2, 3)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


@pytest.fixture
def state() -> State:
    """What a file holds: not what a new `Net` begins with."""
    return Net(seed=1).state_dict()


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., tuple[Net, str]]:
    """Save something, load it into a new network; the network and its notes in one text."""

    def loaded(content: Any, key: str = "", net: nn.Module | None = None, **how: Any) -> Any:
        torch.save(content, tmp_path / "w.pth", **how)
        net = net or Net()
        notes = load_weights(net, f"{tmp_path / 'w.pth'}{key}", "net")
        return net, " ".join(notes)

    return loaded


@pytest.fixture
def refused(load: Callable[..., Any]) -> Callable[..., str]:
    """Save something that is refused; the sentence, in which nothing is PyTorch's own text."""

    def sentence(content: Any, key: str = "", **how: Any) -> str:
        net = Net()
        before = {k: v.clone() for k, v in net.state_dict().items()}
        with pytest.raises(InvalidSpec) as caught:
            load(content, key, net, **how)
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())  # untouched
        return in_one_sentence(str(caught.value))

    return sentence


def in_one_sentence(text: str) -> str:
    assert "\n" not in text
    assert not re.search(
        r"weights_only|Unpickl|add_safe_globals|PytorchStream|GLOBAL|object at 0x", text
    )
    assert text.endswith(".")
    return text


def same(net: nn.Module, state: State) -> bool:
    return all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def floats(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """The same state, its weights (not its counter, not its constant) changed."""
    return {k: change(v) if v.is_floating_point() and k != "mask" else v for k, v in state.items()}


# ---- what stands before the names ---------------------------------------------------------------


@pytest.mark.parametrize(
    "before",
    ["module.", "model.", "_orig_mod.", "_orig_mod.module.", "backbone.", "encoder.", "net.",
     "a.name.of.ones.own."],
)  # fmt: skip
def test_what_stands_before_every_name_is_taken_off_and_told(load, state, before):
    net, notes = load({before + k: v for k, v in state.items()})
    assert same(net, state)
    assert f"under {before.rstrip('.')!r}" in notes


def test_plain_weights_need_no_words(load, state):
    net, notes = load(state)
    assert same(net, state)
    assert notes == ""


def test_a_part_of_a_larger_network_is_taken_and_the_rest_told(load, state):
    larger = {f"backbone.{k}": v for k, v in state.items()}
    larger |= {"decoder.0.weight": torch.ones(3, 3), "decoder.0.bias": torch.ones(3)}
    net, notes = load(larger)
    assert same(net, state)
    assert "left out decoder (2 values)" in notes


def test_dictionaries_in_dictionaries(load, state):
    parts = {"stem": {}, "head": {}}
    for k, v in state.items():
        part, _, rest = k.partition(".")
        parts.setdefault(part, {})[rest] = v
    mask = parts.pop("mask")[""]
    net, notes = load({"epoch": 3, "nets": {"student": parts | {"mask": mask}}})
    assert same(net, state)
    assert "under 'nets.student'" in notes
    assert "left out epoch (int)" in notes


def test_a_wrapper_of_ones_own_around_the_network(load, state):
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

    wrapper, notes = load(state, net=Wrapper())
    assert same(wrapper.net, state)
    assert "lack the network's 'net.'" in notes


# ---- which weights of several -------------------------------------------------------------------


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema", "ema", "ema_state_dict"])
@pytest.mark.parametrize("plain", ["state_dict", "model", ""])
def test_moving_averages_go_first_and_others_can_be_asked_for(load, state, average, plain):
    other = Net(seed=2).state_dict()
    content = {average: {f"module.{k}": v for k, v in state.items()}}
    content |= {plain: other} if plain else other
    net, notes = load(content)
    assert same(net, state)
    assert "a moving average of the weights" in notes
    assert f"w.pth#{plain or '.'}" in notes
    net, _ = load(content, f"#{plain or '.'}")
    assert same(net, other)
    net, _ = load(content, f"#{average}")
    assert same(net, state)


def test_the_choice_is_timms(tmp_path, state):
    from timm.models import load_state_dict

    sets = {name: Net(seed=n).state_dict() for n, name in enumerate(
        ("model", "state_dict", "model_ema", "state_dict_ema"), 3)}  # fmt: skip
    while sets:
        torch.save(sets, tmp_path / "w.pth")
        theirs, net = load_state_dict(str(tmp_path / "w.pth")), Net()
        load_weights(net, str(tmp_path / "w.pth"), "net")
        assert same(net, theirs)
        sets.popitem()


def test_broken_plain_weights_beside_a_good_average_do_not_matter(load, refused, state):
    content = {"model": floats(state, lambda v: v * torch.nan), "model_ema": state}
    assert same(load(content)[0], state)
    assert "NaN" in refused(content, "#model")


def test_an_average_that_is_not_whole_is_not_taken(load, state):
    few = {"head.weight": torch.zeros(3, 2)}
    net, notes = load({"model": state, "ema": few})
    assert same(net, state)
    assert "left out ema" in notes


def test_several_sets_without_a_first_are_asked_for_by_name(load, refused, state):
    content = {"student": Net(seed=2).state_dict(), "teacher": state}
    said = refused(content)
    assert "holds 2 sets of weights that fit net: student, teacher; say which" in said
    assert "w.pth#student" in said
    assert same(load(content, "#teacher")[0], state)
    assert "no weights under 'pupil'; it has them under student, teacher" in refused(
        content, "#pupil"
    )


def test_a_file_whose_own_name_has_the_mark(tmp_path):
    assert weights_key.parts("a.pth#ema") == (Path("a.pth"), "ema")
    file = tmp_path / "run#3.pth"
    file.touch()
    assert weights_key.parts(str(file)) == (file, "")
    assert weights_key.parts(f"{file}#ema") == (file, "ema")
    assert weights_key.joined(file, "ema") == f"{file}#ema"


# ---- what stands beside weights -----------------------------------------------------------------


def test_counters_are_left_out_and_told(load, state):
    extra = {
        "total_ops": torch.zeros(1),
        "stem.0.total_params": torch.zeros(1, dtype=torch.float64),
    }
    extra |= {"n_averaged": torch.tensor(3), "head.num_batches_tracked": torch.tensor(4)}
    net, notes = load(state | extra)
    assert same(net, state)
    for name in ("total_ops", "total_params", "n_averaged", "num_batches_tracked"):
        assert name in notes


def test_a_weight_of_one_value_is_no_counter(refused, state):
    said = refused(state | {"stem.2.weight": torch.ones(1)})  # of a PReLU that the network lacks
    assert "nothing missing, unexpected stem.2.weight" in said
    said = refused(state | {"head.step": torch.ones(3)})  # a counter by its name alone
    assert "nothing missing, unexpected head.step" in said


def test_scalars_beside_tensors_are_told(load, state):
    net, notes = load(state | {"best_acc": 91.2, "arch": "net"})
    assert same(net, state)
    assert "left out best_acc (float), arch (str)" in notes


def test_a_checkpoint_of_a_training_script(load, state):
    script = {
        "model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1, out=Path("x")),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "best": np.float64(91.2), "config": SimpleNamespace(a=SimpleNamespace()),
    }  # fmt: skip
    for how in ({}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}):
        net, notes = load(script, **how)
        assert same(net, state)
        assert "args (argparse.Namespace)" in notes
        assert "optimizer (2 values)" in notes
        assert re.search(r"best \(numpy\.[\w.]*scalar\)", notes)
        assert "config (types.SimpleNamespace)" in notes


def test_a_batch_counter_may_be_absent(load, state):
    del state["stem.1.num_batches_tracked"]
    load(state)


# ---- nothing of a file is run -------------------------------------------------------------------


class Evil:
    """Pickles into a call that leaves a trace."""

    def __reduce__(self):
        return (Path.touch, (Path("evil.txt"),))


class Eval:
    """Pickles into code in a text."""

    def __reduce__(self):
        return (eval, ("open('evil.txt', 'w').close()",))


class Imports:
    """Pickles into a module that leaves a trace when it is imported."""

    def __reduce__(self):
        return (Imported("evil_module", "anything"), ())


def Imported(module: str, name: str) -> type:
    return type(name, (), {"__module__": module, "__qualname__": name})


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("evil", [Evil, Eval])
def test_code_beside_weights_is_not_run(load, state, tmp_path, monkeypatch, evil, zipped):
    monkeypatch.chdir(tmp_path)
    content = {"model": state, "hook": evil(), "list": [evil()], "more": {"deep": evil()}}
    net, notes = load(content, _use_new_zipfile_serialization=zipped)
    assert same(net, state)
    assert "hook (" in notes
    assert not Path("evil.txt").exists()
    torch.load("w.pth", weights_only=False)  # the trap is one
    assert Path("evil.txt").exists()


def test_a_named_module_is_not_imported(tmp_path, monkeypatch, state):
    from qlib.models import _inert_pickle

    (tmp_path / "evil_module.py").write_text("open('evil.txt', 'w').close()\ndef f(): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    body = b"cevil_module\nf\n(tR."  # protocol 0: call evil_module.f()
    made = _inert_pickle.load(__import__("io").BytesIO(body))
    assert isinstance(made, _inert_pickle.Inert)
    assert made.pickled_name == "evil_module.f"
    assert not Path("evil.txt").exists()


def test_a_pickle_cannot_change_its_reader(tmp_path):
    import io

    from qlib.models import _inert_pickle

    # push the call that makes tensors, then set its state
    body = b"ctorch._utils\n_rebuild_tensor_v2\n(S'_make'\nNdb."
    with pytest.raises((pickle.UnpicklingError, TypeError)):
        _inert_pickle.load(io.BytesIO(body))
    for name in ("builtins\neval", "os\nsystem", "qlib.core.own_code\nparts", "torch\nload"):
        made = _inert_pickle.load(io.BytesIO(f"c{name}\n.".encode()))
        assert issubclass(made, _inert_pickle.Inert)


# ---- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "word"),
    [(torch.float16, "widened"), (torch.bfloat16, "widened"), (torch.float64, "rounded")],
)
def test_other_floats_become_float32_and_that_is_told(load, state, kind, word):
    net, notes = load(floats(state, lambda v: v.to(kind)))
    assert net.head.weight.dtype == torch.float32
    assert torch.equal(net.head.weight, state["head.weight"].to(kind).float())
    name = str(kind).removeprefix("torch.")
    assert f"8 tensors were {word} from {name} to float32" in notes


def test_nan_and_infinity_are_counted_and_named(refused, state):
    state["head.weight"][0] = torch.nan
    state["head.bias"][1] = torch.inf
    said = refused(state)
    assert "head.weight" in said
    assert "2 of 6 values that are NaN or infinite, and 1 more tensors" in said


def test_overflow_is_said(refused, state):
    assert "(half precision ends at 65,504)" in refused(
        state | {"head.weight": torch.full((3, 2), 1e6).half()}
    )
    assert "(float32 ends at 3.4e38)" in refused(
        state | {"head.weight": torch.full((3, 2), 1e60, dtype=torch.float64)}
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda v: (100 * v).to(torch.int8), "holds integers (int8)"),
        (lambda v: (100 * v).to(torch.uint8), "holds integers (uint8)"),
        (lambda v: (100 * v).long(), "holds integers (int64)"),
        (lambda v: v.to(torch.complex64), "holds complex numbers (complex64)"),
        (lambda v: v > 0, "holds bool where the network has float32"),
        (lambda v: v.to_sparse(), "is sparse"),
        (lambda v: v.to_sparse_csr(), "is sparse"),
        (lambda v: v.to("meta"), "has a shape and no values"),
        (lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "is quantized"),
        (lambda v: v.to(torch.float8_e4m3fn), "holds float8_e4m3fn"),
    ],
)
def test_tensors_that_are_no_weights_are_refused_by_name(refused, state, make, words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = refused({"model": state | {"head.weight": make(state["head.weight"])}})
    assert "The tensor model.head.weight in " in said
    assert words in said


# ---- files that are something else --------------------------------------------------------------


def test_a_dictionary_that_holds_itself(refused, state):
    itself: dict[str, Any] = {"model": dict(state)}
    itself["model"]["again"] = itself
    assert "has a dictionary that holds itself ('model.again')" in refused(itself)
    twice = {"a": {}, "b": {}}
    twice["a"]["b"], twice["b"]["a"] = twice["b"], twice["a"]
    assert "holds itself" in refused(twice)


def test_a_dictionary_in_two_places_is_no_circle(load, state):
    shared = {"x": torch.ones(2)}
    assert same(load({"model": state, "one": shared, "two": shared})[0], state)


def test_a_dictionary_that_doubles_with_every_level_is_refused(refused, monkeypatch):
    monkeypatch.setattr("qlib.models._checkpoint.MOST", 1000)
    level: dict[str, Any] = {"x": 1}
    for _ in range(14):
        level = {"a": level, "b": level}
    assert "holds more than 1,000 values" in refused(level)


@pytest.mark.parametrize("nested", [False, True])
def test_numbers_in_place_of_names(refused, state, nested):
    numbered = dict(enumerate(state.values()))
    assert "has its tensors under numbers" in refused({"model": numbered} if nested else numbered)


def test_no_weights_at_all(refused):
    assert "holds no tensors by name, but epoch (int)" in refused({"epoch": 3})
    assert "holds something of type list" in refused([1, 2])
    assert "holds nothing" in refused({})


def test_a_pickled_network(refused):
    assert "holds a whole object (torch.nn.modules.linear.Linear)" in refused(nn.Linear(2, 3))
    said = refused({"model": nn.Linear(2, 3), "epoch": 1})
    assert "model: torch.nn.modules.linear.Linear" in said
    assert "torch.save(net.state_dict()" in said


def written(tmp_path: Path, name: str, content: bytes = b"") -> str:
    """The sentence about a file of these bytes."""
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidSpec) as caught:
        read_weights(str(tmp_path / name))
    return in_one_sentence(str(caught.value))


def test_torchscript(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 3)).save(str(tmp_path / "w.pt"))
    assert (
        "is a TorchScript archive; open it with torch.jit.load and save its weights: "
        in written(tmp_path, "w.pt")
    )


@pytest.mark.parametrize("name", ["w.pt2", "w.pth"])
def test_exported_program(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:  # as torch.export.save lays it out
        archive.writestr("w/archive_format", "pt2")
        archive.writestr("w/models/model.json", "{}")
        archive.writestr("w/data/weights/weight_0", b"0000")
    assert "is a program of torch.export; save the weights of the network" in written(
        tmp_path, name
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.onnx", b"\x08\x07\x12\x07pytorch\x1a\x052.1.0", "an ONNX graph"),
        ("w.bin", b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "an ONNX graph"),
        ("w.h5", b"\x89HDF\r\n\x1a\n" + bytes(64), "a TensorFlow or Keras file"),
        ("w.bin", b"\x89HDF\r\n\x1a\n" + bytes(64), "a TensorFlow or Keras file"),
        ("w.keras", b"anything", "a TensorFlow or Keras file"),
        ("w.npy", b"\x93NUMPY\x01\x00", "a file of numpy arrays"),
        ("w.engine", b"anything", "compiled for one machine"),
        ("w.pkl", pickle.dumps({"head.weight": np.ones(3)}), "a Python pickle that torch.save did"),
        ("w.pth", pickle.dumps({"head.weight": np.ones(3)}), "a Python pickle that torch.save did"),
    ],
)
def test_files_of_other_tools(tmp_path, name, content, words):
    said = written(tmp_path, name, content)
    assert f"{name} is {words}" in said
    assert "save" in said.partition(";")[2]


def test_arrays_of_numpy(refused, state, tmp_path):
    arrays = {k: v.numpy() for k, v in state.items()}
    assert "turn each array into a tensor" in refused(arrays)
    np.savez(tmp_path / "w.npz", **arrays)
    assert "a file of numpy arrays" in written(tmp_path, "w.npz")


def test_a_file_that_is_not_there_or_called_otherwise(tmp_path):
    assert re.search(
        r"There is no weights file .*w\.pth; check the path", written(tmp_path, "w.pth")
    )
    assert "is not a weights file by its name; allowed are .safe" in written(
        tmp_path, "w.txt", b"x"
    )
    (tmp_path / "folder.pth").mkdir()
    assert "There is no weights file" in written(tmp_path, "folder.pth")


def test_truncated_files(tmp_path, state):
    from safetensors.torch import save_file

    for name, save in (("a.safetensors", save_file), ("a.pth", torch.save)):
        save(state, tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        for size in (1, 5, len(whole) // 2, len(whole) - 1):
            said = written(tmp_path, name, whole[:size])
            assert re.search("is damaged or no weights file .*; fetch or save it again", said)
        (tmp_path / name).write_bytes(b"")
        assert "is damaged or no weights file" in written(tmp_path, name)


def test_files_of_text(tmp_path):
    for name in ("a.safetensors", "a.pt"):
        pointer = b"version https://git-lfs.github.com/spec/v1\n"
        assert "is damaged or no weights file" in written(tmp_path, name, pointer)


# ---- weights of another network -----------------------------------------------------------------


def test_another_architecture_is_named(refused, state):
    other = {k: v for k, v in state.items() if k != "head.bias"}
    other |= {"extra": torch.ones(2), "more": torch.ones(2)}
    assert "are not of net: missing head.bias, unexpected extra and 1 more. Choose" in refused(
        other
    )
    wrapped = {"state_dict": {f"module.{k}": v for k, v in other.items()}}
    assert "are not of net: missing head.bias, unexpected extra and 1 more. Choose" in refused(
        wrapped
    )
    assert "nothing missing, unexpected more. Choose" in refused(state | {"more": torch.ones(2)})


def test_another_shape_is_named(refused, state):
    said = refused(state | {"head.weight": torch.ones(4, 2)})
    assert "head.weight has shape (4, 2) in the file and (3, 2) in the network" in said
