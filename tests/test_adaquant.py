"""AdaQuant: gradients, limits, the bias's closed form, and what "sequential" means."""

import pytest
import torch
from helpers import (
    applied,
    calibration,
    codes,
    method,
    pictures,
    plan,
    quantizable,
    scales,
    trained,
)
from helpers_nets import images, tiny
from torch import Tensor, nn

from qlib.core.records import Event, InvalidSpec, ignore
from qlib.core.scheme import PER_CHANNEL, PER_TENSOR, BitPlan, Granularity, Scheme
from qlib.learning.objective import OutputError
from qlib.learning.tuning import tune_biases, tune_norms
from qlib.learning.units import Unit
from qlib.learning.walk import iter_units
from qlib.network.model import QuantModel
from qlib.network.points import BiasCorrection, QuantLayer
from qlib.network.trace import removing
from qlib.observers.mse import Mse
from qlib.quantizers.shifted import LEAST, Shifted
from qlib.quantizers.uniform import Uniform

GRIDS = {
    "tensor": Scheme(4, granularity=PER_TENSOR),
    "channel": Scheme(3, granularity=PER_CHANNEL),
    "group": Scheme(2, granularity=Granularity("group", 6)),
    "symmetric": Scheme(4, symmetric=True, granularity=PER_CHANNEL),
}
STILL = {
    "lr": 0.0,
    "bias_lr": 0.0,
    "weight_scale_lr": 0.0,
    "act_scale_lr": 0.0,
    "zero_point_lr": 0.0,
}


def weights() -> Tensor:
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return set(one) == set(two) and all(torch.equal(one[n], two[n]) for n in one)


# --- the quantizer


@pytest.mark.parametrize("grid", GRIDS)
def test_starts_as_nearest_bit_for_bit(grid: str) -> None:
    weight = weights()
    nearest = Uniform.fit(weight, GRIDS[grid], Mse())
    for made in (Shifted.from_nearest(nearest, weight), Shifted.from_nearest(nearest)):
        assert torch.equal(made(weight), nearest(weight))
        assert torch.equal(made.codes(weight), nearest.codes(weight))
        made.harden()
        assert torch.equal(made(weight), nearest(weight))
        assert torch.equal(made.zero_point, nearest.zero_point)


def plainly(x: Tensor, made: Shifted) -> Tensor:
    """The formula with autograd, and a rounding that lets gradients through."""
    straight = lambda t: t + (t.round() - t).detach()  # noqa: E731
    scale, zero = made.scale * made.stretch, straight(made.zero)
    low, high = made.scheme.qmin - zero, made.scheme.qmax - zero
    steps = straight(made.scheme.granularity.split(x) / scale + made.shift)
    steps = torch.where(steps < low, low, torch.where(steps > high, high, steps))
    return (scale * steps).reshape(x.shape)


@pytest.mark.parametrize("grid", GRIDS)
def test_gradients_are_those_of_the_plain_formula(grid: str) -> None:
    weight, rng = weights(), torch.Generator().manual_seed(2)
    made = Shifted.from_nearest(Uniform.fit(weight, GRIDS[grid], Mse()), weight)
    made.shift.data = 0.8 * torch.randn(made.shift.shape, generator=rng)
    made.stretch.data -= 0.3  # so that weights are clipped
    made.zero.data += 0.3
    x = weight.clone().requires_grad_(True)
    learned = [made.shift, made.stretch, made.zero, x]
    for p in learned:
        p.requires_grad_(True)
    g = torch.randn(weight.shape, generator=rng)
    want = torch.autograd.grad((plainly(x, made) * g).sum(), learned)
    got = torch.autograd.grad((made(x) * g).sum(), learned)
    torch.testing.assert_close(made(x), plainly(x, made))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert theirs.abs().max() > 0


def test_hardening_keeps_values_and_makes_zero_whole() -> None:
    weight = weights()
    made = Shifted.from_nearest(Uniform.fit(weight, GRIDS["channel"], Mse()), weight)
    made.shift.data += 0.7
    made.stretch.data *= 1.2
    made.zero.data += 0.4
    before, codes_before = made(weight), made.codes(weight)
    made.harden()
    assert torch.equal(made(weight), before)
    assert torch.equal(made.codes(weight), codes_before)
    assert torch.equal(made.zero_point, made.zero_point.round())
    assert made.learnable() == {}
    torch.testing.assert_close(made.values(made.codes(weight)), before)


def test_limits_hold_while_it_is_learned() -> None:
    made = Shifted.from_nearest(Uniform.fit(weights(), GRIDS["channel"], Mse()), weights())
    made.stretch.data.fill_(-1.0)
    made.zero.data.fill_(99.0)
    made.keep_positive()
    assert (made.stretch == -1).all()  # not being learned: left alone
    made.stretch.requires_grad_(True)
    made.zero.requires_grad_(True)
    made.keep_positive()
    assert (made.stretch == LEAST).all()
    assert (made.zero == made.scheme.qmax).all()


def test_zero_of_a_symmetric_grid_is_not_learned() -> None:
    made = Shifted.from_nearest(Uniform.fit(weights(), GRIDS["symmetric"], Mse()), weights())
    assert made.learnable()["zero_point"] == []


# --- the bias's correction


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["conv", "linear", "padded"])
def test_correction_is_added_to_channels_while_the_weight_is_on(kind: str, bias: bool) -> None:
    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

    make = {"conv": nn.Conv2d, "padded": Padded}.get(kind)
    inner = nn.Linear(4, 6, bias=bias) if make is None else make(4, 6, 3, bias=bias)
    layer = QuantLayer(inner.requires_grad_(False))
    rng = torch.Generator().manual_seed(0)
    x = torch.randn((5, 4) if make is None else (5, 4, 6, 6), generator=rng)
    layer.weight_point.fill(Uniform.fit(layer.weight, Scheme(8, granularity=PER_CHANNEL), Mse()))
    off = layer(x)
    layer.weight_point.on = True
    without = layer(x)
    layer.correct_bias().added.data = torch.arange(6.0)
    added = torch.arange(6.0).reshape(6, *(1,) * (without.dim() - 2))
    torch.testing.assert_close(layer(x), without + added)
    layer.weight_point.on = False
    assert torch.equal(layer(x), off)


def test_fresh_ranges_take_corrections_away() -> None:
    model = applied("adaquant", steps=3)
    assert all(layer.correction is not None for layer in model.weighted().values())
    calibration().attach(model, plan(model))
    assert all(layer.correction is None for layer in model.weighted().values())


def test_bias_alone_learns_the_mean_of_what_is_missing() -> None:
    """Least squares in the bias alone has a closed form: the mean residual of each channel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 7)).requires_grad_(False)
    x = pictures(64)[0] + 0.5
    model = QuantModel(net, x[:2])
    made = plan(model, 2, 3, "same")
    recipe = method("adaquant", 600, **STILL | {"bias_lr": 0.05, "batch": 64})
    recipe.apply(model, made, calibration(x), ignore)
    layer = model.layers["1"]
    model.switch(weights=True, inputs=True)
    with torch.no_grad():
        missing = (net(x) - (model(x) - layer.correction.added)).mean(0)
    assert missing.abs().max() > 0.05
    torch.testing.assert_close(layer.correction.added, missing, rtol=0, atol=0.02)


# --- the method


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
@pytest.mark.parametrize("still", [{"steps": 0}, {"steps": 5, **STILL}], ids=["steps", "rates"])
def test_without_steps_or_rates_it_is_nearest(placement: str, still: dict) -> None:
    nearest = applied("nearest", placement=placement)
    learned = applied("adaquant", placement=placement, **still)
    x = pictures(32, seed=9)[0]
    assert same(codes(learned), codes(nearest))
    assert same(scales(learned), scales(nearest))
    assert torch.equal(learned(x), nearest(x))


def test_each_rate_moves_its_own_part() -> None:
    nearest = applied("nearest", bits=(3, 3))

    def moved(**rate: float) -> set[str]:
        model = applied("adaquant", steps=8, bits=(3, 3), **STILL | rate)
        parts = set()
        for name, layer in model.weighted().items():
            now, then = layer.weight_point.quantizer, nearest.layers[name].weight_point.quantizer
            parts |= {"shift"} if now.shift.any() else set()
            parts |= {"weight_scale"} if not torch.equal(now.scale, then.scale) else set()
            parts |= {"bias"} if layer.correction.added.any() else set()
            parts |= {"zero_point"} if not torch.equal(now.zero_point, then.zero_point) else set()
        return parts | ({"act_scale"} if not same(scales(model), scales(nearest)) else set())

    assert moved(lr=0.01) == {"shift"}
    assert moved(bias_lr=0.01) == {"bias"}
    assert moved(weight_scale_lr=0.01) == {"weight_scale"}
    assert moved(act_scale_lr=0.01) == {"act_scale"}


def test_zero_points_move_where_values_are_clipped() -> None:
    found = []
    for rate in (0.0, 0.3):
        model, data = quantizable(), calibration(quick=False)  # ranges that clip
        recipe = method("adaquant", 8, **STILL | {"zero_point_lr": rate})
        recipe.apply(model, plan(model, 2, 2), data, ignore)
        zeros = {
            n: layer.weight_point.quantizer.zero_point for n, layer in model.weighted().items()
        }
        found.append(zeros | {n: p.quantizer.zero_point for n, p in model.points.items()})
    moved = [n for n in found[0] if not torch.equal(found[0][n], found[1][n])]
    assert any(name.endswith(".input") for name in moved)
    assert any(not name.endswith(".input") for name in moved)
    assert all(torch.equal(zero, zero.round()) for zero in found[1].values())


@pytest.mark.parametrize("how", ["sequential", "parallel"])
def test_layers_are_fitted_on_the_inputs_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Sequential: for every image, the very input that the layer has in the finished network."""
    found: dict[str, Tensor] = {}
    from qlib.methods._gradient import fit as engine

    plain = engine.reconstruct

    def watched(unit: Unit, settings: object, *, objective: OutputError, **more: object) -> None:
        every = torch.arange(len(unit.targets))
        fed = objective.inputs(every) if objective.inputs else unit.inputs
        found[unit.layer] = fed.clone()
        plain(unit, settings, objective=objective, **more)

    monkeypatch.setattr(engine, "reconstruct", watched)
    model = applied("adaquant", steps=6, bits=(3, 3), inputs=how)
    if how == "parallel":
        model.switch(weights=False, inputs=False)
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda m, a, n=n: seen.setdefault(n, []).append(a[0]))
        for n, layer in model.weighted().items()
    ]
    with removing(hooks), torch.no_grad():
        for part in pictures()[0].split(16):
            model(part)
    assert set(found) == set(seen)
    for name, fed in found.items():
        torch.testing.assert_close(torch.cat(seen[name]), fed, rtol=1e-4, atol=1e-5)


def test_a_shift_may_pass_the_two_levels_beside_a_weight() -> None:
    """w = (5.4, 1.1), inputs that all but agree, codes up to 3: the second must go from 1 to 3."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    net[1].weight.data = torch.tensor([[5.4, 1.1]])
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(256, 1, generator=rng) + 0.3 * torch.randn(256, 2, generator=rng)
    model = QuantModel(net.requires_grad_(False), x[:2])
    data, layer = calibration(x), model.layers["1"]
    for unit in iter_units(model, data, by="layer"):
        coarse = Uniform(torch.ones(1, 1), torch.zeros(1, 1), Scheme(3, symmetric=True))
        layer.weight_point.fill(Shifted.from_nearest(coarse, layer.weight))
        from qlib.learning.reconstruct import FitSettings, Rate, reconstruct

        settings = FitSettings({"shift": Rate(0.02)}, steps=300, batch=64)
        reconstruct(unit, settings, generator=data.generator, report=ignore)
    assert codes(model)["1"].tolist() == [[3, 3]]


def test_beats_nearest_at_two_bits_on_unseen_images() -> None:
    x, error = pictures(256, seed=11)[0], {}
    want = trained()(x)
    for name in ("nearest", "adaquant"):
        model = quantizable()
        method(name, 200).apply(model, plan(model, 2, 4), calibration(pictures(64)[0]), ignore)
        model.switch(weights=True, inputs=True)
        error[name] = float((model(x) - want).square().mean())
    assert error["adaquant"] < 0.7 * error["nearest"], error


def test_attention_products_keep_their_ranges() -> None:
    x = images("vit", 32)
    model = QuantModel(tiny("vit"), x[:2], ("blocks.0", "blocks.1", "blocks.2"))
    method("adaquant", 5).apply(model, plan(model), calibration(x), ignore)
    kinds = {name: type(point.quantizer) for name, point in model.points.items()}
    assert {kinds[n] for n in kinds if n.endswith((".left", ".right"))} == {Uniform}
    assert {kinds[n] for n in kinds if n.endswith(".input")} == {Shifted}
    model.switch(weights=True, inputs=True)
    assert torch.isfinite(model(x)).all()


def test_loss_that_is_no_number_gives_the_layer_back_as_it_was() -> None:
    model = quantizable()

    def report(event: Event) -> None:
        if event.phase == "reconstruct" and event.unit == "two.conv1":
            model.layers["two.conv1"].weight_point.quantizer.scale.data.fill_(float("nan"))

    with pytest.raises(InvalidSpec, match=r"The loss of two\.conv1"):
        method("adaquant", 20).apply(model, plan(model), calibration(), report)
    assert torch.equal(codes(model)["two.conv1"], codes(applied("nearest"))["two.conv1"])
    assert not model.layers["two.conv1"].correction.added.any()
    assert isinstance(model.layers["two.conv1"].correction, BiasCorrection)
    model.switch(weights=True, inputs=True)
    assert torch.isfinite(model(pictures(4)[0])).all()


# --- biases tuned afterwards


def divergence(model: QuantModel, x: Tensor) -> float:
    with torch.no_grad():
        want = trained()(x).log_softmax(1)
        got = model(x).log_softmax(1)
    return float((want.exp() * (want - got)).sum(1).mean())


@pytest.mark.parametrize("name", ["nearest", "brecq", "adaquant", "powerquant"])
def test_tuned_biases_bring_answers_nearer_after_any_method(name: str) -> None:
    x = pictures(64)[0]
    model = quantizable()
    data = calibration(x)
    method(name, 4).apply(model, plan(model, 3, 3), data, ignore)
    before = model(x)
    model.switch(weights=True, inputs=True)
    first, held = divergence(model, x), (codes(model), scales(model))
    tune_biases(model, data, steps=200, rate=0.01, batch=32, report=ignore)
    assert divergence(model, x) < 0.8 * first
    assert same(codes(model), held[0])
    assert same(scales(model), held[1])
    assert not any(p.requires_grad for p in model.parameters())
    model.switch(weights=False, inputs=False)
    assert torch.equal(model(x), before)


def test_tuning_starts_from_the_biases_that_a_method_learned() -> None:
    model = applied("adaquant", steps=6, bias_lr=0.05)
    before = [layer.correction.added.clone() for layer in model.weighted().values()]
    tune_biases(model, calibration(), steps=0, rate=0.1, batch=8, report=ignore)
    after = [layer.correction.added for layer in model.weighted().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert any(a.any() for a in after)
    tune_biases(model, calibration(), steps=1, rate=1e-6, batch=8, report=ignore)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


def test_tuning_that_fails_gives_biases_back() -> None:
    model = applied("nearest")
    model.layers["fc"].weight_point.fill(None)
    tune_biases(model, calibration(), steps=1, rate=0.1, batch=8, report=ignore)
    before = {n: m.correction.added.clone() for n, m in model.weighted().items() if n != "fc"}
    assert model.layers["fc"].correction is None  # in float: left alone

    def spoil(event: Event) -> None:
        model.layers["two.conv1"].weight_point.quantizer.scale.data.fill_(float("nan"))
        model.layers["two.conv1"].weight_point.forget()

    with pytest.raises(InvalidSpec, match="tuning the biases is nan at iteration 2"):
        tune_biases(model, calibration(), steps=5, rate=0.1, batch=8, report=spoil)
    for name, added in before.items():
        assert torch.equal(model.layers[name].correction.added, added)


# --- channel statistics tuned afterwards


def output_statistics(layer: QuantLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    y = layer(x)
    rows = (y.movedim(1, -1) if y.dim() == 4 else y).flatten(0, -2)
    return rows.mean(0), rows.std(0, correction=0)


@pytest.mark.parametrize("name", ["nearest", "brecq", "adaquant", "gptq", "powerquant", "nupes"])
def test_tuned_statistics_are_those_of_the_float_network_and_codes_stay(name: str) -> None:
    x = pictures(32)[0]
    model, data = quantizable(), calibration(x)
    method(name, 4).apply(model, plan(model, 3, 3), data, ignore)
    before, held = model(x), codes(model)
    tune_norms(model, data, ignore)
    assert same(codes(model), held)
    assert torch.equal(model(x), before)
    for unit in iter_units(model, data, by="layer"):
        (layer,) = unit.weighted
        mean, spread = output_statistics(layer, unit.inputs)
        with model.quantized(weights=False, inputs=False):
            want, wanted = output_statistics(layer, unit.float_inputs)
        torch.testing.assert_close(mean, want, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(spread, wanted, rtol=1e-3, atol=1e-4)


def test_statistics_of_a_network_that_is_hardly_rounded_hardly_move() -> None:
    model, data = quantizable(), calibration()
    full = Scheme(16, granularity=PER_CHANNEL)
    data.attach_weights(model, BitPlan(dict.fromkeys(model.weighted(), full)))
    grids = {n: m.weight_point.quantizer.scale.clone() for n, m in model.weighted().items()}
    tune_norms(model, data, ignore)
    for name, layer in model.weighted().items():
        torch.testing.assert_close(
            layer.weight_point.quantizer.scale, grids[name], rtol=1e-3, atol=0
        )
        assert layer.correction.added.abs().max() < 1e-3


def test_grids_of_groups_are_stretched_by_channel() -> None:
    model, data = quantizable(), calibration()
    scheme = Scheme(3, granularity=Granularity("group", 6))
    data.attach_weights(model, BitPlan(dict.fromkeys(model.weighted(), scheme)))
    held = codes(model)
    values = {n: m.weight_point.quantizer(m.weight) for n, m in model.weighted().items()}
    tune_norms(model, data, ignore)
    assert same(codes(model), held)
    for name, layer in model.weighted().items():
        made = layer.weight_point.quantizer(layer.weight).flatten(1)
        old = values[name].flatten(1)
        ratio = (made * old).sum(1, keepdim=True) / old.square().sum(1, keepdim=True)
        torch.testing.assert_close(made, ratio * old, rtol=1e-4, atol=1e-6)
        assert (ratio - 1).abs().max() > 1e-3


def test_on_a_tensor_s_one_scale_only_the_mean_is_mended() -> None:
    x = pictures(32)[0]
    model, data = quantizable(), calibration(x)
    grid = Scheme(3, granularity=PER_TENSOR)
    made = BitPlan(dict.fromkeys(model.weighted(), grid), plan(model).inputs)
    method("nearest").apply(model, made, data, ignore)
    before = {n: m.weight_point.quantizer(m.weight) for n, m in model.weighted().items()}
    tune_norms(model, data, ignore)
    for unit in iter_units(model, data, by="layer"):
        (layer,) = unit.weighted
        assert torch.equal(layer.weight_point(layer.weight), before[unit.layer])
        mean, _ = output_statistics(layer, unit.inputs)
        with model.quantized(weights=False, inputs=False):
            want, _ = output_statistics(layer, unit.float_inputs)
        torch.testing.assert_close(mean, want, rtol=1e-3, atol=1e-4)


def test_statistics_are_those_of_norms_opened_estimated_anew_and_folded_again() -> None:
    """The published way: behind each convolution a norm that gives the float network's mean and
    spread, whose running statistics are taken from the quantized network, layer by layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
    x = pictures(48)[0]
    with torch.no_grad():
        net(x)  # running statistics that are not 0 and 1
    model, data = QuantModel(net.eval().requires_grad_(False), x[:2]), calibration(x)
    method("nearest").apply(model, plan(model, 2, 4, "same"), data, ignore)
    held = codes(model)
    h = there = x
    for layer in model.weighted().values():
        with model.quantized(weights=True, inputs=True):
            y = layer(h)
        with model.quantized(weights=False, inputs=False):
            want = layer(there)
        norm = nn.BatchNorm2d(y.shape[1], eps=1e-8, momentum=None).train()
        mean, spread = want.mean((0, 2, 3)), want.std((0, 2, 3), correction=0)
        norm.load_state_dict({"weight": spread, "bias": mean}, strict=False)
        with torch.no_grad():
            h, there = norm(y).relu(), want.relu()
    tune_norms(model, data, ignore)
    assert same(codes(model), held)
    model.switch(weights=True, inputs=True)
    got = model(x)
    torch.testing.assert_close(got.relu(), norm(y).mean((2, 3)).relu(), rtol=1e-3, atol=1e-4)


def test_sequential_and_parallel_agree_on_the_first_layer_alone() -> None:
    """Its inputs are the images; every later layer has quantized ones before it, or has not."""
    one, two = (
        applied("adaquant", steps=12, bits=(3, 3), inputs=how) for how in ("sequential", "parallel")
    )
    first, *later = one.weighted()
    for name in (first, *later):
        here, there = (m.layers[name].weight_point.quantizer for m in (one, two))
        assert torch.equal(here.shift, there.shift) == (name == first), name
        assert torch.equal(here.scale, there.scale) == (name == first), name
    assert torch.equal(one.layers[first].correction.added, two.layers[first].correction.added)
