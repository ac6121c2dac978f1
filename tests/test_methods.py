"""Methods at their limits, against plain loops, and when they are interrupted."""

import copy
import math
from dataclasses import dataclass

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
from torch import Tensor

from qlib.core.functional import KeepMask
from qlib.core.records import Cancelled, Event, InvalidSpec, ignore
from qlib.learning import fisher
from qlib.learning import reconstruct as loop
from qlib.learning.calibration import Calibration
from qlib.learning.objective import OutputError
from qlib.learning.reconstruct import BetaSchedule, FitSettings, Rate
from qlib.learning.units import Unit
from qlib.learning.walk import iter_units
from qlib.methods._gradient import fit
from qlib.network.model import QuantModel
from qlib.quantizers.soft_round import SoftRound
from qlib.quantizers.uniform import Uniform

LEARNED = ("adaround", "brecq", "qdrop")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return set(one) == set(two) and all(torch.equal(one[n], two[n]) for n in one)


def outputs(model: QuantModel) -> Tensor:
    with torch.no_grad():
        return model(pictures(64, seed=9)[0])


# --- limits


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
@pytest.mark.parametrize("name", ["adaround", "brecq", "qdrop"])
def test_without_steps_it_is_nearest(name: str, placement: str) -> None:
    nearest = applied("nearest", placement=placement)
    learned = applied(name, placement=placement, steps=0)
    assert same(codes(learned), codes(nearest))
    assert same(scales(learned), scales(nearest))
    torch.testing.assert_close(outputs(learned), outputs(nearest), rtol=1e-5, atol=1e-5)


def test_brecq_without_steps_is_nearest_with_ranges_from_quantized_weights() -> None:
    nearest, learned = applied("nearest"), applied("brecq", steps=0, acts="after")
    assert same(codes(learned), codes(nearest))
    data = calibration()
    data.attach_inputs(nearest, plan(nearest), weights_quantized=True)
    assert same(scales(learned), scales(nearest))
    torch.testing.assert_close(outputs(learned), outputs(nearest), rtol=1e-5, atol=1e-5)


def test_adaround_learns_weights_only() -> None:
    nearest, learned = applied("nearest"), applied("adaround", steps=30)
    assert same(scales(learned), scales(nearest))
    assert not same(codes(learned), codes(nearest))


def test_brecq_without_activation_steps_leaves_their_scales() -> None:
    data_only = applied("brecq", steps=12, act_steps=0, acts="after")
    moved = applied("brecq", steps=12, act_steps=12, acts="after")
    assert same(codes(data_only), codes(moved))
    assert not same(scales(data_only), scales(moved))


@pytest.mark.parametrize("name", ["brecq", "qdrop"])
def test_rates_of_zero_learn_nothing(name: str) -> None:
    frozen = applied(name, lr=0.0, act_scale_lr=0.0, steps=5)
    assert same(codes(frozen), codes(applied("nearest")))


def test_qdrop_can_learn_scales_alone() -> None:
    """A rounding rate of zero leaves every weight at its nearest level."""
    model = applied("qdrop", lr=0.0, steps=6)
    nearest = applied("nearest")
    assert same(codes(model), codes(nearest))
    assert not same(scales(model), scales(nearest))


# --- what each recipe asks of the loop


@dataclass
class Asked:
    """One call of the loop."""

    unit: Unit
    settings: FitSettings
    objective: OutputError


def asked(monkeypatch: pytest.MonkeyPatch, name: str, **changes: object) -> list[Asked]:
    """Every call of the loop."""
    calls: list[Asked] = []

    def heard(unit: Unit, settings: FitSettings, *, objective: OutputError, **_: object) -> None:
        calls.append(Asked(unit, settings, objective))

    monkeypatch.setattr(loop, "reconstruct", heard)
    monkeypatch.setattr(fit, "reconstruct", heard)
    applied(name, steps=7, **changes)
    return calls


def test_adaround_asks_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = asked(monkeypatch, "adaround", penalty=0.02)
    assert [call.unit.layer for call in calls] == quantizable().units("layer")
    for call in calls:
        how = call.settings
        assert how.learn == {"rounding": Rate(3e-3)}
        assert how.beta_schedule == BetaSchedule(20, 2, 0.2, cosine=True)
        assert (how.steps, how.batch, how.penalty) == (7, 8, 0.02)
        assert call.objective == OutputError(call.unit)  # squared, of the quantized inputs


def test_brecq_asks_for_rounding_then_for_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    draw = fisher.output_gradients

    def kept(unit: Unit, data: Calibration) -> Tensor:
        gradients.append(draw(unit, data).clone())
        return gradients[-1].clone()

    monkeypatch.setattr(fisher, "output_gradients", kept)
    calls = asked(
        monkeypatch, "brecq", act_steps=3, acts="after", error="fisher", placement="boundary"
    )
    first, second = calls[:4], calls[4:]
    units = quantizable().units()
    assert [c.unit.name for c in first] == [c.unit.name for c in second] == units
    for call, g in zip(first, gradients, strict=True):
        assert call.settings.learn == {"rounding": Rate(1e-2)}
        assert (call.settings.steps, call.settings.penalty) == (7, 0.01)
        assert call.settings.beta_schedule == BetaSchedule()  # linear
        torch.testing.assert_close(call.objective.importance, g**2 / (g**2).mean())
        assert float(call.objective.importance.mean()) == pytest.approx(1, rel=1e-4)
    for call in second:
        assert call.settings.learn == {"act_scale": Rate(4e-4, cosine=True)}
        assert (call.settings.steps, call.objective.power) == (3, 2.4)
        at = torch.tensor([1, 0])  # clean inputs, as in the published code
        assert torch.equal(call.objective.inputs(at), call.unit.float_inputs[at])
        assert call.settings.penalty == 0


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
def test_joint_brecq_equals_qdrop_that_keeps_everything(placement: str) -> None:
    brecq = applied("brecq", steps=20, bits=(3, 3), placement=placement)
    qdrop = applied("qdrop", steps=20, bits=(3, 3), placement=placement, quant_prob=1.0)
    assert same(codes(brecq), codes(qdrop))
    assert same(scales(brecq), scales(qdrop))
    assert BetaSchedule() == BetaSchedule(20, 2, 0.2, cosine=False)


def test_qdrop_asks_for_rounding_and_scales_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = asked(monkeypatch, "qdrop", placement="boundary")
    assert [call.unit.name for call in calls] == quantizable().units()
    for call in calls:
        how, error = call.settings, call.objective
        assert how.learn == {"rounding": Rate(1e-2), "act_scale": Rate(4e-4, cosine=True)}
        assert (how.steps, how.penalty, how.beta_schedule) == (7, 0.01, BetaSchedule())
        assert (error.power, error.importance) == (2, None)


# --- QDrop against a plain loop


def plain_loop(unit: Unit, rounding: list, scale: list, steps: int, draws: torch.Generator) -> None:
    """Adam and autograd in so many words: 1e-2 for the rounding, 4e-4 cooled for the scales."""
    optimizer = torch.optim.Adam([{"params": [q.up for q in rounding], "lr": 1e-2}])
    if scale:
        optimizer.add_param_group({"params": scale, "lr": 4e-4})
    for step in range(steps):
        at = torch.randint(32, (8,), generator=draws)
        loss = (unit(unit.inputs[at]) - unit.targets[at]).square().sum(1).mean()
        if step >= 0.2 * steps:
            beta = 2 + 18 * (1 - (step - 0.2 * steps) / (0.8 * steps))
            soft = [(1 - (2 * q.h() - 1).abs().pow(beta)).sum() for q in rounding]
            loss = loss + 0.01 * sum(soft)
        optimizer.zero_grad()
        loss.backward()
        cooled = 4e-4 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups[1:]:
            group["lr"] = cooled
        optimizer.step()


def plain_reconstruction(placement: str, steps: int, seed: int) -> QuantModel:
    """Block by block, on inputs from the quantized network."""
    model, data = quantizable(placement), calibration(seed=seed)
    data.attach(model, plan(model))
    draws = torch.Generator().manual_seed(seed)
    for unit in iter_units(model, data, weights=True, inputs=True):
        for layer in unit.weighted:
            nearest = layer.weight_point.quantizer
            layer.weight_point.fill(SoftRound.from_nearest(nearest, layer.weight))
        rounding = [layer.weight_point.quantizer for layer in unit.weighted]
        scale = [p.quantizer.scale for p in unit.points() if p.quantizer is not None]
        for p in [*scale, *(q.up for q in rounding)]:
            p.requires_grad_(True)
        plain_loop(unit, rounding, scale, steps, draws)
        for p in [*scale, *(q.up for q in rounding)]:
            p.requires_grad_(False)
        for layer in unit.weighted:
            layer.weight_point.quantizer.harden()
            layer.weight_point.forget()
    model.switch(weights=True, inputs=True)
    return model


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
def test_qdrop_that_always_keeps_is_plain_reconstruction(placement: str) -> None:
    steps = 25
    ours = applied("qdrop", placement=placement, steps=steps, quant_prob=1.0, act_scale_lr=4e-4)
    theirs = plain_reconstruction(placement, steps, seed=0)
    for name, scale in scales(theirs).items():
        torch.testing.assert_close(scales(ours)[name], scale, rtol=1e-3, atol=1e-5)
    pairs = [(codes(ours)[n], code) for n, code in codes(theirs).items()]
    differ = sum(int((a != b).sum()) for a, b in pairs)
    assert differ <= 0.005 * sum(a.numel() for a, _ in pairs)  # a last bit may tip a tie
    nearest = codes(applied("nearest", placement=placement))
    moved = sum(int((codes(ours)[n] != nearest[n]).sum()) for n in nearest)
    assert moved > 5 * max(differ, 1)  # and there was something to agree on


def masks_drawn(monkeypatch: pytest.MonkeyPatch, keep: float) -> list[tuple[int, ...]]:
    drawn: list[tuple[int, ...]] = []
    like = KeepMask.like

    def counted(self: KeepMask, x: Tensor) -> Tensor | None:
        mask = like(self, x)
        if mask is not None:
            drawn.append(tuple(mask.shape))
        return mask

    monkeypatch.setattr(KeepMask, "like", counted)
    applied("qdrop", placement="boundary", steps=2, quant_prob=keep)
    return drawn


def test_qdrop_that_always_keeps_draws_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    assert masks_drawn(monkeypatch, 1.0) == []


def test_qdrop_masks_the_unit_input_once_and_every_point_inside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes = masks_drawn(monkeypatch, 0.5)
    one_step = [
        (8, 3, 8, 8),  # stem: the image, which has no point of its own
        (8, 8, 8, 8), (8, 8, 8, 8),  # one: its boundary, conv2's input
        (8, 8, 8, 8), (8, 12, 4, 4),  # two: its boundary, conv2's input
        (8, 12), (8, 12),  # fc: where it comes from, its own input
    ]  # fmt: skip
    twice = [s for unit in ([0], [1, 2], [3, 4], [5, 6]) for s in [one_step[i] for i in unit] * 2]
    assert shapes == twice


def test_qdrop_that_never_keeps_sees_float_activations_only() -> None:
    """Then activations have no say: the bits of activations change nothing in the weights."""
    found = []
    for act_bits in (2, 8):
        model = quantizable("boundary")
        made = plan(model, 3, act_bits, "same")
        method("qdrop", 10, quant_prob=0.0).apply(model, made, calibration(), ignore)
        found.append(codes(model))
    assert same(*found)
    always = []
    for act_bits in (2, 8):
        model = quantizable("boundary")
        made = plan(model, 3, act_bits, "same")
        method("qdrop", 10, quant_prob=1.0).apply(model, made, calibration(), ignore)
        always.append(codes(model))
    assert not same(*always)


def test_qdrop_leaves_no_trace_in_quantizers() -> None:
    model = applied("qdrop", steps=3)
    for point in model.points.values():
        assert "forward" not in vars(point.quantizer)
        assert point.on
    assert torch.equal(outputs(model), outputs(model))


def test_qdrop_drops_inside_attention() -> None:
    """Keys and values are cut out of a larger tensor: masks must fit them too."""
    x = images("vit", 32)
    net = tiny("vit")
    model = QuantModel(net, x[:2], ("blocks.0", "blocks.1", "blocks.2"))
    method("qdrop", 25, batch=32).apply(model, plan(model), calibration(x), ignore)
    model.switch(weights=True, inputs=True)
    assert torch.isfinite(model(x)).all()


# --- seeds


@pytest.mark.parametrize("name", LEARNED)
def test_seed_decides_and_the_global_state_does_not(name: str) -> None:
    found = []
    for seed, other in ((0, 1), (0, 2), (1, 2)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(other)
            found.append(applied(name, seed=seed, steps=15, bits=(3, 4)))
    one, two, three = ((codes(m), scales(m)) for m in found)
    assert same(one[0], two[0])
    assert same(one[1], two[1])
    assert torch.equal(outputs(found[0]), outputs(found[1]))
    assert not (same(one[0], three[0]) and same(one[1], three[1]))


# --- the use of it


def output_error(name: str, placement: str) -> float:
    """Mean square error of the logits on unseen images, W2A4."""
    model = quantizable(placement)
    data = calibration(pictures(64)[0], quick=False)
    method(name, 150, **({"batch": 16} if name in LEARNED else {})).apply(
        model, plan(model, 2, 4), data, ignore
    )
    model.switch(weights=True, inputs=True)
    x = pictures(256, seed=11)[0]
    with torch.no_grad():
        want = trained()(x)
        return float((model(x) - want).square().mean() / want.square().mean())


def test_learned_methods_beat_nearest_at_two_bits() -> None:
    nearest = output_error("nearest", "inputs")
    found = {name: output_error(name, "inputs") for name in LEARNED}
    assert max(found.values()) < 0.7 * nearest, (nearest, found)


def test_fisher_weighting_is_used_and_works() -> None:
    plain = applied("brecq", steps=30, bits=(3, 4))
    weighted = applied("brecq", steps=30, bits=(3, 4), error="fisher")
    assert not same(codes(plain), codes(weighted))
    nearest, want = applied("nearest", bits=(3, 4)), trained()(pictures(64, seed=9)[0])
    assert (outputs(weighted) - want).square().mean() < (outputs(nearest) - want).square().mean()


# --- trouble


@pytest.mark.parametrize("name", LEARNED)
def test_loss_that_is_no_number_names_the_unit_and_keeps_finished_ones(name: str) -> None:
    model, data = quantizable(), calibration()
    nearest = applied("nearest")
    recipe = method(name, 20)
    reached: list[str] = []

    def report(event: Event) -> None:
        if event.phase == "reconstruct" and event.unit not in reached:
            reached.append(event.unit)
            if event.unit == "two" or event.unit == "two.conv1":
                broken = model.layers["two.conv1"].weight_point.quantizer
                broken.up.data.fill_(float("nan"))

    text = r"The loss of two(\.conv1)? \(unit \d of \d\) is nan at iteration \d+; finished"
    with pytest.raises(InvalidSpec, match=text):
        recipe.apply(model, plan(model), data, report)
    for unit in ("stem", "one.conv1", "one.conv2"):
        quantizer = model.layers[unit].weight_point.quantizer
        assert isinstance(quantizer, SoftRound)
        assert not quantizer.soft
        weight = model.layers[unit].weight
        assert torch.equal(quantizer.codes(weight), quantizer.codes(weight).round())
    assert isinstance(model.layers["fc"].weight_point.quantizer, Uniform)
    assert torch.equal(codes(model)["fc"], codes(nearest)["fc"])
    assert torch.isfinite(model(pictures(4)[0])).all()  # off, it is the float network still


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("after", [1, 5, 30])
def test_cancelled_run_leaves_a_usable_model(name: str, after: int) -> None:
    model = quantizable("boundary")
    before = model(pictures(8)[0])
    state = copy.deepcopy({n: m.weight.clone() for n, m in model.weighted().items()})
    heard = []

    def stop(event: Event) -> None:
        heard.append(event)
        if event.phase == "reconstruct" and sum(e.phase == "reconstruct" for e in heard) == after:
            raise Cancelled

    with pytest.raises(Cancelled):
        method(name, 12).apply(model, plan(model), calibration(), stop)
    assert sum(e.phase == "reconstruct" for e in heard) == after
    assert torch.equal(model(pictures(8)[0]), before)
    assert all(torch.equal(state[n], m.weight) for n, m in model.weighted().items())
    model.switch(weights=True, inputs=True)
    assert torch.isfinite(model(pictures(8)[0])).all()
    assert not any(p.requires_grad for p in model.parameters())
    for point in model.points.values():
        assert point.quantizer is None or "forward" not in vars(point.quantizer)
    # and a later run starts afresh
    method(name, 3).apply(model, plan(model), calibration(), ignore)
    again = quantizable("boundary")
    method(name, 3).apply(again, plan(again), calibration(), ignore)
    assert same(codes(model), codes(again))
