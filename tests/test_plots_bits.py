"""Figures of the Bits page: lines with gaps, the map of widths, bits of units, the front."""

import json
from dataclasses import replace

import fake_widths
import pytest
from test_plots import TITLES, check, record

from qlib.allocation import front as allocation
from qlib.core.records import RunRecord
from qlib.plots.bits import accuracy_bits, bits_front, unit_bits, width_map
from qlib.plots.shared import theme
from qlib.ui.bits import mix

NAMES = TITLES | {"ptmq": "PTMQ"}


def many(tops, **settings) -> RunRecord:
    """A network with many widths: bits → accuracy, in the units of `test_plots.record`."""
    rows = [
        {"weight_bits": b, "act_bits": b} | record("ptmq", b, top1).metrics
        for b, top1 in tops.items()
    ]
    made = record("ptmq", 4, tops[4], bit_widths=rows)
    return replace(made, spec=replace(made.spec, settings=settings))


# ---- lines ----------------------------------------------------------------------------------


def test_one_network_is_one_line_and_told_from_a_model_for_each_width():
    runs = [record("qdrop", b, t) for b, t in ((8, 95), (4, 94), (3, 80))]
    runs += [many({8: 95, 6: 95, 4: 90, 3: 70}), many({8: 95, 4: 60}, learned_at="highest")]
    info = accuracy_bits.info(runs, titles=NAMES, chosen="ptmq")
    names = {x.key: x.name for x in info.lines}
    assert names == {
        "qdrop": "QDrop: 3 models",
        "ptmq": "PTMQ: one model, 4 widths",
        "ptmq_naive": "Naive switch: one model, 2 widths",
    }
    assert info.bits == (8, 6, 4, 3)
    body = check(accuracy_bits.figure(info, counts=True))
    said = [a["text"] for a in body["layout"]["annotations"]]
    assert set(names.values()) < set(said)
    drawn = {t["name"]: t for t in body["data"] if t.get("mode") == "lines+markers"}
    assert drawn[names["ptmq"]]["line"]["width"] > drawn[names["qdrop"]]["line"]["width"]
    assert drawn[names["ptmq_naive"]]["customdata"][-1][3:] == ["ptmq", "ptmq_naive"]
    looks = {(t["line"]["color"], t["line"]["dash"]) for t in drawn.values()}
    assert len(looks) == 3
    assert accuracy_bits.headline(info) == (
        "PTMQ, one model: no visible loss down to 6 bits; QDrop, 3 models: down to 4"
    )


def test_a_missing_width_is_a_gap_and_no_line_is_drawn_across():
    runs = [record(bits=b, top1=t) for b, t in ((8, 95), (6, 95), (4, 80), (3, 60), (2, 20))]
    runs += [record("brecq", b, t) for b, t in ((8, 95), (4, 94), (3, 90))]
    body = check(accuracy_bits.figure(accuracy_bits.info(runs, titles=NAMES)))
    line = next(t for t in body["data"] if t["name"] == "BRECQ: 3 models")
    assert line["x"] == ["8", None, "4", "3"] and line["y"] == [95, None, 94, 90]
    assert line["connectgaps"] is False
    assert line["error_y"]["array"] == [2, 0, 0, 0]  # a point without neighbours has no band
    band = next(t for t in body["data"] if t["name"] == "BRECQ, 95 % interval")
    assert band["x"] == ["8", "8", None, "4", "3", "3", "4"]
    whole = next(t for t in body["data"] if t["name"] == "Nearest: 5 models")
    assert None not in whole["x"]


def test_a_run_that_failed_is_a_cross_and_not_a_number():
    runs = [record(bits=8, top1=95), record(bits=2, top1=20)]
    info = accuracy_bits.info(runs, titles=NAMES, failed={"nearest": [4, 8]})
    assert info.bits == (8, 4, 2) and info.lines[0].failed == (4,)  # 8 was measured after all
    body = check(accuracy_bits.figure(info))
    cross = next(t for t in body["data"] if t["name"] == "did not finish")
    assert cross["x"] == ["4"] and cross["text"] == ["Nearest, 4 bits: the run did not finish"]
    line = next(t for t in body["data"] if t["name"] == "Nearest: 2 models")
    assert line["x"] == ["8", None, "2"]


@pytest.mark.parametrize(("cost", "first"), [("size", 0.8), ("bops", 0.64)])
def test_lines_over_what_a_width_costs(cost, first):
    runs = [record(bits=b, top1=t) for b, t in ((8, 95), (4, 80), (2, 20))]
    info = accuracy_bits.info(runs, titles=NAMES, cost=cost, current=4)
    body = check(accuracy_bits.figure(info))
    axis = body["layout"]["xaxis"]
    assert axis["type"] == "log" and axis["title"]["text"] == accuracy_bits.COSTS[cost]
    assert axis["range"][0] > axis["range"][1]  # cheap is at the right, as few bits are
    line = next(t for t in body["data"] if t["name"] == "Nearest: 3 models")
    assert line["x"][0] == pytest.approx(first)
    ring = next(t for t in body["data"] if t["name"] == "4 bits")
    assert ring["x"] == [line["x"][1]] and ring["y"] == [80]


def test_weights_that_keep_their_bits_are_a_line_by_themselves():
    one = many({4: 90}, weight_set="fixed")
    (line,) = accuracy_bits.info([one], titles=NAMES).lines
    assert (line.key, line.title) == ("ptmq_w4", "PTMQ, weights 4 bits")


# ---- the map --------------------------------------------------------------------------------


def cells(tops):
    return {pair: {"top1": t, "top1_low": t - 2, "top1_high": t + 2} for pair, t in tops.items()}


def test_map_says_which_side_breaks_first():
    square = {(8, 8): 95, (8, 3): 60, (3, 8): 90, (3, 3): 50}
    info = width_map.info("PTMQ", cells(square))
    assert (info.weights, info.acts) == ((8, 3), (8, 3))
    assert width_map.weaker(info) == ("activations", 3, 60, 90)
    assert width_map.headline(info) == "Activations break first: W8A3 60 %, W3A8 90 %"
    turned = width_map.info("PTMQ", cells({(a, w): t for (w, a), t in square.items()}))
    assert width_map.headline(turned) == "Weights break first: W3A8 60 %, W8A3 90 %"
    same = width_map.info("PTMQ", cells(square | {(8, 3): 89}))
    assert "neither weights nor activations break first" in width_map.headline(same)
    assert width_map.weaker(width_map.info("QDrop", cells({(8, 8): 95, (3, 3): 60}))) is None


@pytest.mark.parametrize("dark", [False, True])
def test_map_hatches_what_is_missing_and_marks_what_failed(dark):
    info = width_map.info(
        "QDrop", cells({(8, 8): 95, (3, 3): 60}), {(8, 3): "failed", (3, 3): "failed"}, (3, 8)
    )
    assert info.states == {(8, 3): "failed"}  # measured cells have no state
    body = check(width_map.figure(info, dark=dark, chosen=(3, 8)))
    heat, hatch, signs, targets = body["data"]
    assert heat["z"] == [[95, None], [None, 60]] and heat["text"][0] == ["95", ""]
    assert len(hatch["x"]) == 2 and hatch["marker"]["pattern"]["shape"] == "/"
    assert signs["text"] == ["<b>✕</b>", "<b>–</b>"]
    assert targets["customdata"] == [[8, 8], [8, 3], [3, 8], [3, 3]]
    (frame,) = body["layout"]["shapes"]
    assert (frame["x0"], frame["y0"]) == (-0.48, 0.54)  # column 8, second row
    assert "W8A8 95.0 %, W3A3 60.0 %. 2 combinations are not measured." in width_map.alt(info)


def test_map_has_a_place_for_the_chosen_pair():
    info = width_map.info("QDrop", cells({(8, 8): 95}), chosen=(2, 5))
    assert (info.weights, info.acts) == ((8, 2), (8, 5))


# ---- units ----------------------------------------------------------------------------------

BLOCKS = fake_widths.blocks()
FREE = [u for u in fake_widths.UNITS if u not in fake_widths.EDGES]


def test_units_are_drawn_as_steps_and_fixed_ones_open():
    bits = dict.fromkeys(FREE, 4) | {"blocks.5": 8}
    info = unit_bits.info(BLOCKS, bits, method="ptmq")
    assert [u.bits for u in info.units] == [8, 4, 4, 4, 4, 4, 8, 8]
    assert unit_bits.headline(info) == "8 bits for block 5, 4 for 5 units"
    body = check(unit_bits.figure(info, level=4))
    line, free, fixed = body["data"]
    assert line["y"][:4] == [8, 8, 4, 4] and line["x"][:4] == [-0.5, 0.5, 0.5, 1.5]
    assert [d[0] for d in fixed["customdata"]] == list(fake_widths.EDGES)
    assert fixed["marker"]["symbol"] == "square-open" and len(free["x"]) == 6
    assert body["layout"]["xaxis"]["ticktext"] == ["patch", *"012345", "head"]
    assert body["layout"]["xaxis"]["title"]["text"].endswith("; dashed: 4 bits everywhere")
    below = check(unit_bits.figure(info, level=5))["data"][1]["textposition"]  # clear of the line
    assert below == [*["bottom center"] * 5, "top center"]
    assert "blocks.5 8" in unit_bits.alt(info) and "head 8 (fixed)" in unit_bits.alt(info)
    same = unit_bits.info(BLOCKS, dict.fromkeys(FREE, 5), method="ptmq")
    assert unit_bits.headline(same) == "Every unit has 5 bits"


def shown(choice, by="weight_mb"):
    widths = mix.widths_of(BLOCKS)
    coded = lambda c: (c, mix.encode(c.bits, widths))  # noqa: E731
    equal = {b: coded(c) for b, c in mix.equal(BLOCKS).items()}
    best = [coded(c) for c in allocation.front(BLOCKS, by)]
    return bits_front.info(best, equal, coded(choice), method="ptmq", by=by)


def test_front_compares_with_equal_bits_of_no_more_cost():
    best = allocation.cheapest(BLOCKS, weight_mb=allocation.uniform(BLOCKS, 4).weight_mb)
    info = shown(best)
    bits, mark = bits_front.rival(info)
    ratio = allocation.uniform(BLOCKS, 4).kl / best.kl
    assert bits == 4 and mark.kl / info.now.kl == pytest.approx(ratio) and ratio > 1
    assert bits_front.headline(info).startswith(
        f"{ratio:.1f} times less predicted damage than 4 bits everywhere"
    )
    even = shown(allocation.uniform(BLOCKS, 5))
    assert bits_front.headline(even).startswith("5 bits everywhere: predicted KL")
    poor = dict.fromkeys(FREE, 6) | {"blocks.5": 3, "blocks.1": 8}
    worse = shown(allocation.priced(BLOCKS, poor))
    assert "would do no more damage" in bits_front.headline(worse)


@pytest.mark.parametrize("by", bits_front.COSTS)
def test_front_figure(by):
    info = shown(allocation.uniform(BLOCKS, 4), by)
    assert len(info.front) <= bits_front.MOST + 1
    body = check(bits_front.figure(info))
    front, equal, now = body["data"]
    assert front["y"] == sorted(front["y"], reverse=True)  # dearer is better
    assert front["x"] == sorted(front["x"])
    assert [d[0] for d in equal["customdata"]] == [str(b) * 6 for b in (8, 7, 6, 5, 4, 3)]
    assert now["customdata"] == [["444444"]]
    assert body["layout"]["xaxis"]["title"]["text"] == bits_front.COSTS[by]
    # no assignment of equal bits lies below the front
    at = {b: m for b, m in info.equal.items()}
    for mark in at.values():
        below = [m for m in info.front if m.cost <= mark.cost * (1 + 1e-9)]
        assert below[-1].kl <= mark.kl * (1 + 1e-9)


def test_figures_are_larger_for_a_room():
    info = accuracy_bits.info([many({8: 95, 4: 90})], titles=NAMES)
    body = json.loads(accuracy_bits.figure(info, counts=True, large=True).to_json())
    assert body["layout"]["height"] > theme.MAIN_HEIGHT
    assert body["layout"]["margin"]["r"] > 200  # the names fit
