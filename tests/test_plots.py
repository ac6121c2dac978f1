"""The numbers behind the figures, and what the figures draw."""

import json
from dataclasses import replace
from itertools import pairwise

import fake_runs
import numpy as np
import plotly.graph_objects as go
import pytest

from qlib.core import catalogue
from qlib.core.records import RunRecord, RunSpec
from qlib.plots.bits import _width_marks, accuracy_bits
from qlib.plots.compare import accuracy_vs_size
from qlib.plots.reconstruction import loss_curve
from qlib.plots.shared import prediction_strip, theme

TITLES = {"nearest": "Nearest", "brecq": "BRECQ", "qdrop": "QDrop"}


def record(method="nearest", bits=4, top1=90.0, half=2.0, **changes) -> RunRecord:
    """A record with the given accuracy and an interval of ``half`` points to each side."""
    metrics = {
        "top1": top1,
        "top1_low": top1 - half,
        "top1_high": top1 + half,
        "top1_float": 95.0,
        "lost": float(max(0, round(5 * (95 - top1)))),  # of 500
        "gained": float(max(0, round(5 * (top1 - 95)))),
        "n": 500.0,
        "weight_mb": 0.1 * bits,
        "weight_mb_float": 3.2,
        "gbops": 0.01 * bits * bits,
    }
    spec = RunSpec("digits-vit", "digits", method, weight_bits=bits, act_bits=bits)
    base = RunRecord(spec, metrics, {"total": 10.0 * bits}, 100.0, data={"classes": 10})
    return replace(base, **changes)


def check(figure: go.Figure) -> dict:
    """What every figure owes its reader; returns its JSON."""
    body = json.loads(figure.to_json())
    assert body["layout"]["title"]["text"]
    assert theme.marks(figure) < 10_000
    sizes = [v for k, v in walk(body["layout"]) if k.endswith("font.size")]
    assert sizes and min(sizes) >= 12
    return body


def walk(node, path=""):
    """(dotted path, value) of all leaves."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from walk(value, f"{path}.{key}" if path else key)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value, path)
    else:
        yield path, node


# ---- theme ----------------------------------------------------------------------------------


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("color", [*theme.COLORS, theme.GREY, theme.WRONG])
@pytest.mark.parametrize("background", ["#FFFFFF", "#0E1117"])
def test_colors_stand_out_on_both_backgrounds(color, background):
    assert contrast(color, background) >= 3


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable(dark):
    assert contrast(theme.ink(dark), theme.paper(dark)) > 12
    assert contrast(theme.faint(dark), theme.paper(dark)) >= 4.5


def test_methods_differ_in_more_than_color():
    looks = [theme.style(key) for key in catalogue.looks()]
    for one in looks:
        for two in looks:
            apart = one.dash != two.dash or one.color != two.color
            assert one is two or (one.symbol != two.symbol and apart)
    assert theme.style("some-new-method") == theme.style("some-new-method")


# ---- accuracy over bits ---------------------------------------------------------------------


def test_accuracy_bits_numbers():
    runs = [record(bits=b, top1=t) for b, t in ((8, 95), (6, 94), (4, 80), (2, 12))]
    runs += [record("brecq", b, t) for b, t in ((8, 95), (4, 94), (2, 60))]
    info = accuracy_bits.info(runs, titles=TITLES, current=4)
    assert info.bits == (8, 6, 4, 2)
    assert (info.n, info.float_top1, info.chance) == (500, 95.0, 10.0)
    plain, learned = info.lines
    assert (plain.title, plain.holds_to) == ("Nearest", 6)
    assert (learned.title, learned.holds_to) == ("BRECQ", 4)
    assert [p.bits for p in learned.points] == [8, 4, 2]
    assert accuracy_bits.headline(info) == (
        "Nearest: no visible loss down to 6 bits; BRECQ: down to 4"
    )
    assert "BRECQ: 8 bits 95.0 %, 4 bits 94.0 %" in accuracy_bits.alt(info)


@pytest.mark.parametrize(
    ("plain", "learned", "words"),
    [
        ([95, 94], None, "No loss is visible down to 4 bits with 500 test images"),
        ([95, 60], None, "Nearest: no visible loss down to 8 bits, then the cliff"),
        ([95, 93], None, "Nearest: no visible loss down to 8 bits; 2.0 points lost at 4"),
        ([60, 50], [70, 60], "Every stored bit-width loses accuracy that these test images can"),
        ([60, 50], [94, 60], "Nearest: loses at once; BRECQ: down to 8"),
        ([95, 50], [95, 80], "Nearest: no visible loss down to 8 bits; at 4 bits BRECQ keeps 30"),
    ],
)
def test_accuracy_bits_headline(plain, learned, words):
    runs = [record(bits=b, top1=t) for b, t in zip((8, 4), plain, strict=True)]
    runs += [record("brecq", b, t) for b, t in zip((8, 4), learned or (), strict=False)]
    info = accuracy_bits.info(runs, titles=TITLES)
    assert accuracy_bits.headline(info).startswith(words)


@pytest.mark.parametrize("dark", [False, True])
def test_accuracy_bits_figure(dark):
    runs = [record(bits=b, top1=t) for b, t in ((8, 95), (4, 80))]
    info = accuracy_bits.info(runs, titles=TITLES, current=4)
    body = check(accuracy_bits.figure(info, dark=dark))
    assert body["layout"]["xaxis"]["title"]["text"] == "bits of weights and activations"
    assert body["layout"]["yaxis"]["title"]["text"] == "top-1 accuracy (%)"
    band, line, floats, chance = body["data"]
    assert band["y"] == [97, 82, 78, 93]  # upper ends, then lower ends backwards
    assert line["customdata"][1][:3] == [4, 78, 82]
    assert floats["line"]["dash"] == "dash" and floats["y"] == [95, 95]
    assert chance["line"]["dash"] == "dot" and chance["y"] == [10, 10]


def test_headline_when_only_the_baseline_holds():
    """A learned method that is stored at few bits alone takes nothing from the baseline."""
    runs = [record(bits=b, top1=t) for b, t in ((8, 95), (4, 80))] + [record("brecq", 3, 70)]
    info = accuracy_bits.info(runs, titles=TITLES)
    said = "Nearest: no visible loss down to 8 bits, then the cliff"
    assert accuracy_bits.headline(info) == said


def test_visible_losses_are_those_of_the_paired_test():
    """Six images lost and none gained are a loss though the interval holds float; 9 and 3 not."""
    for lost, gained, half, held in ((6, 0, 5.0, None), (9, 3, 0.1, 4)):
        run = record(top1=95 - (lost - gained) / 5, half=half)
        run = replace(run, metrics=run.metrics | {"lost": lost, "gained": gained})
        assert accuracy_bits.info([run]).lines[0].holds_to == held


def test_labels_at_line_ends_do_not_touch():
    placed = _width_marks.spread([95, 94, 94.5, 10, 9])
    ordered = sorted(placed)
    assert all(b - a >= 7.4 for a, b in pairwise(ordered))
    assert sorted(range(5), key=lambda i: placed[i]) == [4, 3, 1, 2, 0]


def test_accuracy_bits_wants_one_model():
    with pytest.raises(ValueError, match=r"needs runs of one model with W = A; got \[\]"):
        accuracy_bits.info([])


# ---- accuracy against cost ------------------------------------------------------------------


def test_accuracy_vs_size_front_and_intervals():
    runs = [record(bits=4, top1=80), record("brecq", 4, 90), record("qdrop", 8, 91)]
    info = accuracy_vs_size.info(runs, titles=TITLES)
    assert [(m.title, m.cost, m.front) for m in info.marks] == [
        ("BRECQ", 0.4, True),
        ("Nearest", 0.4, False),
        ("QDrop", 0.8, True),
    ]
    assert info.floats == ((3.2, 95.0),)
    assert accuracy_vs_size.headline(info) == (
        "QDrop W8A8 needs 2.0 times the memory of BRECQ W4A4, for 1.0 points more, "
        "inside the intervals"
    )
    keys = runs[2].spec.key, runs[1].spec.key
    for apart, end in ((True, "for 1.0 points more"), (False, "more, which may be chance")):
        paired = accuracy_vs_size.info(runs, titles=TITLES, apart={keys: apart})
        assert accuracy_vs_size.headline(paired).endswith(end)


def test_accuracy_vs_size_equal_costs_and_unfair():
    runs = [record(bits=4, top1=80), record("brecq", 4, 90)]
    ahead = accuracy_vs_size.info(runs, cost="time", titles=TITLES)
    assert accuracy_vs_size.headline(ahead) == "At 40 s each, 2 runs reach 80.0 to 90.0 %"
    assert [m.cost for m in ahead.marks] == [40, 40] and ahead.floats == ()
    unfair = accuracy_vs_size.info(runs, titles=TITLES, fair=False)
    assert "no front" in accuracy_vs_size.headline(unfair)
    assert not any(m.front for m in unfair.marks)
    cheap = accuracy_vs_size.info([runs[1], record(bits=8, top1=85)], titles=TITLES)
    assert accuracy_vs_size.headline(cheap) == (
        "BRECQ W4A4 costs least, and none of the 2 runs scores higher"
    )
    single = accuracy_vs_size.info(runs[:1], cost="bops", titles=TITLES)
    assert accuracy_vs_size.headline(single) == (
        "Nearest W4A4: 80.0 % at 0.16 billion bit-operations"
    )


@pytest.mark.parametrize("cost", list(accuracy_vs_size.COSTS))
def test_accuracy_vs_size_figure(cost):
    runs = [record(bits=b, top1=50 + 5 * b) for b in (2, 4, 8)] + [record("brecq", 4, 93)]
    info = accuracy_vs_size.info(runs, cost=cost, titles=TITLES)
    body = check(accuracy_vs_size.figure(info))
    assert body["layout"]["xaxis"]["title"]["text"].startswith(accuracy_vs_size.COSTS[cost])
    assert body["layout"]["xaxis"]["type"] == "log"
    brecq = next(t for t in body["data"] if t["name"] == "BRECQ" and t["x"] != [None])
    assert brecq["error_y"]["array"] == [2] and brecq["error_y"]["arrayminus"] == [2]
    assert "BRECQ W4A4: 93.0 % (91.0 to 95.0)" in accuracy_vs_size.alt(info)


# ---- loss curve -----------------------------------------------------------------------------


def steps(unit, index, losses, first=1, **more):
    return [
        {"phase": "reconstruct", "unit": unit, "index": index, "of": 2, "step": first + i,
         "steps": len(losses), "loss": loss, **more}
        for i, loss in enumerate(losses)
    ]  # fmt: skip


def test_loss_curve_tells_fits_apart():
    events = [{"phase": "load"}, *steps("a", 1, [4.0, 2.0]), *steps("b", 2, [8.0, 2.0])]
    events += steps("a", 1, [1.0, float("nan"), 0.0, 0.5])  # the second round starts over
    curve = loss_curve.info(events)
    assert [(f.unit, f.round, f.step) for f in curve.fits] == [
        ("a", 1, (1, 2)),
        ("b", 1, (1, 2)),
        ("a", 2, (1, 4)),
    ]
    assert curve.last.loss == (1.0, 0.5) and curve.last.change == -0.5
    assert loss_curve.headline(curve) == "Unit 1 of 2, round 2: the error has fallen by 50%"
    done = loss_curve.info(events, finished=True)
    assert loss_curve.headline(done).startswith("3 of 3 fits ended with a smaller error")


def test_loss_curve_one_layer_fitted_twice_in_a_row():
    curve = loss_curve.info([*steps("a", 1, [4, 2]), *steps("a", 1, [3, 1])])
    assert [(f.unit, f.round) for f in curve.fits] == [("a", 1), ("a", 2)]


def test_loss_curve_thins_but_keeps_extremes():
    losses = np.random.default_rng(0).uniform(1, 2, 5000)
    losses[1234], losses[4321] = 0.01, 50.0
    curve = loss_curve.info(steps("a", 1, losses.tolist()))
    (fit,) = curve.fits
    assert len(fit.step) <= loss_curve.POINTS
    assert (fit.step[0], fit.step[-1]) == (1, 5000)
    assert min(fit.loss) == 0.01 and max(fit.loss) == 50.0


def test_loss_curve_marks_the_end_of_warm_up():
    events = steps("a", 1, [3.0, 2.0]) + steps("a", 1, [1.5, 1.4], first=3, penalty=7.0)
    curve = loss_curve.info(events)
    assert curve.last.warmup_end == 3
    body = check(loss_curve.figure(curve))
    assert body["layout"]["yaxis"]["type"] == "log"
    assert body["layout"]["xaxis"]["title"]["text"] == "step inside the unit"
    assert body["layout"]["yaxis2"]["title"]["text"] == "penalty"
    assert [t["name"] for t in body["data"]] == ["a", "start", "rounding penalty"]


def test_loss_curve_of_many_fits_stays_small():
    events = [e for u in range(120) for e in steps(f"u{u}", u + 1, [2.0, 1.0] * 150)]
    figure = loss_curve.figure(loss_curve.info(events))
    assert theme.marks(figure) < 10_000


def test_loss_curve_without_events():
    curve = loss_curve.info([{"phase": "load"}])
    assert curve.last is None
    assert loss_curve.alt(curve) == "Reconstruction loss: nothing to show yet."
    check(loss_curve.figure(curve))


# ---- predictions ----------------------------------------------------------------------------


def guesses(*first):
    """(n, 5) classes whose best are ``first``."""
    return np.array([[c, *[k for k in range(10) if k != c][:4]] for c in first], np.int16)


@pytest.fixture
def preds():
    probs = np.tile(np.array([0.6, 0.2, 0.1, 0.06, 0.04], np.float16), (4, 1))
    return {
        "ids": np.array(["a", "b", "c", "d"]),
        "labels": np.array([1, 2, 3, 4]),
        "class_names": np.array([f"class {i}" for i in range(10)]),
        "float_top5": guesses(1, 2, 9, 9),
        "quant_top5": guesses(1, 7, 3, 9),
        "nearest_top5": guesses(7, 7, 7, 7),
        **{f"{side}_prob": probs for side in ("float", "quant", "nearest")},
    }


PIXELS = {i: np.full((8, 8, 3), 40 * i, np.uint8) for i in range(4)}


def test_strip_numbers(preds):
    info = prediction_strip.info(preds, range(4), PIXELS, setting="3 bits")
    assert [p.verdict for p in info.pictures] == ["kept", "lost", "gained", "missed"]
    assert info.pictures[1].quant.names[0] == "class 7"
    assert info.pictures[0].float.probs[0] == pytest.approx(0.6, abs=1e-3)
    assert prediction_strip.headline(info) == "With 3 bits, 1 of these 4 pictures turns wrong"
    assert "class 2: lost, float says class 2 (60%), quantized says class 7" in (
        prediction_strip.alt(info)
    )
    baseline = prediction_strip.info(preds, [0], PIXELS, setting="nearest", side="nearest")
    assert baseline.pictures[0].quant.classes[0] == 7


@pytest.mark.parametrize("dark", [False, True])
def test_strip_figure_marks_wrong_answers(preds, dark):
    info = prediction_strip.info(preds, [0, 1], PIXELS, setting="3 bits")
    figure = prediction_strip.figure(info, dark=dark)
    body = check(figure)
    bars = [t for t in body["data"] if t["type"] == "bar"]
    assert len(bars) == 4 and all(len(b["x"]) == 5 for b in bars)
    words = [t["text"] for t in body["data"] if t.get("mode") == "text"]
    assert sum(w[0].startswith("<b>✕ class 7") for w in words) == 1
    outlines = [s for s in body["layout"]["shapes"] if s["line"]["color"] == theme.WRONG]
    assert len(outlines) == 1
    assert len(body["layout"]["images"]) == 2
    assert body["layout"]["images"][0]["source"].startswith("data:image/png;base64,")


def test_strip_of_fewer_than_five_classes(preds):
    preds |= {k: v[:, :2] for k, v in preds.items() if k.endswith(("_top5", "_prob"))}
    info = prediction_strip.info(preds, [0], PIXELS, setting="3 bits")
    assert len(info.pictures[0].float.names) == 2
    check(prediction_strip.figure(info))


def test_chosen_pictures_tell_the_story(tmp_path):
    """Half of the pictures fall early, half stay; they are the same for every run."""
    fake_runs.write_demo(tmp_path, models=["digits-vit"], methods=["nearest"])
    runs = [dict(np.load(f / "preds.npz")) for f in sorted(tmp_path.iterdir())]
    pool = {int(i) for r in runs for i in r["thumb_index"]}
    chosen = prediction_strip.choose(runs, pool)
    assert len(set(chosen)) == 6 and set(chosen) <= pool
    labels = runs[0]["labels"]
    misses = [sum(r["quant_top5"][i, 0] != labels[i] for r in runs) for i in chosen]
    assert misses == sorted(misses) and misses[0] <= 1 and misses[-1] >= 3
    assert all(runs[0]["float_top5"][i, 0] == labels[i] for i in chosen)
    assert len({labels[i] for i in chosen[:3]}) == 3


def test_choose_when_few_pictures_are_stored(preds):
    assert set(prediction_strip.choose([preds], [0, 3], count=6)) == {0, 3}
