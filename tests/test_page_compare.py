"""The Compare page: choosing runs, ranking them honestly, following single images."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import fake_runs
import numpy as np
import pytest
from browser_kit import chromium, serving, window  # noqa: F401 (fixtures)
from prose import tells
from streamlit.testing.v1 import AppTest

from qlib import store
from qlib.core.records import RunRecord, RunSpec
from qlib.core.registry import discover
from qlib.core.specs import checked
from qlib.measure.paired import Pair
from qlib.plots.compare import accuracy_vs_size, flips_bars
from qlib.plots.shared import theme
from qlib.ui.compare import images, ranking, runs_table
from qlib.ui.compare import selection as compare
from qlib.ui.shared import answers, gallery

ROOT = Path(__file__).resolve().parents[1]
PAGE = "pages/9_Compare.py"
TITLES = {key: owner.title for key, owner in discover("methods").items()}
MODELS, METHODS, BITS = ("digits-vit", "digits-resnet"), ("nearest", "brecq"), (8, 4, 3)
AT4 = {"m": "digits-vit", "b": "W4A4"}


@pytest.fixture(scope="session")
def stored(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    return fake_runs.write_demo(folder, models=MODELS, methods=METHODS, bits=BITS)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Empty folders for demo runs and own runs."""
    for name in ("DEMO", "RUNS"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"QLIB_{name}", str(tmp_path / name))
    return tmp_path / "DEMO", tmp_path / "RUNS"


@pytest.fixture
def own(stored, folders, monkeypatch) -> Path:
    """An empty folder of own runs, beside the stored ones."""
    monkeypatch.setenv("QLIB_DEMO", str(stored))
    return folders[1]


def open_page(**query) -> AppTest:
    """The page as a link with these parameters opens it."""
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    at.switch_page(PAGE)
    for key in list(at.query_params):
        del at.query_params[key]
    at.query_params.update(query)
    at.run()
    assert not at.exception, at.exception[0].message
    return at


def texts(at: AppTest) -> str:
    parts = [*at.title, *at.markdown, *at.caption, *at.info, *at.warning, *at.error]
    return "\n".join(p.value for p in parts).replace("\xa0", " ")


def figures(at: AppTest) -> list[dict]:
    return [json.loads(chart.proto.spec or chart.spec) for chart in at.get("plotly_chart")]


def handle(method: str, folder: Path, model: str = "digits-vit", **fields) -> str:
    spec = checked(RunSpec(model, "digits", method, **fields))
    return answers.handle(store.load(folder / spec.key), TITLES)


def made(top1=90.0, half=2.0, method="brecq", agreement=95.0, **spec) -> RunRecord:
    metrics = {"top1": top1, "top1_low": top1 - half, "top1_high": top1 + half, "n": 100.0,
               "top1_float": 96.0, "agreement": agreement}  # fmt: skip
    made = RunSpec("digits-vit", "digits", method, **spec)
    return RunRecord(made, metrics, {"total": 1.0}, 1.0, data={"test_hash": "t"})


def preds(right: int, n: int = 100, shift: int = 0) -> dict[str, np.ndarray]:
    """``n`` images of class 0; ``right`` of them are answered rightly, from place ``shift`` on."""
    after = np.ones(n, np.int16)
    after[np.arange(shift, shift + right) % n] = 0
    top = {"float": np.zeros(n, np.int16), "quant": after}
    arrays = {f"{k}_top5": v[:, None] for k, v in top.items()}
    arrays |= {f"{k}_prob": np.linspace(0.5, 0.9, n, dtype=np.float16)[:, None] for k in top}
    ids = np.array([f"i{i:03}" for i in range(n)])
    names = np.array(["no", "yes"])
    return arrays | {"ids": ids, "labels": np.zeros(n, np.int32), "class_names": names}


# ---- who is ahead ---------------------------------------------------------------------------


def ranked(*runs: tuple[RunRecord, dict]) -> ranking.Ranking:
    return ranking.rank([r for r, _ in runs], {r.spec.key: p for r, p in runs})


def test_two_runs_apart_are_told_by_the_paired_test():
    ranks = ranked((made(92, method="qdrop"), preds(92)), (made(80), preds(80)))
    assert list(ranks.apart.values()) == [True]
    assert ranks.pairs == {(ranks.best.spec.key, ranks.records[1].spec.key): Pair(80, 12, 0, 8)}
    said = ranking.verdict(ranks, TITLES)
    assert tells(said, "QDrop", "ahead", "BRECQ", 12, 0, "exact paired test", "p < 0.001")


def test_paired_test_tells_apart_what_intervals_cannot():
    """Wilson's intervals of 92 and 85 of 100 overlap; the same images, paired, do not."""
    runs = (made(92, 5, method="qdrop"), preds(92)), (made(85, 7), preds(85))
    assert ranked(*runs).level == (runs[0][0],)
    assert ranking.rank([r for r, _ in runs], {}).level == (runs[0][0], runs[1][0])


def test_no_winner_within_chance():
    ranks = ranked((made(90, method="qdrop"), preds(90)), (made(88), preds(88, shift=1)))
    said = ranking.verdict(ranks, TITLES)
    assert tells(said, "No winner", 100, "two", "exact paired test", "p = 0.50")
    assert "ahead" not in said


def test_the_level_ones_are_named_when_others_are_behind():
    ranks = ranked(
        (made(90, method="qdrop"), preds(90)),
        (made(89), preds(89)),
        (made(60, method="nearest"), preds(60)),
    )
    said = ranking.verdict(ranks, TITLES)
    assert tells(said, "No single winner", "QDrop", "BRECQ", "not", "apart")
    assert tells(said, "Nearest", "behind", "QDrop", "Holm", "p < 0.001")
    assert "ahead" not in said


def test_many_pairs_are_corrected():
    """Alone, six images against none are beyond chance (p = 1/32); among six pairs they are not."""
    seeds = [(made(94 - 6 * (s > 0), seed=s), preds(94 - 6 * (s > 0))) for s in range(4)]
    two, four = ranked(*seeds[:2]), ranked(*seeds)
    assert two.raised[two.best.spec.key, two.records[1].spec.key] == pytest.approx(1 / 32)
    assert len(two.level) == 1 and len(four.level) == 4
    assert min(four.raised.values()) == pytest.approx(6 / 32)


def test_without_predictions_intervals_decide_and_it_is_said():
    far = ranking.rank([made(90, method="qdrop"), made(70)], {})
    said = ranking.verdict(far, TITLES)
    assert tells(said, "QDrop", "ahead", "BRECQ", "95 % intervals", "predictions", "cannot be read")
    assert "paired" not in said
    near = ranking.rank([made(90, method="qdrop"), made(89)], {})
    assert tells(ranking.verdict(near, TITLES), "No winner", 100, "95 % intervals")


def test_other_test_images_are_not_paired():
    other = replace(made(80), data={"test_hash": "u"})
    ranks = ranked((made(90, method="qdrop"), preds(90)), (other, preds(80)))
    assert tells(ranks.why, "test images", "not the same") and ranks.pairs == {}


def test_a_single_run_is_described():
    ranks = ranking.rank([made(90)], {})
    said = ranking.verdict(ranks, TITLES)
    assert tells(said, "BRECQ W4A4", "90.0 %", "88.0–92.0", "−6.0 points", "float", "second run")


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        ([made(), made(method="qdrop")], ["BRECQ", "QDrop"]),
        ([made(), made(weight_bits=2)], ["BRECQ W4A4", "BRECQ W2A4"]),
        ([made(method="qdrop"), made(weight_bits=2)], ["QDrop W4A4", "BRECQ W2A4"]),
    ],
)
def test_names_are_as_long_as_needed(runs, names):
    assert list(ranking.names(runs, TITLES).values()) == names


def test_names_of_twins_differ():
    one, two = ranking.names([made(), made(seed=1)], TITLES).values()
    assert one != two and one.startswith("BRECQ ")


@pytest.mark.parametrize("count", [2, 4, 6])
def test_every_verdict_fits_on_one_line(count):
    """At 1280 pixels a line of the answer holds about 125 letters."""
    methods = list(TITLES)
    for step in (0, 3, 20):
        runs = [
            (made(95 - step * i, method=methods[i % 4], seed=i // 4), preds(95 - step * i))
            for i in range(count)
        ]
        said = ranking.verdict(ranked(*runs), TITLES).replace("**", "")
        assert len(said) <= 122, said


# ---- figures --------------------------------------------------------------------------------


def test_flips_numbers_and_headlines():
    few, many = Pair(90, 3, 2, 5), Pair(60, 31, 1, 8)
    rows = [("a", "QDrop", few, 94.0), ("b", "Nearest", many, 68.0)]
    info = flips_bars.info(rows)
    assert [(r.lost, r.gained, r.proven) for r in info.rows] == [(3, 2, False), (31, 1, True)]
    said = flips_bars.alt(info)
    assert tells(said, "QDrop", "3 lost", "2 gained", 100, "p = 1.00", "94.0 %", "Nearest")
    assert tells(said, "Nearest", "31 lost", "1 gained", 100, "p < 0.001")


@pytest.mark.parametrize(
    ("runs", "parts"),
    [
        ("ab", ("1 of 2", "more than chance")),
        ("bb", ("All 2", "more than chance")),
        ("aa", ("None", 2, "more than chance")),
        ("a", ("3 lost", "2 gained", "no loss", "chance")),
        ("b", ("31 lost", "1 gained", "a loss beyond chance")),
    ],
)
def test_flips_headline_counts_the_losses_beyond_chance(runs, parts):
    known = {"a": ("a", "QDrop", Pair(90, 3, 2, 5), 94.0),
             "b": ("b", "Nearest", Pair(60, 31, 1, 8), 68.0)}  # fmt: skip
    assert tells(flips_bars.headline(flips_bars.info([known[run] for run in runs])), *parts)


@pytest.mark.parametrize("looks", [{}, {"dark": True}, {"large": True}])
def test_flips_figure_diverges_from_zero(looks):
    rows = [("a", "QDrop", Pair(90, 3, 2, 5), 94.0), ("b", "Nearest", Pair(60, 31, 1, 8), 68.0)]
    body = json.loads(flips_bars.figure(flips_bars.info(rows), **looks).to_json())
    lost, gained = body["data"]
    assert (lost["x"], gained["x"]) == ([-3, -31], [2, 1])
    assert lost["customdata"][1][:2] == ["b", "Nearest"]
    assert lost["marker"]["color"] != gained["marker"]["color"]
    assert gained["marker"]["pattern"]["shape"]  # not told by colour alone
    axis = body["layout"]["xaxis"]
    assert "lost" in axis["title"]["text"] and axis["range"][0] < -31 and axis["range"][1] > 2
    assert all("-" not in text for text in axis["ticktext"])
    few, many = (a["text"] for a in body["layout"]["annotations"])
    assert tells(few, "p = 1.00", "agrees", "94.0 %") and tells(many, "p < 0.001", "68.0 %")


def test_flips_of_runs_that_change_nothing():
    info = flips_bars.info([("a", "QDrop", Pair(90, 0, 0, 10), 100.0)])
    body = json.loads(flips_bars.figure(info).to_json())
    assert body["layout"]["xaxis"]["tickvals"] == [0]
    assert tells(flips_bars.headline(info), "0 lost", "0 gained", "no loss")


def runs_of(folder: Path, model: str = "digits-vit") -> list[RunRecord]:
    return [e.record for e in store.list_runs(folder) if e.record.spec.model == model]


@pytest.mark.parametrize("cost", list(accuracy_vs_size.COSTS))
def test_runs_behind_are_clickable_and_the_compared_ones_ringed(stored, cost):
    runs = runs_of(stored)
    pinned = [r for r in runs if r.spec.weight_bits == 4]
    others = [r for r in runs if r.spec.weight_bits != 4]
    info = accuracy_vs_size.info(pinned, cost=cost, titles=TITLES, others=others)
    figure = accuracy_vs_size.figure(info)
    rings = next(t for t in figure.data if t.name == "compared")
    keys = {d[0] for t in figure.data if t.customdata is not None for d in t.customdata}
    assert keys == {r.spec.key for r in runs}
    assert len(rings.x) == len(pinned)
    alone = accuracy_vs_size.figure(accuracy_vs_size.info(pinned, cost=cost))
    assert "compared" not in [t.name for t in alone.data]


def test_runs_of_equal_cost_stand_side_by_side(stored):
    pinned = [r for r in runs_of(stored) if r.spec.weight_bits == 4]
    info = accuracy_vs_size.info(pinned, cost="size", titles=TITLES)
    one, two = info.marks
    assert one.cost == two.cost == one.place and 1.01 < two.place / one.place < 1.2
    reached = (f"{edge(m.top1 for m in info.marks):.1f}" for edge in (min, max))
    assert tells(accuracy_vs_size.headline(info), "0.108 MB", "2 runs", *reached)
    facts = [d for t in accuracy_vs_size.figure(info).data if t.customdata is not None
             for d in t.customdata]  # fmt: skip
    assert {d[4] for d in facts} == {one.cost}  # the hover tells the true cost


# ---- the page -------------------------------------------------------------------------------


def test_page_starts_with_the_bars_backbone_at_its_bits(own, stored):
    at = open_page(**AT4)
    expected = [handle("brecq", stored), handle("nearest", stored)]
    assert sorted(at.multiselect(key="runs").value) == expected
    assert tells(texts(at), "BRECQ", "ahead", "Nearest")
    scatter, flips, layers = figures(at)
    assert scatter["layout"]["title"]["text"].startswith("BRECQ takes ")
    assert "lose" in flips["layout"]["title"]["text"]
    assert {t["name"] for t in layers["data"]} >= {"BRECQ", "Nearest"}
    assert "SQNR" in layers["layout"]["yaxis"]["title"]["text"]
    assert all(chart.proto.alt for chart in at.get("plotly_chart"))
    assert at.get("download_button")


def test_other_bits_in_the_bar_start_anew(own, stored):
    at = open_page(**AT4)
    at.multiselect(key="runs").set_value([handle("brecq", stored)]).run()
    assert tells(texts(at), "second run")
    at.query_params["b"] = "W3A3"
    at.run()
    wanted = [handle(q, stored, weight_bits=3, act_bits=3) for q in ("brecq", "nearest")]
    assert sorted(at.multiselect(key="runs").value) == wanted


def test_link_restores_choice_axis_and_filters(own, stored):
    wanted = handle("nearest", stored, weight_bits=8, act_bits=8)
    at = open_page(runs=wanted, x="Size", min_n="300", list_b="W8A8")
    assert at.multiselect(key="runs").value == [wanted]
    assert at.segmented_control(key="x").value == "size"
    assert figures(at)[0]["layout"]["xaxis"]["title"]["text"].startswith("weights (MB)")
    assert set(at.dataframe[-1].value["Bits"]) == {"W8A8"}


def test_link_with_unknown_runs_is_a_notice(own, stored):
    at = open_page(runs=[handle("nearest", stored), "QDrop W2A2 gone 123456"])
    assert any("QDrop W2A2 gone 123456" in i.value for i in at.info)
    assert at.multiselect(key="runs").value == [handle("nearest", stored)]


def test_unlike_runs_are_not_ranked(own):
    for seed in (0, 1):
        spec = RunSpec("digits-vit", "digits", "brecq", seed=seed, edge_layers="same")
        fake_runs.write_run(own, checked(spec))
    picked = [handle("brecq", own, seed=s, edge_layers="same") for s in (0, 1)]
    at = open_page(**AT4)
    at.multiselect(key="runs").set_value(picked).run()
    assert tells(texts(at), "Not like for like", "differ", "seed", "no ranking")
    assert "ahead" not in texts(at) and "No winner" not in texts(at)
    assert "no front" in figures(at)[0]["layout"]["title"]["text"]


def test_runs_that_answer_alike_have_no_winner(own):
    for error in ("mse", "fisher"):
        spec = checked(RunSpec("digits-vit", "digits", "brecq", settings={"error": error}))
        fake_runs.write_run(own, spec)
    picked = [handle("brecq", own, settings={"error": e}) for e in ("mse", "fisher")]
    at = open_page(**AT4)
    at.multiselect(key="runs").set_value(picked).run()
    assert tells(texts(at), "No winner", 597, "two")
    differs = next(d.value for d in at.dataframe if "Setting" in d.value)
    assert list(differs["Setting"]) == ["Error"]
    at.toggle(key="turned").set_value(True).run()
    turned = next(d.value for d in at.dataframe if "Error" in d.value)
    assert sorted(turned["Error"]) == ["fisher", "mse"]


def test_runs_with_few_images_are_left_out(own, stored):
    fake_runs.write_run(own, checked(RunSpec("digits-vit", "digits", "brecq", test=50)))
    few = handle("brecq", own, test=50)
    at = open_page(runs=[few, handle("nearest", stored)], **AT4)
    assert "held-out images" in texts(at)  # not the same test images: no ranking
    at.number_input(key="min_n").set_value(100).run()
    assert tells(texts(at), "Left out", 100, "test images", few)
    assert tells(texts(at), "second run")
    assert 50 not in set(at.dataframe[-1].value["Images"])


def test_two_runs_are_tested_on_the_same_images(own, stored):
    at = open_page(**AT4)
    said = texts(at)
    pair = ranking.paired.between(*(x for q in ("brecq", "nearest") for x in load(stored, q)))
    counts = ("same 597 images", pair.first, "BRECQ alone", pair.second, "Nearest alone")
    assert tells(said, *counts, "beyond chance", "exact paired test", "p < 0.001")
    table = next(d.value for d in at.dataframe if "p, Holm" in d.value)
    assert list(table["Right alone"]) == [pair.first] and list(table["p"]) == [pair.p]


def load(folder: Path, method: str) -> tuple[RunRecord, dict]:
    found = folder / checked(RunSpec("digits-vit", "digits", method)).key
    return store.load(found), store.load_preds(found)


def test_other_images_are_refused_in_words(own, stored):
    fake_runs.write_run(own, checked(RunSpec("digits-vit", "digits", "brecq", test=50)))
    at = open_page(runs=[handle("brecq", own, test=50), handle("nearest", stored)], **AT4)
    assert "These runs were tested on different images, so no paired test can be made" in texts(at)


def test_pictures_of_the_bars_method_are_shown_first(own, stored):
    at = open_page(q="brecq", **AT4)
    assert at.selectbox(key="g").value == handle("brecq", stored)
    _, arrays = load(stored, "brecq")
    lost, gained = ranking.paired.changed(arrays)
    assert tells(texts(at), len(lost), "shown")
    table = next(d.value for d in at.dataframe if "quantized right" in d.value)
    assert table["quantized wrong"].iloc[0] == len(lost)
    assert table["quantized right"].iloc[1] == len(gained)


def test_damaged_predictions_do_not_break_the_page(own, stored, monkeypatch, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(stored, copy)
    monkeypatch.setenv("QLIB_DEMO", str(copy))
    key = checked(RunSpec("digits-vit", "digits", "nearest")).key
    (copy / key / "preds.npz").write_bytes(b"PK cut")
    at = open_page(**AT4)
    assert tells(texts(at), "No image", f"{key}/preds.npz")
    assert tells(texts(at), "95 % intervals", "predictions", "cannot be read")
    flips = figures(at)[1]
    assert len(flips["data"][0]["x"]) == 1  # the other run is still followed


def test_runs_without_layer_errors_say_so(own, stored, monkeypatch, tmp_path):
    """Runs made before the outputs of layers were measured."""
    copy = tmp_path / "copy"
    shutil.copytree(stored, copy)
    monkeypatch.setenv("QLIB_DEMO", str(copy))
    for file in copy.glob("*/layers.csv"):
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if ".output," not in line))
    at = open_page(**AT4)
    assert tells(texts(at), "no error per layer")
    assert len(figures(at)) == 2


def test_no_choice_is_a_state_of_its_own(own):
    at = open_page(**AT4)
    at.multiselect(key="runs").set_value([]).run()
    assert not at.exception
    assert tells(texts(at), "Choose runs")
    assert figures(at) == [] and len(at.dataframe[-1].value) == 12


def test_analyses_are_not_compared(own):
    spec = checked(RunSpec("digits-vit", "digits", "brecq", analysis="sensitivity", seed=8))
    fake_runs.write_run(own, spec)
    at = open_page(**AT4)
    assert len(at.dataframe[-1].value) == 12
    assert not any(spec.key[-10:-4] in name for name in at.multiselect(key="runs").options)


# ---- clicks and ticks -----------------------------------------------------------------------


def click(*keys: str, box: bool = False, runs=("a",)) -> dict:
    points = [{"customdata": [k, "W4A4"]} for k in keys]
    selection = {"points": points, "box": [{}] if box else []}
    session = {"scatter": {"selection": selection}, "runs": list(runs),
               "scatter-names": {f"k{n}": n for n in "abcdefgh"}}  # fmt: skip
    compare.followed(session)
    return session


def test_a_click_chooses_a_run_or_lets_it_go():
    assert click("kb")["runs"] == ["a", "b"]
    assert click("ka", runs=("a", "b"))["runs"] == ["b"]
    assert click(runs=("a", "b"))["runs"] == ["a", "b"]  # beside the points
    assert click("gone")["runs"] == ["a"]
    full = click("kg", runs="abcdef")
    assert full["runs"] == list("abcdef") and full["compare-full"]


def test_a_box_lists_runs_and_chooses_none():
    session = click("kb", "kc", "kb", box=True)
    assert session["boxed"] == ["b", "c"] and session["runs"] == ["a"]


def test_ticking_rows_sets_the_choice():
    state = {"table-names": ["a", "b", "c"], "run-table": {"selection": {"rows": [2, 0]}}}
    runs_table.ticked(state)
    assert state["runs"] == ["c", "a"]


def test_a_click_on_a_bar_shows_that_runs_pictures():
    points = [{"customdata": ["k", "QDrop"]}]
    session = {"flips": {"selection": {"points": points}}, "flip-names": {"k": "QDrop W4A4 x"}}
    images.clicked(session)
    assert session["g"] == "QDrop W4A4 x"
    session["flips"]["selection"]["points"] = []
    images.clicked(session)
    assert session["g"] == "QDrop W4A4 x"


def test_boxed_runs_are_listed_until_the_box_is_left(own, stored):
    at = open_page(**AT4)
    inside = handle("nearest", stored, weight_bits=8, act_bits=8)
    at.session_state["boxed"] = [inside]
    at.run()
    assert len(at.dataframe[-1].value) == 3  # the two chosen ones, and the boxed one
    at.button(key="unbox").click().run()
    assert len(at.dataframe[-1].value) == 12


# ---- the gallery ----------------------------------------------------------------------------


def with_pictures(arrays: dict, places: list[int]) -> dict:
    thumbs = np.arange(len(places), dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3))
    index = np.array(places, np.int32)
    return arrays | {"thumb_index": index, "thumbs": thumbs.astype(np.uint8)}


def test_gallery_counts_what_it_cannot_show():
    run = with_pictures(preds(90), [0, 95, 97])
    lost, gained = gallery.sides(run, gallery.pool([run]))
    assert (lost.total, len(lost.cards)) == (10, 2) and (gained.total, gained.cards) == (0, ())
    assert [c.id for c in lost.cards] == ["i097", "i095"]  # the surest wrong answer first
    card = lost.cards[0]
    assert (card.name, card.float.names[0], card.quant.names[0]) == ("no", "no", "yes")


def test_gallery_takes_pictures_from_other_runs_by_id():
    run, other = with_pictures(preds(90), [0]), preds(70)
    turned = {k: v[::-1] if k != "class_names" else v for k, v in other.items()}
    pool = gallery.pool([run, with_pictures(turned, [1])])  # place 1 from the end: image 98
    assert sorted(pool) == ["i000", "i098"]
    lost, _ = gallery.sides(run, pool)
    assert [c.id for c in lost.cards] == ["i098"]
    assert lost.cards[0].pixels[0, 0, 0] == 0


def test_cards_escape_names_from_files():
    run = with_pictures(preds(90), [95]) | {"class_names": np.array(["<img onerror=x>", "yes"])}
    lost, _ = gallery.sides(run, gallery.pool([run]))
    shown = gallery.cards(lost)
    assert "<img onerror" not in shown and "&lt;img onerror=x&gt;" in shown
    assert "✓ float" in shown and "✕ quantized" in shown  # not told by colour alone


def test_gallery_without_pictures():
    lost, gained = gallery.sides(preds(90), gallery.pool([preds(90)]))
    assert (lost.total, lost.cards, gained.cards) == (10, (), ())


# ---- folders that are no runs ---------------------------------------------------------------


def spoil(folder: Path, how: str) -> str:
    """Make one own run unreadable in some way; what the page then says."""
    spec = checked(RunSpec("digits-vit", "digits", "nearest", seed=11))
    run = fake_runs.write_run(folder, spec)
    body = json.loads((run / "run.json").read_text())
    if how == "empty":
        shutil.rmtree(run)
        run.mkdir()
        return f"{spec.key}/run.json is missing"
    if how == "truncated":
        (run / "run.json").write_text(json.dumps(body)[:200])
        return f"{spec.key}/run.json is damaged or cut off"
    if how == "unknown version":
        (run / "run.json").write_text(json.dumps(body | {"format": 99}))
        return "has format 99, and this version reads format 2"
    if how == "no layers":
        (run / "layers.csv").unlink()
        return f"{spec.key}/layers.csv is missing"
    if how == "half measured":
        del body["metrics"]["agreement"]
        (run / "run.json").write_text(json.dumps(body | {"seconds": {}}))
        return "run.json is damaged: metrics.agreement is missing"
    (run / "run.json").write_text("[]")
    return "has format None"


KINDS = ["empty", "truncated", "unknown version", "no layers", "half measured", "no record"]


@pytest.mark.parametrize("how", KINDS)
def test_broken_folders_are_shown_as_what_they_are(own, how):
    said = spoil(own, how)
    at = open_page(**AT4)
    assert said in texts(at)
    assert any("Folders that cannot be read (1)" in e.label for e in at.expander)
    assert tells(texts(at), "BRECQ", "ahead", "Nearest") and len(figures(at)) == 3


@pytest.mark.parametrize("how", KINDS)
def test_nothing_but_a_broken_folder(folders, how):
    said = spoil(folders[1], how)
    at = open_page()
    assert tells(texts(at), "no finished run") and said in texts(at)


def test_a_file_among_the_runs_is_no_run(own):
    (own / "notes.txt").write_text("mine")
    at = open_page(**AT4)
    assert not [e for e in at.expander if "cannot be read" in e.label]


# ---- in a browser ---------------------------------------------------------------------------


@pytest.mark.browser
def test_click_chooses_and_box_lists(tmp_path, stored, window):  # noqa: F811
    with serving(tmp_path, stored) as server:
        page = window.open(server.url("compare?others=true&m=digits-vit&b=W4A4"), height=1000)
        chart = page.locator(".st-key-scatter .js-plotly-plot")
        points = chart.locator(".scatterlayer .trace:first-child path.point")
        points.first.wait_for()
        assert page.locator("[data-tag]").count() == 2
        box = points.first.bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_function("() => document.querySelectorAll('[data-tag]').length === 3")
        page.wait_for_function(
            "() => document.querySelectorAll('.st-key-scatter .js-plotly-plot').length === 1"
        )
        box_tool = page.locator('.st-key-scatter .modebar-btn[data-title="Box Select"]')
        box_tool.last.dispatch_event("click")  # it hides while the figure is drawn a second time
        area = chart.locator(".nsewdrag").first.bounding_box()
        page.mouse.move(area["x"] + 2, area["y"] + 2)
        page.mouse.down()
        page.mouse.move(area["x"] + area["width"] - 2, area["y"] + area["height"] - 2, steps=8)
        page.mouse.up()
        page.get_by_role("button", name="Leave the box").wait_for()


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
def test_answer_and_title_take_one_line_each(tmp_path, stored, window, dark):  # noqa: F811
    with serving(tmp_path, stored) as server:
        page = window.open(server.url("compare?m=digits-vit&b=W4A4"), dark=dark)
        page.wait_for_selector(".st-key-scatter .gtitle")
        answer = page.locator(".st-key-head p").last
        assert answer.bounding_box()["height"] < 40
        assert page.locator(".st-key-scatter .gtitle").bounding_box()["height"] < 30
        main = page.get_by_test_id("stMain")
        assert main.evaluate("el => el.scrollWidth <= el.clientWidth")


def test_theme_colors_of_lost_and_gained_differ():
    assert theme.WRONG != theme.RIGHT
