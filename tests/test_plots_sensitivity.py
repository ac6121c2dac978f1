"""Damage per layer: the numbers, the labels' places, and what the four figures draw."""

import json
import math
import random
from dataclasses import replace

import fake_profiles as fake
import pytest
from fake_profiles import KINDS, row, share, vit
from test_plots import check

from qlib.plots.layers import damage, kind_map, layer_profile, local_accumulated, split_bars
from qlib.plots.layers import frame as _layers
from qlib.plots.layers.damage import compared, measured
from qlib.plots.shared import places as _places

ROWS, OUTPUTS = fake.profile(), fake.outputs()
FC2 = "blocks.5.mlp.fc2"


def value(profile, layer):
    return next(v for v in profile.values if v.layer == layer)


# ---- numbers --------------------------------------------------------------------------------


def test_alone_and_won_back():
    alone = measured(ROWS, "alone", "kl")
    assert [v.layer for v in alone.values] == [layer["layer"] for layer in vit()]
    assert value(alone, FC2).value == pytest.approx(share(FC2)) == pytest.approx(0.18)
    assert alone.whole == pytest.approx(0.9) and alone.flag == pytest.approx(0.09)
    assert [v.layer for v in alone.worst[:2]] == [FC2, "blocks.4.mlp.fc2"]
    assert (alone.n, alone.data, alone.bad) == (128, "test", 1)
    back = measured(ROWS, "left_out", "kl")
    assert value(back, FC2).value == pytest.approx(share(FC2) / 2)
    assert back.whole == alone.whole


@pytest.mark.parametrize(("split", "part"), [("weights", 1 / 3), ("inputs", 2 / 3)])
def test_splits_are_held_against_their_own_whole(split, part):
    for mode in ("alone", "left_out"):
        found = measured(ROWS, mode, "kl", split)
        half = 1 if mode == "alone" else 0.5
        assert value(found, FC2).value == pytest.approx(share(FC2) * part * half)
        assert found.whole == pytest.approx(0.9 * part)


def test_what_has_no_weights_is_not_called_unmeasured():
    found = measured(ROWS, "alone", "kl", "weights", layers=vit())
    assert value(found, "blocks.0.attn.scores").state == "absent"
    part = [r for r in ROWS if r["unit"] in ("", "blocks.0")]
    found = measured(part, "alone", "kl", "weights", layers=vit())
    assert value(found, "blocks.0.attn.scores").state == "absent"
    assert value(found, "blocks.1.attn.qkv").state == "missing"


def test_other_metrics_are_losses_against_float_or_wins_against_the_whole():
    top1 = value(measured(ROWS, "alone", "top1"), FC2)
    assert (top1.value, top1.low, top1.high) == pytest.approx((7.2, 5.2, 10.2))
    back = value(measured(ROWS, "left_out", "top1"), FC2)
    assert back.value == pytest.approx(40 * share(FC2) / 2)
    assert value(measured(ROWS, "alone", "agreement"), FC2).value == pytest.approx(9.0)
    sqnr = measured(ROWS, "alone", "sqnr")
    assert value(sqnr, FC2).value == pytest.approx(20 - 30 * 0.18)
    assert sqnr.bad == -1 and sqnr.worst[0].layer == FC2
    # a tenth of the noise's power lies 10 dB above the SQNR of the whole
    assert sqnr.flag == pytest.approx(20 - 30 * 0.9 + 10)
    won = measured(ROWS, "left_out", "sqnr")
    assert 10 ** (-won.flag / 10) == pytest.approx(0.9) and won.bad == 1


def test_halves_span_the_range():
    rows = [row("all", "none", None, 0.0), row("all", "both", None, 1.0, (0.8, 1.2))]
    rows += [
        row(mode, "both", vit()[0], kl, (1.5, 0.5))
        for mode, kl in (("alone", 0.2), ("left_out", 0.9))
    ]
    alone = measured(rows, "alone", "kl").values[0]
    assert (alone.low, alone.value, alone.high) == pytest.approx((0.1, 0.2, 0.3))
    back = measured(rows, "left_out", "kl").values[0]
    assert (back.low, back.value, back.high) == pytest.approx((0.8 - 1.35, 0.1, 1.2 - 0.45))


def test_a_loss_of_accuracy_that_chance_explains_is_not_flagged():
    top1 = measured(ROWS, "alone", "top1")
    small = replace(value(top1, FC2), value=4.0, low=-0.5)
    assert top1.flagged(value(top1, FC2)) and not top1.flagged(small)
    assert top1.flag == pytest.approx(3.6)


def test_a_loss_of_accuracy_that_chance_explains_is_no_headline():
    found = measured(ROWS, "alone", "top1")
    noisy = replace(found, values=tuple(replace(v, low=-1.0) for v in found.values))
    said = layer_profile.headline(layer_profile.info([noisy]))
    assert said == "No single layer costs accuracy that these images can prove"
    assert "7.2 points" in layer_profile.headline(layer_profile.info([found]))


def test_no_flag_without_damage():
    rows = [row("all", "none", None, 0.0), row("all", "both", None, 0.0)]
    found = measured([*rows, row("alone", "both", vit()[0], 0.0)], "alone", "top1")
    assert found.flag is None and not found.flagged(found.values[0])


def test_partial_rows_have_kl_only():
    lean = [{"mode": "alone", "split": "both", "layer": FC2, "kl": 0.2, "top1": None}]
    found = measured(lean, "alone", "kl", layers=vit(), kept=("head",))
    assert [v.layer for v in found.known] == [FC2]
    assert {v.state for v in found.values} == {"", "missing", "kept"}
    assert found.whole is None and found.flag is None
    assert measured(lean, "alone", "top1", layers=vit()).known == ()


def test_errors_of_outputs():
    local, gathered = (compared(OUTPUTS, m, "sqnr") for m in ("local", "accumulated"))
    assert {v.value for v in local.values} == {19.5}
    assert gathered.values[10].value == pytest.approx(19.5 - 4.0)
    assert compared(OUTPUTS, "local", "sqnr", "calib").values[0].value == 20.0
    assert compared(OUTPUTS, "local", "mse", "calib").values[0].value == pytest.approx(0.01)
    cosine = compared(OUTPUTS, "local", "cosine", "calib")
    assert cosine.values[0].value == pytest.approx(0.005)
    assert (local.flag, local.bad) == (pytest.approx(10.0), -1)
    # cosine of y and y + e when e is orthogonal and has a tenth of the power
    assert cosine.flag == pytest.approx(1 - 1 / math.sqrt(1.1))
    assert gathered.worst[0].layer == "head"


def test_infinite_sqnr_and_older_runs_have_no_number():
    rows = [OUTPUTS[0] | {"local_sqnr_db_test": math.inf}, {"layer": "x", "tensor": "weight"}]
    found = compared(rows, "local", "sqnr")
    assert [(v.layer, v.state) for v in found.values] == [("patch_embed.proj", "missing")]
    assert compared([], "local", "sqnr").values == ()
    assert local_accumulated.info([]) is None


@pytest.mark.parametrize(
    ("values", "log"), [((1.0, 101.0), True), ((1.0, 99.0), False), ((0.0, 1.0, 200.0), True)]
)
def test_axis_is_logarithmic_from_two_decades_on(values, log):
    found = measured(ROWS, "alone", "kl")
    some = [replace(v, value=x) for v, x in zip(found.values, values, strict=False)]
    assert replace(found, values=tuple(some)).logarithmic is log
    assert not replace(found, values=tuple(some), mode="left_out").logarithmic


# ---- places ---------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [_places.WIDTH, _places.WIDTH / _places.LARGE])
@pytest.mark.parametrize("seed", range(60))
def test_labels_never_touch_and_none_is_lost(seed, width):
    draw = random.Random(seed)
    count = draw.choice((9, 19, 38, 80, 146))
    places = draw.sample(range(count), 5)
    wanted = [(place, "n" * draw.randint(4, 24)) for place in places]
    labels = _places.lanes(wanted, count, width)
    assert len(labels) == 5
    pixel = width / count
    drawn = [replace(one, at=(one.at + 0.5) * pixel) for one in labels]
    for i, one in enumerate(drawn):
        assert one.span()[0] >= 0 and one.span()[1] <= width
        for other in drawn[i + 1 :]:
            assert not _places.touch(one, other)


def test_touching_is_seen():
    one = _places.Label(100.0, "abcdef", 0)
    assert _places.touch(one, _places.Label(120.0, "x", 0))
    assert _places.touch(one, _places.Label(120.0, "x", 3))  # its leader crosses the text
    assert not _places.touch(one, _places.Label(90.0, "x", 3))
    assert not _places.touch(one, _places.Label(90.0, "x", 0, left=True))


@pytest.mark.parametrize("blocks", [1, 6, 24, 60])
def test_names_of_blocks_stay_apart(blocks):
    found = _places.blocks([layer["unit"] for layer in vit(blocks)])
    assert len(found) == blocks + 2
    assert (found[1].first, found[1].last) == (1, 6)
    count = 6 * blocks + 2
    places, texts = _places.ticks(found, count)
    pixel = _places.WIDTH / count
    rows = {0: -1e9, 1: -1e9}
    for place, text in zip(places, texts, strict=True):
        line, name = text.count("<br>"), text.replace("<br>", "")
        half = _places.CHAR * len(name) / 2
        assert (place + 0.5) * pixel - half >= rows[line]
        rows[line] = (place + 0.5) * pixel + half
    shown = {text.replace("<br>", "") for text in texts}
    assert {"0", str(blocks - 1), "head"} <= shown | ({"head"} if blocks == 60 else set())
    assert _places.prefix(found) == "blocks."


def test_short_names():
    assert _places.short("blocks.0.attn.qkv", "blocks.0") == "attn.qkv"
    assert _places.short("head", "head") == "head"


def test_shares_are_told_honestly():
    assert [_layers.share(x, 1.0) for x in (0.154, 0.004, -0.03, -0.004, 0.0)] == [
        "15 %", "<1 %", "−3 %", "0 %", "0 %",
    ]  # fmt: skip


# ---- layer profile --------------------------------------------------------------------------


def one(mode="alone", metric="kl", split="both", rows=ROWS, **changes):
    named = {"method": "brecq", "title": "BRECQ", "layers": vit()} | changes
    return measured(rows, mode, metric, split, **named)


def trace(body, kind, name=None):
    return [t for t in body["data"] if t["type"] == kind and name in (None, t.get("name"))]


def test_bars_name_the_worst_and_flag_them():
    info = layer_profile.info([one()])
    assert [v.layer for v in info.top] == [f"blocks.{b}.mlp.fc2" for b in (5, 4, 3, 2, 1)]
    assert layer_profile.headline(info) == (
        "blocks.5.mlp.fc2 does most damage alone: 0.18 nats, 20 % of the whole network's"
    )
    body = check(layer_profile.figure(info))
    (bars,) = trace(body, "bar")
    assert len(bars["x"]) == 38 and bars["customdata"][0][0] == "patch_embed.proj"
    strong = [c for c, n in zip(bars["marker"]["color"], bars["customdata"], strict=True)
              if c.endswith(",1)")]  # fmt: skip
    assert len(strong) == 5  # 0.10 to 0.18 of 0.9; the one of block 0 stays below a tenth
    assert body["layout"]["yaxis"]["title"]["text"] == "KL to float (nats)"
    assert {a["text"] for a in body["layout"]["annotations"]} == {v.layer for v in info.top}
    assert body["layout"]["yaxis"]["type"] == "log"
    assert "5 flagged" in layer_profile.alt(info) and FC2 in layer_profile.alt(info)


def test_worst_first_and_network_order():
    info = layer_profile.info([one(kept=("blocks.4.mlp.fc2",))], order="worst")
    assert info.layers[:2] == (FC2, "blocks.3.mlp.fc2")
    assert info.layers[-1] == "blocks.4.mlp.fc2"
    values = trace(check(layer_profile.figure(info)), "bar", "BRECQ")[0]
    by_place = [y for _, y in sorted(zip(values["x"], values["y"], strict=True))]
    assert by_place == sorted(by_place, reverse=True)
    with pytest.raises(ValueError):
        layer_profile.info([])


def test_kept_and_unmeasured_layers_are_hatched():
    part = [r for r in ROWS if r["unit"] in ("", "blocks.0")]
    info = layer_profile.info([one(rows=part, kept=("head",))])
    body = check(layer_profile.figure(info))
    (kept,), (missing,) = (trace(body, "bar", n) for n in ("kept in float", "not measured"))
    assert kept["marker"]["pattern"]["shape"] == "/" and kept["customdata"][0][0] == "head"
    assert missing["marker"]["pattern"]["shape"] == "." and len(missing["x"]) == 31
    assert "so far" in layer_profile.headline(info)


def test_methods_become_dots():
    other = replace(one(), method="nearest", title="Nearest")
    body = check(layer_profile.figure(layer_profile.info([one(), other])))
    assert not trace(body, "bar")
    marks = [t for t in trace(body, "scatter") if t["mode"] == "markers"]
    assert [t["name"] for t in marks] == ["BRECQ", "Nearest"]
    assert len({t["marker"]["symbol"] for t in marks}) == 2
    assert all(a != b for a, b in zip(marks[0]["x"], marks[1]["x"], strict=True))


@pytest.mark.parametrize("mode", ["alone", "left_out"])
@pytest.mark.parametrize("metric", damage.METRICS)
@pytest.mark.parametrize("look", [{}, {"dark": True}, {"large": True}])
def test_every_question_of_the_answers_has_a_figure(mode, metric, look):
    body = check(layer_profile.figure(layer_profile.info([one(mode, metric)]), **look))
    assert body["layout"]["yaxis"]["title"]["text"] == damage.AXES[mode, metric]


@pytest.mark.parametrize("mode", ["local", "accumulated"])
@pytest.mark.parametrize("metric", damage.ERRORS)
def test_every_question_of_the_outputs_has_a_figure(mode, metric):
    info = layer_profile.info([compared(OUTPUTS, mode, metric, title="BRECQ")])
    body = check(layer_profile.figure(info))
    assert body["layout"]["yaxis"]["title"]["text"].startswith(f"{mode} error: ")


def test_small_values_keep_a_foot_on_a_logarithmic_axis():
    rows = [r | {"kl": 1e-9} if r["layer"] == "head" else r for r in ROWS]
    body = check(layer_profile.figure(layer_profile.info([one(rows=rows)])))
    (bars,) = trace(body, "bar")
    foot = 10 ** body["layout"]["yaxis"]["range"][0]
    assert min(bars["y"]) > foot and foot >= 0.18 * 10**-damage.DECADES * 0.99
    assert bars["customdata"][-1][2].startswith("1e-09 nats".replace("-", "−"))


def test_many_layers_get_a_range_slider():
    few, many = one(), measured(fake.profile(vit(24)), "alone", "kl", method="x", layers=vit(24))
    sliders = []
    for profile in (few, many):
        body = check(layer_profile.figure(layer_profile.info([profile])))
        sliders.append(body["layout"]["xaxis"].get("rangeslider", {}).get("visible", False))
    assert sliders == [False, True]


def shapes(figure):
    return json.loads(figure.to_json())["layout"].get("shapes", [])


def test_only_a_chosen_layer_gets_a_band():
    info, errors = layer_profile.info([one()]), local_accumulated.info(OUTPUTS)
    for module, what in ((layer_profile, info), (local_accumulated, errors)):
        plain, marked = (shapes(module.figure(what, chosen=c)) for c in ("", "blocks.0.attn.qkv"))
        assert len(marked) == len(plain) + 1
        (band,) = [s for s in marked if s not in plain]
        assert (band["x0"], band["x1"]) == (0.5, 1.5)
    cells = kind_map.info(one())
    assert shapes(kind_map.figure(cells)) == []
    (frame,) = shapes(kind_map.figure(cells, chosen=FC2))
    assert (frame["x0"] + 0.48, frame["y0"] + 0.46) == pytest.approx((5, 6))


# ---- split ----------------------------------------------------------------------------------


def test_split_numbers():
    info = split_bars.info(ROWS, method="brecq")
    assert [b.split for b in info.bars] == ["none", "weights", "inputs", "both"]
    assert [info.damage(s) for s in ("weights", "inputs", "both")] == pytest.approx([12, 24, 36])
    assert split_bars.side(info) == "both"
    assert split_bars.info(ROWS, metric="kl").damage("inputs") == pytest.approx(0.6)
    (bars,) = check(split_bars.figure(info))["data"]
    assert bars["error_y"]["array"] == pytest.approx([2] * 4)
    assert bars["error_y"]["arrayminus"] == pytest.approx([3] * 4)
    assert [c[0] for c in bars["customdata"]] == ["none", "weights", "inputs", "both"]
    assert bars["text"][2].endswith("−24.0")
    assert "inputs only: 73.7 % (95 %: 70.7 to 75.7)" in split_bars.alt(info)


@pytest.mark.parametrize(
    ("weights", "inputs", "both", "words"),
    [
        (0.3, 0.05, 0.4, "Rounding the weights does most of it"),
        (0.0, 0.3, 0.3, "Rounding the inputs does most of it"),
        (0.2, 0.3, 0.5, "Weights and inputs both do damage"),
        (0.0, 0.0, 0.0, "Neither weights nor inputs cost anything here"),
        (0.1, None, 0.3, "Weights or inputs: not measured yet"),
    ],
)
def test_split_headline(weights, inputs, both, words):
    kls = {"none": 0.0, "weights": weights, "inputs": inputs, "both": both}
    rows = [row("all", s, None, kl) for s, kl in kls.items() if kl is not None]
    for metric in split_bars.METRICS:
        info = split_bars.info(rows, metric=metric)
        assert split_bars.headline(info) == words
        check(split_bars.figure(info))


# ---- kinds ----------------------------------------------------------------------------------


def test_kinds_by_block():
    info = kind_map.info(one(kept=("blocks.2.mlp.fc2",)))
    assert info.columns == (*KINDS, kind_map.ALONE) and len(info.rows) == 8
    assert info.cells["head", kind_map.ALONE].value == pytest.approx(share("head"))
    sums = info.sums()
    assert sums["mlp.fc2"] == pytest.approx(0.08 + 0.1 + 0.14 + 0.16 + 0.18)
    assert sums["attn.qkv"] == pytest.approx(6 * 0.004)
    assert kind_map.headline(info).startswith("mlp.fc2 layers do most: 84 %")
    body = check(kind_map.figure(info))
    (cells,) = trace(body, "heatmap")
    assert cells["text"][6][5] == "0.2" and cells["z"][6][5] == pytest.approx(math.log10(0.18))
    targets = trace(body, "scatter", "cells")[0]
    clicked = targets["customdata"][-2]
    assert (clicked[0], targets["x"][-2], targets["y"][-2]) == (FC2, 5, 6)
    texts = trace(body, "scatter", "gaps")[0]["text"]
    assert texts.count("–") == 8 * 7 - 38 and texts.count("float") == 1
    assert body["layout"]["xaxis"]["ticktext"] == ["qkv", "scores", "mix", "proj", "fc1", "fc2",
                                                   "alone"]  # fmt: skip
    assert FC2 in kind_map.alt(info)


def test_kinds_where_less_is_worse():
    info = kind_map.info(one(metric="sqnr"))
    assert kind_map.headline(info) == f"The worst cell: {FC2}"
    (cells,) = trace(check(kind_map.figure(info, dark=True)), "heatmap")
    assert cells["reversescale"] is True


# ---- local and accumulated ------------------------------------------------------------------


def test_dumbbells():
    info = local_accumulated.info(OUTPUTS)
    assert info.typical("local") == 19.5
    assert info.typical("accumulated") == pytest.approx(19.5 - 0.4 * 18.5)
    assert local_accumulated.headline(info) == (
        "Errors gather: a typical layer has 20 dB by itself and 12 dB in the whole network"
    )
    body = check(local_accumulated.figure(info))
    marks = {t["name"]: t for t in trace(body, "scatter") if t["mode"] == "markers"}
    assert set(marks) == {
        f"{mode}, {data}"
        for mode in ("local", "accumulated")
        for data in ("calibration", "held-out")
    }
    for name, t in marks.items():
        assert t["marker"]["symbol"].endswith("-open") is name.endswith("held-out")
        assert [c[0] for c in t["customdata"]] == [layer["layer"] for layer in vit()]
    guides = [a["text"].strip() for a in body["layout"]["annotations"]]
    assert guides == ["2 bits"]  # 12 dB; 24 dB lies above all values
    assert "lowest 4.7 dB at head" in local_accumulated.alt(info)


def test_errors_that_do_not_gather():
    rows = [r | {f"acc_sqnr_db{e}": r[f"local_sqnr_db{e}"] for e in ("", "_test")} for r in OUTPUTS]
    assert local_accumulated.headline(local_accumulated.info(rows)).startswith(
        "Errors hardly gather"
    )


def test_guides_are_six_decibels_a_bit():
    assert pytest.approx(20 * math.log10(2), abs=1e-3) == local_accumulated.PER_BIT
