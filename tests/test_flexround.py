"""FlexRound: its gradient, its start, its limits, and where it goes that up-or-down cannot."""

import itertools
from collections import OrderedDict

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
from torch import Tensor, nn

from qlib.core.records import Cancelled, Event, InvalidSpec, ignore
from qlib.core.scheme import PER_CHANNEL, PER_TENSOR, Granularity, Scheme
from qlib.learning.reconstruct import FitSettings, Rate, reconstruct
from qlib.learning.units import LayerUnit, Unit
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer
from qlib.observers.mse import Mse
from qlib.quantizers.flex_round import SMALLEST, FlexRound
from qlib.quantizers.soft_round import SoftRound
from qlib.quantizers.uniform import Uniform

GRIDS = {
    "tensor": Scheme(4, granularity=PER_TENSOR),
    "channel": Scheme(3, granularity=PER_CHANNEL),
    "group": Scheme(2, granularity=Granularity("group", 6)),
    "symmetric": Scheme(4, symmetric=True, granularity=PER_CHANNEL),
}


def weights(*shape: int) -> Tensor:
    return torch.randn(shape or (6, 4, 3, 3), generator=torch.Generator().manual_seed(0))


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return set(one) == set(two) and all(torch.equal(one[n], two[n]) for n in one)


# --- the quantizer


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 1, 3, 3), (6, 24)])
def test_starts_as_nearest_bit_for_bit(grid: str, shape: tuple[int, ...]) -> None:
    weight = weights(*shape)
    nearest = Uniform.fit(weight, GRIDS[grid], Mse())
    made = FlexRound.from_nearest(nearest, weight)
    assert torch.equal(made(weight), nearest(weight))
    assert torch.equal(made.codes(weight), nearest.codes(weight))


def test_factors_have_the_published_shapes() -> None:
    weight = weights()
    conv = FlexRound.from_nearest(Uniform.fit(weight, GRIDS["channel"], Mse()), weight)
    assert [tuple(f.shape) for f in conv.factors] == [(6, 4, 3, 3), (6, 1, 1, 1), (1, 4, 1, 1)]
    weight = weights(6, 24)
    linear = FlexRound.from_nearest(Uniform.fit(weight, GRIDS["channel"], Mse()), weight)
    assert [tuple(f.shape) for f in linear.factors] == [(6, 24), (6, 1)]  # no input channels


def test_gradient_follows_the_reciprocal_rule() -> None:
    """∂L/∂S' = −w/S'²·g for each factor of S' = S₂s₃s₄, inside the grid; ∂L/∂s = Σ (⌊z⌉ − z)·g."""
    weight = weights()
    nearest = Uniform.fit(weight, Scheme(4, granularity=PER_CHANNEL), Mse())
    made = FlexRound.from_nearest(nearest, weight)
    rng = torch.Generator().manual_seed(3)
    for factor in made.factors:
        factor.data = 0.8 + 0.4 * torch.rand(factor.shape, generator=rng)
    for p in made.parameters():
        p.requires_grad_(True)
    g = torch.randn(weight.shape, generator=rng)
    (made(weight) * g).sum().backward()
    with torch.no_grad():
        own, rows, columns = made.factors
        total = own * rows * columns
        ratio = weight / total / made.scale
        inside = (ratio.round() >= made.low) & (ratio.round() <= made.high)
        for_total = -weight / total**2 * g * inside
        for_scale = torch.where(inside, ratio.round() - ratio, made(weight) / made.scale) * g
    torch.testing.assert_close(own.grad, for_total * rows * columns)
    torch.testing.assert_close(rows.grad, (for_total * own * columns).sum((1, 2, 3), keepdim=True))
    torch.testing.assert_close(columns.grad, (for_total * own * rows).sum((0, 2, 3), keepdim=True))
    torch.testing.assert_close(
        made.scale.grad, for_scale.sum((1, 2, 3), keepdim=True), rtol=1e-4, atol=1e-5
    )
    assert not inside.all()


def test_factors_stay_positive_while_they_are_learned() -> None:
    weight = weights()
    made = FlexRound.from_nearest(Uniform.fit(weight, GRIDS["channel"], Mse()), weight)
    made.factors[0].data.fill_(-1.0)
    made.keep_positive()
    assert (made.factors[0] == -1).all()  # not being learned: left alone
    made.factors[0].requires_grad_(True)
    made.keep_positive()
    assert (made.factors[0] == SMALLEST).all()
    assert torch.isfinite(made(weight)).all()


def test_a_weight_of_zero_never_moves() -> None:
    weight = weights()
    weight[:, 0] = 0.0
    made = FlexRound.from_nearest(Uniform.fit(weight, GRIDS["channel"], Mse()), weight)
    own = made.factors[0].requires_grad_(True)
    made(weight).square().sum().backward()
    assert (own.grad[:, 0] == 0).all()
    assert (own.grad[:, 1:] != 0).any()


# --- further than up or down


def lone_unit(weight: Tensor, x: Tensor, scheme: Scheme, scale: float) -> tuple[Unit, QuantLayer]:
    """A linear layer without bias as a unit of its own, on whole steps of ``scale``."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    model = QuantModel(nn.Sequential(OrderedDict(lone=linear)), x[:4])
    layer = model.weighted()["lone"]
    layer.weight_point.fill(Uniform(torch.tensor(scale), torch.tensor(0.0), scheme))
    layer.weight_point.on = True
    with torch.no_grad():
        target = x @ weight.T

    unit = LayerUnit(model=model, name="lone", layers={"lone": layer}, inputs=x, float_inputs=x,
                     targets=target, layer="lone")  # fmt: skip
    unit.points = lambda: []
    return unit, layer


def best_codes(weight: Tensor, x: Tensor, choices: list[range]) -> tuple[tuple[int, ...], float]:
    """The codes with the least output error, by trying all."""
    tried = {
        c: float(((torch.tensor(c, dtype=x.dtype) - weight[0]) @ x.T).square().sum())
        for c in itertools.product(*choices)
    }
    best = min(tried, key=tried.get)
    return best, tried[best]


def test_reaches_an_optimum_two_steps_from_nearest_which_up_or_down_cannot() -> None:
    """w = (5.4, 1.1) on inputs that all but agree, codes up to 3: the large weight is clipped, and
    the small one, nearest to 1, must go to 3 to make up for it."""
    weight = torch.tensor([[5.4, 1.1]])
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(256, 1, generator=rng) + 0.3 * torch.randn(256, 2, generator=rng)
    scheme = Scheme(3, symmetric=True)
    far, far_error = best_codes(weight, x, [range(-4, 4), range(-4, 4)])
    _, near_error = best_codes(weight, x, [range(3, 4), range(1, 3)])
    assert far == (3, 3)
    assert far_error < 0.8 * near_error
    found = {}
    for make, rate in ((FlexRound, 3e-3), (SoftRound, 1e-2)):
        unit, layer = lone_unit(weight, x, scheme, 1.0)
        unit.replace_weights(make.from_nearest)
        settings = FitSettings({"rounding": Rate(rate)}, steps=800, batch=64, penalty=0.01)
        generator = torch.Generator().manual_seed(1)
        reconstruct(unit, settings, generator=generator, report=ignore)
        found[make] = layer.weight_point.quantizer.codes(weight)[0]
    assert found[FlexRound].tolist() == list(far)
    assert found[SoftRound].tolist() == [3, 2]


# --- the method


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
def test_without_steps_it_is_nearest(placement: str) -> None:
    nearest = applied("nearest", placement=placement)
    learned = applied("flexround", placement=placement, steps=0)
    x = pictures(32, seed=9)[0]
    assert same(codes(learned), codes(nearest))
    assert same(scales(learned), scales(nearest))
    assert torch.equal(learned(x), nearest(x))


def test_factors_frozen_it_learns_steps_alone() -> None:
    """Then it is the learned-step-size rule on weights and activations."""
    model, nearest = applied("flexround", steps=6, lr=0.0), applied("nearest")
    for name, layer in model.weighted().items():
        made = layer.weight_point.quantizer
        assert all((factor == 1).all() for factor in made.factors)
        assert not torch.equal(made.scale, nearest.layers[name].weight_point.quantizer.scale)
    assert not same(scales(model), scales(nearest))


def test_seed_decides() -> None:
    one, two, other = (applied("flexround", seed=s, steps=15) for s in (0, 0, 1))
    assert same(codes(one), codes(two))
    assert same(scales(one), scales(two))
    assert not (same(codes(one), codes(other)) and same(scales(one), scales(other)))


def test_beats_nearest_at_two_bits_on_unseen_images() -> None:
    x, error = pictures(256, seed=11)[0], {}
    want = trained()(x)
    for name in ("nearest", "flexround"):
        model = quantizable()
        method(name, 150).apply(model, plan(model, 2, 4), calibration(pictures(64)[0]), ignore)
        model.switch(weights=True, inputs=True)
        error[name] = float((model(x) - want).square().mean())
    assert error["flexround"] < 0.7 * error["nearest"], error


def test_loss_that_is_no_number_gives_the_unit_back_as_it_was() -> None:
    model = quantizable()

    def report(event: Event) -> None:
        if event.phase == "reconstruct" and event.unit == "two":
            model.layers["two.conv1"].weight_point.quantizer.scale.data.fill_(float("nan"))

    with pytest.raises(InvalidSpec, match="The loss of two"):
        method("flexround", 20).apply(model, plan(model), calibration(), report)
    nearest = codes(applied("nearest"))
    assert torch.equal(codes(model)["two.conv1"], nearest["two.conv1"])
    model.switch(weights=True, inputs=True)
    assert torch.isfinite(model(pictures(4)[0])).all()


def test_cancelled_it_leaves_points_without_dropping() -> None:
    model = quantizable("boundary")

    def stop(event: Event) -> None:
        if event.phase == "reconstruct" and event.unit == "two":
            raise Cancelled

    with pytest.raises(Cancelled):
        method("flexround").apply(model, plan(model), calibration(), stop)
    for point in model.points.values():
        assert point.quantizer is None or "forward" not in vars(point.quantizer)
    assert not any(p.requires_grad for p in model.parameters())
