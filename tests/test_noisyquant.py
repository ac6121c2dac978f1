"""NoisyQuant: without noise it is nearest, the noise comes off exactly, and it helps where told."""

import pytest
import torch
from helpers import applied, calibration, codes, method, plan, scales
from helpers_nets import images, tiny
from torch import Tensor

from qlib.methods.noisyquant import NoisyQuant
from qlib.model import QuantModel
from qlib.models._units import find_blocks
from qlib.observers.minmax import MinMax
from qlib.quantizers._noisy import Noisy, denoising_bias
from qlib.quantizers.uniform import Uniform
from qlib.records import ignore
from qlib.scheme import PER_CHANNEL, Scheme


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def transformer(family: str, name: str, seed: int = 0, **changes: object) -> QuantModel:
    net, x = tiny(family), images(family, 16)
    model = QuantModel(net, x[:2], find_blocks(net))
    made = plan(model, 4, 4, "same")
    method(name, **changes).apply(model, made, calibration(x, seed=seed), ignore)
    return model


@pytest.mark.parametrize("symmetric", [False, True])
def test_noise_comes_off_in_the_bias(symmetric: bool) -> None:
    x, weight, bias = numbers(30, 9).double(), numbers(5, 9, seed=1).double(), numbers(5).double()
    act = Uniform.fit(x, Scheme(4, symmetric), MinMax())
    noise = act.scale.detach() * numbers(9, seed=2).double().tanh()
    made = Noisy(act.scale, act.zero_point, noise, act.scheme)
    rounded = Uniform.fit(weight, Scheme(3, granularity=PER_CHANNEL), MinMax())(weight)
    deployed = act(x + noise) @ rounded.T + denoising_bias(rounded, bias, noise)
    torch.testing.assert_close(made(x) @ rounded.T + bias, deployed)
    left = act(x + noise) @ rounded.T + denoising_bias(weight, bias, noise) - deployed
    torch.testing.assert_close(left, ((rounded - weight) @ noise).expand_as(left))
    assert torch.equal(made.codes(x), act.codes(x + noise))
    torch.testing.assert_close(made(x), made.values(made.codes(x)))
    silent = Noisy(act.scale, act.zero_point, 0 * noise, act.scheme)
    assert torch.equal(silent(x), act(x))


@pytest.mark.parametrize("family", ["vit", "deit", "swin"])
def test_without_reach_it_is_nearest(family: str) -> None:
    nearest, silent = transformer(family, "nearest"), transformer(family, "noisyquant", reach=0.0)
    x = images(family, 4, seed=3)
    for one, two in ((codes(nearest), codes(silent)), (scales(nearest), scales(silent))):
        assert all(torch.equal(one[n], two[n]) for n in one)
    for model in (nearest, silent):
        model.switch(weights=True, inputs=True)
    assert torch.equal(nearest(x), silent(x))


@pytest.mark.parametrize("family", ["vit", "deit", "swin"])
def test_inputs_of_linear_layers_alone_get_noise_drawn_once(family: str) -> None:
    model, again, other = (transformer(family, "noisyquant", seed) for seed in (0, 0, 1))
    drawn = 0
    for name, point in model.points.items():
        layer = name.rpartition(".")[0]
        noisy = type(point.quantizer) is Noisy
        assert noisy == (model.layers[layer].kind == "linear")
        if noisy:
            q, same = point.quantizer, again.points[name].quantizer
            assert q.noise.shape == model.layers[layer].weight.shape[1:]
            assert float(q.noise.abs().max()) <= 2 * float(q.scale)
            assert torch.equal(q.noise, same.noise)
            drawn += not torch.equal(q.noise, other.points[name].quantizer.noise)
    assert drawn > 0
    model.switch(weights=True, inputs=True)
    x = images(family, 4, seed=3)
    assert torch.equal(model(x), model(x))


def test_reach_is_the_theorems_best() -> None:
    """All values half a step off a level want noise of 1.5 half steps, those on one want none."""
    scheme = Scheme(4, symmetric=True)
    grid = Uniform(torch.tensor(1.0), torch.tensor(0.0), scheme)
    between, upon = torch.full((1, 50), 2.5), torch.full((1, 50), 2.0)
    even = torch.full((1, 50), 1 / 50)
    recipe = NoisyQuant()
    assert recipe._reach(grid, between, even) == pytest.approx(0.75, abs=0.011)
    assert recipe._reach(grid, upon, even) == 0
    far = torch.full((1, 50), 9.0)  # clipped: noise only adds to the error
    assert recipe._reach(grid, far, even) == 0


def test_error_falls_by_what_the_theorem_says() -> None:
    x = torch.full((4000, 64), 2.5)
    grid = Uniform(torch.tensor(1.0), torch.tensor(0.0), Scheme(4, symmetric=True))
    draw = 2 * torch.rand(64, generator=torch.Generator().manual_seed(0)) - 1
    noisy = Noisy(grid.scale, grid.zero_point, 0.75 * draw, grid.scheme)
    assert float((grid(x) - x).square().mean()) == pytest.approx(0.25)
    assert float((noisy(x) - x).square().mean()) == pytest.approx(0.0625, rel=0.25)


def test_convolutions_are_left_alone() -> None:
    one, two = applied("nearest"), applied("noisyquant")
    assert all(torch.equal(codes(one)[n], c) for n, c in codes(two).items())
    kinds = {n: type(p.quantizer) for n, p in two.points.items()}
    assert {n for n, k in kinds.items() if k is Noisy} == {"fc.input"}
