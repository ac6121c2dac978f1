"""EasyQuant: sums against plain arithmetic, the search against brute force, and the use of it."""

import pytest
import torch
from helpers import applied, calibration, codes, method, pictures, plan, quantizable, scales
from helpers_nets import images, tiny
from torch import Tensor

from qlib.core.records import ignore
from qlib.core.scheme import PER_CHANNEL, Granularity, Scheme
from qlib.methods._search.layer_samples import products
from qlib.methods._search.products import Product, Sums
from qlib.methods._search.scales import Sides, Stretched, alternate, best, operands, spread
from qlib.network.blocks import find_blocks
from qlib.network.model import QuantModel
from qlib.observers.minmax import MinMax
from qlib.quantizers.uniform import Uniform

RNG = torch.Generator
BY_THREE = Granularity("group", 3)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=RNG().manual_seed(seed))


def problem(groups: int = 2, n: int = 30, out: int = 5, d: int = 7, *, weighed: bool = False):
    bias = numbers(groups, 1, out, seed=3)
    importance = numbers(groups, n, out, seed=4).square() if weighed else None
    return Product(numbers(groups, n, d), numbers(groups, out, d, seed=1), bias, importance)


# --- sums


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("out", [3, 12])
def test_sums_are_those_of_plain_outputs(out: int, weighed: bool) -> None:
    p = problem(out=out, weighed=weighed)
    o, rng = p.outputs(), RNG().manual_seed(8)
    w_hats = p.w + 0.1 * torch.randn(4, *p.w.shape, generator=rng)
    x_hats = p.x + 0.1 * torch.randn(4, *p.x.shape, generator=rng)
    weight = 1 if p.importance is None else p.importance

    def plain(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        e = o - (x @ w.transpose(1, 2) + p.bias)
        return (weight * e.square()).sum(1), (o * e).sum(1)

    found = p.of_weights(x_hats[0])(w_hats)
    for k in range(4):
        error, along = plain(x_hats[0], w_hats[k])
        torch.testing.assert_close(found.error[k].float(), error, rtol=1e-4, atol=1e-4)
        if not weighed:
            torch.testing.assert_close(found.product[k].float(), along, rtol=1e-4, atol=1e-3)
    found = p.of_inputs(w_hats[1])(x_hats)
    for k in range(4):
        error, along = plain(x_hats[k], w_hats[1])
        assert float(found.error[k]) == pytest.approx(float(error.sum()), rel=1e-4)
        if not weighed:
            assert float(found.product[k]) == pytest.approx(float(along.sum()), abs=1e-2)


def test_cosine_is_the_cosine_also_very_near_to_one() -> None:
    o = numbers(1, 400).double()
    for size in (1e-6, 1e-3, 1.0, 5.0):
        e = size * numbers(1, 400, seed=5).double()
        sums = Sums(o.square().sum(1), (o * e).sum(1), e.square().sum(1))
        exact = 1 - torch.nn.functional.cosine_similarity(o, o - e)
        assert float(sums.loss("cosine")) == pytest.approx(float(exact), rel=1e-3, abs=1e-15)
        half = Sums(o.square().sum(1), (o * o / 2).sum(1), (o / 2).square().sum(1))
    assert float(half.loss("cosine")) == pytest.approx(0, abs=1e-12)  # blind to size
    assert float(half.loss("mse")) > 0
    dead = Sums(*torch.zeros(3, 1).double())
    assert torch.isfinite(dead.loss("cosine")).all()


# --- search


def test_best_finds_the_least_of_smooth_losses_and_stays_where_nothing_is_better() -> None:
    factors, target = spread(0.5, 1.2, 71, torch.ones(1)), torch.tensor([0.63, 0.9, 1.17, 3.0])
    found = best(factors, torch.ones(4), lambda f: (f - target).abs())
    torch.testing.assert_close(found, torch.tensor([0.63, 0.9, 1.17, 1.2]))
    kept = best(factors, torch.full((4,), 0.77), lambda f: torch.zeros_like(f))
    assert torch.equal(kept, torch.full((4,), 0.77))


@pytest.mark.parametrize("kind", ["mse", "cosine"])
@pytest.mark.parametrize(
    "grid",
    [Scheme(3, granularity=PER_CHANNEL), Scheme(3, True), Scheme(3, granularity=BY_THREE)],
    ids=["channel", "tensor", "group"],
)  # fmt: skip
def test_one_round_against_brute_force(grid: Scheme, kind: str) -> None:
    weight, x, act = numbers(6, 9), numbers(1, 50, 9, seed=2), Scheme(4)
    right = Uniform.fit(weight, grid, MinMax())
    left = Uniform.fit(x, act, MinMax())
    factors = spread(0.5, 1.2, 5, x)  # so few that nothing is skipped
    sides = Sides(
        Product(x, weight[None]), weight.shape, Stretched(left, factors),
        Stretched(right, factors), x,
    )  # fmt: skip
    new_left, new_right = alternate(sides, kind, 1)

    def loss(x_hat: Tensor, w_hat: Tensor) -> Tensor:
        o, y = x[0] @ weight.T, x_hat[0] @ w_hat.T
        if grid.granularity.kind == "tensor":
            o, y = o.reshape(-1, 1), y.reshape(-1, 1)
        if kind == "mse":
            return (o - y).square().sum(0)
        return 1 - torch.nn.functional.cosine_similarity(o.double(), y.double(), dim=0)

    tried = [1.0, *factors.tolist()]
    grids = [Uniform(right.scale * f, right.zero_point, grid) for f in tried]
    table = torch.stack([loss(left(x), g(weight)) for g in grids])
    torch.testing.assert_close(
        loss(left(x), new_right(weight)), table.min(0).values, rtol=1e-3, atol=1e-5
    )
    acts = [Uniform(left.scale * f, left.zero_point, act) for f in tried]
    flat = Scheme(3)  # of inputs all outputs count together
    grid = flat
    totals = [loss(a(x), new_right(weight)).sum() for a in acts]
    assert float(loss(new_left(x), new_right(weight)).sum()) == pytest.approx(
        float(min(totals)), rel=1e-3, abs=1e-6
    )


def test_more_rounds_are_never_worse_in_squares() -> None:
    p = problem(1, 80, 6, 9)
    weight, grid = p.w[0], Scheme(2, granularity=PER_CHANNEL)
    factors = spread(0.5, 1.2, 100, p.x)
    errors = []
    for rounds in (0, 1, 2, 4):
        sides = Sides(
            p, weight.shape, Stretched(Uniform.fit(p.x, Scheme(2), MinMax()), factors),
            Stretched(Uniform.fit(weight, grid, MinMax()), factors), p.x,
        )  # fmt: skip
        left, right = alternate(sides, "mse", rounds)
        gap = p.outputs() - (left(p.x) @ right(weight).T + p.bias)
        errors.append(float(gap.square().sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < errors[0]


# --- rows of real layers


@pytest.mark.parametrize("family", ["vit", "deit", "swin", "mobilenetv2"])
def test_sampled_rows_multiply_to_what_the_layer_gives(family: str) -> None:
    """And the importance is the squared gradient of the output at these very rows."""
    net, x = tiny(family), images(family, 6)
    model = QuantModel(net, x[:2], find_blocks(net))
    outputs: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda m, a, y, n=name: outputs.__setitem__(n, y.detach()))
        for name, layer in model.layers.items()
    ]
    data = calibration(x)
    found = products(model, data, 24, gradients=True)
    for hook in hooks:
        hook.remove()
    for name, product in found.items():
        o = product.outputs()
        assert o.shape == product.importance.shape
        many = set(outputs[name].flatten().mul(1e3).round().int().tolist())
        rounded = o.flatten().mul(1e3).round().int()
        near = {v + step for v in many for step in (-1, 0, 1)}
        assert set(rounded.tolist()) <= near, name
        assert float(product.importance.max()) > 0, name
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("family", ["vit", "deit", "swin"])
@pytest.mark.parametrize("placement", ["inputs", "boundary"])
def test_outputs_of_transformers_come_nearer(family: str, placement: str) -> None:
    net, x = tiny(family), images(family, 16)
    model = QuantModel(net, x[:2], find_blocks(net), placement)
    made = plan(model, 4, 4, "same")
    error = {}
    fresh = images(family, 32, seed=7)
    with torch.no_grad():
        want = net(fresh)
    for name in ("nearest", "easyquant"):
        method(name).apply(model, made, calibration(x), ignore)
        model.switch(weights=True, inputs=True)
        with torch.no_grad():
            error[name] = float((model(fresh) - want).square().mean())
        model.switch(weights=False, inputs=False)
    # at a boundary the residual stream itself is rounded, with a range that is not searched
    share = 0.9 if placement == "inputs" else 1.2
    assert error["easyquant"] < share * error["nearest"], error


# --- the method


def test_only_the_present_scale_as_candidate_is_nearest() -> None:
    nearest, made = applied("nearest"), applied("easyquant", low=1.0, high=1.0, candidates=2)
    for one, two in ((codes(nearest), codes(made)), (scales(nearest), scales(made))):
        assert all(torch.equal(one[n], two[n]) for n in one)


def test_float_operands_stay_float_and_the_other_is_searched() -> None:
    model = quantizable()
    made = plan(model)
    for weights, inputs in ((made.weights, {}), ({}, made.inputs)):
        method("easyquant").apply(model, type(made)(weights, inputs), calibration(), ignore)
        for name in model.layers:
            left, right = operands(model, name)
            assert (left is None, right is None) == (not inputs, not weights)


def test_beats_nearest_on_unseen_images() -> None:
    x, error = pictures(128, seed=11)[0], {}
    for name, changes in (("nearest", {}), ("easyquant", {}), ("easyquant", {"error": "cosine"})):
        model = applied(name, bits=(3, 3), **changes)
        want = quantizable()(x)
        error[name, *changes.values()] = float((model(x) - want).square().mean())
    assert error["easyquant",] < 0.7 * error["nearest",], error
    assert error["easyquant", "cosine"] < 0.9 * error["nearest",], error
