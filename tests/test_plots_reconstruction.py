"""What learned rounding changed: the numbers behind the figures, and what the figures draw."""

import math
from dataclasses import replace

import numpy as np
import pytest
from test_plots import check, record, steps

from qlib.plots.reconstruction import (
    error_arrows,
    flips,
    learned,
    soft_rounding,
    unit_fits,
    unit_loss,
    waterfall,
)
from qlib.plots.shared import theme

TITLES = {"nearest": "Nearest", "adaround": "AdaRound", "brecq": "BRECQ", "qdrop": "QDrop"}


def rows(*layers, unit="blocks.0"):
    """Rows of ``layers.csv`` for (name, params, weight ratio, output ratio, flipped)."""
    found = []
    for name, params, weight, output, flipped in layers:
        place = {"layer": f"{unit}.{name}", "unit": unit, "kind": "linear"}
        found.append(
            place
            | {"tensor": "weight", "params": params, "flipped": flipped}
            | {"mse": 0.02 * weight, "mse_nearest": 0.02}
        )
        found.append(place | {"tensor": "output", "acc_mse": 5.0 * output, "acc_mse_nearest": 5.0})
    return found


TRADED = rows(
    ("fc1", 100, 1.5, 0.5, 0.10), ("fc2", 300, 2.0, 0.25, 0.30), ("qkv", 100, 1.2, 1.1, 0)
)


# ---- gains ----------------------------------------------------------------------------------


def test_gains_are_ratios_to_nearest():
    one, two, three = learned.gains(TRADED)
    assert (one.layer, one.unit, one.params) == ("blocks.0.fc1", "blocks.0", 100)
    assert (one.weight, one.output) == (pytest.approx(1.5), pytest.approx(0.5))
    assert [g.traded for g in (one, two, three)] == [True, True, False]
    assert learned.moved([one, two, three]) == pytest.approx((10 + 90 + 0) / 500)
    assert learned.typical([one, two, three]) == (pytest.approx(1.5), pytest.approx(0.5))


@pytest.mark.parametrize("bad", [None, "", 0.0, "nan", float("inf")])
def test_gains_without_something_to_divide_by(bad):
    weight, output = rows(("fc", 10, 1.5, 0.5, 0.1))
    (gain,) = learned.gains([weight | {"mse_nearest": bad}, output | {"acc_mse_nearest": bad}])
    assert (gain.weight, gain.output, gain.traded) == (None, None, False)
    (gain,) = learned.gains([weight])  # a run without rows of outputs
    assert gain.weight == pytest.approx(1.5) and gain.output is None
    assert learned.typical([gain])[1] is None


def test_gains_against_another_network():
    mine = [r | {"acc_mse": 2.0, "acc_mse_test": 3.0} for r in TRADED]
    near = [
        r | {"acc_mse": 4.0, "acc_mse_test": 4.0} for r in TRADED if r["layer"] != "blocks.0.qkv"
    ]
    assert [g.output for g in learned.gains(mine, near)] == [0.5, 0.5, None]
    assert [g.output for g in learned.gains(mine, near, "test")] == [0.75, 0.75, None]
    bent = [r | ({"mse": 0.03} if r["tensor"] == "weight" else {}) for r in TRADED]
    even = [r | ({"mse_nearest": 0.06} if r["tensor"] == "weight" else {}) for r in TRADED]
    assert [g.weight for g in learned.gains(bent)] == [1.5, 1.5, 1.5]  # on grids of its own
    assert [g.weight for g in learned.gains(bent, even)] == [0.5, 0.5, 0.5]
    assert learned.regridded(learned.gains(bent, even))
    info = error_arrows.info({"brecq": mine}, nearest=near, data="test", titles=TITLES)
    assert [g.output for g in info.main] == [0.75, 0.75]
    axis = error_arrows.figure(info).layout.yaxis.title.text
    assert axis == "output error against the nearest network, log"


def test_moved_of_nothing_known():
    assert learned.moved([]) is None
    assert learned.moved(learned.gains(rows(("fc", 10, 1, 1, None)))) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.00×"), (1.49, "1.5×"), (0.48, "0.48×"), (1.02, "1.02×"), (12.3, "12×")],
)
def test_times(value, text):
    assert learned.times(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.134, "13 %"), (0.0042, "0.4 %"), (0, "0 %")])
def test_percent(value, text):
    assert learned.percent(value) == text


# ---- arrows ---------------------------------------------------------------------------------


def test_arrows_numbers():
    info = error_arrows.info({"brecq": TRADED}, titles=TITLES, layer="blocks.0.fc1")
    assert error_arrows.headline(info) == "Weights worse, output better: 2 of 3 layers"
    words = error_arrows.alt(info)
    assert "the weight error is 1.5× and the output error 0.50×" in words
    assert words.endswith("blocks.0.fc1: 1.5× and 0.50×.")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_arrows_figure(dark, large):
    info = error_arrows.info(
        {"brecq": TRADED, "adaround": TRADED}, titles=TITLES, layer="blocks.0.fc2"
    )
    figure = error_arrows.figure(info, dark=dark, large=large)
    body = check(figure)
    arrows = next(t for t in body["data"] if t["name"] == "BRECQ" and t["x"] != [None])
    assert arrows["x"][:3] == [1.0, pytest.approx(1.5), None]
    assert arrows["y"][:3] == [1.0, pytest.approx(0.5), None]
    assert arrows["marker"]["angleref"] == "previous"
    tips = arrows["customdata"][1::3]
    assert [c[0] for c in tips] == [f"blocks.0.{n}" for n in ("fc1", "fc2", "qkv")]
    assert arrows["customdata"][0] == [None] * 5  # a click on the common start chooses nothing
    sizes = next(t for t in figure.data if t.name == "BRECQ" and len(t.x) > 1).marker.size[1::3]
    assert sizes[1] > sizes[0] == sizes[2]  # the chosen layer
    dashes = {t["name"]: t["line"]["dash"] for t in body["data"] if t["name"] in TITLES.values()}
    assert dashes == {"BRECQ": "solid", "AdaRound": "dash"}  # not colour alone
    for name in ("xaxis", "yaxis"):
        assert (
            body["layout"][name]["type"] == "log" and "log" in body["layout"][name]["title"]["text"]
        )
    low, high = body["layout"]["xaxis"]["range"]
    assert low < 0 < math.log10(2.0) < high
    low, high = body["layout"]["yaxis"]["range"]
    assert low < math.log10(0.25) and high > math.log10(1.1)
    lines = [s for s in body["layout"]["shapes"] if s["type"] == "line"]
    assert {(s.get("x0"), s.get("y0")) for s in lines} >= {(0, 1), (1, 0)}  # both at 1
    texts = " ".join(a["text"] for a in body["layout"]["annotations"])
    assert "output better" in texts and "output worse" in texts and "<b>0.fc2</b>" in texts


def test_arrows_of_a_run_that_learned_nothing_better():
    worse = error_arrows.info({"brecq": rows(("fc", 10, 1.5, 1.2, 0.1))})
    assert error_arrows.headline(worse) == "In no layer did moving weights bring the output closer"
    empty = error_arrows.info({"nearest": [r | {"mse": None} for r in TRADED]})
    assert empty.groups == () and "nothing was learned" in error_arrows.alt(empty)
    check(error_arrows.figure(empty))


# ---- flips ----------------------------------------------------------------------------------


def test_flips_numbers_and_bars():
    info = flips.info({"brecq": TRADED}, titles=TITLES, layer="blocks.0.fc2")
    assert flips.headline(info) == "20 % of weights moved; most: 0.fc2 (30 %)"
    body = check(flips.figure(info))
    (bars,) = body["data"]
    assert (
        bars["type"] == "bar" and bars["x"] == [0, 1, 2] and bars["y"] == pytest.approx([10, 30, 0])
    )
    assert bars["marker"]["line"]["width"] == [0, 2, 0]
    assert bars["customdata"][1] == ["blocks.0.fc2", 300]
    assert body["layout"]["yaxis"]["title"]["text"] == "weights moved (%)"
    assert "blocks.0.fc2: 30 %." in flips.alt(info)


def test_flips_of_several_methods_share_their_places():
    other = rows(("fc2", 300, 2.0, 0.25, 0.2), ("head", 10, 1.5, 0.5, 0.4))
    info = flips.info({"brecq": TRADED, "adaround": other}, titles=TITLES)
    body = check(flips.figure(info))
    one, two = body["data"]
    assert (one["mode"], two["mode"]) == ("markers", "markers")
    assert one["marker"]["symbol"] != two["marker"]["symbol"]
    assert two["x"] == [1, 3]  # fc2 is second, head comes after all of the first method's


def test_flips_of_nearest():
    still = rows(("fc", 10, 1, 1, 0.0))
    assert flips.headline(flips.info({"nearest": still})).startswith("No weight was moved")
    assert flips.alt(flips.info({})) == "Share of moved weights per layer: nothing to show."
    check(flips.figure(flips.info({})))


# ---- loss of a unit -------------------------------------------------------------------------


def test_unit_loss_finds_the_layer_or_its_block():
    blocks = steps("blocks.0", 1, [4.0, 2.0]) + steps("blocks.1", 2, [9.0, 1.0])
    layers = steps("blocks.1.fc1", 1, [3.0, 3.3]) + steps("blocks.1.fc2", 2, [1.0, 1.0])
    info = unit_loss.info(
        {"brecq": blocks, "adaround": layers}, "blocks.1.fc1", "blocks.1", titles=TITLES
    )
    assert [(t.title, t.unit) for t in info.tracks] == [
        ("BRECQ", "blocks.1"),
        ("AdaRound", "blocks.1.fc1"),
    ]
    assert [f.unit for f in info.others] == ["blocks.0"]
    assert unit_loss.headline(info) == "blocks.1: error fell from 9 to 1 (89 %)"
    assert "AdaRound (blocks.1.fc1) from 3 to 3.3" in unit_loss.alt(info)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([1.0, 1.2], "error rose from 1 to 1.2 (20 %)"),
        ([1.0, 5.0], "error rose from 1 to 5 (5.0 times)"),
        ([1.0, 1.001], "the error ends where it began"),
    ],
)
def test_unit_loss_says_what_became_of_the_error(losses, words):
    assert words in unit_loss.headline(unit_loss.info({"brecq": steps("b", 1, losses)}, "b", "b"))


def test_unit_loss_of_two_rounds_goes_from_first_to_last():
    events = steps("b", 1, [8.0, 6.0]) + steps("b", 1, [5.0, 2.0])
    info = unit_loss.info({"brecq": events}, "b", "b")
    assert [f.round for f in info.main.fits] == [1, 2]
    assert "fell from 8 to 2 (75 %)" in unit_loss.headline(info)


def test_unit_loss_flags_a_diverged_unit_and_shows_the_others():
    events = steps("a", 1, [2.0, 1.0]) + steps("b", 2, [2.0, float("inf")])
    events[-1]["loss"] = None  # as the log writes a loss that is no number
    info = unit_loss.info({"brecq": events}, "b", "b", titles=TITLES)
    assert info.broken == ("b",)
    assert unit_loss.headline(info) == "b: the loss stopped being a number"
    healthy = unit_loss.info({"brecq": events}, "a", "a", titles=TITLES)
    assert "fell from 2 to 1 (50 %)" in unit_loss.headline(healthy)
    body = check(unit_loss.figure(healthy))
    assert {"a", "b", "BRECQ"} - {t["name"] for t in body["data"]} == {"a"}


@pytest.mark.parametrize("large", [False, True])
def test_unit_loss_figure(large):
    warm = steps("a", 1, [3.0, 2.0]) + steps("a", 1, [1.5, 1.4], first=3, penalty=7.0)
    info = unit_loss.info({"brecq": warm}, "a", "a", titles=TITLES)
    body = check(unit_loss.figure(info, large=large))
    assert body["layout"]["yaxis"]["type"] == "log"
    assert body["layout"]["xaxis"]["title"]["text"] == "step inside the unit"
    push = next(t for t in body["data"] if t["name"] == "rounding penalty")
    assert push["y"] == [7.0, 7.0] and push["line"]["dash"] == "dash" and push["yaxis"] == "y2"
    assert any(s["x0"] == 3 for s in body["layout"]["shapes"])  # the end of warm-up
    start = next(t for t in body["data"] if t["name"] == "BRECQ, start")
    assert (start["x"], start["y"]) == ([1], [3.0])
    plain = check(unit_loss.figure(info, log=False, penalty=False))
    assert "type" not in plain["layout"]["yaxis"] and "yaxis2" not in plain["layout"]
    assert plain["layout"]["yaxis"]["range"] == [0, pytest.approx(3.15)]


def test_unit_loss_smoothing_is_a_running_median():
    draw = np.random.default_rng(0).uniform(1, 2, 101)
    found = unit_fits.smoothed(draw.tolist(), window=9)
    assert len(found) == 101
    assert found[50] == pytest.approx(float(np.median(draw[46:55])))
    assert found[0] == pytest.approx(float(np.median(draw[:5])))
    assert unit_fits.smoothed([3.0, 1.0]) == (3.0, 1.0)
    info = unit_loss.info({"brecq": steps("a", 1, draw.tolist())}, "a", "a", smooth=True)
    thick = max(unit_loss.figure(info).data, key=lambda t: t.line.width or 0)
    assert max(thick.y) - min(thick.y) < draw.max() - draw.min()


def test_unit_loss_of_many_units_stays_small():
    events = [e for u in range(150) for e in steps(f"u{u}", u + 1, [2.0, 1.0] * 200)]
    info = unit_loss.info({m: events for m in ("brecq", "qdrop", "adaround")}, "u75", "u75")
    assert "u75" not in {f.unit for f in info.others} and len(info.others) == 24
    assert theme.marks(unit_loss.figure(info, penalty=True)) < 5_000


def test_unit_loss_without_anything():
    info = unit_loss.info({"nearest": []}, "a", "a")
    assert info.main is None and unit_loss.headline(info) == "No loss is stored for this unit"
    check(unit_loss.figure(info))


# ---- soft rounding --------------------------------------------------------------------------


def snapshots(unit, taken, bins=20, **more):
    """Events whose soft counts move from even to the two ends as the steps go on."""
    events = []
    for place, step in enumerate(taken):
        ends = 1000 * place / max(1, len(taken) - 1)
        counts = [(1000 - ends) / bins] * bins
        counts[0] += ends / 2
        counts[-1] += ends / 2
        events.append(
            {"phase": "reconstruct", "unit": unit, "step": step, "soft": counts, "loss": 1.0,
             "flipped": 0.2 * place / len(taken)} | more
        )  # fmt: skip
    return events


def test_soft_rounding_collapses():
    info = soft_rounding.info(snapshots("b", [1, 100, 200, 400]), "b.fc", "b", method="brecq")
    assert (info.unit, info.steps, info.at) == ("b", (1, 100, 200, 400), 3)
    assert all(sum(s.shares) == pytest.approx(1) for s in info.snapshots)
    assert [s.decided for s in info.snapshots] == pytest.approx([0.1, 0.4, 0.7, 1.0])
    assert soft_rounding.headline(info) == ("Step 400: 100 % of weights chose a side, 15 % moved")
    early = soft_rounding.info(snapshots("b", [1, 100, 200, 400]), "b.fc", "b", step=130)
    assert early.chosen.step == 100 and "Step 100: 40 %" in soft_rounding.headline(early)
    assert "at step 1 10 % lay at 0 or 1, at step 400 100 %" in soft_rounding.alt(early).lower()


def test_soft_rounding_takes_the_layers_own_fit_and_the_first_round():
    events = snapshots("b.fc", [1, 50]) + snapshots("b", [1, 70]) + snapshots("b", [1, 30])
    assert soft_rounding.info(events, "b.fc", "b").steps == (1, 50)
    assert soft_rounding.info(events, "b.proj", "b").steps == (1, 70)


@pytest.mark.parametrize("counts", [None, [], "no", [0, 0], [1, -2], [1, None], [1, "x"]])
def test_soft_rounding_ignores_what_is_no_histogram(counts):
    info = soft_rounding.info(snapshots("b", [1]) and [
        {"phase": "reconstruct", "unit": "b", "step": 1, "soft": counts}
    ], "b", "b")  # fmt: skip
    assert info.snapshots == () and "nothing is stored" in soft_rounding.alt(info)
    check(soft_rounding.figure(info))


@pytest.mark.parametrize("dark", [False, True])
def test_soft_rounding_figure(dark):
    info = soft_rounding.info(snapshots("b", [1, 100, 400]), "b", "b", method="brecq", step=100)
    body = check(soft_rounding.figure(info, dark=dark))
    heat, bars = body["data"]
    assert heat["type"] == "heatmap" and len(heat["z"]) == 20 and len(heat["z"][0]) == 3
    assert heat["x"] == [-48.5, 50.5, 250.0, 550.0] and heat["y"][0] == 0 and heat["y"][-1] == 1
    assert heat["z"][10][2] is None  # at the end nothing is left in the middle
    assert bars["orientation"] == "h" and sum(bars["x"]) == pytest.approx(100)
    frame = body["layout"]["shapes"][0]
    assert (frame["x0"], frame["x1"]) == (50.5, 250.0)
    assert body["layout"]["yaxis"]["title"]["text"] == "h: 0 = down, 1 = up"


def test_soft_rounding_of_one_snapshot():
    check(soft_rounding.figure(soft_rounding.info(snapshots("b", [7]), "b", "b")))


# ---- waterfall ------------------------------------------------------------------------------


def ladder(top1=(60.0, 80.0, 90.0, 90.5), kl=(1.0, 0.5, 0.25, 0.3)):
    made = {}
    for method, value, nats in zip(TITLES, top1, kl, strict=True):
        base = record(method, top1=value)
        made[method] = replace(base, metrics=base.metrics | {"agreement": value, "kl": nats})
    return made


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_waterfall_numbers():
    p = {"adaround": 0.001, "qdrop": 0.2}
    info = waterfall.info(ladder(), titles=TITLES, p=p)
    assert [s.title for s in info.steps] == ["Nearest", "AdaRound", "BRECQ", "QDrop"]
    assert [info.gain(i) for i in (1, 2, 3)] == pytest.approx([20, 10, 0.5])
    assert info.clear(1) and not info.clear(3)
    assert info.steps[0].low == pytest.approx(55.64, abs=0.01)  # Wilson, 300 of 500
    assert plain(waterfall.headline(info)) == (
        "AdaRound's step is the largest: +20.0 points (paired p = 0.001)"
    )
    assert "QDrop 90.5" in waterfall.alt(info) and info.missing == ()


def test_waterfall_of_small_steps_says_so():
    small = ladder((90.0, 90.4, 90.2, 90.1))
    info = waterfall.info(small, titles=TITLES, p={"adaround": 0.5})
    assert plain(waterfall.headline(info)) == (
        "AdaRound's step is the largest: +0.4 points, but 500 images do not prove it "
        "(paired p = 0.50)"
    )
    untested = waterfall.info(small, titles=TITLES)
    assert waterfall.headline(untested) == "AdaRound's step is the largest: +0.4 points"
    worse = waterfall.info(ladder((90.0, 80.0, 70.0, 60.0)), titles=TITLES)
    assert waterfall.headline(worse) == "No ingredient makes the network better here"


def test_waterfall_of_kl_counts_down():
    info = waterfall.info(ladder(), metric="kl", titles=TITLES)
    assert info.gain(1) == pytest.approx(0.5) and info.gain(3) == pytest.approx(-0.05)
    assert info.reference == 0 and info.steps[0].low is None
    assert waterfall.headline(info).endswith("step is the largest: −0.500 nats")


@pytest.mark.parametrize("metric", list(waterfall.METRICS))
@pytest.mark.parametrize("dark", [False, True])
def test_waterfall_figure(metric, dark):
    info = waterfall.info(ladder(), metric=metric, titles=TITLES)
    body = check(waterfall.figure(info, dark=dark))
    assert body["layout"]["yaxis"]["title"]["text"] == waterfall.AXES[metric]
    bars = [s for s in body["layout"]["shapes"] if s["type"] == "rect"]
    assert len(bars) == 3
    assert (bars[0]["y0"], bars[0]["y1"]) == (info.steps[0].value, info.steps[1].value)
    worse = [b for b in bars if b["fillcolor"] == theme.rgba(theme.WRONG, 0.35)]
    assert len(worse) == (1 if metric == "kl" else 0)
    texts = [a["text"] for a in body["layout"]["annotations"]]
    assert sum(t.startswith(("▲", "▼")) for t in texts) == 3  # never colour alone
    assert ("error_y" in body["data"][0]) == (metric != "kl")


def test_waterfall_skips_what_is_not_stored():
    found = ladder()
    info = waterfall.info({m: found[m] for m in ("nearest", "qdrop")}, titles=TITLES)
    assert [s.method for s in info.steps] == ["nearest", "qdrop"]
    assert info.missing == ("AdaRound", "BRECQ") and info.gain(1) == pytest.approx(30.5)
    alone = waterfall.info({"nearest": found["nearest"]}, titles=TITLES)
    assert waterfall.headline(alone) == "There are too few stored runs for a step"
    check(waterfall.figure(alone))
    check(waterfall.figure(waterfall.info({})))


def test_units_that_were_fitted_together_are_a_row():
    order = ["stem", "a", "b", "c", "head"]
    assert unit_fits.row_of("a … c", order) == ("a", "b", "c")
    assert unit_fits.row_of("a", order) == unit_fits.row_of("a … gone", order) == ()
