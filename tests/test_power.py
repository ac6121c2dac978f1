"""Power-function grids: products, exponents, gradients; the searched and the learned method."""

import math

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
from torch import Tensor

from qlib.core.records import Event, InvalidSpec, ignore
from qlib.core.scheme import PER_CHANNEL, PER_TENSOR, Granularity, Scheme
from qlib.learning.walk import iter_units
from qlib.methods._search import exponents as _power
from qlib.network.model import QuantModel
from qlib.observers.minmax import MinMax
from qlib.observers.mse import Mse
from qlib.quantizers.free_power import FreePower
from qlib.quantizers.power import EXPONENTS, Power, accumulated, bend
from qlib.quantizers.shifted import Shifted
from qlib.quantizers.uniform import Uniform

GRIDS = {
    "tensor": Scheme(4, granularity=PER_TENSOR),
    "channel": Scheme(3, granularity=PER_CHANNEL),
    "group": Scheme(2, granularity=Granularity("group", 6)),
    "symmetric": Scheme(4, symmetric=True, granularity=PER_CHANNEL),
}


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or (6, 4, 3, 3), generator=torch.Generator().manual_seed(seed))


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return set(one) == set(two) and all(torch.equal(one[n], two[n]) for n in one)


def param(value: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(value), requires_grad=False)


# --- the grid


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("observer", [MinMax(), Mse()], ids=["minmax", "mse"])
def test_exponent_one_is_the_uniform_grid_bit_for_bit(grid: str, observer: object) -> None:
    weight = weights()
    uniform, made = (c.fit(weight, GRIDS[grid], observer) for c in (Uniform, Power))
    assert torch.equal(made.scale, uniform.scale)
    assert torch.equal(made(weight), uniform(weight))
    assert torch.equal(made.codes(weight), uniform.codes(weight))
    assert torch.equal(made.values(made.codes(weight)), uniform(weight))


@pytest.mark.parametrize("exponent", [0.35, 0.6, 1.2])
def test_symmetric_grid_is_the_published_operator(exponent: float) -> None:
    """q = ⌊Q·sign(w)·(|w|/m)^a⌉ and ŵ = sign(q)·m·(|q|/Q)^(1/a)."""
    scheme = Scheme(4, symmetric=True, restricted=True, granularity=PER_CHANNEL)
    weight = weights().double()
    made = Power.fit(weight, scheme, MinMax(), exponent)
    m, top = weight.abs().amax((1, 2, 3), keepdim=True), 2**3 - 1
    q = (top * weight.sign() * (weight.abs() / m) ** exponent).round()
    assert torch.equal(made.codes(weight), q)
    want = q.sign() * m * (q.abs() / top) ** (1 / exponent)
    torch.testing.assert_close(made(weight), want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("grid", GRIDS)
def test_zero_is_on_the_grid_and_every_value_goes_to_its_nearest_level_on_the_bent_axis(
    grid: str,
) -> None:
    weight, scheme = weights(), GRIDS[grid]
    weight.view(-1)[::7] = 0.0
    made = Power.fit(weight, scheme, Mse(), 0.6)
    assert (made(weight)[weight == 0] == 0).all()
    split = scheme.granularity.split
    every = torch.arange(scheme.qmin, scheme.qmax + 1.0)
    scale, zero = made.scale[..., None], made.zero_point[..., None]
    levels = (every - zero) * scale
    best = (bend(split(weight), 0.6)[..., None] - levels).abs().argmin(-1)
    assert torch.equal(made.codes(weight), every[best].reshape(weight.shape))


@pytest.mark.parametrize(
    ("draw", "want", "decibels"),
    [("normal", 0.62, 1.7), ("laplace", 0.50, 3.9), ("uniform", 1.0, 0.0)],
)
def test_best_exponents_of_known_shapes(draw: str, want: float, decibels: float) -> None:
    """10⁵ draws at 4 bits, symmetric, range to the largest; gain over a = 1."""
    rng = torch.Generator().manual_seed(0)
    u = torch.rand(1, 100_000, generator=rng) * 2 - 1
    x = {
        "normal": torch.randn(1, 100_000, generator=rng),
        "laplace": -u.sign() * torch.log1p(-u.abs() * (1 - 1e-6)),
        "uniform": u,
    }[draw]
    scheme = Scheme(4, symmetric=True, restricted=True)
    tried = [a / 100 for a in range(40, 116)]
    error = {a: float((Power.fit(x, scheme, MinMax(), a)(x) - x).square().sum()) for a in tried}
    best = min(error, key=error.get)
    assert best == pytest.approx(want, abs=0.05)
    assert 10 * math.log10(error[1.0] / error[best]) == pytest.approx(decibels, abs=0.4)


# --- products and sums


@pytest.mark.parametrize("exponent", [0.4, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_powers_of_products_are_accumulated(exponent: float, symmetric: bool) -> None:
    """Σ ŵ·x̂ from integers alone, to 1e-12; the power of the accumulated products is wrong."""
    scheme = Scheme(4, symmetric=symmetric)
    w, x = weights(50, 64).double(), weights(50, 64, seed=1).double().relu()
    a, b = (Power.fit(t, scheme, MinMax(), exponent).double() for t in (w, x))
    for q in (a, b):
        q.exponent.data.fill_(exponent)  # in double
    one, two = a.codes(w), b.codes(x)
    want = (a(w) * b(x)).sum(1)
    got = accumulated(a, b, one, two)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    product = (one - a.zero_point) * (two - b.zero_point)
    assert torch.equal(product, product.round())
    inside_out = bend(a.scale * b.scale * product.sum(1), 1 / exponent)
    if exponent == 1.0:
        torch.testing.assert_close(inside_out, want)
    else:
        assert (inside_out - want).abs().max() > 0.5 * want.abs().max()


def test_square_root_grid_needs_integers_only() -> None:
    """a = ½: what is added up is a signed square of an integer."""
    w, x = weights(20, 64), weights(20, 64, seed=1)
    a, b = (Power.fit(t, Scheme(4), MinMax(), 0.5) for t in (w, x))
    product = (a.codes(w) - a.zero_point) * (b.codes(x) - b.zero_point)
    signed = bend(product, 2.0)
    assert torch.equal(signed, product * product.abs())


# --- gradients


def plainly(x: Tensor, made: Power) -> Tensor:
    """The formula with autograd, and a rounding that lets gradients through."""
    straight = lambda t: t + (t.round() - t).detach()  # noqa: E731
    steps = straight(bend(x, made.exponent) / made._scale())
    low, high = torch.as_tensor(made.low).double(), torch.as_tensor(made.high).double()
    steps = torch.where(steps < low, low, torch.where(steps > high, high, steps))
    return bend(steps * made._scale(), 1 / made.exponent)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("grid", ["tensor", "channel", "symmetric"])
def test_gradients_of_range_and_exponent_are_those_of_the_plain_formula(
    grid: str, held: bool
) -> None:
    x = weights().double()
    x[x.abs() < 0.02] = 0.02
    made = Power.fit(x, GRIDS[grid], Mse(), 0.7).double()
    made.exponent.data = torch.tensor(0.7, dtype=torch.float64)
    if held:
        made.hold_reach()
    learned = [made.exponent, made.stretch if held else made.scale]
    for p in learned:
        p.requires_grad_(True)
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    want_y, got_y = plainly(x, made), made(x)
    torch.testing.assert_close(got_y, want_y)
    g = g * (want_y != 0)  # autograd's slope of |·| at zero is arbitrary
    want = torch.autograd.grad((want_y * g).sum(), learned)
    got = torch.autograd.grad((got_y * g).sum(), learned)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_exponent_has_no_gradient_where_rounding_is_exact() -> None:
    x = weights().double()
    made = Power.fit(x, GRIDS["channel"], MinMax(), 0.6).double()
    made.exponent.data = torch.tensor(0.6, dtype=torch.float64).requires_grad_(True)
    made.exponent.requires_grad_(True)
    on_grid = made.values(made.codes(x)).detach()
    made(on_grid).square().sum().backward()
    assert float(made.exponent.grad.abs()) < 1e-9
    made.exponent.grad = None
    made(x).square().sum().backward()
    assert float(made.exponent.grad.abs()) > 1e-3


def test_input_passes_gradients_inside_the_range_only() -> None:
    made = Power(torch.tensor(1.0), torch.tensor(0.0), Scheme(3, symmetric=True), 0.5)
    x = torch.tensor([0.0, 1e-6, 4.0, 9.0, 100.0, -100.0]).requires_grad_(True)
    made(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 1, 0, 0]


def free(weight: Tensor, exponent: float, scheme: Scheme) -> FreePower:
    fitted = Power.fit(weight, scheme, MinMax(), param(exponent))
    return FreePower.from_nearest(fitted, weight, fitted.exponent)


@pytest.mark.parametrize("grid", GRIDS)
def test_free_codes_start_as_those_of_the_fitted_grid(grid: str) -> None:
    weight = weights()
    fitted = Power.fit(weight, GRIDS[grid], Mse(), param(0.6))
    made = FreePower.from_nearest(fitted, weight, fitted.exponent)
    assert torch.equal(made.codes(weight), fitted.codes(weight))
    torch.testing.assert_close(made(weight), fitted(weight), rtol=1e-5, atol=1e-6)
    made.harden()
    torch.testing.assert_close(made(weight), fitted(weight), rtol=1e-5, atol=1e-6)
    assert made.learnable() == {}


def test_free_gradients_by_the_two_formulas() -> None:
    """∂ŵ/∂k = ŵ/(a·k), at 0 the first level; ∂ŵ/∂a = −ln(|k|/K)·ŵ/a², 0 for k = 0 and |k| = K."""
    scheme = Scheme(4, symmetric=True, restricted=True, granularity=PER_CHANNEL)
    weight, a = weights(), 0.7
    made = free(weight, a, scheme)
    made.latent.requires_grad_(True)
    made.exponent.requires_grad_(True)
    y = made(weight)
    k, top = made.codes(weight), 7
    (for_k,) = torch.autograd.grad(y.sum(), made.latent, retain_graph=True)
    y, first = y.detach(), made.values(torch.ones_like(weight)).detach()
    torch.testing.assert_close(for_k[k != 0], (y / (a * k))[k != 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(for_k[k == 0], first[k == 0])
    inner = (k != 0) & (k.abs() != top)
    assert inner.any()
    for mask, silent in ((inner, False), (k == 0, True), (k.abs() == top, True)):
        (for_a,) = torch.autograd.grad((made(weight) * mask).sum(), made.exponent)
        by_hand = (-(k.abs().clamp(min=1) / top).log() * y / a**2)[mask].sum()
        torch.testing.assert_close(for_a, by_hand, rtol=1e-4, atol=1e-4)
        assert (abs(float(for_a)) < 1e-3) == silent


def test_limits_hold_while_they_are_learned() -> None:
    made = free(weights(), 0.6, GRIDS["symmetric"])
    for p in (made.latent, made.exponent):
        p.requires_grad_(True)
    made.latent.data.fill_(99.0)
    made.exponent.data.fill_(9.0)
    made.keep_positive()
    assert (made.codes(weights()) == made.scheme.qmax).all()
    assert float(made.exponent.detach()) == EXPONENTS[1]


def test_far_end_stays_while_the_exponent_moves() -> None:
    made = free(weights(), 0.6, GRIDS["symmetric"])
    end = torch.full_like(weights(), made.scheme.qmin)
    before = made.values(end)
    made.exponent.data.fill_(0.9)
    torch.testing.assert_close(made.values(end), before)
    made.harden()
    torch.testing.assert_close(made.values(end), before)


def test_an_exponent_is_found_again() -> None:
    """Weights made from codes at a = 0.6: with these codes, learning from a = 1 ends at 0.6."""
    scheme = Scheme(4, symmetric=True, restricted=True, granularity=PER_CHANNEL)
    k = torch.randint(-7, 8, (16, 40), generator=torch.Generator().manual_seed(0)).float()
    k[:, 0] = 7
    true = Power(torch.full((16, 1), 1 / 7), torch.zeros(16, 1), scheme, 0.6).values(k)
    made = free(true, 1.0, scheme)
    made.latent.data.copy_(k)
    made.exponent.requires_grad_(True)
    optimizer = torch.optim.Adam([made.exponent], lr=0.01)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 300)
        optimizer.zero_grad()
        (made(true) - true).square().sum().backward()
        optimizer.step()
        made.keep_positive()
    assert float(made.exponent.detach()) == pytest.approx(0.6, abs=0.002)
    assert float((made(true) - true).detach().abs().max()) < 0.005


def test_exponent_held_at_one_learns_as_free_codes_on_even_steps_do() -> None:
    """Where no code reaches an end this is AdaQuant's shift of each weight, codes and gradients."""
    weight, scheme = weights(6, 24), Scheme(5, granularity=PER_CHANNEL)
    x = torch.randn(64, 24, generator=torch.Generator().manual_seed(1))
    want, found = x @ weight.T, {}
    uniform = Uniform.of_range(*(torch.full((6, 1), end) for end in (-6.0, 6.0)), scheme)
    power = Power(uniform.scale, uniform.zero_point, scheme, 1.0)
    free_codes = FreePower.from_nearest(power, weight, power.exponent)
    for made in (Shifted.from_nearest(uniform, weight), free_codes):
        (moving,) = made.learnable().get("shift") or made.learnable()["rounding"]
        moving.requires_grad_(True)
        optimizer, gradients = torch.optim.Adam([moving], lr=0.02), []
        for _ in range(40):
            optimizer.zero_grad()
            (x @ made(weight).T - want).square().mean().backward()
            gradients.append(moving.grad.clone())
            optimizer.step()
            made.keep_positive()
        found[type(made)] = (torch.stack(gradients), made.codes(weight))
    (one, codes_one), (two, codes_two) = found.values()
    assert torch.equal(codes_one, codes_two)
    assert not torch.equal(codes_one, uniform.codes(weight))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


# --- families


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
def test_what_is_multiplied_shares_one_exponent(placement: str) -> None:
    model = applied("powerquant", placement=placement, bits=(3, 3), share="layer")
    for name, layer in model.weighted().items():
        own = f"{name}.input"
        reads = own if own in model.points else f"{model.unit_of(name)}.boundary"
        point = model.points[reads].quantizer
        assert point is None or layer.weight_point.quantizer.exponent is point.exponent
    assert sum(point.quantizer is not None for point in model.points.values()) > 3
    found = _power.families(model)
    assert sorted(n for f in found for n in f.weights) == sorted(model.weighted())
    assert sorted(n for f in found for n in f.points) == sorted(model.points)


def test_operands_of_attention_products_share_one() -> None:
    from helpers_nets import images, tiny

    x = images("vit", 8)
    model = QuantModel(tiny("vit"), x[:2], ("blocks.0", "blocks.1", "blocks.2"))
    method("nupes", 4).apply(model, plan(model), calibration(x), ignore)
    pairs = [n.removesuffix(".left") for n in model.points if n.endswith(".left")]
    assert pairs
    for name in pairs:
        left, right = (model.points[f"{name}.{side}"].quantizer for side in ("left", "right"))
        assert left.exponent is right.exponent
    model.switch(weights=True, inputs=True)
    assert torch.isfinite(model(x)).all()


# --- PowerQuant


def test_search_finds_the_least_error_of_all_hundredths() -> None:
    model = quantizable()
    made, data = plan(model, 4, 4), calibration()
    best, common = _power.search(model, made, data, 2.0, ignore)
    tried = [round(0.25 + i / 100, 2) for i in range(101)]
    total = dict.fromkeys(tried, 0.0)
    for name, layer in model.weighted().items():
        w = layer.weight
        error = {
            a: float((Power.fit(w, made.weights[name], MinMax(), a)(w) - w).norm()) for a in tried
        }
        assert error[best[name]] <= 1.05 * min(error.values())
        total = {a: total[a] + error[a] for a in tried}
    assert total[common] <= 1.02 * min(total.values())
    assert total[common] <= total[1.0]


@pytest.mark.parametrize("by", ["weights", "outputs"])
def test_whole_network_or_each_layer(by: str) -> None:
    exponents = {}
    for share in ("network", "layer"):
        model = applied("powerquant", by=by, share=share)
        points = [m.weight_point for m in model.weighted().values()] + list(model.points.values())
        exponents[share] = {round(float(p.quantizer.exponent), 4) for p in points}
    assert len(exponents["network"]) == 1
    assert len(exponents["layer"]) > 1


def test_with_exponent_one_it_is_nearest_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_power, "search", lambda model, *rest: ({}, 1.0))
    made, nearest = applied("powerquant", by="weights"), applied("nearest")
    x = pictures(32, seed=9)[0]
    assert same(codes(made), codes(nearest))
    assert same(scales(made), scales(nearest))
    assert torch.equal(made(x), nearest(x))


def test_search_uses_no_images() -> None:
    found = []
    for seed in (1, 2):
        model = quantizable()
        data = calibration(pictures(16, seed=seed)[0])
        found.append(_power.search(model, plan(model), data, 2.0, ignore))
    assert found[0] == found[1]


def test_weights_come_nearer_than_with_nearest() -> None:
    nearest, made = applied("nearest"), applied("powerquant", by="weights", share="layer")
    for name, layer in made.weighted().items():
        w = layer.weight
        ours, theirs = (m.layers[name].weight_point.quantizer(w) for m in (made, nearest))
        assert (ours - w).norm() <= (theirs - w).norm() * (1 + 1e-6)


def test_by_outputs_each_layer_has_the_exponent_whose_output_is_nearest_to_float() -> None:
    """Asked of every layer alone, on float inputs, with its own input rounded on the same grid."""
    x = pictures(_power.IMAGES)[0]
    model, data = quantizable(), calibration(x)
    made = plan(model, 3, 3)
    best, common = _power.search_outputs(
        model, made, data, ignore, _power.families(model), data.histograms(model)
    )
    seen = data.histograms(model)
    assert 1.0 in _power.TRIED
    total = dict.fromkeys(_power.TRIED, 0.0)
    for unit in iter_units(model, data, by="layer", weights=False, inputs=False):
        (layer,), point = unit.weighted, f"{unit.layer}.input"
        bias = layer.layer.bias
        error = {}
        for a in _power.TRIED:
            w = Power.fit(layer.weight, made.weights[unit.layer], MinMax(), a)(layer.weight)
            values, counts = seen[point].values()
            rounded = Power.fit(values, made.inputs[point], MinMax(), a, counts)(unit.inputs)
            if layer.kind == "conv":
                own = layer.layer
                got = torch.nn.functional.conv2d(rounded, w, bias, own.stride, own.padding)
            else:
                got = torch.nn.functional.linear(rounded, w, bias)
            want = layer(unit.inputs)
            error[a] = float((got - want).square().sum() / want.square().sum())
            total[a] += error[a]
        assert error[best[point]] == pytest.approx(min(error.values()), rel=1e-3), unit.layer
    assert total[common] == pytest.approx(min(total.values()), rel=1e-3)
    assert all(layer.weight_point.quantizer is None for layer in model.weighted().values())


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
def test_by_outputs_operands_without_weights_are_compared_themselves(placement: str) -> None:
    from helpers_nets import images, tiny

    x = images("vit", 16)
    model = QuantModel(tiny("vit"), x[:2], ("blocks.0", "blocks.1", "blocks.2"), placement)
    method("powerquant").apply(model, plan(model, 3, 3), calibration(x), ignore)
    model.switch(weights=True, inputs=True)
    assert torch.isfinite(model(x)).all()
    products = [f for f in _power.families(model) if not f.weights]
    found = {float(model.points[n].quantizer.exponent) for f in products for n in f.points}
    assert len(found) > 1


# --- NUPES


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
def test_without_steps_it_is_powerquant_with_an_exponent_for_each_layer(placement: str) -> None:
    made = applied("nupes", steps=0, placement=placement)
    fitted = applied("powerquant", by="weights", share="layer", placement=placement)
    assert same(codes(made), codes(fitted))
    x = pictures(32, seed=9)[0]
    torch.testing.assert_close(made(x), fitted(x), rtol=1e-3, atol=1e-3)


def test_each_rate_moves_its_own_part() -> None:
    still = {"lr": 0.0, "exponent_lr": 0.0, "act_scale_lr": 0.0}
    start = applied("nupes", steps=0)

    def exponents(model: QuantModel) -> dict[str, Tensor]:
        return {n: q.weight_point.quantizer.exponent for n, q in model.weighted().items()}

    for part, rate in (("lr", 0.1), ("exponent_lr", 0.01), ("act_scale_lr", 0.05)):
        model = applied("nupes", steps=8, **still | {part: rate})
        assert same(codes(model), codes(start)) == (part != "lr")
        assert same(exponents(model), exponents(start)) == (part != "exponent_lr")
        moved = {n for n, s in scales(model).items() if not torch.equal(s, scales(start)[n])}
        assert bool(moved) == (part != "lr")  # a range on the bent axis follows its exponent


def test_codes_leave_the_two_levels_beside_a_weight() -> None:
    model = applied("nupes", steps=40, bits=(3, 4), lr=0.1)
    far = 0
    for name, layer in model.weighted().items():
        made = layer.weight_point.quantizer
        bent = bend(layer.weight, made.exponent) / made.scale
        gap = codes(model)[name] - made.zero_point - bent.floor()
        far += int(((gap < 0) | (gap > 1)).sum())
    assert far > 0


def test_loss_on_the_calibration_images_falls() -> None:
    losses: dict[str, list[float]] = {}

    def report(event: Event) -> None:
        if event.phase == "reconstruct":
            losses.setdefault(event.unit, []).append(float(event.loss))

    model = quantizable()
    recipe = method("nupes", 120)
    recipe.apply(model, plan(model, 2, 8), calibration(), report)
    for unit in ("one", "two"):
        assert sum(losses[unit][-20:]) < 0.8 * sum(losses[unit][:20]), unit


def test_beats_nearest_at_two_bits_on_unseen_images() -> None:
    x, error = pictures(256, seed=11)[0], {}
    want = trained()(x)
    for name in ("nearest", "nupes"):
        model = quantizable()
        data = calibration(pictures(64)[0], quick=False)
        method(name, 150).apply(model, plan(model, 2, 4), data, ignore)
        model.switch(weights=True, inputs=True)
        error[name] = float((model(x) - want).square().mean())
    assert error["nupes"] < 0.7 * error["nearest"], error


def test_loss_that_is_no_number_gives_the_unit_back_as_it_was() -> None:
    model, start = quantizable(), applied("nupes", steps=0)

    def report(event: Event) -> None:
        if event.phase == "reconstruct" and event.unit == "two":
            model.layers["two.conv1"].weight_point.quantizer.reach.fill_(float("nan"))

    with pytest.raises(InvalidSpec, match="The loss of two"):
        method("nupes", 20).apply(model, plan(model), calibration(), report)
    assert torch.equal(codes(model)["two.conv1"], codes(start)["two.conv1"])
    model.switch(weights=True, inputs=True)
    assert torch.isfinite(model(pictures(4)[0])).all()
