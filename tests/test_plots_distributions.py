"""Figures of a tensor's values: what they compute from counts, and what they draw."""

import json
from dataclasses import replace

import hist_kit
import numpy as np
import plotly.graph_objects as go
import pytest
from hist_kit import Made

from qlib.plots.distributions import (
    channel_histogram,
    channel_map,
    code_counts,
    error_histogram,
    range_ladder,
    tensor_histogram,
)
from qlib.plots.distributions import tensor as _tensor
from qlib.plots.distributions.tensor import Run
from qlib.plots.shared import theme
from qlib.plots.shared.values import ValueAxis, number, percent
from qlib.store import tensors


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> dict[str, tensors.TensorHist]:
    folder = tmp_path_factory.mktemp("hist")
    hist_kit.write(folder, hist_kit.network())
    return tensors.load(folder)


def counted(tmp_path, *made: Made) -> list[Run]:
    hist_kit.write(tmp_path, made)
    return [Run("nearest", "Nearest", hist) for hist in tensors.load(tmp_path).values()]


def check(figure: go.Figure) -> dict:
    """What every figure owes its reader; returns its JSON."""
    body = json.loads(figure.to_json())
    assert body["layout"]["title"]["text"]
    assert marks(figure) < 10_000
    for name, axis in body["layout"].items():
        if name.startswith(("xaxis", "yaxis")) and "side" not in axis and "tickvals" not in axis:
            assert axis["title"]["text"]
    sizes = [n["font"]["size"] for n in body["layout"].get("annotations", ())]
    assert min([12, *sizes]) >= 12
    return body


def marks(figure: go.Figure) -> int:
    """Points of lines and marks, and the cells of heat maps."""
    cells = sum(t.z.size for t in figure.data if t.type == "heatmap")
    return cells + sum(len(t.x) for t in figure.data if t.type != "heatmap")


def values(trace, key: str) -> np.ndarray:
    return np.asarray(getattr(trace, key), dtype=float)


# ---- the axis and the numbers ---------------------------------------------------------------


def test_bent_axis_is_odd_and_rising_and_linear_near_zero():
    axis = ValueAxis(0.5)
    x = np.linspace(-40, 40, 401)
    y = axis.place(x)
    assert np.all(np.diff(y) > 0) and np.allclose(y, -y[::-1])
    near = np.array([1e-4, 2e-4])
    assert np.allclose(axis.place(near), near / 0.5 / np.log(10), rtol=1e-3)
    assert np.array_equal(ValueAxis().place(x), x)


def test_ticks_of_the_bent_axis_are_placed_where_they_say():
    axis = ValueAxis(0.2)
    ticks = axis.ticks(-3.0, 50.0)
    shown = [float(t.replace("−", "-")) for t in ticks["ticktext"]]
    assert 0 in shown and 10 in shown and shown == sorted(shown)
    assert np.allclose(axis.place(shown), ticks["tickvals"])
    span = axis.place(50.0) - axis.place(-3.0)
    assert np.diff(ticks["tickvals"]).min() >= 0.1 * span
    assert ValueAxis().ticks(-1, 1) == {}


@pytest.mark.parametrize(
    ("x", "text"),
    [(0, "0"), (-2.1, "−2.1"), (0.07582, "0.0758"), (1.0, "1"), (123456.0, "123456"),
     (float("nan"), "–"), (1.5e-7, "1.50e−07"), (20.0, "20")],
)  # fmt: skip
def test_numbers_are_short(x, text):
    assert number(x) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1e-6, "less than 0.01 %"), (0.0003, "0.03 %"), (0.0123, "1.2 %"),
     (0.456, "46 %"), (0.9988, "99.9 %"), (0.99999, "more than 99.9 %"), (1, "100 %")],
)  # fmt: skip
def test_shares_do_not_round_to_nothing_or_all(share, text):
    assert percent(share) == text


# ---- what is computed -----------------------------------------------------------------------


def test_even_values_err_by_the_root_of_a_twelfth_and_in_teeth(tmp_path):
    """Uniform values on a grid that covers them: 12^-1/2 steps, never more than a half."""
    (run,) = counted(tmp_path, Made("a.input", np.linspace(0, 7, 200_001), 3))
    side = _tensor.side(run)
    assert _tensor.rmse(run.hist) / side.step == pytest.approx(12**-0.5, rel=0.02)
    assert np.nanmax(side.rmse) <= 0.5 + 1e-6
    tops = (side.rmse[1:-1] > side.rmse[:-2]) & (side.rmse[1:-1] >= side.rmse[2:])
    assert tops.sum() == 7  # midway between each two of the 8 levels


def test_fewer_bins_keep_counts_and_mean_errors(network):
    hist = network["blocks.0.mlp.fc2.input"]
    fine, coarse = (_tensor.side(Run("nearest", "N", hist), bins) for bins in (256, 64))
    assert coarse.float.sum() == fine.float.sum() == hist.count
    assert np.array_equal(coarse.float, fine.float.reshape(64, 4).sum(1))
    assert np.array_equal(coarse.edges, fine.edges[::4])
    squares = [np.nansum(s.rmse**2 * s.float) for s in (fine, coarse)]
    assert squares[0] == pytest.approx(squares[1])


def test_clipped_share_is_divided_between_the_ends(tmp_path):
    x = np.concatenate([np.zeros(900), np.full(60, 9.0), np.full(40, -9.0)])
    x += np.linspace(-0.01, 0.01, 1000)
    (run,) = counted(tmp_path, Made("a.input", x, 4, -1.0, 1.0))
    below, above = _tensor.outside(run.hist)
    assert below + above == pytest.approx(run.hist.clipped) == pytest.approx(0.1)
    assert (below, above) == (pytest.approx(0.04), pytest.approx(0.06))


def test_clipping_that_the_sample_missed_is_put_at_the_far_end(network):
    hist = network["blocks.2.mlp.fc2.input"]  # nothing of it is clipped, and it ends within
    odd = replace(hist, clipped=1e-6, clip_lo=-1e3, clip_hi=float(hist.percentiles[-1]) - 0.1,
                  scale=0.01, float=np.where(np.arange(256) < 200, hist.float, 0))  # fmt: skip
    assert _tensor.outside(odd) == (pytest.approx(0), pytest.approx(1e-6))
    assert _tensor.outside(replace(hist, clipped=0.0)) == (0.0, 0.0)


def test_few_levels_serve_the_bulk_when_an_outlier_stretches_the_grid(tmp_path):
    draw = np.random.default_rng(0)
    tame = draw.uniform(0, 15, 20_000)
    wild = tame.copy()
    wild[0] = 300.0
    plain, stretched = counted(tmp_path, Made("a.input", tame, 4), Made("b.input", wild, 4))
    assert _tensor.bulk_levels(plain.hist) == 16
    assert (
        _tensor.bulk_levels(stretched.hist) == 2
    )  # 0 and 20, of which the second is the nearest from 10 on
    assert tensor_histogram.headline(tensor_histogram.info([stretched])) == (
        "Only 2 of 16 levels serve 99.8 % of the values; nothing clipped"
    )


# ---- the histogram --------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("stage", ["float", "rounded"])
@pytest.mark.parametrize("tensor", ["weight", "input", "output"])
def test_tensor_histogram_draws(network, tensor, stage, dark):
    grids = 12 if tensor == "weight" else 1
    run = Run("nearest", "Nearest", network[f"blocks.1.mlp.fc2.{tensor}"], grids)
    info = tensor_histogram.info([run], stage=stage)
    body = check(tensor_histogram.figure(info, dark=dark))
    assert body["layout"]["yaxis2"]["title"]["text"].startswith("error (")
    assert tensor_histogram.headline(info) in tensor_histogram.alt(info)
    assert f"{run.hist.count:,} values" in tensor_histogram.alt(info)


def test_levels_are_drawn_where_one_grid_is_shared_only(network):
    hist = network["blocks.1.mlp.fc2.input"]
    names = [
        [t.name for t in tensor_histogram.figure(tensor_histogram.info([run])).data]
        for run in (Run("nearest", "N", hist), Run("nearest", "N", hist, grids=12))
    ]
    assert "levels of the grid" in names[0] and "levels of the grid" not in names[1]


def test_stems_stand_on_the_levels_at_their_counts(network):
    hist = network["blocks.1.mlp.fc2.input"]
    info = tensor_histogram.info([Run("nearest", "N", hist)], stage="rounded", log=False)
    (marked,) = [t for t in tensor_histogram.figure(info).data if t.name == "after rounding"]
    assert np.allclose(values(marked, "x"), hist.levels)
    assert values(marked, "y").sum() == hist.count


def test_shading_begins_half_a_step_outside_the_last_level(network):
    hist = network["blocks.1.mlp.fc2.input"]
    info = tensor_histogram.info([Run("nearest", "N", hist)])
    shapes = tensor_histogram.figure(info).layout.shapes
    lines = {round(s.x0, 9) for s in shapes if s.type == "line" and s.x0 == s.x1}
    half = hist.scale / 2
    assert lines == {round(hist.clip_lo - half, 9), round(hist.clip_hi + half, 9)}
    side = info.main
    middle = (side.edges[1:] + side.edges[:-1]) / 2
    width = side.edges[1] - side.edges[0]
    inside = (middle > hist.clip_lo - half + width) & (middle < hist.clip_hi + half - width)
    assert np.nanmax(side.rmse[inside]) <= 0.5 + width / hist.scale
    assert np.nanmin(side.rmse[~inside]) > 0.5 - 2 * width / hist.scale  # the wall


def test_errors_beyond_their_axis_are_marked_at_its_edge(tmp_path):
    x = np.append(np.linspace(-1, 1, 5000), 9.0)
    (run,) = counted(tmp_path, Made("a.input", x, 4, -1.0, 1.0))
    figure = tensor_histogram.figure(tensor_histogram.info([run]))
    top = figure.layout.yaxis2.range[1]
    (far,) = [t for t in figure.data if t.marker.symbol == "triangle-up" and t.yaxis == "y2"]
    assert values(far, "y").max() < top < far.customdata[0][1]
    assert far.customdata[0][1] == pytest.approx(8 / run.hist.scale, rel=0.02)


def test_runs_laid_over_each_other_have_colors_and_dashes_of_their_methods(network):
    one = Run("nearest", "Nearest", network["blocks.1.mlp.fc2.input"])
    two = Run("brecq", "BRECQ", network["blocks.1.mlp.fc1.input"])
    info = tensor_histogram.info([one, two], stage="rounded")
    figure = tensor_histogram.figure(info)
    for run in (one, two):
        (marked,) = [t for t in figure.data if t.name == run.title]
        assert marked.marker.color == theme.style(run.method).color
        assert marked.marker.symbol == theme.style(run.method).symbol
    dashes = {t.line.dash for t in figure.data if (t.yaxis or "") == "y2" and "lines" in t.mode}
    assert dashes == {theme.style("nearest").dash, theme.style("brecq").dash}
    assert "Laid over it: BRECQ" in tensor_histogram.alt(info)


def test_a_tensor_in_float_has_neither_grid_nor_error(tmp_path):
    (run,) = counted(tmp_path, Made("a.input", np.linspace(-1, 1, 500), 0))
    info = tensor_histogram.info([run], stage="rounded")
    assert tensor_histogram.headline(info) == "Kept in float: no grid, nothing is rounded"
    body = check(tensor_histogram.figure(info))
    assert "yaxis2" not in body["layout"] and len(body["data"]) == 1
    assert not body["layout"].get("shapes")


def test_an_output_tells_its_error_as_a_share_of_its_spread(tmp_path):
    draw = np.random.default_rng(1)
    x = draw.normal(0, 2, 40_000)
    noisy = x + draw.normal(0, 0.5, x.size)
    (run,) = counted(tmp_path, Made("a.output", x, 0, quantized=noisy))
    said = tensor_histogram.headline(tensor_histogram.info([run]))
    assert said == "The quantized network is off by 25 % of this output's spread"


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("symlog", [True, False])
def test_axes_can_be_changed(network, log, symlog):
    run = Run("nearest", "N", network["blocks.2.mlp.fc2.input"])
    info = tensor_histogram.info([run], log=log, symlog=symlog, bins=64)
    body = check(tensor_histogram.figure(info, large=True))
    assert body["layout"]["yaxis"]["type"] == ("log" if log else "linear")
    assert ("ticktext" in body["layout"]["xaxis"]) == symlog
    assert len(info.main.float) == 64


# ---- codes ----------------------------------------------------------------------------------


def test_codes_count_every_value_once(network):
    run = Run("nearest", "Nearest", network["blocks.1.mlp.fc2.input"])
    info = code_counts.info([run], log=False)
    bars = code_counts.figure(info).data[0]
    assert list(bars.x) == list(range(16))
    assert values(bars, "y").sum() == run.hist.count
    check(code_counts.figure(info))
    most = run.hist.codes.max() / run.hist.count
    assert f"{most:.0%}".replace("%", " %") in code_counts.alt(info)


def test_codes_in_use(tmp_path):
    x = np.concatenate([np.zeros(950), np.full(50, 1.0)])
    (run,) = counted(tmp_path, Made("a.input", x, 2))
    info = code_counts.info([run])
    assert (info.used, info.busy) == (2, 1)
    assert code_counts.headline(info) == (
        "2 of 4 codes are used; one of them holds 90 % of the values"
    )


# ---- errors ---------------------------------------------------------------------------------


def test_errors_within_half_a_step(tmp_path):
    """A tenth of the values lies far outside: nine tenths err by half a step at most."""
    x = np.concatenate([np.linspace(-1, 1, 9000), np.full(1000, 1.6)])
    (run,) = counted(tmp_path, Made("a.input", x, 4, -1.0, 1.0))
    info = error_histogram.info([run])
    assert info.within == pytest.approx(0.9, abs=0.01)
    assert info.largest == pytest.approx((1.6 - run.hist.clip_hi) / run.hist.scale)
    body = check(error_histogram.figure(info))
    names = [t["name"] for t in body["data"]]
    assert names[:2] == ["even over one step", "bell curve of that size"]
    assert len(body["layout"]["shapes"]) == 2


def test_references_have_the_tensors_number_of_values(tmp_path):
    x = np.linspace(-1, 1, 100_000)
    (run,) = counted(tmp_path, Made("a.input", x, 4))
    info = error_histogram.info([run], log=False)
    even, bell, _ = error_histogram.figure(info).data
    width = info.edges[0][1] - info.edges[0][0]
    assert even.y[1] / width == pytest.approx(run.hist.count)
    assert even.y[1] == pytest.approx(np.median(info.counts[0]), rel=0.02)
    area = np.trapezoid(values(bell, "y"), values(bell, "x")) / width
    assert area == pytest.approx(0.917 * run.hist.count, rel=0.02)  # ±√3 σ of a bell curve


def test_errors_of_an_output_are_in_its_own_unit(network):
    info = error_histogram.info([Run("nearest", "N", network["blocks.1.mlp.fc2.output"])])
    body = check(error_histogram.figure(info))
    assert not info.stepped and not body["layout"].get("shapes")
    assert "steps" not in body["layout"]["xaxis"]["title"]["text"]


# ---- channels -------------------------------------------------------------------------------


def test_channel_map_finds_the_widest_channel(network):
    run = Run("nearest", "Nearest", network["blocks.1.mlp.fc1.weight"], 12)
    info = channel_map.info(run)
    assert info.counts.shape == (12, 64) and info.counts.sum() == 3600
    assert info.span[-1] > 2 * info.span[0]  # the standard deviation grows fourfold
    body = check(channel_map.figure(info))
    assert body["data"][0]["colorscale"] and body["layout"]["yaxis"]["autorange"] == "reversed"
    assert channel_map.headline(info).startswith("Channel 1")
    assert "12 channels as rows" in channel_map.alt(info)


def test_the_largest_channel_map_stays_small(tmp_path):
    weights = np.random.default_rng(0).normal(0, 1, (128, 40))
    (run,) = counted(tmp_path, Made("a.weight", weights, 4))
    info = channel_map.info(run, stage="rounded")
    assert marks(channel_map.figure(info)) == 128 * 64


def test_one_channel_by_its_number(network):
    run = Run("nearest", "Nearest", network["blocks.1.mlp.fc1.weight"], 12)
    info = channel_histogram.info(run, 11)
    body = check(channel_histogram.figure(info))
    assert info.float.sum() == info.rounded.sum() == 300
    (marked,) = [t for t in body["data"] if t.get("name") == "after rounding"]
    assert marked["mode"] == "markers" and (info.rounded > 0).sum() <= 16
    assert channel_histogram.headline(info).startswith("Channel 11 spans")


# ---- the ladder -----------------------------------------------------------------------------


def test_ladder_keeps_network_order_or_puts_outliers_first(network):
    hists = list(network.values())
    plain = range_ladder.info(hists, kind="input")
    sorted_ = range_ladder.info(hists, kind="input", order="outliers")
    assert [r.name for r in plain.rungs][:2] == [
        "blocks.0.attn.qkv.input",
        "blocks.0.attn.proj.input",
    ]
    assert sum(r.tensor in ("left", "right") for r in plain.rungs) == 2
    ratios = [r.ratio for r in sorted_.rungs]
    assert ratios == sorted(ratios, reverse=True)
    assert plain.worst.name == sorted_.rungs[0].name == "blocks.2.mlp.fc2.input"
    assert [r.layer for r in plain.flagged] == ["blocks.2.mlp.fc2"]
    assert range_ladder.headline(plain) == "1 of 18 inputs have outliers"
    assert "blocks.2.mlp.fc2.input" in range_ladder.alt(plain)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", ["weight", "input", "output"])
def test_ladder_rungs_can_be_clicked_and_read(network, kind, dark):
    info = range_ladder.info(list(network.values()), kind=kind)
    body = check(range_ladder.figure(info, dark=dark))
    (bars,) = [t for t in body["data"] if t["type"] == "bar"]
    assert [row[:2] for row in bars["customdata"]] == [[r.layer, r.tensor] for r in info.rungs]
    assert bars["marker"]["opacity"] == 0 and bars["orientation"] == "h"
    assert len(body["layout"]["yaxis"]["ticktext"]) == len(info.rungs)
    assert body["layout"]["yaxis"]["range"][0] > body["layout"]["yaxis"]["range"][1]  # first on top


def test_ladder_of_a_large_network_stays_small(network):
    hists = [network["blocks.0.mlp.fc1.input"]] * 150
    figure = range_ladder.figure(range_ladder.info(hists))
    assert marks(figure) < 3000 and figure.layout.height > 150 * 15


def test_ladder_without_tensors(network):
    info = range_ladder.info([], kind="weight")
    assert range_ladder.headline(info) == "No weights were recorded"
    range_ladder.figure(info)
