"""Honest numbers against SciPy and against counting by hand."""

import csv
import io
import math

import pytest
import torch
from helpers import applied, calibration, pictures, plan, quantizable
from scipy.stats import binomtest, entropy
from torch import Tensor, nn

from qlib.core.scheme import PER_CHANNEL, BitPlan, Granularity, Scheme
from qlib.measure import metrics
from qlib.network import costs
from qlib.network.model import QuantModel
from qlib.quantizers.power import Power
from qlib.quantizers.soft_round import SoftRound
from qlib.quantizers.uniform import Uniform


@pytest.mark.parametrize(
    ("hits", "n"), [(0, 10), (10, 10), (7, 10), (512, 650), (1, 1000), (9999, 10000)]
)
def test_wilson_is_scipys(hits: int, n: int) -> None:
    want = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert metrics.wilson(hits, n) == pytest.approx((want.low, want.high), abs=1e-9)


def test_wilson_holds_the_share_itself() -> None:
    for n in range(1, 200):
        assert metrics.wilson(0, n)[0] == 0.0
        assert metrics.wilson(n, n)[1] == 1.0
        assert all(metrics.wilson(k, n)[0] <= k / n <= metrics.wilson(k, n)[1] for k in range(n))


def test_wilson_of_nothing_is_everything() -> None:
    assert metrics.wilson(0, 0) == (0.0, 1.0)


def test_sqnr_by_hand() -> None:
    x = torch.tensor([3.0, 4.0])
    assert metrics.sqnr(x, x + torch.tensor([0.3, 0.4])) == pytest.approx(20.0, abs=1e-4)
    assert metrics.sqnr(x, torch.zeros(2)) == pytest.approx(0.0)
    assert metrics.sqnr(x, x) == math.inf


def test_kl_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]]), torch.full((2, 3), 1 / 3)
    want = (entropy(p[0], q[0]) + entropy(p[1], q[1])) / 2
    assert metrics.kl_divergence(p.log() + 4, q.log() - 1) == pytest.approx(want, rel=1e-5)
    assert metrics.kl_divergence(p.log(), p.log()) == pytest.approx(0, abs=1e-9)
    uneven = 0.5 * math.log(0.5 * 3) + 0.5 * math.log(0.25 * 3)
    assert metrics.kl_divergence(p[:1].log(), q[:1].log()) == pytest.approx(uneven, rel=1e-5)
    assert metrics.kl_divergence(q[:1].log(), p[:1].log()) != pytest.approx(uneven, rel=1e-3)


def one_hot(classes: list[int]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), 3).float() * 5


def test_accuracy_by_hand() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    before = [0, 1, 2, 0, 1, 0, 1, 2]  # 5 right
    after = [0, 1, 0, 1, 0, 2, 1, 0]  # 3 right; three lost, one gained
    found = metrics.accuracy(labels, one_hot(after), one_hot(before))
    assert found["top1"] == 37.5
    assert found["top1_float"] == 62.5
    assert found["agreement"] == 37.5  # images 0, 1 and 6
    assert (found["lost"], found["gained"], found["n"]) == (3, 1, 8)
    low, high = binomtest(3, 8).proportion_ci(0.95, method="wilson")
    assert (found["top1_low"], found["top1_high"]) == pytest.approx((100 * low, 100 * high))
    assert found["kl"] > 0


# --- size and operations

WEIGHTS = {"stem": 216, "one.conv1": 576, "one.conv2": 576, "two.conv1": 864, "two.conv2": 1296,
           "two.skip.0": 96, "fc": 60}  # fmt: skip
CHANNELS = {"stem": 8, "one.conv1": 8, "one.conv2": 8, "two.conv1": 12, "two.conv2": 12,
            "two.skip.0": 12, "fc": 5}  # fmt: skip
MACS = {"stem": 13824, "one.conv1": 36864, "one.conv2": 36864, "two.conv1": 13824,
        "two.conv2": 20736, "two.skip.0": 1536, "fc": 60}  # fmt: skip


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
def test_costs_by_hand(placement: str) -> None:
    model = quantizable(placement)
    calibration().attach(model, plan(model, 3, 5))
    found = costs.costs(model)
    bits = {name: 8 if name in ("stem", "fc") else 3 for name in WEIGHTS}
    size = sum(WEIGHTS[n] * bits[n] / 8 + 5 * CHANNELS[n] for n in WEIGHTS)
    assert found["weight_mb"] == pytest.approx(size / 1e6, rel=1e-9)
    assert found["weight_mb_float"] == pytest.approx(4 * sum(WEIGHTS.values()) / 1e6)
    acts = {name: 8 if name in ("stem", "fc") else 5 for name in WEIGHTS}
    if placement == "boundary":
        acts["stem"] = 32  # the image is left alone
    want = sum(MACS[n] * bits[n] * acts[n] for n in WEIGHTS)
    assert found["gbops"] == pytest.approx(want / 1e9, rel=1e-9)


def test_costs_of_a_float_network() -> None:
    model = quantizable()
    found = costs.costs(model)
    assert found["weight_mb"] == found["weight_mb_float"]
    assert found["gbops"] == pytest.approx(sum(MACS.values()) * 32 * 32 / 1e9)


def test_bytes_by_granularity() -> None:
    model = quantizable()
    layer = model.layers["two.conv2"]  # 12 channels of 108 weights
    for scheme, want in (
        (Scheme(4), 648 + 5),
        (Scheme(4, symmetric=True), 648 + 4),
        (Scheme(2, granularity=PER_CHANNEL), 324 + 12 * 5),
        (Scheme(2, granularity=Granularity("group", 36)), 324 + 36 * 5),
    ):
        layer.weight_point.fill(Uniform.fit(layer.weight, scheme, calibration().weight_observer))
        assert costs.weight_bytes(layer) == want


# --- rows

COLUMNS = ["point", "layer", "unit", "kind", "tensor", "bits", "symmetric", "scale", "zero_point",
           "channels", "macs", "params", "sqnr_db", "clipped", "flipped"]  # fmt: skip
OF_TENSOR = {"weight": ["beyond", "mse", "mse_nearest", "rmse_step"], "input": ["rmse_step"],
             "boundary": ["rmse_step"]}  # fmt: skip


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
def test_rows_have_their_columns_in_order_of_execution(placement: str) -> None:
    model, data = quantizable(placement), calibration()
    data.attach(model, plan(model, 3, 5))
    rows = metrics.layer_rows(model, data.histograms(model))
    assert [list(row) for row in rows] == [COLUMNS + OF_TENSOR[row["tensor"]] for row in rows]
    quantized = [f"{name}.weight" for name in WEIGHTS]
    quantized += [n for n, p in model.points.items() if p.quantizer is not None]
    assert sorted(row["point"] for row in rows) == sorted(quantized)
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    want = [*WEIGHTS]
    if placement == "boundary":
        want.insert(1, "one")
        want.insert(want.index("two.conv1"), "two")
    assert layers == want
    for row in rows:
        assert row["unit"] == row["layer"].partition(".")[0]
        kinds = {"fc": "linear", "one": "boundary", "two": "boundary"}
        assert row["kind"] == kinds.get(row["layer"], "conv")
        weight = row["tensor"] == "weight"
        assert row["params"] == (WEIGHTS[row["layer"]] if weight else None)
        assert row["macs"] == (MACS[row["layer"]] if weight else None)
        assert row["channels"] == (CHANNELS[row["layer"]] if weight else 1)
        edge = 8 if row["layer"] in ("stem", "fc") else (3 if weight else 5)
        assert row["bits"] == edge
        assert row["clipped"] == pytest.approx(0, abs=1e-9)  # min–max
        assert (row["flipped"] == 0.0) if weight else (row["flipped"] is None)
        assert 0 < row["sqnr_db"] < 80
    written = io.StringIO()
    csv.DictWriter(written, COLUMNS + OF_TENSOR["weight"]).writerows(rows)


def test_local_error_of_a_weight_and_of_an_activation() -> None:
    model, data = quantizable(), calibration()
    data.attach(model, plan(model, 3, 4))
    rows = {row["point"]: row for row in metrics.layer_rows(model, data.histograms(model))}
    layer = model.layers["two.conv1"]
    quantizer = layer.weight_point.quantizer
    hat = (quantizer.codes(layer.weight) - quantizer.zero_point) * quantizer.scale
    want = 10 * math.log10(float(layer.weight.square().sum() / (layer.weight - hat).square().sum()))
    assert rows["two.conv1.weight"]["sqnr_db"] == pytest.approx(want, abs=1e-3)
    seen = []
    hook = layer.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model(data.images)
    hook.remove()
    point = model.points["two.conv1.input"].quantizer
    noise = (point(seen[0]) - seen[0]).square().sum()
    want = 10 * math.log10(float(seen[0].square().sum() / noise))
    assert rows["two.conv1.input"]["sqnr_db"] == pytest.approx(want, abs=0.2)


@pytest.mark.parametrize("bits", [3, 8])
def test_error_in_steps_is_that_of_even_rounding(bits: int) -> None:
    """√(1/12) = 0.289 steps, where nothing is clipped and steps are many beside the values."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(512, 40))
    net[2].weight.data = torch.rand(40, 512, generator=torch.Generator().manual_seed(2))
    net[2].weight.data[::2] *= 100  # each channel is told in steps of its own
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model = QuantModel(net, x[:2])
    data = calibration(x)
    data.attach(model, plan(model, bits, bits, "same"))
    rows = {row["point"]: row for row in metrics.layer_rows(model, data.histograms(model))}
    assert rows["2.weight"]["rmse_step"] == pytest.approx(12**-0.5, rel=0.03)
    assert rows["0.input"]["rmse_step"] == pytest.approx(12**-0.5, rel=0.03)


def test_squared_error_of_a_weight_and_of_its_nearest_codes() -> None:
    model = applied("adaround", steps=60, bits=(3, 4))
    rows = metrics.layer_rows(model, calibration(pictures()[0]).histograms(model))
    moved = 0
    for row in (row for row in rows if row["tensor"] == "weight"):
        layer = model.layers[row["layer"]]
        q, weight = layer.weight_point.quantizer, layer.weight
        nearest = ((weight / q.scale).round() + q.zero_point).clamp(q.scheme.qmin, q.scheme.qmax)
        for codes, name in ((q.codes(weight), "mse"), (nearest, "mse_nearest")):
            hat = (codes - q.zero_point) * q.scale
            want = float((hat - weight).double().square().mean())
            assert row[name] == pytest.approx(want, rel=1e-4)
        assert row["mse"] >= row["mse_nearest"]
        moved += row["mse"] > row["mse_nearest"]
    assert moved >= 3


def test_clipped_share() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(100, 1))
    net[2].weight.data = torch.linspace(-1, 1, 100).reshape(1, 100)
    x = torch.linspace(0, 1, 200).reshape(2, 1, 10, 10)
    model = QuantModel(net, x)
    layer = model.layers["2"]
    half = Uniform.of_range(torch.tensor(-0.5), torch.tensor(0.5), Scheme(8))
    layer.weight_point.fill(half)
    model.points["0.input"].quantizer = Uniform.of_range(
        torch.tensor(0.0), torch.tensor(0.75), Scheme(8)
    )
    data = calibration(x)
    rows = {row["point"]: row for row in metrics.layer_rows(model, data.histograms(model))}
    assert rows["2.weight"]["clipped"] == pytest.approx(0.5, abs=0.02)
    assert rows["0.input"]["clipped"] == pytest.approx(0.25, abs=0.02)


def test_flipped_share_counts_weights_not_at_their_nearest_level() -> None:
    model, data = quantizable(), calibration()
    data.attach(model, plan(model, 4, 4))
    layer = model.layers["one.conv1"]
    nearest = layer.weight_point.quantizer
    soft = SoftRound.from_nearest(nearest, layer.weight)
    up = soft.up.data.flatten(1)
    up[:, :18] *= -1  # a quarter of each filter's 72 weights turned round
    soft.harden()
    layer.weight_point.fill(soft)
    rows = {row["point"]: row for row in metrics.layer_rows(model, data.histograms(model))}
    codes, other = soft.codes(layer.weight), nearest.codes(layer.weight)
    want = float((codes != other).double().mean())
    assert rows["one.conv1.weight"]["flipped"] == pytest.approx(want)
    assert 0.15 < want <= 0.25  # those at the ends of the grid cannot move
    assert rows["one.conv2.weight"]["flipped"] == 0.0


@pytest.mark.parametrize("grid", [Uniform, Power])
def test_share_beyond_counts_weights_on_neither_level_beside_them(grid: type) -> None:
    model, data = quantizable(), calibration()
    data.attach(model, plan(model, 4, 4))
    layer = model.layers["one.conv1"]
    weight, scheme = layer.weight, plan(model, 4, 4).weights["one.conv1"]
    fitted = grid.fit(weight, scheme, data.weight_observer)
    nearest = fitted.codes(weight)
    side = (weight - fitted.values(nearest)).sign()
    for change, flipped, beyond in ((side, 1, 0), (-side, 1, 1), (2 * side, 1, 1), (0, 0, 0)):
        made = fitted
        made.codes = lambda x, c=change: nearest + c
        layer.weight_point.fill(made)
        rows = {r["point"]: r for r in metrics.layer_rows(model, data.histograms(model))}
        row = rows["one.conv1.weight"]
        assert row["flipped"] == pytest.approx(flipped, abs=0.01)
        assert row["beyond"] == pytest.approx(beyond, abs=0.01)


def test_rows_after_a_learned_method() -> None:
    model = applied("adaround", steps=40, bits=(3, 4))
    rows = metrics.layer_rows(model, calibration(pictures()[0]).histograms(model))
    flipped = [row["flipped"] for row in rows if row["tensor"] == "weight"]
    assert 0 < max(flipped) < 0.5
    assert BitPlan().weights == {}
