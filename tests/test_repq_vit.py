"""Logarithmic grids by hand; RepQ-ViT's fold, which changes neither outputs nor integer codes."""

from pathlib import Path

import pytest
import torch
from helpers import applied, calibration, codes, method, plan, scales
from helpers_nets import images, tiny
from torch import Tensor
from torch.nn import functional as F

from qlib.core.functional import qparams
from qlib.core.records import ignore
from qlib.core.scheme import PER_CHANNEL, Granularity, Scheme
from qlib.measure import metrics, output_errors
from qlib.measure.levels import bent, outside
from qlib.methods._search.consumers import NORMS, SOFTMAX, of_channels, readers
from qlib.network.blocks import find_blocks
from qlib.network.model import QuantModel
from qlib.observers.minmax import MinMax
from qlib.pipeline import quantizer_file
from qlib.pipeline.quantizer_file import FILE
from qlib.quantizers.by_channel import ByChannel, folded
from qlib.quantizers.columns import Columns
from qlib.quantizers.logarithm import Logarithm
from qlib.quantizers.uniform import Uniform

BITS = range(2, 9)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logarithm(per_octave: int, bits: int = 4, scale: float = 1.0, **changes: bool) -> Logarithm:
    scheme = Scheme(bits, **changes)
    return Logarithm(torch.tensor(scale), torch.tensor(float(per_octave)), scheme)


# --- logarithms


def test_log2_by_hand() -> None:
    x = torch.tensor([0.0, 1.0, 0.8, 0.6, 0.3, 0.09, 2.0**-14, 2.0**-14.4, 2.0**-14.6, 5.0])
    want = [0, 1, 1, 0.5, 0.25, 0.125, 2**-14, 2**-14, 0, 1]
    made = logarithm(1)
    assert made(x).tolist() == pytest.approx(want, abs=0)
    assert made.codes(x).tolist() == [0, 15, 15, 14, 13, 12, 1, 1, 0, 15]


@pytest.mark.parametrize("bits", BITS)
def test_log_root_2_is_a_shift_and_one_of_two_factors(bits: int) -> None:
    made = logarithm(2, bits, scale=0.7)
    codes = torch.arange(1.0, 2**bits)
    k = 2**bits - 1 - codes
    want = 0.7 * torch.exp2(-(k / 2).ceil()) * (1 + (2**0.5 - 1) * (k % 2))
    torch.testing.assert_close(made.values(codes), want)
    assert torch.equal(made.codes(made.values(codes)), codes)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("per_octave", [1, 2])
@pytest.mark.parametrize("bits", BITS)
def test_zero_is_zero_and_the_rest_near_in_proportion(
    bits: int, per_octave: int, symmetric: bool
) -> None:
    made, x = logarithm(per_octave, bits, symmetric=symmetric), torch.linspace(0, 1, 4001)
    assert float(made(torch.zeros(1))) == 0
    assert float(made.codes(torch.zeros(1))) == made.scheme.qmin
    code, y = made.codes(x), made(x)
    assert made.scheme.qmin <= float(code.min())
    assert float(code.max()) == made.scheme.qmax
    assert (code.diff() >= 0).all()
    assert (y.diff() >= 0).all()
    alive = y > 0
    ratio = (y / x)[alive].log2().abs()
    assert float(ratio.max()) <= 0.5 / per_octave * 1.001
    least = float(made.values(torch.tensor(made.scheme.qmin + 1.0)))
    assert float(x[~alive].max()) <= least
    assert not outside(made, x).any()
    levels = bent(made, x)
    assert levels is None or levels.tolist() == sorted(levels.tolist())


def test_scale_of_a_logarithm_leaves_single_large_values_out() -> None:
    x = torch.cat([torch.full((1, 99_999), 0.1), torch.ones(1, 1)], 1)
    found = Logarithm.of_values(x, torch.full_like(x, 1e-5), 1, Scheme(2))
    assert float(found.scale) == pytest.approx(0.1)
    whole = Logarithm.of_values(x, x**6, 1, Scheme(2))  # all weight on the largest
    assert float(whole.scale) == 1
    empty = Logarithm.of_values(torch.zeros(1, 5), torch.ones(1, 5), 2, Scheme(4))
    assert torch.equal(empty(torch.zeros(3)), torch.zeros(3))


# --- a grid for each channel


def norm_and_layer(channels: int = 12, out: int = 7) -> tuple[Tensor, ...]:
    gain = numbers(channels, seed=1).exp()
    offset, weight, bias = 2 * numbers(channels, seed=2), numbers(out, channels), numbers(out)
    return F.layer_norm(3 * numbers(40, channels, seed=4), (channels,)), gain, offset, weight, bias


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_the_fold_changes_neither_outputs_nor_integer_codes(bits: int, symmetric: bool) -> None:
    """And with the bias folded with the rounded weight, neither what the rounded layer gives."""
    normal, gain, offset, weight, bias = (t.double() for t in norm_and_layer())
    x, scheme = normal * gain + offset, Scheme(bits, symmetric)
    lo, hi = 1.01 * x.amin(0), 1.01 * x.amax(0)  # no ties at the ends
    grid = ByChannel.of_grids(*qparams(lo, hi, scheme), scheme)
    assert float(grid.zero_point) == round(float(grid.zero_point))
    assert symmetric == (not grid.offset.any())
    (gain2, offset2), (weight2, bias2) = folded((gain, offset), (weight, bias), grid)
    x2 = normal * gain2 + offset2
    torch.testing.assert_close(x2 @ weight2.T + bias2, x @ weight.T + bias, rtol=1e-5, atol=1e-5)
    one = Uniform(grid.scale, grid.zero_point, scheme)
    assert torch.equal(one.codes(x2), grid.codes(x))
    assert len(grid.codes(x).unique()) > 2
    # per channel it is what the channel alone would get
    apart = Scheme(bits, symmetric, granularity=PER_CHANNEL)
    alone = Uniform.of_range(lo[:, None], hi[:, None], apart)
    torch.testing.assert_close(grid(x), alone(x.T.contiguous()).T)

    columns = Columns(
        Uniform.fit(weight2, Scheme(4, granularity=PER_CHANNEL), MinMax()), grid.ratio
    )
    rounded2 = columns.grid(weight2)
    deployed_bias = bias - rounded2 @ (grid.scale * grid.offset)
    ours = grid(x) @ columns(weight).T + bias
    torch.testing.assert_close(one(x2) @ rounded2.T + deployed_bias, ours, rtol=1e-9, atol=1e-9)
    kept_error = (one(x2) @ rounded2.T + bias2) - ours
    want = -(weight2 - rounded2) @ (grid.scale * grid.offset)
    torch.testing.assert_close(kept_error, want.expand_as(kept_error), rtol=1e-9, atol=1e-9)


def test_channels_that_agree_make_the_one_grid() -> None:
    x, scheme = numbers(50, 6), Scheme(4)
    one = Uniform.fit(x, scheme, MinMax())
    same = ByChannel.of_grids(one.scale.expand(6), one.zero_point.expand(6), scheme)
    assert torch.equal(same.codes(x), one.codes(x))
    torch.testing.assert_close(same(x), one(x))
    flat = Columns(one, torch.ones(6))
    assert torch.equal(flat(x), one(x))


@pytest.mark.parametrize(
    "granularity", [PER_CHANNEL, Granularity("tensor"), Granularity("group", 4)]
)
def test_columns_round_what_is_folded(granularity: Granularity) -> None:
    weight, r, scheme = (
        numbers(5, 12),
        numbers(12, seed=3).exp(),
        Scheme(4, granularity=granularity),
    )
    grid = Uniform.fit(weight * r, scheme, MinMax())
    made = Columns(grid, r)
    assert torch.equal(made.codes(weight), grid.codes(weight * r))
    assert torch.equal(made(weight), made.values(made.codes(weight)))
    torch.testing.assert_close(made(weight) * r, grid(weight * r))


# --- the method


def transformer(family: str, name: str, **changes: object) -> QuantModel:
    net, x = tiny(family), images(family, 16)
    _spread(net)
    model = QuantModel(net, x[:2], find_blocks(net))
    method(name, **changes).apply(model, plan(model, 4, 4, "same"), calibration(x), ignore)
    return model


def _spread(net: torch.nn.Module) -> None:
    """Norms whose channels differ, with layers that need them all, as in trained transformers."""
    rng = torch.Generator().manual_seed(5)
    for block in net.modules():
        for norm, reader in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1"), ("norm", "reduction")):
            try:
                module, layer = block.get_submodule(norm), block.get_submodule(reader)
            except AttributeError:
                continue
            gain = torch.randn(module.weight.shape, generator=rng).exp()
            module.weight.data, module.bias.data = (
                gain,
                gain * torch.rand(gain.shape, generator=rng),
            )
            layer.weight.data = layer.weight.data / gain


def test_channels_have_their_exact_extremes() -> None:
    x = images("vit", 10)
    model = QuantModel(tiny("vit"), x[:2], find_blocks(tiny("vit")))
    seen: list[Tensor] = []
    layer = model.layers["blocks.1.attn.qkv"]
    hook = layer.register_forward_pre_hook(lambda m, a: seen.append(a[0].flatten(0, -2)))
    model(x)
    hook.remove()
    values, counts = of_channels(model, calibration(x), ["blocks.1.attn.qkv"], 20)[
        "blocks.1.attn.qkv"
    ]
    torch.testing.assert_close(values.amin(1), seen[0].amin(0))
    torch.testing.assert_close(values.amax(1), seen[0].amax(0))
    torch.testing.assert_close(counts.sum(1), torch.ones(32))
    assert values.shape[1] <= 20 + 4 + 2


@pytest.mark.parametrize("family", ["vit", "deit", "swin"])
def test_readers_of_norms_and_of_softmax_get_their_grids(family: str) -> None:
    model = transformer(family, "repq_vit")
    kinds = {n: type(p.quantizer).__name__ for n, p in model.points.items()}
    by_channel = {n for n, kind in kinds.items() if kind == "ByChannel"}
    ends = ("qkv.input", "fc1.input", "reduction.input")
    assert by_channel == {n for n in kinds if n.endswith(ends)}
    assert {n for n, k in kinds.items() if k == "Logarithm"} == {n for n in kinds if "mix.le" in n}
    for name, layer in model.weighted().items():
        own = type(layer.weight_point.quantizer) is Columns
        assert own == (f"{name}.input" in by_channel)
    plain = transformer(family, "repq_vit", channels=False, softmax="even")
    nearest = transformer(family, "nearest")
    assert all(torch.equal(codes(plain)[n], c) for n, c in codes(nearest).items())
    assert all(torch.equal(scales(plain)[n], s) for n, s in scales(nearest).items())


@pytest.mark.parametrize("family", ["vit", "deit", "swin"])
def test_layers_come_nearer_stay_float_when_off_and_come_back(family: str, tmp_path: Path) -> None:
    fresh, error = images(family, 32, seed=7), {}
    with torch.no_grad():
        for name in ("nearest", "repq_vit"):
            model = transformer(family, name)
            want = model(fresh)
            told = output_errors.record(model, fresh, fresh[:1], ignore).calib
            error[name] = {n: e.alone.told()["mse"] for n, e in told.items()}
            assert torch.equal(model(fresh), want)
        for layer in model.layers:
            if layer.endswith(("qkv", "fc1", "reduction")):
                assert error["repq_vit"][layer] < 0.7 * error["nearest"][layer], layer
        quantizer_file.save(model, tmp_path / FILE)
        again = transformer(family, "nearest")
        assert torch.equal(again(fresh), want)
        quantizer_file.load(again, tmp_path / FILE)
        again.switch(weights=True, inputs=True)
        model.switch(weights=True, inputs=True)
        assert torch.equal(again(fresh), model(fresh))


def test_rows_and_samples_of_a_network_with_such_grids() -> None:
    x = images("vit", 16)
    model, data = transformer("vit", "repq_vit"), calibration(x)
    model.switch(weights=True, inputs=True)
    found = output_errors.record(model, x, x[:4], ignore)
    rows = metrics.layer_rows(model, data.histograms(model), found.calib, found.test, found.samples)
    told = {row["point"]: row for row in rows}
    assert told["blocks.0.attn.qkv.input"]["channels"] == 32
    assert told["blocks.0.attn.qkv.input"]["sqnr_db"] > 15
    assert told["blocks.0.attn.qkv.input"]["clipped"] < 0.01
    assert told["blocks.0.attn.mix.left"]["sqnr_db"] > 10
    assert told["blocks.0.attn.qkv.weight"]["sqnr_db"] > 3
    assert told["blocks.0.attn.qkv.weight"]["flipped"] == 0
    assert len(found.samples["blocks.0.attn.qkv.input"].codes) > 0


def test_softmax_and_norms_are_found_by_what_they_write() -> None:
    x = images("swin", 2)
    model = QuantModel(tiny("swin"), x, find_blocks(tiny("swin")))
    assert all(n.endswith("mix") for n in readers(model, x, SOFTMAX))
    assert len(readers(model, x, SOFTMAX)) == 4
    assert not [n for n in readers(model, x, NORMS) if n.endswith(("fc2", "proj", "scores"))]


def test_networks_without_norms_and_softmax_are_nearest() -> None:
    one, two = applied("nearest"), applied("repq_vit")
    assert all(torch.equal(codes(one)[n], c) for n, c in codes(two).items())
