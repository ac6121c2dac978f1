"""The design space: named methods are points of it, and what each axis must keep to."""

import math
from dataclasses import asdict, fields, replace
from types import SimpleNamespace
from typing import Any

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
)
from helpers_nets import images, tiny
from torch import Tensor, nn

from qlib.core.records import InvalidSpec, ignore
from qlib.core.registry import discover
from qlib.learning.fisher import output_gradients
from qlib.learning.units import BlockUnit, Unit
from qlib.learning.walk import iter_units
from qlib.methods._gradient.design import ERRORS, OPTIMIZERS, UNITS, VARIABLES, Design
from qlib.methods._gradient.losses import angle, divergence
from qlib.methods.custom import Custom
from qlib.network import stages
from qlib.network.answers import Classes
from qlib.network.blocks import find_blocks
from qlib.network.model import QuantModel

METHODS = discover("methods")
# settings on the edge of what a design says
POINTS = [
    (name, {}) for name in METHODS if name != "custom" and METHODS[name]().design() is not None
] + [
    ("qdrop", {"quant_prob": 1.0}),
    ("brecq", {"error": "fisher"}),
    ("adaquant", {"inputs": "parallel"}),
    ("adaquant", {"bias_lr": 0.0, "zero_point_lr": 0.0}),
]


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return set(one) == set(two) and all(torch.equal(one[n], two[n]) for n in one)


def nearest_codes(model: QuantModel) -> dict[str, Tensor]:
    """On the grids of a network whose weight scales were not learned."""
    return {n: la.weight_point.quantizer.nearest(la.weight) for n, la in model.weighted().items()}


def loss_at_two_bits(**changes: Any) -> float:
    """Squared error of one linear layer on inputs that nearly agree, where rounding alone is bad.

    Activations stay float, so that nothing but what is learned makes a difference.
    """
    rng = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 6))
    net[1].weight.data = torch.randn(6, 32, generator=rng)
    net[1].bias.data.zero_()
    common = torch.randn(64, 1, 1, 1, generator=rng)
    x = (common + 0.3 * torch.randn(64, 2, 4, 4, generator=rng)) / 8
    model, data = QuantModel(net, x[:2]), calibration(x)
    still = {
        "inputs": "quantized",
        "quantize_acts": False,
        "act_scale_lr": 0.0,
        "steps": 300,
        "batch": 32,
    }
    recipe = Custom(**still | changes)
    recipe.apply(model, plan(model, 2, 8, "same"), data, ignore)
    model.switch(weights=True, inputs=False)
    with torch.no_grad():
        return float((model(x) - net(x)).square().sum(1).mean())


# --- named methods


def test_most_gradient_methods_are_points_of_the_space() -> None:
    assert {name for name, _ in POINTS} >= {
        "adaround", "brecq", "qdrop", "flexround", "adaquant", "nupes"
    }  # fmt: skip
    assert METHODS["nearest"]().design() is None
    assert METHODS["brecq"](acts="after").design() is None


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
@pytest.mark.parametrize(("name", "changes"), POINTS)
def test_the_design_of_a_method_is_the_method(
    name: str, changes: dict[str, Any], placement: str
) -> None:
    found = []
    named = method(name, 10, **changes)
    for recipe in (named, Custom(**asdict(named.design()))):
        model, data = quantizable(placement), calibration(seed=3)
        recipe.apply(model, plan(model, 3, 4), data, ignore)
        model.switch(weights=True, inputs=True)
        with torch.no_grad():
            found.append((codes(model), scales(model), model(pictures(16, seed=9)[0])))
    assert same(found[0][0], found[1][0])
    assert same(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2])


def test_the_defaults_are_qdrop() -> None:
    assert Design() == METHODS["qdrop"]().design()
    assert [f.name for f in fields(Custom)] == [f.name for f in fields(Design)]


# --- what is learned


@pytest.mark.parametrize("reach", [1, 2])
def test_a_window_is_never_left(reach: int) -> None:
    model = applied("custom", steps=40, bits=(4, 4), learn="window", window=reach, lr=0.5)
    found = nearest_codes(model)
    away = torch.cat([(code - found[n]).abs().flatten() for n, code in codes(model).items()])
    assert away.max() == reach  # a high rate drives codes there, and no further


def test_free_codes_go_further_than_a_window_and_stay_on_the_grid() -> None:
    model = applied("custom", steps=40, bits=(3, 4), learn="free", lr=0.5)
    found = nearest_codes(model)
    for name, code in codes(model).items():
        scheme = model.layers[name].weight_point.quantizer.scheme
        assert scheme.qmin <= code.min() and code.max() <= scheme.qmax
    assert max(float((code - found[n]).abs().max()) for n, code in codes(model).items()) > 2


def test_more_freedom_does_not_fit_worse() -> None:
    two_levels = loss_at_two_bits()
    window = loss_at_two_bits(learn="window", schedule="cosine")
    free = loss_at_two_bits(learn="free", schedule="cosine")
    nearest = loss_at_two_bits(steps=0)
    assert max(free, window) <= 1.05 * two_levels < 0.5 * nearest


@pytest.mark.parametrize("learn", VARIABLES)
def test_without_steps_codes_are_the_nearest(learn: str) -> None:
    model = applied("custom", steps=0, learn=learn)
    assert same(codes(model), nearest_codes(model))


def test_weight_scales_move_where_they_may() -> None:
    plain = applied("custom", steps=20, learn="free")
    moved = applied("custom", steps=20, learn="free", weight_scale_lr=1e-3)
    for name, layer in moved.weighted().items():
        before = plain.layers[name].weight_point.quantizer.scale
        assert not torch.equal(layer.weight_point.quantizer.scale, before)


def test_biases_move_where_they_may() -> None:
    assert all(la.correction is None for la in applied("custom").weighted().values())
    model = applied("custom", bias_lr=1e-3)
    assert all(la.correction.added.any() for la in model.weighted().values())


# --- which weights


@pytest.mark.parametrize("learn", ["up-or-down", "window", "free", "power"])
@pytest.mark.parametrize("select", ["random", "important"])
def test_weights_that_are_not_selected_stay_nearest(learn: str, select: str) -> None:
    share = {"select": select, "share": 0.25, "optimizer": "adamw", "lr": 0.1}
    model = applied("custom", steps=30, bits=(3, 4), learn=learn, **share)
    nearest = nearest_codes(model)
    moved = total = 0
    for name, code in codes(model).items():
        moved += int((code != nearest[name]).sum())
        total += code.numel()
    assert 0 < moved <= 0.25 * total + 4  # rounded for each of four units


@pytest.mark.parametrize("learn", ["shift", "divisors"])
def test_weights_that_are_not_selected_follow_a_learned_grid(learn: str) -> None:
    """The scale moves under them: they take the level that is then nearest."""
    model = applied("custom", steps=30, bits=(3, 4), learn=learn, weight_scale_lr=1e-2,
                    select="random", share=0.0, lr=0.1)  # fmt: skip
    assert same(codes(model), nearest_codes(model))


def test_undecided_weights_alone_are_learned() -> None:
    model = applied("custom", steps=30, bits=(3, 4), select="undecided", delta=0.1, lr=0.1)
    moved = 0
    for name, layer in model.weighted().items():
        quantizer = layer.weight_point.quantizer
        ratio = layer.weight / quantizer.scale
        sure = (ratio - ratio.floor() - 0.5).abs() > 0.1
        changed = quantizer.codes(layer.weight) != quantizer.nearest(layer.weight)
        assert not (changed & sure).any(), name
        moved += int(changed.sum())
    assert moved


@pytest.mark.parametrize(
    "everything",
    [{"select": "random", "share": 1.0}, {"select": "important", "share": 1.0},
     {"select": "undecided", "delta": 0.5}],
)  # fmt: skip
def test_selecting_everything_is_selecting_nothing(everything: dict[str, Any]) -> None:
    plain, selected = applied("custom", steps=20), applied("custom", steps=20, **everything)
    assert same(codes(plain), codes(selected))
    assert same(scales(plain), scales(selected))


def test_importance_is_what_the_error_owes_to_a_rounding() -> None:
    """(ŵ − w)·∂E/∂ŵ by finite differences, for single weights; 0 for weights on the grid."""
    from qlib.methods._gradient.selection import _owed

    model, data = quantizable(), calibration()
    model.layers["stem"].layer.weight[0].zero_()
    data.attach(model, plan(model, 2, 8, "same"))
    unit = next(iter_units(model, data))
    with model.quantized(weights=True, inputs=True), torch.no_grad():
        (owed,) = _owed(unit.weighted, unit, data)
        (layer,) = unit.weighted
        rounded = layer.weight_point.quantizer(layer.weight)
        assert not owed[0].any()
        for at in ((1, 0, 0, 0), (5, 2, 1, 1)):
            ends = []
            for eps in (1e-2, -1e-2):
                value = rounded.clone()
                value[at] += eps
                layer.weight_point.forward = lambda x, value=value: value
                ends.append((unit(unit.inputs) - unit.targets).double().square().sum())
                del layer.weight_point.forward
            slope = (ends[0] - ends[1]) / 2e-2
            want = float(((rounded - layer.weight)[at] * slope).abs())
            assert float(owed[at]) == pytest.approx(want, rel=0.02)


# --- units


def test_stages_are_rows_of_blocks_of_one_shape() -> None:
    assert stages.spans(quantizable(), "stage") == [("stem",), ("one",), ("two",), ("fc",)]
    vit = tiny("vit")
    model = QuantModel(vit, images("vit"), find_blocks(vit))
    assert ("blocks.0", "blocks.1", "blocks.2") in stages.spans(model, "stage")
    net = tiny("cifar-resnet")
    model = QuantModel(net, images("cifar-resnet"), find_blocks(net))
    longest = [span for span in stages.spans(model, "stage") if len(span) > 1]
    assert len(longest) == 3 and all(len(span) == 2 for span in longest)
    assert [u for span in stages.spans(model, "stage") for u in span] == model.units()


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
@pytest.mark.parametrize("family", ["vit", "cifar-resnet"])
def test_a_stage_computes_what_its_units_do_one_by_one(family: str, placement: str) -> None:
    net, x = tiny(family), images(family, 8)
    model = QuantModel(net, x[:2], find_blocks(net), placement)
    data = calibration(x)
    data.attach(model, plan(model, 4, 4))
    blocks = {unit.name: (unit.inputs, unit(unit.inputs)) for unit in iter_units(model, data)}
    several = 0
    for unit in iter_units(model, data, by="stage"):
        first, last = unit.span[0], unit.span[-1]
        assert torch.equal(unit.inputs, blocks[first][0])
        torch.testing.assert_close(unit(unit.inputs), blocks[last][1])
        assert set(unit.layers) == {n for u in unit.span for n in model.layers_of(u)}
        several += len(unit.span) > 1
    assert several


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_is_fitted_and_all_layers_are_learned(unit: str) -> None:
    net, x, heard = tiny("cifar-resnet"), images("cifar-resnet", 16), []
    model = QuantModel(net, x[:2], find_blocks(net), "boundary")
    recipe = method("custom", 12, unit=unit, lr=0.3)
    recipe.apply(model, plan(model, 3, 4), calibration(x), heard.append)
    fitting = [e for e in heard if e.phase == "reconstruct"]
    assert fitting[-1].index == fitting[-1].of == len({e.unit for e in fitting})
    nearest = nearest_codes(model)
    assert all((code != nearest[n]).any() for n, code in codes(model).items())
    model.switch(weights=True, inputs=True)
    assert torch.isfinite(model(x)).all()


def test_the_whole_network_is_fitted_to_its_answers() -> None:
    model, data = quantizable(), calibration()
    data.attach(model, plan(model, 2, 4))
    (unit,) = iter_units(model, data, by="network")
    with model.quantized(weights=False, inputs=False):
        assert torch.equal(unit.targets, model(data.images))
    assert len(unit.points()) == len(model.points)


def test_a_network_that_is_no_chain_has_no_stages() -> None:
    model = quantizable()
    model.is_sequential = False
    with pytest.raises(InvalidSpec, match="cannot be joined to stages; choose the unit 'block'"):
        method("custom", 1, unit="stage").apply(model, plan(model), calibration(), ignore)


# --- inputs


def test_mixed_without_activations_lies_between_both_networks() -> None:
    """keep = 1 are the quantized inputs, keep = 0 the float ones: the axis has both as its ends."""
    still = {"quantize_acts": False, "act_scale_lr": 0.0, "steps": 15}
    mixed = applied("custom", inputs="mixed", quant_prob=1.0, **still)  # no mask is drawn
    assert same(codes(mixed), codes(applied("custom", inputs="quantized", **still)))
    fed = {}

    def watched(name: str, **given: Any) -> None:
        from qlib.methods._gradient.feeding import feeding

        model, data = quantizable(), calibration()
        data.attach(model, plan(model, 2, 4))
        *_, unit = iter_units(model, data, inputs=False)
        with feeding(Design(quantize_acts=False, **given), unit, data) as inputs:
            every = torch.arange(len(unit.targets))
            fed[name] = unit.inputs if inputs is None else inputs(every)

    watched("float", inputs="float")
    watched("quantized", inputs="quantized")
    watched("mixed", inputs="mixed", quant_prob=0.5)
    watched("never", inputs="mixed", quant_prob=0.0)
    assert torch.equal(fed["never"], fed["float"])
    from_float, from_quant = fed["mixed"] == fed["float"], fed["mixed"] == fed["quantized"]
    assert (from_float | from_quant).all()
    assert 0.3 < float((from_float & ~from_quant).double().mean()) < 0.7


# --- errors


def unit_of(targets: Tensor) -> Unit:
    model = SimpleNamespace(answers=Classes())  # all that errors ask of it
    return BlockUnit(model=model, name="x", layers={}, inputs=targets, float_inputs=targets,
                     targets=targets)  # fmt: skip


def test_an_angle_costs_what_a_small_crosswise_difference_costs_squared() -> None:
    target = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).double()
    target = 3 * target / target.norm(dim=1, keepdim=True)
    gap = torch.randn(64, 10, generator=torch.Generator().manual_seed(1)).double() * 1e-3
    gap -= target * (gap * target).sum(1, keepdim=True) / 9
    compare = angle(unit_of(target))
    assert float(compare(target + gap, target)) == pytest.approx(
        float(gap.square().sum()), rel=1e-3
    )
    assert float(compare(2 * target, target)) == pytest.approx(0, abs=1e-9)


def test_a_divergence_weighs_a_small_difference_by_one_on_average() -> None:
    target = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)).double()
    gap = torch.randn(4000, 6, generator=torch.Generator().manual_seed(1)).double() * 1e-2
    compare = divergence(unit_of(target))
    assert float(compare(target + gap, target)) == pytest.approx(
        float(gap.square().sum()), rel=0.05
    )
    assert float(compare(target + 5, target)) == pytest.approx(0, abs=1e-9)  # answers are the same


def test_divergence_needs_answers() -> None:
    with pytest.raises(ValueError, match="'kl' compares answers, so it needs unit 'network'"):
        Custom(error="kl")
    Custom(error="kl", unit="network")


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_fits_better_than_nearest(error: str) -> None:
    unit = "network" if error == "kl" else "block"
    learned = loss_at_two_bits(error=error, unit=unit)
    least = 1.0 if error == "cosine" else 0.8  # an angle leaves lengths alone
    assert learned < least * loss_at_two_bits(steps=0, unit=unit)


def test_fisher_of_a_layer_is_that_of_its_activated_output() -> None:
    """By finite differences through the whole float network, for one layer inside a block."""
    model, data = quantizable(), calibration(pictures(4)[0])
    data.attach(model, plan(model))
    layers = {
        unit.layer: unit
        for unit in iter_units(model, data, by="layer", weights=False, inputs=False)
    }
    unit = layers["one.conv1"]
    assert unit.activation is not None
    label = torch.tensor([[2]] * 4)
    draw, torch.multinomial = torch.multinomial, lambda *args, **more: label
    try:
        found = output_gradients(unit, data)
    finally:
        torch.multinomial = draw
    at, ends = (1, 3, 2, 4), []
    for eps in (1e-2, -1e-2):
        y = unit.targets.clone()
        y[at] += eps
        with torch.no_grad():
            logits = model.partial.rerun_layer(data.images, unit.layer, unit.activation, y)
        ends.append(torch.nn.functional.cross_entropy(logits, label[:, 0], reduction="sum"))
    assert float(found[at]) == pytest.approx(float(ends[0] - ends[1]) / 2e-2, rel=0.05, abs=1e-4)


# --- optimisers


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name: str) -> None:
    learned = loss_at_two_bits(optimizer=name, lr=1.0 if name == "sgd" else 1e-2)
    assert learned < 0.8 * loss_at_two_bits(steps=0)


def test_sign_steps_have_one_size() -> None:
    from qlib.learning import optimizers

    p = torch.nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
    made = optimizers.optimizer("sign-sgd", [{"params": [p], "lr": 0.25}])
    p.grad = torch.tensor([1e-6, -1e6, 0.0])
    made.step()
    assert p.tolist() == [0.75, 1.25, 1.0]
    assert optimizers.OPTIMIZERS == OPTIMIZERS  # a form reads the one, without torch
    with pytest.raises(ValueError, match="There is no optimizer 'lion'; there are adam, adamw"):
        optimizers.optimizer("lion", [])


def test_a_schedule_is_the_weights_own() -> None:
    from qlib.methods._gradient.fit import _rates

    constant, cosine = _rates(Design()), _rates(replace(Design(), schedule="cosine"))
    assert not constant["rounding"].cosine and cosine["rounding"].cosine
    assert constant["act_scale"].cosine and cosine["act_scale"].cosine
    assert math.isclose(constant["rounding"].lr, 1e-2)


@pytest.mark.parametrize("unit", ["layer", "block", "stage", "network"])
def test_every_kind_of_unit_learns_in_the_precision_of_the_run(unit: str) -> None:
    model, data = quantizable(), calibration()
    data.arithmetic = torch.bfloat16
    seen = [found.arithmetic for found in iter_units(model, data, by=unit)]
    assert set(seen) == {torch.bfloat16}
