"""Products written as calls are found, made modules, and quantized; the network stays the same."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qlib
from qlib.core.records import InvalidSpec
from qlib.network.attention import ExplicitMultiheadAttention
from qlib.network.einsum import Contraction
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer, QuantMatMul

WIDTH, CLASSES = 8, 5


class Calls(nn.Module):
    """A convolution, what ``mixed`` makes of its (n, 64, 8) tokens, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.w = nn.Parameter(torch.randn(WIDTH, WIDTH) / 3)
        self.b = nn.Parameter(torch.randn(WIDTH) / 3)
        self.kernel = nn.Parameter(torch.randn(WIDTH, WIDTH, 3, 3) / 9)
        self.other = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def mixed(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).relu().flatten(2).transpose(1, 2)
        return self.head(self.mixed(tokens).mean(1))


def calls(mixed) -> nn.Module:
    """Such a network around ``mixed(net, tokens)``."""
    torch.manual_seed(0)
    return type("Own", (Calls,), {"mixed": mixed})().eval()


def square(x: Tensor) -> Tensor:
    """(n, 64, c) → (n, c, 8, 8)."""
    return x.transpose(1, 2).unflatten(2, (8, 8))


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def conv1d(net, x):
    return F.conv1d(x.mT, net.kernel[:, :, 1], net.b, padding=1).mT


def conv3d(net, x):
    y = F.conv3d(square(x)[:, :, None], net.kernel[:, :, None], padding=(0, 1, 1))
    return tokens(y[:, :, 0])


def transposed(net, x):
    return tokens(F.conv_transpose2d(square(x), net.kernel, net.b, padding=1))


def mixture(net, x):
    """A weight for each image, in one grouped convolution over all of them."""
    share = x.mean(1).sigmoid()  # (n, channels)
    weight = (share[:, :, None, None, None] * net.kernel).flatten(0, 1)
    images = square(x).flatten(0, 1)[None]
    return tokens(F.conv2d(images, weight, padding=1, groups=len(x)).view(len(x), WIDTH, 8, 8))


def standardised(net, x):
    weight = net.kernel - net.kernel.mean((1, 2, 3), keepdim=True)
    return tokens(F.conv2d(square(x), weight, net.b, padding=1))


def moving_bias(net, x):
    return F.linear(x[:1], net.w, x.mean((0, 1))) + x


WITH_WEIGHT = {  # one call whose weight is on a grid of its own
    "linear": lambda net, x: F.linear(x, net.w, net.b),
    "linear by keyword": lambda net, x: F.linear(input=x, weight=net.w, bias=net.b),
    "linear of a layer": lambda net, x: F.linear(x, net.other.weight, net.b),
    "linear with a bias of the images": moving_bias,
    "times a matrix": lambda net, x: x @ net.w,
    "addmm": lambda net, x: torch.addmm(net.b, x.flatten(0, 1), net.w, alpha=2).view_as(x),
    "einsum with a matrix": lambda net, x: torch.einsum("btc,dc->btd", x, net.w),
    "einsum, matrix first": lambda net, x: torch.einsum("dc,...c->...d", net.w, x),
    "conv2d": lambda net, x: tokens(F.conv2d(square(x), net.kernel, net.b, 1, 1)),
    "conv2d by keyword": lambda net, x: tokens(F.conv2d(square(x), net.kernel, padding="same")),
    "standardised": standardised,
    "conv1d": conv1d,
    "conv3d": conv3d,
    "transposed": transposed,
}
OF_ACTIVATIONS = {  # products of two activations, and how many
    "matmul": (lambda net, x: torch.matmul(x, x.mT).softmax(-1) @ x, 2),
    "bmm": (lambda net, x: torch.bmm(torch.bmm(x, x.mT).softmax(2), x), 2),
    "baddbmm": (lambda net, x: torch.baddbmm(x, x @ x.mT, x, beta=0.5, alpha=0.1), 2),
    "einsum": (lambda net, x: torch.einsum("bij,bkj->bik", x, x) @ x / 64, 2),
    "einsum of a list": (lambda net, x: torch.einsum("bij,bkj->bik", [x, x]) @ x / 64, 2),
    "einsum turned": (lambda net, x: torch.einsum("bij,bik->bjk", x, x)[:, :1] + x, 1),
    "fused": (lambda net, x: F.scaled_dot_product_attention(x, x, x), 2),
    "fused, causal": (
        lambda net, x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3),
        2,
    ),
    "a mixture of convolutions": (mixture, 1),
}


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", WITH_WEIGHT)
def test_a_call_with_a_weight_becomes_a_layer(name):
    net = calls(WITH_WEIGHT[name])
    model = QuantModel(net, images(2))
    assert torch.allclose(model(images()), net(images()), atol=1e-6)
    assert model.coverage.share == 1 and len(model.layers) == 3
    assert all(isinstance(layer, QuantLayer) for layer in model.layers.values())
    assert sum(model.macs.values()) == model.coverage.macs


@pytest.mark.parametrize("name", OF_ACTIVATIONS)
def test_a_product_of_activations_gets_two_points(name):
    mixed, count = OF_ACTIVATIONS[name]
    net = calls(mixed)
    model = QuantModel(net, images(2))
    assert torch.allclose(model(images()), net(images()), atol=1e-6)
    products = [layer for layer in model.layers.values() if isinstance(layer, QuantMatMul)]
    assert model.coverage.share == 1 and len(products) == count
    assert sum(model.macs.values()) == model.coverage.macs


@pytest.mark.parametrize(
    ("name", "method"),
    [("standardised", "brecq"), ("einsum", "ptq4vit"), ("fused", "qdrop"), ("matmul", "ptmq"),
     ("linear of a layer", "gptq"), ("a mixture of convolutions", "nearest")],
)  # fmt: skip
def test_what_is_found_is_quantized(name, method):
    mixed = WITH_WEIGHT.get(name) or OF_ACTIVATIONS[name][0]
    net = calls(mixed)
    steps = {"steps": 2} if method in ("brecq", "qdrop", "ptmq") else {}
    q = qlib.quantize(net, images(4), method, weight_bits=3, act_bits=3, **steps)
    assert q.coverage == 1
    before = q(images())
    assert not torch.allclose(before, net(images()), atol=1e-3)
    for layer in q.model.weighted().values():  # what is reported is what runs
        point = layer.weight_point
        point.stand_in = torch.zeros_like
        assert not torch.equal(q(images()), before)
        point.stand_in = None
    assert torch.equal(q(images()), before)


def test_softmax_beside_products_is_seen_by_methods_that_split_it():
    from qlib.methods._search.consumers import SOFTMAX, readers

    model = QuantModel(calls(OF_ACTIVATIONS["matmul"][0]), images(2))
    assert readers(model, images(2), SOFTMAX) == {"matmul2": "softmax1"}


def test_names_say_whose_weight_it_is():
    model = QuantModel(calls(WITH_WEIGHT["linear of a layer"]), images(2))
    assert list(model.layers) == ["stem", "other_linear1", "head"]


def test_a_module_without_calls_keeps_its_class_and_the_given_network_everything():
    net = calls(WITH_WEIGHT["linear"])
    before = copy.deepcopy(net.state_dict()), type(net)
    model = QuantModel(nn.Sequential(net, nn.Flatten()), images(2))
    assert type(model.net) is nn.Sequential and type(net) is before[1]
    assert net.state_dict().keys() == before[0].keys()


def test_products_that_depend_on_the_images_are_refused():
    def mixed(net, x):
        return x @ x.mT @ x if float(x.sum()) > 1e6 else x @ net.w

    model = QuantModel(calls(mixed), images(2))
    with pytest.raises(InvalidSpec, match="computes other products for these images"):
        model(1e9 * images(2).abs())


def test_modules_inside_of_an_owner_call_for_themselves():
    def mixed(net, x):
        return net.soft(x @ x.mT) @ net.act(net.other(x))

    net = calls(mixed)
    net.soft, net.act = nn.Softmax(dim=-1), nn.GELU()
    model = QuantModel(net, images(2))
    assert torch.allclose(model(images()), net(images()), atol=1e-6)
    assert list(model.layers) == ["stem", "matmul1", "other", "matmul2", "head"]


def test_runs_of_one_module_that_differ_stay_in_float():
    class Sometimes(nn.Module):
        def forward(self, x, twice):
            return x @ x.mT @ x if twice else x

    def mixed(net, x):
        return net.part(net.part(x, False), True)

    net = calls(mixed)
    net.part = Sometimes()
    model = QuantModel(net, images(2))
    assert torch.allclose(model(images()), net(images()))
    assert list(model.coverage.left_float) == ["part matmul"]
    assert model.coverage.left_float["part matmul"] == 2 * 64 * 64 * WIDTH


@pytest.mark.parametrize(
    "settings",
    [{}, {"batch_first": True}, {"kdim": 6, "vdim": 5}, {"bias": False},
     {"add_bias_kv": True, "batch_first": True}, {"add_zero_attn": True}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("masks", ["none", "padding", "causal", "each head", "both"])
@torch.no_grad()
def test_multihead_attention_is_the_same_in_its_parts(settings, masks):
    torch.manual_seed(0)
    fused = nn.MultiheadAttention(8, 2, **settings).eval()
    explicit = ExplicitMultiheadAttention(copy.deepcopy(fused))
    q, k = torch.randn(3, 5, 8), torch.randn(3, 7, settings.get("kdim", 8))
    v = torch.randn(3, 7, settings.get("vdim", 8))
    if not settings.get("batch_first"):
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 5:] = True
    causal = torch.ones(5, 7, dtype=torch.bool).triu(1)
    masking = {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "causal": {"attn_mask": causal},
        "each head": {"attn_mask": torch.randn(6, 5, 7)},
        "both": {"key_padding_mask": padding, "attn_mask": causal},
    }[masks]
    for average in (True, False):
        expected = fused(q, k, v, average_attn_weights=average, **masking)
        got = explicit(q, k, v, average_attn_weights=average, **masking)
        for one, two in zip(expected, got, strict=True):
            assert torch.allclose(one, two, atol=1e-6)
    assert explicit(q, k, v, need_weights=False)[1] is None


def test_an_encoder_layer_runs_what_it_reports():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    net = calls(lambda net, x: net.encoder(x))
    net.encoder = nn.TransformerEncoder(layer, 2).eval()
    q = qlib.quantize(net, images(2), "nearest", weight_bits=4, act_bits=4)
    assert q.coverage == 1 and len(q.model.layers) == 2 + 2 * 8
    with torch.inference_mode():
        before = q(images())
        for part in q.model.weighted().values():
            part.weight_point.stand_in = torch.zeros_like
            assert not torch.equal(q(images()), before)
            part.weight_point.stand_in = None


EQUATIONS = ("bij,bjk->bik", "bij,bkj->bik", "ij,kj", "bhid,bhjd->bhij", "ijk,jil->lik",
             "...ij,...jk->...ik", "bi,bi->b", "ab,cd->abcd")  # fmt: skip
SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "h": 2, "i": 4, "j": 6, "k": 5, "l": 3}


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("turned", [False, True])
def test_a_contraction_is_einsum(equation, turned):
    left = equation.partition("->")[0].split(",")
    shapes = [[2] * (3 if "..." in p else 0) + [SIZES[c] for c in p if c != "."] for p in left]
    a, b = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    contraction = Contraction.read(equation, a.shape, b.shape, turned=turned)
    assert contraction is not None
    one, two = (b, a) if turned else (a, b)
    got = contraction.result(contraction.left(one) @ contraction.right(two), one, two)
    assert torch.allclose(got, torch.einsum(equation, a, b))


@pytest.mark.parametrize("equation", ["ii,ij->j", "ijk,jl->l", "ij,jk,kl->il", "bij->bji"])
def test_what_is_no_product_of_two_matrices_is_left(equation):
    shapes = [[4] * len(p) for p in equation.partition("->")[0].split(",")]
    assert Contraction.read(equation, shapes[0], shapes[-1]) is None


def test_the_parts_of_the_fused_function_know_masks_and_shared_heads():
    x = torch.randn(2, 3, 5, 8)
    model = QuantModel(calls(OF_ACTIVATIONS["fused, causal"][0]), images(2))
    attend = model.net.attention1
    mask = torch.rand(5, 5) > 0.3
    mask[:, 0] = True
    assert torch.allclose(attend(x, x, x, mask), F.scaled_dot_product_attention(x, x, x, mask))
    few = x[:, :1]
    want = F.scaled_dot_product_attention(x, few, few, enable_gqa=True)
    assert torch.allclose(attend(x, few, few, enable_gqa=True), want, atol=1e-6)
