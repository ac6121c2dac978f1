"""Every kind of layer with a weight: rewritten exactly, counted, quantized in every way."""

import copy
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from helpers import calibration, method, plan
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import qlib
from qlib.core.records import InvalidSpec, ignore
from qlib.methods._search.noise import cancels
from qlib.methods._search.obq import as_rows
from qlib.methods._search.operands import operand
from qlib.methods.base import methods
from qlib.network import costs
from qlib.network.blocks import find_blocks
from qlib.network.model import QuantModel
from qlib.network.own_weight import MadeOnce
from qlib.network.points import QuantLayer, standing_in

OUT = 6


class Around(nn.Module):
    """(n, 1, 8, 8) → (n, 5): one layer on the image in some shape, then a linear one."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, self.shape, self.head = layer, shape, nn.Linear(OUT, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.layer(x.reshape(len(x), *self.shape)))
        return self.head(y.flatten(2).mean(2) if len(self.shape) > 1 else y)


class Equalised(nn.Conv2d):
    """Its weight is scaled at every call."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * 0.3, self.bias)


class Centred(nn.Linear):
    """Its weight is centred and its input turned round, in a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return F.linear(input.flip(-1), weight, self.bias)


class ByHand(nn.Linear):
    """No function of PyTorch's for linear layers inside."""

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.mT + self.bias


class Doubled(nn.ConvTranspose2d):
    """Transposed, with a weight of its own making."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.conv_transpose2d(input, self.weight * 2, self.bias, self.stride)


def std(name: str, **kwargs) -> nn.Module:
    from timm import layers

    return getattr(layers, name)(1, OUT, 3, **kwargs)


def old_norm(layer: nn.Module, kind: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in many networks
        return getattr(nn.utils, kind)(layer)


PLANE = (1, 8, 8)
# kind → layer, shape of its input, multiply–accumulates for one image by hand
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "1d, grouped": (lambda: nn.Conv1d(8, OUT, 3, padding=1, groups=2), (8, 8), 6 * 8 * 3 * 4),
    "1d, patches": (lambda: nn.Conv1d(8, OUT, 2, stride=2), (8, 8), 6 * 4 * 2 * 8),
    "3d, circular": (
        lambda: nn.Conv3d(1, OUT, (1, 3, 3), padding=(0, 1, 1), padding_mode="circular"),
        (1, 4, 4, 4), 6 * 64 * 9,
    ),
    "3d, dilated": (lambda: nn.Conv3d(2, OUT, 2, dilation=(1, 2, 1)), (2, 4, 4, 2), 6 * 6 * 2 * 8),
    "transposed 1d, grouped": (
        lambda: nn.ConvTranspose1d(8, OUT, 4, stride=2, padding=1, groups=2), (8, 8), 64 * 4 * 3,
    ),
    "transposed 2d, padded behind": (
        lambda: nn.ConvTranspose2d(1, OUT, 3, 2, 1, output_padding=1, bias=False), PLANE, 64 * 54,
    ),
    "transposed 2d, cropped": (lambda: nn.ConvTranspose2d(1, OUT, 3, padding=2), PLANE, 64 * 54),
    "transposed 3d, dilated": (
        lambda: nn.ConvTranspose3d(4, OUT, (1, 3, 2), dilation=(1, 2, 1), groups=2),
        (4, 2, 4, 2), 64 * 6 * 3,
    ),
    "reflected": (
        lambda: nn.Conv2d(1, OUT, 3, padding=1, padding_mode="reflect"), PLANE, 6 * 64 * 9,
    ),
    "same, dilated": (
        lambda: nn.Conv2d(1, OUT, (2, 3), padding="same", dilation=(2, 1)), PLANE, 6 * 64 * 6,
    ),
    "weight norm, old": (
        lambda: old_norm(nn.Conv2d(1, OUT, 3), "weight_norm"), PLANE, 6 * 36 * 9,
    ),
    "weight norm, new": (
        lambda: parametrizations.weight_norm(nn.Conv1d(8, OUT, 1)), (8, 8), 6 * 8 * 8,
    ),
    "spectral norm, old": (
        lambda: old_norm(nn.Linear(64, OUT), "spectral_norm"), (64,), 6 * 64,
    ),
    "spectral norm, new": (
        lambda: parametrizations.spectral_norm(nn.ConvTranspose2d(1, OUT, 2)), PLANE, 64 * 24,
    ),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(64, OUT)), (64,), 6 * 64),
    "standardised": (lambda: std("StdConv2d", stride=2, padding=1), PLANE, 6 * 16 * 9),
    "standardised, padded as it runs": (
        lambda: std("ScaledStdConv2dSame", stride=2), PLANE, 6 * 16 * 9,
    ),
    "padded as it runs": (lambda: std("Conv2dSame", stride=2), PLANE, 6 * 16 * 9),
    "equalised": (lambda: Equalised(1, OUT, 3), PLANE, 6 * 36 * 9),
    "centred": (lambda: Centred(64, OUT), (64,), 6 * 64),
    "by hand": (lambda: ByHand(64, OUT), (64,), 6 * 64),
    "transposed, doubled": (lambda: Doubled(1, OUT, 3), PLANE, 64 * 54),
}  # fmt: skip


def made(kind: str, *, seed: int = 0) -> nn.Module:
    make, shape, _ = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Around(make(), shape)
        net(images())  # spectral norm of the old kind makes its weight when it runs
    return net.eval()


def images(n: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def of(net: nn.Module) -> QuantModel:
    return QuantModel(net, images(2), find_blocks(net))


def close(one: Tensor, two: Tensor) -> None:
    assert (one - two).abs().max() <= 2e-6 * two.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_rewritten_layer_is_the_float_one_and_is_counted(kind: str) -> None:
    net = made(kind)
    model, x = of(net), images(5, 2)
    close(model(x), net(x).detach())
    assert list(model.layers) == ["layer", "head"]
    assert model.macs == {"layer": KINDS[kind][2], "head": OUT * 5}
    assert len(model.weighted()["layer"].weight) == OUT
    assert not model.notes


@pytest.mark.parametrize("kind", KINDS)
def test_unfolded_operand_times_the_weight_is_the_output(kind: str) -> None:
    if kind == "by hand":  # becomes one of PyTorch's own, with which the others deal
        return
    layer = of(made(kind)).weighted()["layer"]
    x = images(3, 4).reshape(3, *KINDS[kind][1])
    columns = operand(lambda: layer(x))
    got = as_rows(layer.weight, len(columns)) @ columns  # (groups, out / groups, images × places)
    want = layer(x) if layer.bias is None else layer(x) - _by_channel(layer.bias, layer)
    split = want.movedim(1, 0).flatten(1).reshape(len(columns), -1, columns.shape[2])
    assert torch.allclose(got, split, atol=1e-5)


def _by_channel(bias: Tensor, layer: QuantLayer) -> Tensor:
    return bias.reshape(-1, *(1,) * (layer.weight.dim() - 2))


@pytest.mark.parametrize("name", ["nearest", "brecq", "gptq", "ptmq"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_quantized_is_what_runs(kind: str, name: str) -> None:
    model, x = of(made(kind)), images(16)
    method(name, 2).apply(model, plan(model, 3, 4), calibration(x), ignore)
    model.switch(weights=True, inputs=True)
    y = model(x)
    for layer in model.weighted().values():
        q = layer.weight_point.quantizer
        assert q is not None
        assert q.scale.shape == (len(layer.weight), *(1,) * (layer.weight.dim() - 1))
        levels = [len(channel.unique()) for channel in layer.weight_point(layer.weight)]
        assert max(levels) <= 2**8
        with standing_in({layer.weight_point: torch.zeros_like}):
            assert not torch.equal(model(x), y)
        with standing_in({layer.input_point: torch.zeros_like}):
            assert not torch.equal(model(x), y)


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method_takes_all_dimensions(name: str) -> None:
    body = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 2, 2), nn.Flatten(2),
        nn.Conv1d(4, 4, 2, stride=2), nn.Unflatten(2, (2, 8, 8)), nn.ReLU(),
        nn.Conv3d(4, 4, 2, stride=2), nn.ConvTranspose3d(4, 4, 1), nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    model, x = of(body.eval()), images(16)
    method(name, 2).apply(model, plan(model, 4, 4), calibration(x), ignore)
    with model.quantized(weights=True, inputs=True):
        assert model(x).isfinite().all()
    assert len(model.layers) == 6


def test_turned_and_made_weights_leave_the_given_network_as_it_is() -> None:
    for kind in KINDS:
        net, x = made(kind), images()
        before, want = copy.deepcopy(net.state_dict()), net(x).detach()
        classes = [type(m) for m in net.modules()]
        of(net)
        assert [type(m) for m in net.modules()] == classes
        assert torch.equal(net(x), want)
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_weight_that_multiplies_is_the_one_on_the_grid() -> None:
    net = made("equalised")
    given = net.get_parameter("layer.weight")
    assert torch.equal(of(net).weighted()["layer"].weight, given * 0.3)
    kept = of(made("centred")).weighted()["layer"]
    assert type(kept.layer) is MadeOnce
    assert torch.allclose(kept.weight.sum(1), torch.zeros(OUT), atol=1e-5)


@pytest.mark.parametrize("kind", ["1d", "3d", "transposed"])
def test_norms_behind_every_convolution_are_folded(kind: str) -> None:
    conv, norm = {
        "1d": (nn.Conv1d(8, OUT, 3), nn.BatchNorm1d(OUT)),
        "3d": (nn.Conv3d(1, OUT, (1, 2, 2), bias=False), nn.BatchNorm3d(OUT)),
        "transposed": (nn.ConvTranspose2d(1, OUT, 3, stride=2, bias=False), nn.BatchNorm2d(OUT)),
    }[kind]
    shape = {"1d": (8, 8), "3d": (1, 1, 8, 8), "transposed": PLANE}[kind]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    net = Around(nn.Sequential(conv, norm), shape).eval()
    model = of(net)
    close(model(images()), net(images()).detach())
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert not model.notes


def test_size_that_a_network_asks_for_is_kept() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(1, 4, 3, 2, 1), nn.ConvTranspose2d(4, 4, 3, 2, 1)
            self.head = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.up(self.down(x), output_size=x.shape[2:]).mean((2, 3)))

    net, x = Asking().eval(), images()
    model = of(net)
    close(model(x), net(x).detach())
    method("adaround", 2).apply(model, plan(model), calibration(x), ignore)
    assert list(model.layers) == ["down", "up", "head"]


class ByImage(nn.Conv2d):
    """Its weight depends on the images."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * input.mean(), self.bias)


class Twice(nn.Conv2d):
    """Two products in one layer."""

    def forward(self, input: Tensor) -> Tensor:
        y = self._conv_forward(input, self.weight, self.bias)
        return y + self._conv_forward(input, self.weight**2, None)


@pytest.mark.parametrize(
    ("layer", "why"), [(ByImage, "makes its weight from the images"), (Twice, "more than once")]
)
def test_layers_that_cannot_be_rewritten_are_left_and_told(layer: type, why: str) -> None:
    net, x = Around(layer(1, OUT, 3), PLANE).eval(), images()
    model = of(net)
    close(model(x), net(x).detach())
    assert "layer" not in model.weighted()
    assert why in model.notes[0] and "'layer'" in model.notes[0]
    assert "not quantized as one layer" in model.notes[0]


# --- shared, called twice


class Shared(nn.Module):
    """One convolution under two names, and once more in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.b, self.row, self.by_name = self.a, [self.a], {"a": self.a}
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = 3 * self.b(self.a(x))
        return self.head(self.by_name["a"](self.row[0](x)).mean((2, 3)))


def test_shared_layer_is_one_layer_under_every_name() -> None:
    net, x = Shared().eval(), images(16)
    model = of(net)
    inner = model.net
    assert isinstance(inner, Shared)
    assert inner.a is inner.b is inner.row[0] is inner.by_name["a"] is model.layers["a"]
    assert model.macs["a"] == 4 * 64 * 4 * 4 * 9
    assert any("a (4 times)" in note for note in model.notes)
    assert isinstance(net.b, nn.Conv2d) and net.row[0] is net.a
    calibration(x).attach(model, plan(model, 8, 8))
    read: list[Tensor] = []
    hook = net.a.register_forward_pre_hook(lambda m, args: read.append(args[0].detach()))
    net(x)
    hook.remove()
    q = model.points["a.input"].quantizer
    assert q is not None
    low, high = (q.values(torch.tensor(float(c))) for c in (q.scheme.qmin, q.scheme.qmax))
    assert float(high - low) == pytest.approx(
        float(torch.stack(read).max() - torch.stack(read).min()), rel=1e-2
    )


# --- what a network reads of its layers


class Curious(nn.Module):
    """Reads what its layers are, as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(1, 4, 3, stride=2), nn.ConvTranspose2d(4, 4, 2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        pad = self.conv.kernel_size[0] // 2
        y = self.up(self.conv(F.pad(x, [pad] * 4))) * self.up.stride[0] / self.conv.stride[0]
        assert self.conv.weight.shape == (4, 1, 3, 3) and self.conv.bias is not None
        return self.head(y.mean((2, 3))) * self.head.in_features / self.conv.out_channels


def test_wrapped_layers_answer_for_the_layers() -> None:
    net, x = Curious().eval(), images()
    model = of(net)
    close(model(x), net(x).detach())
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        model.layers["conv"].nothing_of_the_kind  # noqa: B018
    calibration(x).attach(model, plan(model))
    model.switch(weights=True, inputs=True)
    for layer in model.weighted().values():
        twins = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
        for twin, part in product(twins, [images().expand(-1, 4, -1, -1)]):
            y = part[:, : layer.weight.shape[1]] if layer.kind == "conv" else part[..., :4]
            assert torch.equal(twin(y), layer(y))
    state = copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


# --- thin stems

THIN = """
import torch
from torch import nn
from qlib.network.points import QuantLayer
for stride, size, bias in ((2, 96, True), (4, 224, False), ((1, 2), 97, True)):
    x = torch.randn(4, 3, size, size).contiguous(memory_format=torch.channels_last)
    layer = QuantLayer(nn.Conv2d(3, 48, 1, stride=stride, bias=bias))
    grads = []
    for given in (x, x.contiguous()):
        layer.zero_grad()
        y = layer(given) if given is x else nn.Module.__call__(layer.layer, given)
        y.square().sum().backward()
        grads.append([y.detach(), *(p.grad.clone() for p in layer.parameters())])
    for one, two in zip(*grads, strict=True):
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-3 * float(two.abs().max()))
"""


def test_gradient_of_a_thin_strided_layer_does_not_end_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", THIN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


# --- the two ends


class Ends(nn.Module):
    """Two stems and two heads; a table beside them that no image reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(2, 4)
        self.fine, self.coarse = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 1)
        self.inner, self.skip = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(5, 4, 1)
        self.one, self.two = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.table(torch.ones(1, 2))[..., None, None]
        y = F.relu_(self.fine(x)) + self.coarse(x) + bias
        y = y + self.inner(y)
        y = self.skip(torch.cat([x, y], 1)).mean((2, 3))
        return (self.one(y) + self.two(y.relu())) / 2


def test_all_stems_and_all_heads_are_edge_layers() -> None:
    model = of(Ends().eval())
    assert model.first_layers == ["fine", "coarse"]
    assert model.last_layers == ["one", "two"]
    assert model.notes == [
        "All layers that read the images are first layers: fine, coarse.",
        "All layers that give the answer are last layers: one, two.",
    ]
    bits = plan(model, 3, 4).bits
    ends = {"fine", "coarse", "one", "two"}
    assert {n.rpartition(".")[0] for n, b in bits.items() if b == 8} == ends
    assert plan(model, 3, 4, edge_layers="float").weights.keys() == {"table", "inner", "skip"}


def test_residual_stream_without_a_head_has_one_last_layer() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 1)
            self.parts = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for part in self.parts:
                x = x + part(x)
            return x.mean((2, 3))

    model = of(Stream().eval())
    assert (model.first_layers, model.last_layers) == (["stem"], ["parts.2"])


def test_network_that_cuts_its_gradients_has_the_layers_that_run_first_and_last() -> None:
    class Cut(Around):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach()).detach()

    model = of(Cut(nn.Conv2d(1, OUT, 3), PLANE).eval())
    assert (model.first_layers, model.last_layers) == (["layer"], ["head"])


# --- costs


def test_what_stays_in_float_counts_with_32_bits() -> None:
    model = of(made("reflected"))
    calibration(images()).attach(model, plan(model, 4, 4, edge_layers="same"))
    before = costs.costs(model)
    model.float_macs, model.float_weights = 1000, 50
    after = costs.costs(model)
    assert after["gbops"] - before["gbops"] == pytest.approx(1000 * 32 * 32 / 1e9)
    for key in ("weight_mb", "weight_mb_float"):
        assert after[key] - before[key] == pytest.approx(50 * 4 / 1e6)


# --- training mode, compiled parts


class Dropping(Around):
    def __init__(self) -> None:
        norm, drop = nn.BatchNorm2d(OUT), nn.Dropout(0.5)
        super().__init__(nn.Sequential(nn.Conv2d(1, OUT, 3), norm, drop), PLANE)


@pytest.mark.parametrize("part", ["", "layer.1"])
def test_network_in_training_mode_is_used_in_eval_mode_and_stays_as_it_is(part: str) -> None:
    net, x = Dropping().eval(), images(16)
    want = qlib.quantize(net, x, "nearest")(x)
    net.get_submodule(part).train()
    before = copy.deepcopy(net.state_dict())
    q = qlib.quantize(net, x, "nearest")
    assert torch.equal(q(x), want)
    assert any("in training mode" in note for note in q.model.notes)
    assert q.evaluate(x, torch.zeros(16).long())["agreement"] > 0
    assert net.get_submodule(part).training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_norms_that_count_the_batch_are_told() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False),
                        nn.Flatten(), nn.Linear(144, 5))  # fmt: skip
    notes = qlib.quantize(net.eval(), images(), "nearest").model.notes
    assert any("depend on which images are in it: 1." in note for note in notes)


def test_compiled_part_runs_in_float_and_is_told() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in many networks
        part = torch.jit.script(nn.Sequential(nn.Conv2d(1, OUT, 3), nn.ReLU()).eval())
    net, x = Around(part, PLANE).eval(), images(16)
    with pytest.raises(InvalidSpec, match=r"Only 2 % of this network's .*--allow-float"):
        qlib.quantize(net, x, "nearest")
    for name in ("nearest", "brecq"):
        settings: dict[str, Any] = {} if name == "nearest" else {"steps": 2}
        model = qlib.quantize(net, x, name, allow_float=True, **settings).model
        assert (model.float_macs, model.float_weights) == (OUT * 36 * 9, OUT * 9)
        assert model.notes[0] == "Compiled by torch.jit and therefore left in float: 'layer'."
        with model.quantized(weights=False, inputs=False):
            close(model(x), net(x).detach())


# --- noise


def test_patches_of_any_dimension_can_have_noise() -> None:
    for conv in (nn.Conv1d(2, 3, 2, 2), nn.Conv3d(2, 3, (1, 2, 2), (1, 2, 2), padding="valid")):
        assert cancels(QuantLayer(conv))
    others = nn.Conv1d(2, 3, 2), nn.Conv3d(2, 3, 2, 2, padding=1), nn.Conv1d(2, 4, 2, 2, groups=2)
    for conv in others:
        assert not cancels(QuantLayer(conv))
