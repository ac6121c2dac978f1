"""Mixed precision: the table is what whole passes give, its prices are the network's own costs, and
the fronts are those of trying every assignment."""

import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from helpers import applied, pictures
from helpers_nets import images, tiny
from scipy.special import log_softmax, rel_entr
from torch import Tensor

from qlib.allocation import _knapsack
from qlib.allocation import front as allocation
from qlib.allocation.front import Choice, cheapest, front, priced, uniform
from qlib.core.records import Cancelled, Event, InvalidSpec
from qlib.network import costs, prefix_cache, switching
from qlib.network.model import QuantModel
from qlib.sensitivity.units import block_sensitivity

WIDTHS = (3, 4, 6)


def table(
    units: int, widths: tuple[int, ...] = WIDTHS, seed: int = 0, most: int = 40
) -> list[dict]:
    """Random rows; damages fall with the width mostly, not always."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(units):
        params, damage = int(rng.integers(1, most)), rng.uniform()
        macs = params * int(rng.integers(1, 9))
        for bits in widths:
            kl = float(damage * 2.0**-bits * rng.uniform(0.3, 1.7))
            rows.append({"unit": f"u{i}", "bits": bits, "kl": kl, "params": params, "macs": macs})
    return rows


def every(rows: list[dict]) -> list[Choice]:
    """The price of each assignment, added up by hand."""
    of = {}
    for row in rows:
        of.setdefault(row["unit"], []).append(row)
    return [
        Choice(
            {r["unit"]: r["bits"] for r in chosen if len(of[r["unit"]]) > 1},
            sum(r["kl"] for r in chosen),
            sum(r.get("weight_bytes", r["params"] * r["bits"] / 8) for r in chosen) / 1e6,
            sum(r.get("bops", r["macs"] * r["bits"] ** 2) for r in chosen) / 1e9,
        )
        for chosen in product(*of.values())
    ]


def by_trying(rows: list[dict], by: str) -> list[tuple[float, float]]:
    """(cost, kl) of assignments that nobody beats, each pair against each."""
    pairs = {(getattr(c, by), c.kl) for c in every(rows)}
    beaten = {
        a for a in pairs for b in pairs
        if b != a and b[0] <= a[0] * (1 + 1e-12) and b[1] <= a[1] + 1e-12
        and (b[0] < a[0] * (1 - 1e-12) or b[1] < a[1] - 1e-12)
    }  # fmt: skip
    kept = sorted(pairs - beaten)
    return [p for i, p in enumerate(kept) if not i or p[1] < kept[i - 1][1] - 1e-12]


@pytest.mark.parametrize("by", allocation.COSTS)
@pytest.mark.parametrize("seed", range(6))
def test_the_front_is_that_of_all_assignments(by: str, seed: int) -> None:
    rows = table(4, seed=seed) if seed % 2 else table(3, (2, 3, 5, 8), seed, most=4)
    found = front(rows, by)
    want = by_trying(rows, by)
    assert len(want) > 4
    np.testing.assert_allclose([(getattr(c, by), c.kl) for c in found], want, rtol=1e-9)
    for choice in found:
        assert choice == priced(rows, choice.bits)


def test_costs_may_be_any_whole_numbers_and_units_may_be_fixed() -> None:
    rows = table(4, seed=3)
    for i, row in enumerate(rows):
        row |= {"weight_bytes": (i * 37 % 19) / 8, "bops": i * 101 % 23}
    rows += [{"unit": "head", "bits": 8, "kl": 0.25, "params": 10, "macs": 10,
              "weight_bytes": 50.0, "bops": 640}]  # fmt: skip
    for by in allocation.COSTS:
        found = [(getattr(c, by), c.kl) for c in front(rows, by)]
        np.testing.assert_allclose(found, by_trying(rows, by), rtol=1e-9)
    assert set(front(rows)[0].bits) == {"u0", "u1", "u2", "u3"}
    assert front(rows)[0].kl > 0.25


def test_a_search_with_too_few_cells_keeps_its_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, cells = table(5, seed=1, most=10**6), 25
    monkeypatch.setattr(_knapsack, "STEPS", cells * len(rows))
    found = front(rows, most=None)
    assert len(found) < len(by_trying(rows, "weight_mb"))
    all_of_them = every(rows)
    sizes = [c.weight_mb for c in all_of_them]
    more = 5 / cells * (max(sizes) - min(sizes))
    for asked in all_of_them:
        assert any(
            c.kl <= asked.kl + 1e-12 and c.weight_mb <= asked.weight_mb + more for c in found
        )
    for choice in found:
        assert choice == priced(rows, choice.bits)
    costs, kls = zip(*((c.weight_mb, c.kl) for c in found), strict=True)
    assert (np.diff(costs) > 0).all()
    assert (np.diff(kls) < 0).all()


def test_a_long_front_is_thinned_evenly() -> None:
    rows = table(8, seed=2, most=10**4)
    whole, few = front(rows, most=None), front(rows, most=20)
    assert len(few) <= 20 < len(whole)
    assert few[-1] == whole[-1]
    part = (whole[-1].weight_mb - whole[0].weight_mb) / 20
    for choice in whole:
        assert any(c.kl <= choice.kl and c.weight_mb <= choice.weight_mb + part for c in few)


@pytest.mark.parametrize("name", ["kl", "weight_mb", "gbops"])
def test_cheapest_within_a_limit_is_that_of_all_assignments(name: str) -> None:
    rows = table(5, seed=5)
    all_of_them = every(rows)
    values = sorted({getattr(c, name) for c in all_of_them})
    for limit in [*values[:: len(values) // 7], (values[3] + values[4]) / 2]:
        found = cheapest(rows, **{name: limit})
        fits = [c for c in all_of_them if getattr(c, name) <= limit * (1 + 1e-12)]
        aim = "weight_mb" if name == "kl" else "kl"
        assert getattr(found, aim) == pytest.approx(min(getattr(c, aim) for c in fits), rel=1e-9)
        assert getattr(found, name) <= limit * (1 + 1e-12)
    with pytest.raises(InvalidSpec, match=f"has {name} of .* or less; the least is"):
        cheapest(rows, **{name: values[0] / 2})
    assert cheapest(rows).kl == pytest.approx(min(c.kl for c in all_of_them))
    with pytest.raises(ValueError, match="One limit at a time"):
        cheapest(rows, weight_mb=1, gbops=1)


def test_with_weights_of_one_width_operations_are_what_is_spared() -> None:
    rows = table(4, seed=4)
    for row in rows:
        row |= {"weight_bytes": 4.0 * row["params"], "bops": 8 * row["bits"] * row["macs"]}
    assert len(front(rows)) == 1
    limit = np.quantile([c.kl for c in every(rows)], 0.4)
    found = cheapest(rows, kl=limit)
    assert found.gbops == min(c.gbops for c in every(rows) if c.kl <= limit)


def test_many_equal_blocks_have_a_short_exact_front() -> None:
    rows = [r | {"params": 7_077_888, "macs": 10**9} for r in table(12, tuple(range(3, 9)), 7)]
    for row in rows:
        row["kl"] = float(row["unit"][1:]) * 4.0 ** -row["bits"] + 1e-9 * row["bits"]
    found = front(rows)
    assert len(found) <= 61
    assert found[0].bits == dict.fromkeys(found[0].bits, 3)
    assert found[1].bits == found[0].bits | {"u11": 4}  # who suffers most is helped first


REFUSED = {
    "no table": ([], {}, "no table of units"),
    "a column missing": ([{"unit": "u0", "bits": 3, "kl": 0.1}], {}, "is damaged"),
    "not a number": ([r | {"kl": float("nan")} for r in table(1)], {"u0": 3}, "is damaged"),
    "unknown unit": (table(2), {"u0": 3, "u1": 3, "v": 3}, "no unit 'v'; it has u0, u1"),
    "no width": (table(2), {"u0": 3}, "'u1' was given no bit-width; choose one of 3, 4, 6"),
    "wrong width": (table(2), {"u0": 5, "u1": 3}, "'u0' was not measured at 5 bits"),
}


@pytest.mark.parametrize(("rows", "bits", "words"), REFUSED.values(), ids=REFUSED)
def test_what_the_table_does_not_know_is_refused(rows, bits, words) -> None:
    with pytest.raises(InvalidSpec, match=words):
        priced(rows, bits)


def test_allocation_needs_no_torch() -> None:
    code = "import sys, qlib.allocation.front; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the table of a real network ---


def residual(placement: str, **changes) -> tuple[QuantModel, Tensor]:
    model = applied("ptmq", placement=placement, steps=2, lowest=3, highest=6, **changes)
    return model, pictures(13, seed=8)[0]


NETS = {
    "boundary": lambda: residual("boundary"),
    "inputs": lambda: residual("inputs"),
    "fixed weights": lambda: residual("boundary", weight_set="fixed"),
}


@pytest.fixture(scope="module", params=NETS)
def measured(request: pytest.FixtureRequest):
    """Model, images, rows and events; chunks and batches are small."""
    model, x = NETS[request.param]()
    model.switch(weights=True, inputs=False)
    events: list[Event] = []
    before = switching.current_bits(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_cache, "CHUNK", 8)
        patch.setattr(prefix_cache, "PASS", 3.5 * sum(model.macs.values()))
        rows = block_sensitivity(model, x, events.append)
    assert switching.current_bits(model) == before
    assert all(layer.weight_point.on for layer in model.weighted().values())
    assert not any(point.on for point in model.points.values())
    return model, x, rows, events


@torch.no_grad()
def alone(model: QuantModel, unit: str | None, x: Tensor) -> np.ndarray:
    """Log-probabilities of a whole pass with one unit switched on by name."""
    own = {n for n in model.points if unit and (n.startswith(f"{unit}."))}
    for name, layer in model.weighted().items():
        layer.weight_point.on = unit is not None and (name == unit or name.startswith(f"{unit}."))
    for name, point in model.points.items():
        point.on = name in own
    return log_softmax(model(x).double().numpy(), axis=1)


def test_every_row_is_what_a_whole_pass_gives(measured) -> None:
    model, x, rows, _ = measured
    reference = alone(model, None, x)
    with switching.keeping(model):
        for row in rows:
            if row["unit"] in switching.current_bits(model):
                switching.set_bits(model, {row["unit"]: row["bits"]})
            found = alone(model, row["unit"], x)
            kl = rel_entr(np.exp(reference), np.exp(found)).sum(1).mean()
            assert row["kl"] == pytest.approx(kl, rel=1e-4, abs=1e-8)
    assert max(row["kl"] for row in rows) > 1e-3


def test_rows_are_complete_in_order_and_told(measured) -> None:
    model, _, rows, events = measured
    want = [
        (unit, bits)
        for unit in model.units()
        for bits in ((8,) if unit in ("stem", "fc") else (3, 4, 5, 6))
    ]
    assert [(r["unit"], r["bits"]) for r in rows] == want
    told = [e for e in events if not e.steps]
    assert [(e.unit, e.note, e.loss) for e in told] == [
        (r["unit"], f"{r['bits']}-bit", r["kl"]) for r in rows
    ]
    assert {e.phase for e in events} == {"profile"}
    assert all(1 <= e.index <= e.of == len(model.units()) for e in told)


def test_prices_are_the_networks_own_costs(measured) -> None:
    model, _, rows, _ = measured
    mixed = {"one": 6, "two": 3}
    with switching.keeping(model):
        for bits in (3, 4, 5, 6, mixed):
            switching.set_bits(model, bits)
            want = costs.costs(model)
            found = priced(rows, mixed) if bits is mixed else uniform(rows, bits)
            assert found.bits == switching.current_bits(model)
            assert found.weight_mb == pytest.approx(want["weight_mb"], rel=1e-12)
            assert found.gbops == pytest.approx(want["gbops"], rel=1e-12)


def test_a_choice_is_taken_as_it_is(measured) -> None:
    model, _, rows, _ = measured
    with switching.keeping(model):
        for choice in front(rows, "gbops")[::4]:
            switching.set_bits(model, choice.bits)
            assert switching.current_bits(model) == choice.bits


def test_a_chain_costs_half_a_pass_for_each_row() -> None:
    net = tiny("vit")
    model = QuantModel(net, images("vit"), [f"blocks.{i}" for i in range(3)], "boundary")
    fill(model)
    calls = {"n": 0}

    def count(*_: object) -> None:
        calls["n"] += 1

    for unit in model.units():
        first = model.layers[model.layers_of(unit)[0]]
        first.weight_point.register_forward_hook(count)
    rows = block_sensitivity(model, images("vit", 4))
    units = len(model.units())
    assert len(rows) == 3 * 4 + 2
    onwards = sum(units - model.units().index(row["unit"]) for row in rows)
    assert calls["n"] == units + (units - 1) + onwards  # float answers, the walk, what lies after


def fill(model: QuantModel) -> None:
    """Nearest rounding at 3, 4, 5 and 6 bits."""
    from helpers import calibration, method, plan

    made = method("ptmq", 0, lowest=3, highest=6)
    made.apply(model, plan(model, 4, 4), calibration(images("vit", 16)), lambda event: None)


def test_units_that_exchange_several_tensors_run_from_the_images() -> None:
    model, x = residual("inputs")
    rows = block_sensitivity(model, x)
    model.is_sequential = False
    again = block_sensitivity(model, x)
    for row, other in zip(rows, again, strict=True):
        assert other["kl"] == pytest.approx(row["kl"], rel=1e-4, abs=1e-8)


def test_a_network_of_one_width_has_no_table_and_a_listener_may_stop() -> None:
    assert block_sensitivity(applied("nearest"), pictures(4)[0]) == []
    model, x = residual("boundary")

    def stop(event: Event) -> None:
        if event.unit == "two":
            raise Cancelled

    before = switching.current_bits(model)
    with pytest.raises(Cancelled):
        block_sensitivity(model, x, stop)
    assert switching.current_bits(model) == before
    assert all(point.on for point in model.points.values())
