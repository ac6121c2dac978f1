"""One-shot rounding: closed forms, brute force on small rows, second moments of every layer."""

import itertools

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
from torch.nn import functional as F

from qlib.core.records import ignore
from qlib.core.scheme import PER_CHANNEL, PER_TENSOR, Granularity, Scheme
from qlib.methods._search import obq
from qlib.methods._search.obq import (
    Levels,
    as_rows,
    matched,
    product,
    round_cheapest_first,
    round_in_order,
    round_strongest_first,
)
from qlib.methods._search.operands import operand
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer
from qlib.observers.minmax import MinMax
from qlib.observers.mse import Mse
from qlib.quantizers.fixed_codes import FixedCodes
from qlib.quantizers.uniform import Uniform

ORDERS = {
    "index": round_in_order,
    "activation": round_strongest_first,
    "greedy": round_cheapest_first,
}
TINY = 1e-9  # damping


def whole(*shape: int) -> Levels:
    """Whole numbers without ends."""
    ends = torch.full(shape, 1e6, dtype=torch.float64)
    return Levels(torch.ones(shape, dtype=torch.float64), -ends, ends)


def problem(rows: int, d: int, seed: int = 0, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Weights of a few steps, and second moments of strongly correlated inputs."""
    rng = torch.Generator().manual_seed(seed)
    w = 2 * torch.randn(groups, rows, d, generator=rng, dtype=torch.float64)
    x = torch.randn(groups, d, 4 * d, generator=rng, dtype=torch.float64)
    x += 3 * torch.randn(groups, 1, 4 * d, generator=rng, dtype=torch.float64)
    return w, x @ x.transpose(1, 2)


def cost(w: Tensor, steps: Tensor, hessian: Tensor) -> Tensor:
    """Σ ‖(w − ŵ)x‖² of every row, (groups, rows)."""
    gap = w - steps
    return ((gap @ hessian) * gap).sum(2)


# --- closed forms


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("share", ["tensor", "channel", "group"])
def test_identity_moments_give_nearest_bit_for_bit(order: str, share: str) -> None:
    made = {"tensor": PER_TENSOR, "channel": PER_CHANNEL, "group": Granularity("group", 6)}
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    fitted = Uniform.fit(weight, Scheme(3, granularity=made[share]), Mse())
    for groups in (1, 4):
        levels, rows = Levels.of(fitted, weight, groups), as_rows(weight, groups).double()
        eye = 3.7 * torch.eye(rows.shape[2], dtype=torch.float64).expand(groups, -1, -1)
        steps = ORDERS[order](rows, eye, levels, 0.01).reshape(weight.shape)
        split = fitted.scheme.granularity.split
        got = (split(steps) + fitted.zero_point).reshape(weight.shape)
        assert torch.equal(got, fitted.codes(weight))


@pytest.mark.parametrize("order", ORDERS)
def test_one_column_is_nearest(order: str) -> None:
    w, hessian = problem(5, 1)
    assert torch.equal(ORDERS[order](w, hessian, whole(1, 5, 1), 0.01), w.round())


def least_squares(w: Tensor, fixed: dict[int, float], hessian: Tensor) -> Tensor:
    """The row (d,) that is nearest to ``w`` in the metric H with some entries prescribed."""
    free = [i for i in range(len(w)) if i not in fixed]
    kept = list(fixed)
    gap = torch.tensor([fixed[i] - float(w[i]) for i in kept], dtype=w.dtype)
    out = w.clone()
    out[kept] += gap
    if free:
        out[free] -= torch.linalg.solve(hessian[free][:, free], hessian[free][:, kept] @ gap)
    return out


def test_one_rounding_costs_and_moves_as_constrained_least_squares_does() -> None:
    """OBQ's closed form: −(w_q − ŵ_q)/[H⁻¹]_qq · H⁻¹[:, q], at (w_q − ŵ_q)²/[H⁻¹]_qq."""
    w, hessian = problem(1, 6)
    row, h = w[0, 0], hessian[0]
    inverse = torch.linalg.inv(h)
    for q in range(6):
        gap = float(row[q] - row[q].round())
        moved = row - gap / inverse[q, q] * inverse[:, q]
        want = least_squares(row, {q: float(row[q].round())}, h)
        torch.testing.assert_close(moved, want)
        at_cost = (want - row) @ h @ (want - row)
        torch.testing.assert_close(at_cost, gap**2 / inverse[q, q])


@pytest.mark.parametrize("block", [1, 3, 128])
def test_in_order_is_least_squares_solved_anew_after_every_column(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(obq, "BLOCK", block)
    w, hessian = problem(3, 8, groups=2)
    got = round_in_order(w, hessian, whole(*w.shape), TINY)
    for g, r in itertools.product(range(2), range(3)):
        fixed: dict[int, float] = {}
        for i in range(8):
            now = least_squares(w[g, r], fixed, hessian[g])
            fixed[i] = float(now[i].round())
        assert got[g, r].tolist() == list(fixed.values())


def test_cheapest_first_is_least_squares_solved_anew_after_every_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(obq, "ROOM", 100)  # one row at a time
    w, hessian = problem(3, 7, groups=1, seed=4)
    got = round_cheapest_first(w, hessian, whole(*w.shape), TINY)
    h = hessian[0]
    for r in range(3):
        fixed: dict[int, float] = {}
        while len(fixed) < 7:
            now = least_squares(w[0, r], fixed, h)
            tried = {}
            for i in set(range(7)) - set(fixed):
                then = least_squares(w[0, r], fixed | {i: float(now[i].round())}, h)
                tried[i] = float((then - now) @ h @ (then - now))
            best = min(tried, key=tried.get)
            fixed[best] = float(now[best].round())
        assert got[0, r].tolist() == [fixed[i] for i in range(7)]


# --- brute force


@pytest.mark.parametrize("order", ORDERS)
def test_comes_near_the_best_of_all_codes(order: str) -> None:
    """40 rows of 6 weights on 4 levels: 4096 codes each are tried."""
    w, hessian = problem(40, 6, seed=2)
    w = w.clamp(-1.4, 2.4)
    every = torch.tensor(list(itertools.product([-1.0, 0, 1, 2], repeat=6)), dtype=torch.float64)
    levels = whole(*w.shape)
    levels = Levels(levels.scale, levels.low.clamp(min=-1), levels.high.clamp(max=2))
    found = ORDERS[order](w, hessian, levels, TINY)
    assert found.min() >= -1
    assert found.max() <= 2
    gaps = w[0][:, None] - every
    best = ((gaps @ hessian[0]) * gaps).sum(2).amin(1)
    ours, nearest = cost(w, found, hessian)[0], cost(w, w.round().clamp(-1, 2), hessian)[0]
    assert (ours >= best - 1e-6).all()
    assert ours.sum() < 0.7 * nearest.sum()
    assert (ours <= best + 1e-6).double().mean() > 0.35  # often it is the best
    assert (ours > nearest + 1e-6).double().mean() < 0.15  # no promise for a single row


@pytest.mark.parametrize("order", ["index", "activation"])
def test_codes_may_leave_the_two_levels_beside_a_weight(order: str) -> None:
    """w = (5.4, 1.1), inputs that all but agree, codes up to 3: the second goes from 1 to 3."""
    w = torch.tensor([[[5.4, 1.1]]], dtype=torch.float64)
    hessian = torch.tensor([[[1.1, 1.0], [1.0, 1.1]]], dtype=torch.float64)
    levels = whole(1, 1, 2)
    levels = Levels(levels.scale, levels.low, levels.high.clamp(max=3))
    assert ORDERS[order](w, hessian, levels, TINY).tolist() == [[[3, 3]]]


def test_strongest_first_does_not_care_how_inputs_are_numbered() -> None:
    w, hessian = problem(5, 9, groups=2)
    levels = whole(*w.shape)
    turn = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    one = round_strongest_first(w, hessian, levels, 0.01)
    two = round_strongest_first(w[..., turn], hessian[:, turn][..., turn], levels, 0.01)
    assert torch.equal(one[..., turn], two)


@pytest.mark.parametrize("order", ORDERS)
def test_dead_inputs_round_to_nearest_and_disturb_nobody(order: str) -> None:
    w, hessian = problem(4, 6)
    hessian[:, 2], hessian[:, :, 2] = 0, 0
    alive = [0, 1, 3, 4, 5]
    steps = ORDERS[order](w, hessian, whole(*w.shape), TINY)
    assert torch.equal(steps[..., 2], w[..., 2].round())
    rest = hessian[:, alive][..., alive]
    without = ORDERS[order](w[..., alive], rest, whole(1, 4, 5), TINY)
    assert torch.equal(steps[..., alive], without)
    nothing = ORDERS[order](w, torch.zeros_like(hessian), whole(*w.shape), 0.01)
    assert torch.equal(nothing, w.round())


# --- second moments


LAYERS = {
    "linear": (lambda: nn.Linear(6, 8), (5, 6)),
    "tokens": (lambda: nn.Linear(6, 8), (5, 7, 6)),
    "conv": (lambda: nn.Conv2d(4, 8, 3, padding=1), (5, 4, 6, 7)),
    "strided": (lambda: nn.Conv2d(4, 8, (3, 2), stride=2, dilation=(1, 2)), (5, 4, 8, 7)),
    "grouped": (lambda: nn.Conv2d(6, 9, 3, padding=1, groups=3), (5, 6, 6, 6)),
    "depth-wise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), (5, 6, 6, 6)),
    "same": (lambda: nn.Conv2d(4, 8, (4, 3), padding="same", dilation=2), (5, 4, 6, 6)),
    "reflecting": (lambda: nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), (5, 4, 6, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_moments_tell_the_output_error_of_any_change_of_the_weight(kind: str) -> None:
    """Σ ‖δ∗x‖² = Σ over groups of tr(δHδᵀ), x with the quantization of the layer's input."""
    make, shape = LAYERS[kind]
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = QuantLayer(make().requires_grad_(False))
    x = torch.randn(shape, generator=rng)
    layer.input_point.quantizer = Uniform.fit(x, Scheme(3), MinMax())
    layer.input_point.on = True
    seen = operand(lambda: layer(x))
    change = torch.randn(layer.weight.shape, generator=rng)
    before = layer(x)
    layer.layer.weight.data += change
    want = (layer(x) - before).square().sum().double()
    rows = as_rows(change, len(seen)).double()
    got = ((rows @ product(seen, seen)) * rows).sum()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_matched_weight_is_the_least_squares_fit_of_float_outputs() -> None:
    rng = torch.Generator().manual_seed(0)
    w = torch.randn(1, 3, 5, generator=rng, dtype=torch.float64)
    x = torch.randn(1, 5, 400, generator=rng, dtype=torch.float64)
    noisy = x + 0.5 * torch.randn(1, 5, 400, generator=rng, dtype=torch.float64)
    got = matched(w, product(x, noisy), product(noisy, noisy), 1e-12)
    want = torch.linalg.lstsq(noisy[0].T, (w[0] @ x[0]).T).solution.T
    torch.testing.assert_close(got[0], want)
    same = matched(w, product(x, x), product(x, x), 0.01)
    assert torch.equal(same, w)


# --- the quantizer and the method


def test_given_codes_are_kept_whatever_it_is_called_with() -> None:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    nearest = Uniform.fit(weight, Scheme(4, granularity=PER_CHANNEL), MinMax())
    wanted = torch.randint(0, 16, (6, 8), generator=torch.Generator().manual_seed(1)).float()
    made = FixedCodes.of(nearest, wanted)
    assert torch.equal(made.codes(weight), wanted)
    assert torch.equal(made(0 * weight), (wanted - nearest.zero_point) * nearest.scale)
    assert made.learnable() == {}
    assert {"scale", "zero_point", "chosen"} <= set(made.state_dict())


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
def test_ranges_are_those_of_nearest(placement: str) -> None:
    nearest, made = applied("nearest", placement=placement), applied("gptq", placement=placement)
    now, then = scales(made), scales(nearest)
    assert all(torch.equal(now[n], then[n]) for n in then)
    moved = 0
    for name, layer in made.weighted().items():
        grid = nearest.layers[name].weight_point.quantizer
        assert torch.equal(layer.weight_point.quantizer.scale, grid.scale)
        moved += int((codes(made)[name] != codes(nearest)[name]).sum())
    assert moved > 0


@pytest.mark.parametrize("target", ["float", "quantized"])
@pytest.mark.parametrize("order", ORDERS)
def test_first_layer_has_a_smaller_output_error_than_nearest(order: str, target: str) -> None:
    x, net = pictures(64)[0], nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
    error = {}
    for name, changes in (("nearest", {}), ("gptq", {"order": order, "target": target})):
        model = QuantModel(net.requires_grad_(False), x[:2])
        recipe = method(name, **changes)
        recipe.apply(model, plan(model, 2, 8, "same"), calibration(x), ignore)
        model.switch(weights=True, inputs=True)
        error[name] = float((model(x) - net(x)).square().mean())
    assert error["gptq"] < 0.5 * error["nearest"], error


def test_beats_nearest_at_two_bits_on_unseen_images() -> None:
    x, error = pictures(256, seed=11)[0], {}
    want = trained()(x)
    for name in ("nearest", "gptq"):
        model = quantizable()
        data = calibration(pictures(64)[0], quick=False)
        method(name).apply(model, plan(model, 2, 4), data, ignore)
        model.switch(weights=True, inputs=True)
        error[name] = float((model(x) - want).square().mean())
    assert error["gptq"] < 0.7 * error["nearest"], error


def test_images_are_gone_through_in_small_parts_with_the_same_result() -> None:
    """Moments are sums: how images are cut into parts changes nothing but the last bits."""
    layer = QuantLayer(nn.Conv2d(3, 4, 3).requires_grad_(False))
    x = pictures(32)[0]
    whole_sum = product(*2 * (operand(lambda: layer(x)),))
    parts = [operand(lambda part=part: layer(part)) for part in x.split(5)]
    torch.testing.assert_close(sum(product(p, p) for p in parts), whole_sum, rtol=1e-5, atol=1e-2)
    assert F.unfold(x, 3).shape[1] == whole_sum.shape[1]
