"""Sources of float networks: what they build, what they refuse, and which blocks are found."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_nets import FAMILIES, images, tiny
from torch import nn

from qlib.core import online
from qlib.core.records import InvalidSpec
from qlib.core.specs import model_keys, source_of
from qlib.models.cifar import Cifar
from qlib.models.digits import Digits
from qlib.models.hub import Hub
from qlib.network.blocks import find_blocks

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
ZOO = ROOT / "assets" / "zoo"

# blocks and layers outside of all blocks, counted by hand from each architecture's description
_HEAD = "classifier"
EXPECTED = {
    "vit": (3, ["patch_embed.proj", "head"]),
    "deit": (2, ["patch_embed.proj", "head", "head_dist"]),
    "swin": (4, ["patch_embed.proj", "layers.1.downsample.reduction", "head.fc"]),
    "swinv2": (3, ["patch_embed.proj", "layers.1.downsample.reduction", "head.fc"]),
    "convnext": (5, ["stem.0", *(f"stages.{i}.downsample.1" for i in (1, 2, 3)), "head.fc"]),
    "resnet18": (5, ["conv1", "fc"]),
    "resnet50": (4, ["conv1", "fc"]),
    "regnetx": (6, ["stem.conv", "head.fc"]),
    "regnety": (6, ["stem.conv", "head.fc"]),
    "mobilenetv2": (4, ["conv_stem", "conv_head", "classifier"]),
    "mobilenetv3": (3, ["conv_stem", "blocks.2.0.conv", "conv_head", "classifier"]),
    "mobilenetv4": (
        2,
        ["conv_stem", "blocks.0.0.conv", "blocks.0.1.conv", "blocks.2.0.conv", "conv_head", _HEAD],
    ),
    "efficientnet": (4, ["conv_stem", "conv_head", "classifier"]),
    "mixer": (2, ["stem.proj", "head"]),
    "byobnet": (4, ["stem.conv", "head.fc"]),
    "cifar-resnet": (6, ["conv1", "linear"]),
    "digits-vit": (6, ["patch_embed.proj", "head"]),
    "digits-resnet": (6, ["conv1", "linear"]),
    "digits-mobilenet": (6, ["conv_stem", "conv_head", "classifier"]),
    "unknown": (3, ["0", "1.1.1", "4"]),
    "plain": (0, ["0", "3", "7"]),
}


# --- blocks


def test_every_family_is_expected():
    assert set(EXPECTED) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_cover_all_layers_once(family):
    net = tiny(family)
    blocks = find_blocks(net)
    layers = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    homes = {n: [b for b in blocks if n.startswith(b + ".")] for n in layers}
    count, outside = EXPECTED[family]
    assert len(blocks) == count
    assert all(len(found) <= 1 for found in homes.values())
    assert [n for n, found in homes.items() if not found] == outside
    assert not any(a != b and a.startswith(b + ".") for a in blocks for b in blocks)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_come_in_the_order_in_which_they_run(family):
    net, ran = tiny(family), []
    for name in find_blocks(net):
        hook = lambda module, args, name=name: ran.append(name)  # noqa: E731
        net.get_submodule(name).register_forward_pre_hook(hook)
    with torch.no_grad():
        out = net(images(family))
    assert tuple(ran) == find_blocks(net)  # each once
    assert out.shape == (2, 10)
    assert torch.isfinite(out).all()
    assert out.std() > 0


def test_a_row_inside_a_known_block_does_not_cut_it_up():
    class BasicBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.ModuleList([Pair(), Pair()])

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    assert find_blocks(nn.Sequential(BasicBlock())) == ("0",)
    assert find_blocks(nn.Sequential(Pair())) == ("0",)


def test_a_whole_network_is_never_a_block():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    assert find_blocks(Block()) == ()


# --- the embedded zoo


@pytest.mark.parametrize("name", Digits.variants())
def test_stored_accuracy_is_what_the_network_has(name):
    from qlib.models.train_zoo.__main__ import measure

    stored = json.loads((ZOO / "accuracy.json").read_text())[name]
    built = Digits().build(name, None)
    now = measure(built.module)
    assert now["n"] == stored["n"] == 600
    # another processor sums in another order: an image on the fence may fall to the other side
    assert abs(now["right"] - stored["right"]) <= 1
    assert stored["accuracy"] == round(100 * stored["right"] / stored["n"], 2)
    assert stored["accuracy"] >= {"digits-vit": 97, "digits-resnet": 97.5}.get(name, 96.5)
    assert built.classes == 10
    assert not built.module.training
    assert built.preprocess.input_size == (1, 8, 8)


def test_zoo_files_are_small():
    files = sorted(ZOO.glob("*.safetensors"))
    assert [f.stem for f in files] == sorted(Digits.variants())
    assert all(f.stat().st_size < 400_000 for f in files)


def test_digits_vit_attention_is_timms():
    from timm.layers import Attention

    net = Digits().build("digits-vit", None).module
    assert sum(type(m) is Attention for m in net.modules()) == len(find_blocks(net))


def test_digits_take_other_weights(tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(ZOO / "digits-vit.safetensors")
    state["head.bias"] = state["head.bias"] + 1
    save_file(state, tmp_path / "w.safetensors")
    built = Digits().build("digits-vit", str(tmp_path / "w.safetensors"))
    assert torch.equal(built.module.head.bias, state["head.bias"].float())


def test_training_repeats(monkeypatch):
    from qlib.models.train_zoo import __main__ as zoo

    name = "digits-vit"  # draws weights, the order of the images, and their shifts
    monkeypatch.setitem(zoo.RECIPES, name, zoo.RECIPES[name]._replace(epochs=1))
    before = torch.random.get_rng_state()
    first = zoo.train(name).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    again = zoo.train(name).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)


# --- CIFAR


@pytest.mark.parametrize(("name", "depth"), [("20", 3), ("32", 5), ("56", 9)])
def test_cifar_resnets_build_from_their_own_file(name, depth, tmp_path):
    from qlib.models._resnet import SmallResNet

    net = SmallResNet(depth)
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}, "best": 91.7},
        tmp_path / "w.th",
    )
    built = Cifar().build(f"cifar10-resnet{name}", str(tmp_path / "w.th"))
    assert torch.equal(built.module.linear.weight, net.linear.weight)
    assert len(find_blocks(built.module)) == 3 * depth
    convs = [m for m in built.module.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) + 1 == int(name)  # and the linear layer


def test_option_a_shortcut_drops_pixels_and_pads_channels():
    from qlib.models._resnet import PadShortcut

    x = torch.arange(32.0).view(1, 2, 4, 4)
    y = PadShortcut(2, 2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[0, 1:3], x[0, :, ::2, ::2])
    assert not y[0, 0].any()
    assert not y[0, 3].any()


def test_cifar_needs_weights():
    for name in Cifar.variants():
        with pytest.raises(
            InvalidSpec, match=rf"{name} comes without weights: give a .safetensors"
        ):
            Cifar().build(name, None)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
@pytest.mark.parametrize(
    ("name", "file", "blocks"),
    [
        ("cifar10-resnet20", "cifar10-resnet20", 9),
        ("cifar10-vit", "cifar10-vit-128x4", 4),
        ("timm:deit_tiny_patch16_224", "deit_tiny_patch16_224", 12),
    ],
)
def test_shared_weights_fit(name, file, blocks):
    built = source_of("models", name)().build(name, str(SHARED / f"{file}.safetensors"))
    assert len(find_blocks(built.module)) == blocks
    assert built.classes == (1000 if name.startswith("timm") else 10)


# --- timm


def test_hub_names():
    assert Hub.owns("timm:resnet18")
    assert not Hub.owns("timm:NAME")
    with pytest.raises(InvalidSpec, match="is a pattern"):
        source_of("models", "timm:NAME")
    with pytest.raises(InvalidSpec, match=r"nearest are .*digits-vit"):
        source_of("models", "digits-vitt")


def test_unknown_timm_name_gives_the_nearest():
    with pytest.raises(
        InvalidSpec, match=r"has no network 'deit_tiny_16'; the nearest are .*deit_tiny"
    ):
        Hub().build("timm:deit_tiny_16", None)
    with pytest.raises(InvalidSpec, match=r"has no network '@@@'; timm.list_models\(\) lists them"):
        Hub().build("timm:@@@", None)
    with pytest.raises(InvalidSpec, match=r"no weights 'nope' for resnet18; there are .*a1_in1k"):
        Hub().build("timm:resnet18.nope", None)


def test_timm_from_a_file_with_its_own_number_of_classes(tmp_path):
    import timm
    from safetensors.torch import save_file
    from timm.data import resolve_model_data_config

    net = timm.create_model("test_resnet", num_classes=7)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    built = Hub().build("timm:test_resnet", str(tmp_path / "w.safetensors"))
    assert built.classes == 7
    assert torch.equal(built.module.fc.weight, net.fc.weight)
    config = resolve_model_data_config(net)
    assert all(getattr(built.preprocess, k) == v for k, v in config.items())
    with pytest.raises(
        InvalidSpec, match=r"are not of timm:test_vit: missing .*, unexpected .*Choose"
    ):
        Hub().build("timm:test_vit", str(tmp_path / "w.safetensors"))


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """A hub that nobody answers for, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("qlib.models.hub.reachable", lambda url: False)


def test_hub_out_of_reach_is_said_at_once(no_hub):
    with pytest.raises(
        InvalidSpec, match=r"timm:resnet18 are not on this machine and https.* cannot be"
    ):
        Hub().build("timm:resnet18", None)


def test_no_published_weights(no_hub):
    with pytest.raises(
        InvalidSpec, match="No weights are published for timm:test_vit4; give a file"
    ):
        Hub().build("timm:test_vit4", None)


def test_hub_cache_is_used_without_network(no_hub, tmp_path):
    import timm
    from safetensors.torch import save_file

    net = timm.create_model("test_resnet")
    home = tmp_path / "models--timm--test_resnet.r160_in1k"
    (home / "snapshots" / "abc").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    save_file(net.state_dict(), home / "snapshots" / "abc" / "model.safetensors")
    built = Hub().build("timm:test_resnet", None)
    assert torch.equal(built.module.fc.weight, net.fc.weight)
    assert built.classes == 1000


def test_failing_download_is_one_sentence(monkeypatch, no_hub):
    def fail(*args, **kwargs):
        raise ConnectionError("broken\npipe")

    monkeypatch.setattr("qlib.models.hub.reachable", lambda url: True)
    monkeypatch.setattr("timm.create_model", fail)
    with pytest.raises(
        InvalidSpec, match=r"could not be fetched \(broken\); try again, or give a file"
    ):
        Hub().build("timm:resnet18", None)


def test_network_without_a_classifier_has_no_classes(tmp_path, monkeypatch):
    import timm
    from safetensors.torch import save_file

    net = timm.create_model("test_resnet", num_classes=0)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InvalidSpec, match=r"are not of timm:test_resnet: missing fc.weight"):
        Hub().build("timm:test_resnet", str(tmp_path / "w.safetensors"))
    monkeypatch.setattr("qlib.models.hub._published", lambda arch, options: net)
    assert Hub().build("timm:test_resnet", None).classes == 0


# --- plumbing


def test_reachable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert online.reachable(f"http://127.0.0.1:{port}/x")
    assert not online.reachable(f"http://127.0.0.1:{port}/x", seconds=1)


def test_reachable_asks_the_proxy(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(online, "getproxies", lambda: {"https": f"127.0.0.1:{port}"})
        assert online.reachable("https://host.invalid/x")


def test_listing_loads_no_torch():
    code = (
        "import sys; from qlib.core.specs import model_keys, dataset_keys;"
        "print(len(model_keys()) + len(dataset_keys()));"
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'timm', 'sklearn')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0
    assert "timm:NAME" in model_keys()
