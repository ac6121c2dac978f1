"""Looks at rounding while it is learned, counted by hand."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import calibration, method, plan, quantizable

from qlib import store
from qlib.core.records import Event
from qlib.learning.rounding_stats import LEAST, MOST, SOFT_BINS, look, moments
from qlib.learning.walk import iter_units
from qlib.quantizers.soft_round import SoftRound

STEPS = 60


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 21, 500, 20_000])
@pytest.mark.parametrize("units", [0, 1, 8, 26, 400])
def test_moments_hold_the_first_and_the_last_step(steps: int, units: int) -> None:
    found = sorted(moments(steps, units))
    assert (found[0], found[-1]) == (1, steps)
    assert min(steps, LEAST) <= len(found) <= min(steps, MOST)
    gaps = [b - a for a, b in pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def unit_of(model, by: str = "block"):
    data = calibration()
    data.attach(model, plan(model, 3, 4))
    return list(iter_units(model, data, by=by))


def test_a_look_counts_every_weight_once() -> None:
    unit = unit_of(quantizable())[1]
    assert look(unit) == {}  # nothing is learned yet
    unit.replace_weights(SoftRound.from_nearest)
    for layer in unit.weighted:
        layer.weight_point.quantizer.up.requires_grad_(True)
    found = look(unit)
    soft = torch.cat([layer.weight_point.quantizer.h().flatten() for layer in unit.weighted])
    edges = torch.linspace(0, 1, SOFT_BINS + 1)
    want = torch.histogram(soft.detach(), edges).hist.int().tolist()
    assert sum(found["soft"]) == soft.numel() == 2 * 576
    assert sum(abs(a - b) for a, b in zip(found["soft"], want, strict=True)) <= 2
    assert found["flipped"] == 0.0  # the soft weight is still the float weight


def test_flips_by_hand() -> None:
    unit = unit_of(quantizable())[1]
    unit.replace_weights(SoftRound.from_nearest)
    first, second = (layer.weight_point.quantizer for layer in unit.weighted)
    for q in (first, second):
        q.up.requires_grad_(True)
    with torch.no_grad():
        first.up.flatten()[:100] *= -1
    flips = 0
    for layer in unit.weighted:
        q = layer.weight_point.quantizer
        steps = (layer.weight / q.scale).detach()
        nearest = (steps.round() + q.zero_point).clamp(0, 7)
        turned = (steps.floor() + (q.up >= 0) + q.zero_point).clamp(0, 7)
        flips += int((nearest != turned).sum())
    assert 60 < flips <= 100  # those at the ends of the grid cannot move
    assert look(unit)["flipped"] == flips / (2 * 576)
    second.up.requires_grad_(False)  # what is not learned does not count
    assert look(unit)["flipped"] == flips / 576
    assert sum(look(unit)["soft"]) == 576


@pytest.mark.parametrize(("name", "placement"), [("adaround", "inputs"), ("qdrop", "boundary")])
def test_a_run_tells_how_rounding_becomes_hard(name: str, placement: str, tmp_path: Path) -> None:
    model, events = quantizable(placement), []
    with store.EventLog(tmp_path) as log:
        data = calibration(report=lambda event: (events.append(event), log(event)))
        method(name, STEPS).apply(model, plan(model, 3, 4), data, data.report)
    told = [e for e in events if e.soft is not None]
    units = list(dict.fromkeys(e.unit for e in events if e.phase == "reconstruct"))
    assert list(dict.fromkeys(e.unit for e in told)) == units
    total = 0
    for unit in units:
        own = [e for e in told if e.unit == unit]
        layers = model.layers_of(unit) if unit in model.blocks else [unit]
        weights = sum(model.layers[n].weight.numel() for n in layers)
        assert [own[0].step, own[-1].step] == [1, STEPS]
        assert len(own) <= MOST
        assert all(len(e.soft) == SOFT_BINS and sum(e.soft) == weights for e in own)
        codes = [(model.layers[n].weight_point.quantizer, model.layers[n].weight) for n in layers]
        moved = sum(int((q.codes(w) != q.nearest(w)).sum()) for q, w in codes)
        assert own[-1].flipped == pytest.approx(moved / weights)  # what hardening then keeps
        total += moved
    assert total > 0
    kept = [e for e in store.events(tmp_path) if e["soft"] is not None]
    assert [(e["unit"], e["step"], e["soft"]) for e in kept] == [
        (e.unit, e.step, e.soft) for e in told
    ]
    assert [e["flipped"] for e in kept] == pytest.approx([e.flipped for e in told], rel=1e-3)


def test_learning_activation_steps_alone_tells_nothing_of_rounding() -> None:
    model, events = quantizable(), []
    recipe = method("brecq", 10, acts="after")
    recipe.apply(model, plan(model, 3, 4), calibration(), events.append)
    rounding = [e for e in events if e.phase == "reconstruct"]
    half = len(rounding) // 2
    assert any(e.soft for e in rounding[:half])
    assert not any(e.soft or e.flipped is not None for e in rounding[half:])


def test_rounding_that_is_hard_all_along_tells_of_flips_alone() -> None:
    model, events = quantizable(), []
    recipe = method("flexround", 20)
    recipe.apply(model, plan(model, 3, 4), calibration(), events.append)
    told = [e for e in events if e.flipped is not None]
    assert told
    assert all(e.soft is None for e in told)


def test_the_log_keeps_every_look_and_few_other_steps(tmp_path: Path) -> None:
    with store.EventLog(tmp_path) as log:
        for unit in range(1, 27):
            for step in range(1, 1001):
                soft = [5] * 20 if step in moments(1000, 26) else None
                flipped = None if soft is None else 0.123456
                args = (unit, 26, step, 1000, 0.123456789, 2.3456789)
                log(Event("reconstruct", f"blocks.{unit}.fc", *args, soft=soft, flipped=flipped))
    found = store.events(tmp_path)
    assert sum(e["soft"] is not None for e in found) == 26 * LEAST
    assert {e["flipped"] for e in found} == {None, 0.1235}
    assert (tmp_path / "events.jsonl").stat().st_size < 180_000
