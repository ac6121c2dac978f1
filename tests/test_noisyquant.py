"""NoisyQuant: without noise it is its base, noise comes off exactly, and it helps where told."""

from itertools import product

import numpy as np
import pytest
import torch
from helpers import applied, calibration, codes, method, plan, scales
from helpers_nets import images, tiny
from torch import Tensor
from torch.nn import functional as F

from qlib.core.records import ignore
from qlib.core.scheme import PER_CHANNEL, Scheme
from qlib.measure.levels import ends
from qlib.methods._search.layer_samples import products
from qlib.methods._search.noise import (
    Rows,
    by_expectation,
    by_output,
    by_trial,
    cancels,
    noisy_layers,
)
from qlib.methods._search.products import Product
from qlib.methods.noisyquant import BASES
from qlib.network.blocks import find_blocks
from qlib.network.model import QuantModel
from qlib.noise import theorem
from qlib.observers.minmax import MinMax
from qlib.quantizers.base import Quantizer
from qlib.quantizers.by_channel import ByChannel
from qlib.quantizers.noisy import Noisy, denoising_bias, sixteen_bits
from qlib.quantizers.twin_sign import TwinSign
from qlib.quantizers.uniform import Uniform

FAMILIES = ("vit", "deit", "swin")
SURE = {"shift": True, "gain": 0.0}  # noise wherever it is expected to help at all


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def transformer(family: str, name: str, seed: int = 0, bits: int = 4, **changes) -> QuantModel:
    net, x = tiny(family), images(family, 8)
    model = QuantModel(net, x[:2], find_blocks(net))
    made = plan(model, bits, bits, "same")
    quick = {"rows": 64, "candidates": 40} if name == "noisyquant" else {}
    method(name, **(quick | changes)).apply(model, made, calibration(x, seed=seed), ignore)
    return model


def noises(model: QuantModel) -> dict[str, Noisy]:
    found = {name: point.quantizer for name, point in model.points.items()}
    return {n.rpartition(".")[0]: q for n, q in found.items() if isinstance(q, Noisy)}


# --- taken off again


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_noise_comes_off_in_the_bias_whatever_the_base(family: str, base: str) -> None:
    """Patch embeddings too; with the float weight in the bias an error (w − ŵ)·N would remain."""
    model, seen = transformer(family, BASES[base]), {}
    for name in noisy_layers(model):
        point, shape = model.points[f"{name}.input"], model.layers[name].weight.shape[1:]
        draw = 0.7 * (2 * torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 1)
        unit = Rows.of(torch.zeros(1, shape[0]), point.quantizer).unit
        point.quantizer = Noisy(point.quantizer, unit * point.quantizer.scale * draw)
    found = noises(model)
    assert "patch_embed.proj" in found
    model.switch(weights=True, inputs=True)
    for name in found:
        model.layers[name].register_forward_hook(
            lambda m, a, y, n=name: seen.__setitem__(n, (a[0], y))
        )
    model(images(family, 2, seed=4))
    for name, q in found.items():
        layer, (x, y) = model.layers[name], seen[name]
        rounded = layer.weight_point.quantizer(layer.weight)
        loud = q.base(x + q._over(x))
        for weight, same in ((rounded, True), (layer.weight, False)):
            bias = denoising_bias(weight, layer.bias, q.noise)
            if layer.kind == "linear":
                deployed = F.linear(loud, rounded, bias)
            else:
                deployed = F.conv2d(loud, rounded, bias, layer.layer.stride)
            gap = float((deployed - y).abs().max() / y.abs().max())
            assert (gap < 1e-5) == same, (name, gap)


@pytest.mark.parametrize("symmetric", [False, True])
def test_codes_are_those_of_the_moved_values(symmetric: bool) -> None:
    x = numbers(30, 9).double()
    act = Uniform.fit(x, Scheme(4, symmetric), MinMax())
    noise = act.scale.detach() * numbers(9, seed=2).double().tanh()
    made = Noisy(act, noise)
    assert torch.equal(made.codes(x), act.codes(x + noise))
    torch.testing.assert_close(made(x), made.values(made.codes(x)))
    assert torch.equal(Noisy(act, 0 * noise)(x), act(x))
    low, _ = ends(made, x)
    torch.testing.assert_close(low, (act.scale * act.low - noise).expand_as(low))


def test_patches_lie_side_by_side() -> None:
    noise = numbers(2, 3, 3)
    made = Noisy(Uniform(torch.tensor(0.5), torch.tensor(0.0), Scheme(8, True)), noise)
    over = made._over(torch.zeros(4, 2, 8, 7))
    assert over.shape == (2, 8, 7)
    for row, column in product(range(8), range(7)):
        assert torch.equal(over[:, row, column], noise[:, row % 3, column % 3])


def test_only_layers_whose_noise_a_constant_takes_off() -> None:
    taken = {}
    for family in ("vit", "swin", "mobilenetv2", "resnet18"):
        x = images(family)
        model = QuantModel(tiny(family), x, find_blocks(tiny(family)))
        method("nearest").apply(model, plan(model), calibration(x), ignore)
        taken[family] = noisy_layers(model)
        for layer in model.layers.values():
            if layer.kind != "conv":
                assert cancels(layer) == (layer.kind == "linear")
                continue
            still = layer.layer.padding == (0, 0) and layer.layer.groups == 1
            assert cancels(layer) == (still and layer.layer.stride == layer.layer.kernel_size)
    assert "patch_embed.proj" in taken["vit"]
    assert "conv1" not in taken["resnet18"]  # its borders are padded


# --- the limit


@pytest.mark.parametrize(("family", "base"), [*product(FAMILIES, BASES)])
def test_without_reach_it_is_its_base_bit_for_bit(family: str, base: str) -> None:
    plain = transformer(family, BASES[base])
    silences = [{"reach": 0.0, "gain": 0.0}, {"gain": 100.0, "shift": True}]
    for silence in silences if family == "vit" else silences[:1]:
        silent = transformer(family, "noisyquant", base=base, **silence)
        x = images(family, 4, seed=3)
        for one, two in ((codes(plain), codes(silent)), (scales(plain), scales(silent))):
            assert all(torch.equal(one[n], two[n]) for n in one)
        for model in (plain, silent):
            model.switch(weights=True, inputs=True)
        assert not noises(silent)
        assert torch.equal(plain(x), silent(x))


@pytest.mark.parametrize("base", BASES)
def test_numbers_are_drawn_once_for_each_channel(base: str) -> None:
    some = {"search": "linear", "gain": 0.0, "base": base, "bits": 3}
    model, again, other = (transformer("vit", "noisyquant", seed, **some) for seed in (0, 0, 1))
    found, same = noises(model), noises(again)
    moved = [n for n, q in found.items() if float(q.noise.std()) > 0]
    assert moved
    for name, q in found.items():
        assert q.noise.shape == model.layers[name].weight.shape[1:]
        assert torch.equal(q.noise, same[name].noise)
        widest = float((q.base.ratio * q.scale if isinstance(q.base, ByChannel) else q.scale).max())
        assert float(q.noise.abs().max()) <= 1.5 * widest * 1.001
    assert any(n not in noises(other) or not torch.equal(noises(other)[n].noise, found[n].noise)
               for n in moved)  # fmt: skip
    model.switch(weights=True, inputs=True)
    x = images("vit", 4, seed=3)
    assert torch.equal(model(x), model(x))


# --- how far it reaches


def even(bits: int = 4) -> Uniform:
    return Uniform(torch.tensor(1.0), torch.tensor(0.0), Scheme(bits, symmetric=True))


@pytest.mark.parametrize("search", ["expectation", "linear"])
def test_reach_is_the_theorems_best(search: str) -> None:
    """All values half a step off a level want noise of 1.5 half steps, those on one want none."""
    draw = 2 * torch.rand(400, generator=torch.Generator().manual_seed(0)) - 1

    def best(value: float) -> float:
        rows = Rows.of(torch.full((50, 400), value), even())
        if search == "linear":
            return by_trial(rows, draw, 1.5, 150).reach
        return by_expectation(rows, 1.5, 150).reach

    assert best(2.5) == pytest.approx(0.75, abs=0.011 if search == "expectation" else 0.06)
    assert best(2.0) == 0
    if search == "expectation":  # clipped: noise only adds, unless the one draw leans inwards
        assert best(9.0) == 0


def test_the_search_by_trial_is_the_papers_on_even_steps() -> None:
    x = numbers(200, 40) * 1.3
    draw = 2 * torch.rand(40, generator=torch.Generator().manual_seed(3)) - 1
    for offset in (0.0, 0.3, 0.5):
        values, tried = x.sign() + offset + 0.05 * x, np.linspace(0, 1.5, 61)
        found = by_trial(Rows.of(values, even()), draw, 1.5, 60)
        want = theorem.linear_search(values.numpy(), draw.numpy(), tried, -8, 7)
        assert found.reach == pytest.approx(want, abs=1e-6)


def test_expected_error_is_what_many_draws_leave() -> None:
    """On each kind of grid; in the units of the input also where channels have their own."""
    scheme, rng = Scheme(3), torch.Generator().manual_seed(6)
    many = ByChannel.of_grids(torch.linspace(0.2, 0.9, 24), torch.arange(24) % 3 + 0.0, scheme)
    one = Uniform(torch.tensor(0.5), torch.tensor(2.0), scheme)
    for q in (one, TwinSign.of_step(torch.tensor(0.8), scheme), many):
        code = torch.randint(0, 7, (60, 24), generator=rng).float()
        below, above = q.values(code), q.values(code + 1)  # values lie near the middle
        x = below + (above - below) * (0.5 + 0.1 * numbers(60, 24))
        rows = Rows.of(x, q)
        found = by_expectation(rows, 1.5, 20)
        assert found.reach > 0
        assert 0 < found.left < 0.9
        want = _mean_error(q, rows, found, x, torch.eye(24))
        plain = (q(x) - x).square().sum()
        assert found.left == pytest.approx(float(want / plain), rel=0.03)


def _mean_error(q: Quantizer, rows: Rows, found, x: Tensor, w_hat: Tensor) -> Tensor:
    """Mean over draws of the squared error of the output under rounded inputs."""
    rng, errors = torch.Generator().manual_seed(5), []
    for _ in range(400):
        draw = 2 * torch.rand(x.shape[1], generator=rng) - 1
        noisy = Noisy(q, rows.unit * (found.shift + found.reach * draw))
        errors.append(((noisy(x) - x) @ w_hat.T).square().sum())
    return torch.stack(errors).mean()


def test_expected_error_of_the_output_is_what_many_draws_leave() -> None:
    x, weight = 0.1 * numbers(80, 12).abs(), numbers(30, 12, seed=1).abs()
    w_hat = Uniform.fit(weight, Scheme(8, granularity=PER_CHANNEL), MinMax())(weight)
    q = Uniform(torch.tensor(0.6), torch.tensor(1.0), Scheme(2))
    rows = Rows.of(x, q)
    found = by_output(rows, Product(x[None], w_hat[None]), w_hat, 1.5, 30)
    assert found.reach > 0.1  # values that all fall to zero add up in the output
    plain = ((q(x) - x) @ w_hat.T).square().sum()
    want = float(_mean_error(q, rows, found, x, w_hat) / plain)
    assert found.left == pytest.approx(want, rel=0.03)
    assert by_expectation(rows, 1.5, 30).reach == 0


def test_error_falls_by_what_the_theorem_says() -> None:
    x, grid = torch.full((4000, 64), 2.5), even()
    draw = 2 * torch.rand(64, generator=torch.Generator().manual_seed(0)) - 1
    noisy = Noisy(grid, 0.75 * draw)
    assert float((grid(x) - x).square().mean()) == pytest.approx(0.25)
    assert float((noisy(x) - x).square().mean()) == pytest.approx(0.0625, rel=0.25)


# --- options


def test_a_shift_brings_values_onto_levels() -> None:
    rows = Rows.of(torch.full((20, 5), 2.3) + torch.arange(5.0), even())
    found = by_expectation(rows, 1.5, 100, shift=True)
    assert found.shift == pytest.approx(-0.3, abs=0.011)
    assert found.left < 0.01
    assert by_expectation(rows, 1.5, 100).shift == 0


@pytest.mark.parametrize("base", BASES)
def test_a_clip_search_does_not_raise_the_error_of_any_output(base: str) -> None:
    plain = transformer("vit", BASES[base])
    model = transformer("vit", "noisyquant", base=base, clip=True, reach=0.0)
    x = calibration(images("vit", 8))
    found, moved = products(plain, x, 10**6), 0
    for name in noisy_layers(model):
        layer, rows = model.layers[name], found[name].x[0]
        w_hat = layer.weight_point.quantizer(layer.weight).flatten(1)
        one, two = (m.points[f"{name}.input"].quantizer for m in (plain, model))
        assert type(one) is type(two)
        moved += not torch.equal(one.scale, two.scale)
        if layer.kind == "linear":
            before, after = (float(((q(rows) - rows) @ w_hat.T).square().sum()) for q in (one, two))
            assert after <= before * 1.1, name  # it saw a sample of the rows
    assert moved > 0


@pytest.mark.parametrize("base", ["observers", "repq_vit"])
def test_sixteen_bits_for_noise_and_bias_change_next_to_nothing(base: str) -> None:
    exact = transformer("vit", "noisyquant", base=base, **SURE)
    model = transformer("vit", "noisyquant", base=base, integers=True, **SURE)
    (note,) = [n for n in model.notes if "16-bit" in n]
    assert float(note.split("at most ")[1].split(" of")[0]) < 0.01
    assert not exact.notes
    for name, q in noises(model).items():
        layer = model.layers[name]
        unit = q.noise.abs().max() / (2**15 - 1)
        assert float((q.noise / unit - (q.noise / unit).round()).abs().max()) < 0.01
        w_hat = layer.weight_point.quantizer(layer.weight)
        bias = denoising_bias(w_hat, layer.bias, q.noise) + layer.correction.added
        torch.testing.assert_close(bias, sixteen_bits(bias), rtol=1e-5, atol=1e-7)
    x, outputs = images("vit", 8, seed=3), []
    for one in (exact, model):
        one.switch(weights=True, inputs=True)
        outputs.append(one(x))
    assert float((outputs[0] - outputs[1]).abs().max()) < 0.02 * float(outputs[0].std())


def test_without_noise_there_is_nothing_to_say() -> None:
    assert not transformer("vit", "noisyquant", integers=True, reach=0.0).notes


def test_padded_convolutions_are_left_alone() -> None:
    one, two = applied("nearest"), applied("noisyquant", **SURE)
    assert all(torch.equal(codes(one)[n], c) for n, c in codes(two).items())
    assert set(noises(two)) <= {"fc"}
