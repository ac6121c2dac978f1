"""Twin quantizers by hand and against their published form; PTQ4ViT where it must be something."""

from pathlib import Path

import pytest
import torch
from helpers import applied, calibration, codes, method, pictures, plan, scales
from helpers_nets import images, tiny
from torch import Tensor

from qlib.core.records import Event, ignore
from qlib.core.scheme import Scheme
from qlib.measure.levels import bent, ends, outside
from qlib.methods._search.consumers import GELUS, readers
from qlib.methods._search.layer_samples import products
from qlib.methods._search.twins import Splits
from qlib.network.answers import Classes
from qlib.network.blocks import find_blocks
from qlib.network.model import QuantModel
from qlib.pipeline import quantizer_file
from qlib.pipeline.quantizer_file import FILE
from qlib.quantizers.twin_sign import GELU_LEAST, TwinSign
from qlib.quantizers.twin_unit import TwinUnit
from qlib.quantizers.uniform import Uniform

BITS = range(2, 9)


def one(value: float) -> Tensor:
    return torch.tensor(value)


def unit(shift: int, bits: int = 4, **changes: bool) -> TwinUnit:
    return TwinUnit(one(float(shift)), Scheme(bits), **changes)


# --- probabilities


def test_probabilities_by_hand() -> None:
    made = unit(3)  # four bits: eight codes a range, steps 1/7 and 1/56, they part at 1/8
    x = torch.tensor([0, 0.01, 0.1, 0.124, 0.125, 0.3, 0.45, 0.93, 1.0])
    want = torch.tensor([0, 1 / 56, 6 / 56, 7 / 56, 1 / 7, 2 / 7, 3 / 7, 1, 1])
    torch.testing.assert_close(made(x), want)
    assert made.codes(x).tolist() == [0, 1, 6, 7, 9, 10, 11, 15, 15]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_probabilities_keep_zero_one_and_their_codes(bits: int, symmetric: bool) -> None:
    scheme, x = Scheme(bits, symmetric), torch.linspace(0, 1, 1001)
    for shift in range(20):
        made = TwinUnit(one(float(shift)), scheme)
        assert float(made(torch.zeros(1))) == 0
        assert float(made(torch.ones(1))) == 1
        code = made.codes(x)
        assert scheme.qmin <= float(code.min())
        assert float(code.max()) <= scheme.qmax
        assert torch.equal(made(x), made.values(code))
        ratio = made.scale / made.small
        assert float(ratio) == 2**shift
        small = x < made.split
        assert ((made(x) - x).abs()[small] <= made.small / 2 * 1.001).all()
        assert ((made(x) - x).abs()[~small] <= made.scale / 2 * 1.001).all()


def published_sum(x: Tensor, t: float, bits: int) -> Tensor:
    """The authors' arithmetic, as the two ranges are added there."""
    top = 2 ** (bits - 1) - 1
    high = (x.clamp(t, 1) * top).round() / top
    return high + (x.clamp(0, t) * top / t).round() * t / top


@pytest.mark.parametrize(("bits", "shift"), [(4, 1), (4, 3), (6, 2), (8, 5), (8, 9)])
def test_sum_of_both_ranges_is_biased_and_selecting_one_is_not(bits: int, shift: int) -> None:
    x, t = torch.linspace(0, 0.9973, 3989), 2.0**-shift  # no ties
    summed, chosen = unit(shift, bits, summed=True), unit(shift, bits)
    torch.testing.assert_close(summed(x), published_sum(x, t, bits), rtol=0, atol=1e-6)
    top = 2 ** (bits - 1) - 1
    bias, above = summed(x) - chosen(x), x >= t
    torch.testing.assert_close(bias[above], torch.full_like(bias[above], t), rtol=0, atol=1e-6)
    rest = round(t * top) / top
    torch.testing.assert_close(bias[~above], torch.full_like(bias[~above], rest), atol=1e-6, rtol=0)
    assert (rest == 0) == (t * top <= 0.5)
    assert (summed(x) - x).square().mean() >= (chosen(x) - x).square().mean()


def test_split_of_rows_of_a_softmax_beats_one_uniform_range() -> None:
    x = torch.randn(64, 50, generator=torch.Generator().manual_seed(0)).softmax(1)
    for bits in (4, 6):
        found = Splits(x, Scheme(bits))
        uniform = Uniform(one(1 / (2**bits - 1)), one(0.0), Scheme(bits))
        twin = found.made(found.start)
        assert (twin(x) - x).square().sum() < 0.5 * (uniform(x) - x).square().sum()
        tried = found.tried(x, found.factors[:, None])
        assert torch.equal(tried[int(found.start)], twin(x))


# --- GELU


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_gelu_keeps_zero_reaches_its_minimum_and_shifts(bits: int, symmetric: bool) -> None:
    scheme, x = Scheme(bits, symmetric), torch.linspace(-GELU_LEAST, 4, 2001)
    for top in (0.05, 0.8, 4.0, 30.0):
        made = TwinSign.of_step(one(top / (2 ** (bits - 1) - 0.5)), scheme)
        assert float(made(torch.zeros(1))) == 0
        code = made.codes(x)
        assert scheme.qmin <= float(code.min())
        assert float(code.max()) <= scheme.qmax
        assert torch.equal(made(x), made.values(code))
        shift = float(made.shift)
        assert shift == round(shift)
        reach = float(made.each * made.small)
        assert GELU_LEAST * 0.9999 <= reach < 2 * GELU_LEAST
        low = x[x < 0]
        assert ((made(low) - low).abs() <= made.small / 2 * 1.001).all()
        assert not outside(made, low).any()


def test_levels_are_told_to_whoever_draws_them() -> None:
    made = TwinSign.of_step(one(4 / 7.5), Scheme(4))
    levels = bent(made, torch.ones(3))
    low, high = ends(made, torch.ones(3))
    assert levels.tolist() == sorted(levels.tolist())
    assert (float(low), float(high)) == (float(levels[0]), float(levels[-1]))
    assert levels[8] == 0


# --- gradients


@pytest.mark.parametrize("family", ["vit", "swin", "mobilenetv2"])
def test_importance_is_an_unbiased_estimate_of_the_whole(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Σ g² over few weighed rows has the mean of Σ g² over all, times the share that is drawn."""
    net, x = tiny(family), images(family, 4)
    model = QuantModel(net, x[:2], find_blocks(net))
    # one label for all: what is left to chance is which rows are drawn
    monkeypatch.setattr(
        Classes, "sampled_loss",
        lambda self, logits, rng: torch.nn.functional.cross_entropy(
            logits, torch.zeros(len(logits), dtype=torch.long), reduction="sum"),
    )  # fmt: skip
    whole = products(model, calibration(x), 10**6, gradients=True)
    draws = [products(model, calibration(x, seed=s), 16, gradients=True) for s in range(30)]
    for name, all_rows in whole.items():
        total = float(all_rows.importance.sum())
        share = draws[0][name].x[..., 0].numel() / all_rows.x[..., 0].numel()
        found = torch.stack([d[name].importance.sum() for d in draws]) / share
        error = float(found.std()) / 30**0.5
        assert abs(float(found.mean()) - total) <= 5 * error + 1e-4 * total, name


def test_gradients_that_vanish_leave_plain_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classes, "sampled_loss", lambda self, logits, rng: (0 * logits).sum())
    flat = applied("ptq4vit", rows=2048)
    plain = applied("ptq4vit", rows=2048, error="mse")
    assert all(torch.equal(codes(flat)[n], c) for n, c in codes(plain).items())
    for name, scale in scales(plain).items():
        torch.testing.assert_close(scales(flat)[name], scale)


def test_gradients_change_the_choice() -> None:
    fisher, plain = applied("ptq4vit", rows=2048), applied("ptq4vit", rows=2048, error="mse")
    assert any(not torch.equal(codes(fisher)[n], c) for n, c in codes(plain).items())


# --- the method


def transformer(family: str, name: str, bits: int = 4, **changes: object) -> QuantModel:
    net, x = tiny(family), images(family, 16)
    model = QuantModel(net, x[:2], find_blocks(net))
    recipe = method(name, **changes)
    recipe.apply(model, plan(model, bits, bits, "same"), calibration(x), ignore)
    return model


@pytest.mark.parametrize("family", ["vit", "deit", "swin"])
def test_softmax_and_gelu_get_their_twins_and_nobody_else(family: str) -> None:
    model = transformer(family, "ptq4vit")
    kinds = {name: type(point.quantizer) for name, point in model.points.items()}
    assert {n for n, k in kinds.items() if k is TwinUnit} == {n for n in kinds if "mix.left" in n}
    assert {n for n, k in kinds.items() if k is TwinSign} == {n for n in kinds if "fc2.inp" in n}
    assert {"Uniform"} == {k.__name__ for n, k in kinds.items() if k not in (TwinUnit, TwinSign)}
    plain = transformer(family, "ptq4vit", twins=False)
    assert {type(p.quantizer) for p in plain.points.values()} == {Uniform}


def test_the_published_sum_is_an_option_and_its_zero_is_not_zero() -> None:
    """The search avoids splits that bend zero most, but it has no others to choose from."""
    zeros = {}
    for form in ("select", "sum"):
        model = transformer("vit", "ptq4vit", bits=6, form=form)
        grids = [p.quantizer for n, p in model.points.items() if "mix.left" in n]
        assert [q.summed for q in grids] == [form == "sum"] * len(grids)
        zeros[form] = [float(q(torch.zeros(1))) for q in grids]
        for q, zero in zip(grids, zeros[form], strict=True):
            rest = round(float(q.split) * (q.each - 1)) / (q.each - 1)
            assert zero == pytest.approx(rest if form == "sum" else 0, abs=1e-6)
            above = float(q(torch.full((1,), 0.7))) - float(unit(int(q.shift), 6)(one(0.7)))
            assert above == pytest.approx(float(q.split) if form == "sum" else 0, abs=1e-6)
    assert zeros["select"] == [0, 0, 0]


def test_readers_are_those_of_the_module_itself() -> None:
    x = images("vit", 2)
    net = tiny("vit")
    model = QuantModel(net, x, find_blocks(net))
    gelus = readers(model, x, GELUS)
    assert gelus == {f"blocks.{i}.mlp.fc2": f"blocks.{i}.mlp.act" for i in range(3)}


@pytest.mark.parametrize("family", ["vit", "deit", "swin"])
def test_transformers_come_nearer_and_come_back_from_their_file(
    family: str, tmp_path: Path
) -> None:
    fresh, net = images(family, 32, seed=7), tiny(family)
    error = {}
    with torch.no_grad():
        want = net(fresh)
        for name in ("nearest", "ptq4vit"):
            model = transformer(family, name)
            assert torch.equal(model(fresh), model(fresh))
            torch.testing.assert_close(model(fresh), want, rtol=1e-4, atol=1e-4)
            model.switch(weights=True, inputs=True)
            error[name] = float((model(fresh) - want).square().mean())
        assert error["ptq4vit"] < 0.9 * error["nearest"], error
        quantizer_file.save(model, tmp_path / FILE)
        again = QuantModel(net, fresh[:2], find_blocks(net))
        quantizer_file.load(again, tmp_path / FILE)
        again.switch(weights=True, inputs=True)
        assert torch.equal(again(fresh), model(fresh))


def test_only_one_report_for_each_layer() -> None:
    events: list[Event] = []
    x = pictures(8)[0]
    model = applied("nearest")
    method("ptq4vit").apply(model, plan(model), calibration(x), events.append)
    assert [e.unit for e in events] == list(model.layers)
