"""Errors at each layer and counted values, computed another way on a tiny network."""

import math

import helpers_nets
import numpy as np
import pytest
import torch
from helpers import applied, calibration, pictures, plan, quantizable
from torch import Tensor, nn

from qlib.allocation.same import Same
from qlib.core.records import Cancelled, ignore
from qlib.core.scheme import PER_CHANNEL, PER_TENSOR, Granularity, Scheme
from qlib.measure import metrics, output_errors, value_samples
from qlib.network.model import QuantModel
from qlib.observers.minmax import MinMax
from qlib.quantizers.power import Power
from qlib.quantizers.uniform import Uniform
from qlib.store import binning
from qlib.store.tensors import BINS, CHANNEL_BINS, PERCENTILES

IMAGES, OTHERS = pictures(24, seed=5)[0], pictures(20, seed=6)[0]


def fitted(placement: str = "inputs", bits: tuple[int, int] = (3, 4)) -> QuantModel:
    model = quantizable(placement)
    calibration().attach(model, plan(model, *bits))
    model.switch(weights=True, inputs=True)
    return model


def caught(model: nn.Module, modules: dict[str, nn.Module], x: Tensor, *, before: bool = False):
    """What comes out of each module (or arrives at it) when the model runs on ``x``."""
    found: dict[str, Tensor] = {}
    hooks = [
        m.register_forward_pre_hook(lambda _, args, n=n: found.update({n: args[0].clone()}))
        if before
        else m.register_forward_hook(lambda _, __, y, n=n: found.update({n: y.clone()}))
        for n, m in modules.items()
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def gap(y: Tensor, y_hat: Tensor) -> dict[str, float]:
    a, b = y.double().numpy().ravel(), y_hat.double().numpy().ravel()
    noise = ((b - a) ** 2).mean()
    sqnr = 10 * math.log10((a**2).mean() / noise) if noise else math.inf
    return {"mse": noise, "sqnr_db": sqnr, "cosine": a @ b / math.sqrt((a @ a) * (b @ b))}


def matches(found: output_errors.Gap, y: Tensor, y_hat: Tensor) -> None:
    told, want = found.told(), gap(y, y_hat)
    assert told["mse"] == pytest.approx(want["mse"], rel=1e-4)
    assert told["sqnr_db"] == pytest.approx(want["sqnr_db"], abs=1e-3)
    assert told["cosine"] == pytest.approx(want["cosine"], abs=1e-6)


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
def test_a_layer_alone_is_the_network_with_that_layer_swapped(placement: str) -> None:
    model = fitted(placement)
    found = output_errors.record(model, IMAGES, OTHERS, ignore)
    model.switch(weights=False, inputs=False)
    for x, errors in ((IMAGES, found.calib), (OTHERS, found.test)):
        floats = caught(model, model.layers, x)
        assert list(errors) == list(model.layers)
        for name, layer in model.layers.items():
            layer.weight_point.on = layer.input_point.on = True
            if placement == "boundary" and name in ("one.conv1", "two.conv1", "two.skip.0"):
                model.boundaries[name.partition(".")[0]].on = True
            swapped = caught(model, {name: layer}, x)[name]
            model.switch(weights=False, inputs=False)
            matches(errors[name].alone, floats[name], swapped)
            assert errors[name].alone.told()["mse"] > 0


def test_together_is_the_quantized_network_against_the_float_one() -> None:
    model = fitted()
    found = output_errors.record(model, IMAGES, OTHERS, ignore)
    for x, errors in ((IMAGES, found.calib), (OTHERS, found.test)):
        with model.quantized(weights=False, inputs=False):
            floats = caught(model, model.layers, x)
        quants = caught(model, model.layers, x)
        for name in model.layers:
            matches(errors[name].together, floats[name], quants[name])
    first = found.calib["stem"]
    assert first.alone.told() == first.together.told()  # nothing comes before it
    assert found.calib["fc"].together.told()["mse"] > found.calib["fc"].alone.told()["mse"]


def test_error_of_nearest_codes_is_the_network_with_that_weight_put_back() -> None:
    model = applied("adaround", steps=60, bits=(3, 4))
    found = output_errors.record(model, IMAGES, OTHERS, ignore)
    with model.quantized(weights=False, inputs=False):
        floats = caught(model, model.layers, IMAGES)
    moved = 0
    for name, layer in model.layers.items():
        q = layer.weight_point.quantizer
        nearest = Uniform(q.scale, q.zero_point, q.scheme)
        if torch.equal(q.codes(layer.weight), nearest.codes(layer.weight)):
            assert found.calib[name].nearest.n == 0
            continue
        layer.weight_point.fill(nearest)
        put_back = caught(model, {name: layer}, IMAGES)[name]
        layer.weight_point.fill(q)
        matches(found.calib[name].nearest, floats[name], put_back)
        assert found.test[name].nearest.n == 0
        moved += 1
    assert moved >= 3
    rows = metrics.layer_rows(model, calibration().histograms(model), found.calib, found.test)
    told = {row["layer"]: row for row in rows if row["tensor"] == "output"}
    assert list(told) == list(model.layers)
    assert told["one.conv1"]["acc_mse_nearest"] == found.calib["one.conv1"].nearest.told()["mse"]


def test_rounding_to_nearest_has_no_nearest_of_its_own() -> None:
    model = fitted()
    found = output_errors.record(model, IMAGES, OTHERS, ignore)
    assert all(errors.nearest.n == 0 for errors in found.calib.values())
    rows = metrics.layer_rows(model, calibration().histograms(model), found.calib, found.test)
    assert not any("acc_mse_nearest" in row for row in rows)


def test_float_layers_have_no_error_until_others_have() -> None:
    model = quantizable()
    found = output_errors.record(model, IMAGES, OTHERS, ignore)
    for errors in found.calib.values():
        assert errors.alone.told() == {"mse": 0, "sqnr_db": math.inf, "cosine": pytest.approx(1)}
        assert errors.together.told()["mse"] == 0
    assert all(s.quantizer is None for s in found.samples.values())


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_change_nothing(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = output_errors.record(fitted(), IMAGES, OTHERS, ignore)
    monkeypatch.setattr(output_errors, "BATCH", batch)
    parts = output_errors.record(fitted(), IMAGES, OTHERS, ignore)
    for name, errors in whole.calib.items():
        other = parts.calib[name]
        assert other.alone.n == errors.alone.n
        assert other.together.told() == pytest.approx(errors.together.told(), rel=1e-4)
    for name, sample in whole.samples.items():
        same = np.sort(parts.samples[name].float)
        assert np.allclose(np.sort(sample.float), same, atol=1e-5)
        assert parts.samples[name].outside == sample.outside


def test_less_room_means_fewer_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    model = fitted()
    model.layers["stem"].register_forward_pre_hook(lambda m, a: seen.append(len(a[0])))
    monkeypatch.setattr(output_errors, "ROOM", 30e3)  # an image's outputs take 11 kB
    output_errors.record(model, IMAGES, OTHERS, ignore)
    assert max(seen) == 2


def test_the_network_is_left_as_it_was() -> None:
    model = fitted("boundary")
    with torch.no_grad():
        before = model(IMAGES)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    output_errors.record(model, IMAGES, OTHERS, ignore)
    with torch.no_grad():
        assert torch.equal(model(IMAGES), before)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_it_can_be_cancelled_and_leaves_no_hook() -> None:
    model = fitted()

    def stop(event: object) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        output_errors.record(model, IMAGES, OTHERS, stop)
    assert not any(m._forward_hooks for m in model.modules())


def test_large_networks_are_measured_on_fewer_images() -> None:
    model = quantizable()
    assert output_errors.images_for(model) == output_errors.IMAGES
    model.macs = dict.fromkeys(model.macs, int(1e8))  # 7e8 for an image
    assert output_errors.images_for(model) == int(4e10 // 7e8)
    model.macs = dict.fromkeys(model.macs, int(1e12))
    assert output_errors.images_for(model) == output_errors.LEAST


@pytest.mark.parametrize("family", ["swinv2", "deit", "regnety", "mobilenetv3", "mixer"])
def test_every_family_is_measured(family: str) -> None:
    """swinv2 has layers whose input has no images at all."""
    from qlib.network.blocks import find_blocks

    net, x = helpers_nets.tiny(family), helpers_nets.images(family, 4)
    model = QuantModel(net, x, find_blocks(net))
    weight = Scheme(4, granularity=PER_CHANNEL)
    calibration(x).attach(model, Same().allocate(model, weight, Scheme(4)))
    model.switch(weights=True, inputs=True)
    found = output_errors.record(model, x, x[:2], ignore)
    assert list(found.calib) == list(found.test) == list(model.layers)
    told = [errors.alone.told()["mse"] for errors in found.calib.values()]
    assert all(0 <= mse < math.inf for mse in told)
    assert sum(mse > 0 for mse in told) > 0.8 * len(told)  # a dead branch has no error
    names = {f"{n}.output" for n in model.layers} | {f"{n}.weight" for n in model.weighted()}
    assert set(found.samples) == names | set(model.points)
    made = binning.arrays(found.samples.values(), found.sampled)
    assert (made["float"].sum(1) == made["count"]).all()


# ---- values -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted() -> tuple[QuantModel, dict[str, value_samples.Sample], dict[str, np.ndarray]]:
    model = fitted("boundary")
    found = output_errors.record(model, IMAGES, OTHERS, ignore)
    return model, found.samples, binning.arrays(found.samples.values(), found.sampled)


def values(model: QuantModel, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Float values, values after rounding and codes of a tensor, by hand."""
    layer, _, tensor = name.rpartition(".")
    if tensor == "output":
        quant = caught(model, {name: model.layers[layer]}, IMAGES)[name]
        with model.quantized(weights=False, inputs=False):
            x = caught(model, {name: model.layers[layer]}, IMAGES)[name]
        return x.double().numpy().ravel(), quant.double().numpy().ravel(), None
    if tensor == "weight":
        x, q = model.layers[layer].weight, model.layers[layer].weight_point.quantizer
    else:
        with model.quantized(weights=False, inputs=False):
            x = caught(model, {name: model.points[name]}, IMAGES, before=True)[name]
        q = model.points[name].quantizer
    if q is None:
        return x.double().numpy().ravel(), x.double().numpy().ravel(), None
    codes = q.nearest(x)
    hat = q.values(codes)
    return tuple(t.detach().double().numpy().ravel() for t in (x, hat, codes))


def test_counts_are_numpys(counted) -> None:
    model, value_samples, made = counted
    names = made["names"].tolist()
    assert names == list(value_samples)
    order = [n for n in names if n.split(".")[0] == "one"]
    assert order == ["one.boundary", "one.conv1.weight", "one.conv1.output", "one.conv2.weight",
                     "one.conv2.input", "one.conv2.output"]  # fmt: skip
    assert made["n_images"] == 24
    for t, name in enumerate(names):
        x, hat, codes = values(model, name)
        lo, hi = float(made["lo"][t]), float(made["hi"][t])
        assert lo == pytest.approx(min(x.min(), hat.min()), rel=1e-6)
        assert hi == pytest.approx(max(x.max(), hat.max()), rel=1e-6)
        assert made["count"][t] == x.size
        for found, want in ((made["float"], x), (made["rounded"], hat)):
            counts = np.histogram(want, BINS, (lo, hi))[0]
            # a level that lies on an edge falls to either side: compare sums, not single bins
            moved = np.abs(np.cumsum(found[t].astype(int)) - np.cumsum(counts))
            assert (moved > 0).mean() <= 0.05
            assert found[t].sum() == x.size
        assert made["percentiles"][t] == pytest.approx(np.percentile(x, PERCENTILES), abs=1e-5)
        error = hat - x
        assert made["error"][t].sum() == x.size
        assert made["error_lo"][t] == pytest.approx(error.min(), abs=2e-6)
        assert made["error_hi"][t] == pytest.approx(error.max(), abs=2e-6)
        total = np.nansum(made["mse"][t] * made["float"][t]) / x.size
        assert total == pytest.approx((error**2).mean(), rel=3e-3)
        assert (np.isnan(made["mse"][t]) == (made["float"][t] == 0)).all()
        if codes is None:
            assert made["codes"][t].sum() == made["bits"][t] == 0
            assert np.isnan(made["scale"][t])
        else:
            want = np.bincount(codes.astype(int) - made["qmin"][t], minlength=256)
            assert (made["codes"][t] == want).all()


def test_channels_add_up_to_the_tensor(counted) -> None:
    model, _, made = counted
    names = made["names"].tolist()
    for t, name in enumerate(names):
        if not name.endswith(".weight"):
            assert f"channel_index_{t}" not in made
            continue
        weight = model.layers[name.removesuffix(".weight")].weight.flatten(1).double().numpy()
        edges = np.linspace(float(made["lo"][t]), float(made["hi"][t]), CHANNEL_BINS + 1)
        assert made[f"channel_index_{t}"].tolist() == list(range(len(weight)))
        want = np.stack([np.histogram(row, edges)[0] for row in weight])
        found = made[f"channel_float_{t}"]
        assert found.dtype == np.uint16
        assert np.abs(found.astype(int) - want).sum() <= 2
        assert made[f"channel_rounded_{t}"].sum() == weight.size


def test_many_channels_are_chosen_evenly() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 300), nn.ReLU(), nn.Linear(300, 5))
    model = quantizable(net=net)
    (found, *_) = [s for s in value_samples.samples_of(model) if s.name == "1.weight"]
    assert len(found.index) == value_samples.CHANNELS
    assert (found.index[0], found.index[-1]) == (0, 299)
    assert set(np.diff(found.index)) == {2, 3}
    assert found.rows[0].shape == (128, 192)
    assert np.array_equal(found.rows[0], net[1].weight[found.index].detach().numpy())


def test_clipped_share_is_counted_on_all_values() -> None:
    model = fitted()
    grid = Uniform.of_range(torch.tensor(-0.5), torch.tensor(0.5), Scheme(4))
    model.points["stem.input"].quantizer = grid
    found = output_errors.record(model, IMAGES, OTHERS, ignore).samples["stem.input"]
    half = float(grid.scale) / 2
    low, high = (float(v * grid.scale) for v in (grid.low, grid.high))
    outside = IMAGES.lt(low - half) | IMAGES.gt(high + half)
    want = outside.double().mean()
    assert found.outside / found.seen == pytest.approx(float(want), abs=1e-3)
    assert 0.3 < want < 0.9


def test_large_tensors_are_sampled_and_their_extremes_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output_errors, "VALUES", 500)
    found = output_errors.record(fitted(), IMAGES, OTHERS, ignore).samples
    sample = found["one.conv1.output"]
    assert 250 <= len(sample.float) == len(sample.rounded) <= 500
    assert sample.seen == 24 * 8 * 64
    assert sample.high > sample.float.max()
    assert all(part.base is None for kept in sample._kept for part in kept)  # no view of the rest
    made = binning.arrays([sample], 24)
    assert made["percentiles"][0, -1] == np.float32(sample.high)
    assert made["hi"][0] >= np.float32(sample.high)


def test_a_constant_tensor_has_bins_all_the_same() -> None:
    for value in (0.0, 3.0, -1e-8):
        sample = value_samples.Sample("x.output")
        x = torch.full((40,), value)
        sample.pair(x, x, 100)
        made = binning.arrays([sample], 1)
        assert made["lo"][0] < made["hi"][0]
        assert made["error_lo"][0] < made["error_hi"][0]
        assert made["float"].sum() == made["error"].sum() == 40
        assert np.nansum(made["mse"]) == 0


def test_layouts_in_memory_are_paired_element_by_element() -> None:
    x = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    y = x * 2
    for a in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(1, 3)):
        for layout in (torch.contiguous_format, torch.channels_last):
            b = (a * 2).contiguous(memory_format=layout)
            sample, told = value_samples.Sample("x.output"), output_errors.Gap()
            sample.pair(a, b, 100)
            assert np.array_equal(2 * sample.float, sample.rounded)
            told.add(a, b)
            assert told.told()["cosine"] == pytest.approx(1, abs=1e-6)
            assert told.told()["mse"] == pytest.approx(float(y.sub(x).square().mean()), rel=1e-5)


@pytest.mark.parametrize("granularity", [PER_TENSOR, PER_CHANNEL])
def test_levels_of_a_bent_grid_are_told_as_they_are(granularity: Granularity) -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    for exponent in (0.5, 1.0):
        scheme = Scheme(4, granularity=granularity)
        q = Power.fit(weight, scheme, MinMax(), exponent)
        sample = value_samples.Sample("x.weight", q)
        sample.take(weight, 1000)
        made = binning.arrays([sample], 1)
        rows = (torch.arange(16.0) - q.zero_point.reshape(-1, 1)) * q.scale.reshape(-1, 1)
        want = (rows.sign() * rows.abs() ** (1 / exponent)).detach().median(0).values
        if exponent == 1:
            assert np.isnan(made["levels"]).all()
            assert made["scale"] == pytest.approx(float(q.scale.detach().median()))
        else:
            assert made["levels"][0, :16] == pytest.approx(want.numpy(), rel=1e-4, abs=1e-6)
            assert made["scale"] == pytest.approx((made["clip_hi"] - made["clip_lo"]) / 15)
        assert sample.outside <= 2  # the range is that of the values, its zero moved to a level


@pytest.mark.parametrize("kind", ["tensor", "group"])
def test_other_ways_to_share_a_scale_are_counted_alike(kind: str) -> None:
    model = quantizable()
    weight = Scheme(3, symmetric=True, granularity=Granularity(kind, 24))
    calibration().attach(model, Same().allocate(model, weight, Scheme(4), edge_layers="same"))
    model.switch(weights=True, inputs=True)
    found = output_errors.record(model, IMAGES, OTHERS, ignore)
    made = binning.arrays(found.samples.values(), found.sampled)
    for t, name in enumerate(made["names"].tolist()):
        if name.endswith(".weight"):
            _, hat, codes = values(model, name)
            assert (made["qmin"][t], made["qmax"][t]) == (-4, 3)
            want = np.bincount(codes.astype(int) + 4, minlength=256)
            assert (made["codes"][t] == want).all()
            assert np.allclose(np.sort(found.samples[name].rounded), np.sort(hat), atol=1e-6)


def test_grids_of_channels_are_told_by_their_medians(counted) -> None:
    model, _, made = counted
    t = made["names"].tolist().index("two.conv2.weight")
    q = model.layers["two.conv2"].weight_point.quantizer
    assert made["scale"][t] == pytest.approx(float(q.scale.detach().median()), rel=1e-6)
    ends = ((q.scheme.qmax - q.zero_point) * q.scale).detach().flatten().median()
    assert made["clip_hi"][t] == pytest.approx(float(ends), rel=1e-6)
    assert (made["qmin"][t], made["qmax"][t], made["bits"][t]) == (0, 7, 3)
