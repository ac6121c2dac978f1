"""The quantizable network: exact rewrites, units, quantization points, bit plans."""

import copy

import pytest
import torch
from helpers import BLOCKS, calibration, pictures, plan, quantizable, trained
from helpers_nets import FAMILIES, images, tiny
from torch import Tensor, nn

from qlib.allocation.same import Same
from qlib.core.records import InvalidSpec
from qlib.core.scheme import Scheme
from qlib.learning.walk import iter_units
from qlib.network.attention import (
    ExplicitAttention,
    ExplicitWindowAttention,
    MatMul,
    rewrite_attention,
)
from qlib.network.blocks import find_blocks
from qlib.network.fold import fold_batch_norm
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer, QuantMatMul, QuantPoint
from qlib.network.replace import replace_all
from qlib.quantizers.uniform import Uniform


def of_family(family: str, placement: str = "inputs") -> QuantModel:
    net = tiny(family)
    return QuantModel(net, images(family), find_blocks(net), placement)


def close(one: Tensor, two: Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest output."""
    assert (one - two).abs().max() <= tolerance * two.abs().max().clamp(min=1e-3)


# --- off is float


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
@pytest.mark.parametrize("family", ["vit", "resnet18", "regnety", "mobilenetv2", "swin", "plain"])
def test_off_is_the_float_network(family: str, placement: str) -> None:
    model, x = of_family(family, placement), images(family, 4, seed=5)
    before = model(x)
    close(before, tiny(family)(x).detach())
    calibration(x).attach(model, plan(model, 2, 2))
    assert torch.equal(model(x), before)
    with model.quantized(weights=True, inputs=True):
        assert not torch.equal(model(x), before)
    assert torch.equal(model(x), before)


def test_network_without_batch_norm_or_attention_is_unchanged_to_the_bit() -> None:
    for family in ("convnext", "unknown", "mixer"):
        x = images(family, 3)
        assert torch.equal(of_family(family)(x), tiny(family).requires_grad_(False)(x)), family


def test_given_network_is_left_alone() -> None:
    net = trained().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    model = quantizable(net=net)
    calibration().attach(model, plan(model))
    model.switch(weights=True, inputs=True)
    model(pictures(4)[0])
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(m.inplace for m in net.modules() if isinstance(m, nn.ReLU))
    assert not any(isinstance(m, QuantLayer) for m in net.modules())


def test_state_comes_back_after_an_error() -> None:
    model = quantizable()
    model.switch(weights=True, inputs=False)
    with pytest.raises(KeyError), model.quantized(weights=False, inputs=True):
        raise KeyError
    assert all(layer.weight_point.on for layer in model.weighted().values())
    assert not any(point.on for point in model.points.values())


def test_weight_is_rounded_once_and_anew_after_a_change() -> None:
    model = quantizable()
    calibration().attach(model, plan(model, 2))
    point, weight = model.layers["one.conv1"].weight_point, model.layers["one.conv1"].weight
    point.on = True
    first = point(weight)
    assert point(weight) is first
    point.fill(Uniform.of_range(weight.min(), weight.max(), Scheme(8)))
    assert not torch.equal(point(weight), first)


# --- folding


def test_folded_network_gives_the_same_and_has_no_batch_norm_left() -> None:
    net, x = trained(), pictures(20, seed=8)[0]
    want = net(x)
    folded, names = fold_batch_norm(trained(), x[:2])
    assert sorted(names) == ["bn", "one.bn1", "one.bn2", "two.bn1", "two.bn2", "two.skip.1"]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    close(folded(x), want)


def test_folding_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=True), nn.BatchNorm2d(2, eps=0.0)).eval()
    net[0].weight.data = torch.tensor([3.0, -2.0]).reshape(2, 1, 1, 1)
    net[0].bias.data = torch.tensor([1.0, 0.5])
    norm = net[1]
    norm.weight.data, norm.bias.data = torch.tensor([2.0, -1.0]), torch.tensor([0.25, 4.0])
    norm.running_mean, norm.running_var = torch.tensor([0.5, 1.0]), torch.tensor([4.0, 0.25])
    folded, _ = fold_batch_norm(net, torch.randn(2, 1, 2, 2))
    assert folded[0].weight.flatten().tolist() == pytest.approx([3.0, 4.0])  # ·γ/σ = ·1, ·−2
    assert folded[0].bias.tolist() == pytest.approx([0.75, 5.0])  # β + (b − μ)·γ/σ


@pytest.mark.parametrize("family", ["regnety", "mobilenetv3", "efficientnet", "byobnet"])
def test_norms_with_an_activation_keep_it(family: str) -> None:
    from timm.layers import BatchNormAct2d

    net, x = tiny(family), images(family, 3)
    acts = [m.act for m in net.modules() if isinstance(m, BatchNormAct2d)]
    kinds = [type(act) for act in acts if not isinstance(act, nn.Identity)]
    assert kinds
    want = net(x).detach()
    folded, names = fold_batch_norm(copy.deepcopy(net), x)
    assert len(names) == len(acts)
    close(folded(x), want)
    kept = [type(m) for m in folded.modules()]
    assert all(kept.count(kind) >= kinds.count(kind) for kind in set(kinds))


class TwoReaders(nn.Module):
    """The convolution's output is read by the norm and once more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.norm.running_mean += 0.7

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.fc((y + self.norm(y)).mean((2, 3)))


def test_norm_that_cannot_be_folded_stays_and_is_noted() -> None:
    net, x = TwoReaders().eval(), pictures(4)[0]
    with pytest.raises(ArithmeticError, match="Folding batch norms changed the network's output"):
        fold_batch_norm(copy.deepcopy(net), x)
    model = QuantModel(net, x)
    assert torch.equal(model(x), net(x))
    assert "left unfolded" in model.notes[0]


# --- attention


NORM = {"qk_norm": True, "norm_layer": nn.LayerNorm}


@pytest.mark.parametrize(
    "options", [{}, NORM, NORM | {"qkv_bias": True, "scale_norm": True}, {"gated": True}]
)
def test_attention_is_timms(options: dict) -> None:
    from timm.layers.attention import Attention

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        fused = Attention(32, num_heads=4, **options).eval()
    for p in fused.parameters():
        p.data += 0.1
    unfused = copy.deepcopy(fused)
    unfused.fused_attn = False
    x = torch.randn(3, 10, 32, generator=torch.Generator().manual_seed(2))
    ours = rewrite_attention(nn.Sequential(copy.deepcopy(fused)))
    assert type(ours[0]) is ExplicitAttention
    assert torch.equal(ours(x), unfused(x))
    close(ours(x).detach(), fused(x).detach())
    mask = torch.ones(10, 10, dtype=torch.bool).tril()
    close(ours[0](x, attn_mask=mask).detach(), fused(x, attn_mask=mask).detach())
    assert [n for n, m in ours.named_modules() if isinstance(m, MatMul)] == ["0.scores", "0.mix"]


def test_swins_window_attention_is_timms_with_a_shifted_mask() -> None:
    from timm.models.swin_transformer import WindowAttention

    net, x = tiny("swin"), images("swin", 3)
    shifted = [m for m in net.modules() if getattr(m, "attn_mask", None) is not None]
    assert shifted  # the family does use a mask
    unfused = copy.deepcopy(net)
    for module in unfused.modules():
        if isinstance(module, WindowAttention):
            module.fused_attn = False
    ours = rewrite_attention(copy.deepcopy(net))
    assert sum(isinstance(m, ExplicitWindowAttention) for m in ours.modules()) == 4
    assert torch.equal(ours(x), unfused(x))
    close(ours(x).detach(), net(x).detach())


def test_causal_attention_is_not_supported() -> None:
    from timm.layers.attention import Attention

    ours = rewrite_attention(nn.Sequential(Attention(8, num_heads=2)))[0]
    with pytest.raises(NotImplementedError, match="Causal attention"):
        ours(torch.randn(1, 3, 8), is_causal=True)


def test_both_operands_of_a_product_are_quantized() -> None:
    model = of_family("vit")
    product = model.layers["blocks.0.attn.mix"]
    assert isinstance(product, QuantMatMul)
    a, b = torch.rand(2, 3, 4), torch.randn(2, 4, 5)
    assert torch.equal(product(a, b), a @ b)
    for point, x in ((product.left_point, a), (product.right_point, b)):
        point.quantizer, point.on = Uniform.of_range(x.min(), x.max(), Scheme(3)), True
    want = product.left_point.quantizer(a) @ product.right_point.quantizer(b)
    assert torch.equal(product(a, b), want)
    assert not torch.equal(want, a @ b)


# --- structure of every family


def straightforward(net: nn.Module) -> list[str]:
    """Convolutions and linear layers of the original network."""
    return [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("family", FAMILIES)
def test_units_cover_every_layer_once_and_run_one_by_one(family: str) -> None:
    model, x = of_family(family), images(family, 3, seed=4)
    net = tiny(family)
    ran = []
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
        for name in straightforward(net)
    ]
    want = net(x).detach()
    for hook in hooks:
        hook.remove()
    covered = [layer for unit in model.units() for layer in model.layers_of(unit)]
    assert sorted(covered) == sorted(model.layers)
    assert len(set(covered)) == len(covered)
    as_calls = {name for name in model.weighted() if name.endswith("qkv_linear1")}  # Swin V2's
    assert set(ran) == set(model.weighted()) - as_calls
    assert [n for n in model.units("layer") if n not in as_calls] == list(dict.fromkeys(ran))
    assert model.spans == [(unit,) for unit in model.units()], family
    units = model.units()
    y = model.partial.run_until(x, units[0])
    for unit, then in zip(units, [*units[1:], None], strict=True):
        output = model.partial.run_unit(unit, y)
        if model.is_sequential:
            y = model.partial.run_between(unit, output, then)
        else:
            y = model.partial.run_until(x, then) if then else model(x)
    close(y, want)


def test_only_the_distilled_network_is_no_chain() -> None:
    """Its two heads read the same tensor; all others carry one boundary forward."""
    assert [f for f in FAMILIES if not of_family(f).is_sequential] == ["deit"]


class Skipping(nn.Module):
    """A tensor jumps over a block: no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.two = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc((self.two(self.one(x)) + x).mean((2, 3)))


class Exchanging(nn.Module):
    """A block that needs a second tensor of the batch."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.a(x) + self.b(y)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pair, self.fc = nn.Conv2d(3, 4, 1), self.Pair(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(self.pair(x, x.flip(1)).mean((2, 3)))


def test_network_that_is_no_chain_is_found_out() -> None:
    model = QuantModel(Skipping().eval(), pictures(2)[0], BLOCKS)
    assert model.spans == [(unit,) for unit in model.units()]
    assert not model.is_sequential
    x = pictures(3)[0]
    assert torch.equal(
        model.partial.run_unit("one", model.partial.run_until(x, "one")),
        model.partial.run_until(x, "two"),
    )


def test_block_that_needs_two_tensors_is_joined_to_what_gives_them() -> None:
    """`tests/test_any_blocks.py` has more of the kind."""
    model = QuantModel(Exchanging().eval(), pictures(2)[0], ("pair",))
    assert model.spans == [("stem", "pair"), ("fc",)]
    assert "stem … pair exchange several tensors and are learned as one unit" in model.notes[0]
    assert [unit.title for unit in iter_units(model, calibration())] == ["stem … pair", "fc"]


def test_layers_come_in_order_of_execution_and_by_units() -> None:
    model = quantizable()
    one, two = [f"one.conv{i}" for i in (1, 2)], ["two.conv1", "two.conv2", "two.skip.0"]
    assert model.units("layer") == ["stem", *one, *two, "fc"]
    assert model.units() == ["stem", "one", "two", "fc"]
    assert model.layers_of("two") == two
    assert model.unit_of("two.skip.0") == "two"
    assert model.unit_of("fc") == "fc"


def test_multiply_accumulates_by_hand() -> None:
    model = quantizable()
    assert model.macs == {
        "stem": 64 * 8 * 27, "one.conv1": 64 * 8 * 72, "one.conv2": 64 * 8 * 72,
        "two.conv1": 16 * 12 * 72, "two.conv2": 16 * 12 * 108, "two.skip.0": 16 * 12 * 8,
        "fc": 60,
    }  # fmt: skip
    grouped = of_family("mobilenetv2").layers
    name = next(n for n, m in grouped.items() if getattr(m.layer, "groups", 1) > 1)
    layer = grouped[name].layer
    assert layer.groups == layer.in_channels  # depth-wise: one input channel for each output
    model = of_family("mobilenetv2")
    side = model.macs[name] / (layer.out_channels * layer.kernel_size[0] ** 2)
    assert side in {(32 // k) ** 2 for k in (1, 2, 4, 8)}
    vit = of_family("vit")
    tokens, heads, width = 17, 2, 16
    assert vit.macs["blocks.0.attn.scores"] == heads * tokens * tokens * width
    assert vit.macs["blocks.0.attn.qkv"] == tokens * 32 * 96


def test_activation_that_follows_a_layer() -> None:
    model = quantizable()
    found = {name for name, act in model.activation.items() if act is not None}
    assert found == {"stem", "one.conv1", "two.conv1"}  # conv2 is added to before its activation
    assert model.activation["one.conv1"] is model.net.one.act1
    vit = of_family("vit").activation
    assert type(vit["blocks.0.mlp.fc1"]).__name__ == "GELU"
    assert vit["blocks.0.mlp.fc2"] is None
    mobile = of_family("mobilenetv2").activation
    assert type(mobile["conv_stem"]).__name__ == "ReLU6"


def test_network_without_layers_is_refused() -> None:
    with pytest.raises(
        InvalidSpec, match=r"no convolution, linear layer.*nothing to quantize; choose"
    ):
        QuantModel(nn.Sequential(nn.ReLU(), nn.Flatten()), pictures(2)[0])


def test_unknown_placement_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"placement must be one of.*got 'middle'"):
        quantizable("middle")


# --- boundary placement


def test_block_inputs_are_quantized_once_before_they_split() -> None:
    model = quantizable("boundary")
    assert list(model.points) == [
        "stem.input", "one.boundary", "one.conv2.input", "two.boundary", "two.conv2.input",
        "fc.input",
    ]  # fmt: skip


def test_shortcut_sees_the_quantized_tensor() -> None:
    model, x = quantizable("boundary"), torch.rand(4, 8, 8, 8)
    model.points["one.boundary"].quantizer = Uniform.of_range(x.min(), x.max(), Scheme(2))
    model.switch(weights=True, inputs=True)
    block, q = model.net.one, model.points["one.boundary"].quantizer
    with torch.no_grad():
        branch = block.conv2(torch.relu(block.conv1(q(x))))
        close(model.partial.run_unit("one", x), torch.relu(branch + q(x)), 1e-6)
        assert (model.partial.run_unit("one", x) - torch.relu(branch + x)).abs().max() > 0.01


def test_with_points_at_inputs_the_shortcut_sees_the_float_tensor() -> None:
    model, x = quantizable(), torch.rand(4, 8, 8, 8)
    point = model.points["one.conv1.input"]
    point.quantizer = Uniform.of_range(x.min(), x.max(), Scheme(2))
    model.switch(weights=False, inputs=True)
    block, q = model.net.one, point.quantizer
    with torch.no_grad():
        branch = block.conv2.layer(torch.relu(block.conv1.layer(q(x))))
        close(model.partial.run_unit("one", x), torch.relu(branch + x), 1e-6)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "plain"])
def test_boundaries_in_every_family(family: str) -> None:
    model, x = of_family(family, "boundary"), images(family, 3)
    inputs = of_family(family)
    assert list(model.boundaries) == model.blocks
    assert not any(p.endswith(".boundary") for p in inputs.points)
    missing = set(inputs.points) - set(model.points)
    assert all(name.endswith(".input") for name in missing)
    before = model(x)
    calibration(x).attach_inputs(model, plan(model, 4, 8, "same"))
    with model.quantized(weights=False, inputs=True):
        after = model(x)
    assert not torch.equal(after, before)
    close(after, before, 0.5)
    assert torch.equal(model(x), before)


# --- bit plans


def test_edge_layers_by_policy() -> None:
    model = quantizable()
    bits = {}
    for edges in ("8-bit", "same", "float"):
        made = plan(model, 3, 5, edges)
        bits[edges] = [made.weights[n].bits if n in made.weights else 32 for n in ("stem", "fc")]
        bits[edges] += [
            made.inputs[f"{n}.input"].bits if f"{n}.input" in made.inputs else 32
            for n in ("stem", "fc")
        ]
        assert made.weights["two.conv1"].bits == 3
        assert made.inputs["two.conv1.input"].bits == 5
        assert {"one.conv1", "two.skip.0"} <= set(made.weights)
    assert bits == {"8-bit": [8] * 4, "same": [3, 3, 5, 5], "float": [32] * 4}


def test_boundary_placement_leaves_the_image_alone() -> None:
    model = quantizable("boundary")
    for edges in ("8-bit", "same", "float"):
        made = plan(model, 3, 5, edges)
        assert "stem.input" not in made.inputs
        assert made.inputs["one.boundary"].bits == 5


def test_unknown_edge_policy_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"edge_layers must be one of.*got 'none'"):
        Same().allocate(quantizable(), Scheme(4), Scheme(4), edge_layers="none")


def test_plan_with_gaps_leaves_float_what_it_does_not_name() -> None:
    model = quantizable()
    full = plan(model, 2, 2)
    weights = {n: s for n, s in full.weights.items() if n == "one.conv1"}
    calibration().attach(model, type(full)(weights, {}))
    filled = [n for n, m in model.weighted().items() if m.weight_point.quantizer is not None]
    assert filled == ["one.conv1"]
    assert all(p.quantizer is None for p in model.points.values())
    assert isinstance(model.points["fc.input"], QuantPoint)


def test_modules_are_put_in_place_of_others_under_every_name() -> None:
    class Keeper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
            self.same = self.one
            self.kept = [self.one, 3]
            self.pair, self.by_name = (self.two, None), {"a": self.two, "b": "two"}

    net = nn.Sequential(Keeper(), nn.ReLU())
    inside = net[0]
    one, two = inside.one, inside.two
    new = {one: nn.Sequential(one), two: nn.Sequential(two, one)}  # as wrappers hold what they wrap
    replace_all(net, new)
    assert inside.one is inside.same is inside.kept[0] is new[one] and inside.kept[1] == 3
    assert inside.two is inside.pair[0] is inside.by_name["a"] is new[two]
    assert new[one][0] is one and list(new[two]) == [two, one]
    with pytest.raises(ValueError, match="itself"):
        replace_all(net, {net: nn.Identity()})
