"""The Distributions page: every tensor at every stage, clicks, links, runs without counts."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import fake_runs
import hist_kit
import numpy as np
import pandas as pd
import pytest
from hist_kit import Made
from prose import tells
from streamlit.testing.v1 import AppTest

from qlib import jobs
from qlib.core.records import InvalidSpec, RunSpec
from qlib.core.specs import checked
from qlib.guide import lessons
from qlib.store import tensors
from qlib.ui.distributions import page, text
from qlib.ui.distributions.text import Seen
from qlib.ui.shared import context

ROOT = Path(__file__).resolve().parents[1]
PAGE = "pages/4_Distributions.py"
FAR = "blocks.2.mlp.fc2"  # whose inputs have the largest outlier ratio
PRODUCT = "blocks.0.attn.scores"


def spec(method="nearest", bits=4) -> RunSpec:
    return checked(RunSpec("digits-vit", "digits", method, weight_bits=bits, act_bits=bits))


@pytest.fixture(scope="session")
def stored(tmp_path_factory) -> Path:
    """Runs of two methods and two widths, with the counts of their tensors."""
    folder = tmp_path_factory.mktemp("counted")
    for method in ("nearest", "brecq"):
        for bits in (4, 2):
            made = fake_runs.write_run(folder, spec(method, bits))
            with_product(made)
    return folder


def with_product(folder: Path) -> None:
    """Rows for the attention product of `hist_kit.network`, after the layer before it."""
    file = folder / "layers.csv"
    rows = list(csv.DictReader(file.read_text().splitlines()))
    made = [
        rows[1 + (s == "output")]
        | {"point": f"{PRODUCT}.{s}", "layer": PRODUCT, "kind": "matmul", "tensor": s}
        for s in ("left", "right", "output")
    ]
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows([*rows[:3], *made, *rows[3:]])


@pytest.fixture
def runs(stored, tmp_path, monkeypatch) -> Path:
    """The counted runs as demo runs; the empty folder for own runs is returned."""
    monkeypatch.setenv("QLIB_DEMO", str(stored))
    monkeypatch.setenv("QLIB_RUNS", str(tmp_path))
    return tmp_path


def open_page(**query: str) -> AppTest:
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    at.run()
    at.switch_page(PAGE)
    at.query_params.update({"b": "W4A4"} | query)
    at.run()
    assert not at.exception, at.exception[0].message
    return at


def figures(at: AppTest) -> dict[str, dict]:
    charts = at.get("plotly_chart")
    assert all(chart.proto.alt for chart in charts)
    return {c.proto.id.split("-", 2)[-1]: json.loads(c.proto.spec or c.spec) for c in charts}


def title(at: AppTest, place: int = -1) -> str:
    return list(figures(at).values())[place]["layout"]["title"]["text"]


def texts(at: AppTest) -> str:
    parts = [*at.markdown, *at.info, *at.warning, *at.error]
    return "\n".join(p.value for p in parts)


# ---- what is shown --------------------------------------------------------------------------


def test_begins_with_the_largest_outliers(runs):
    at = open_page()
    assert at.title[0].value == "What do the numbers in this layer look like, before and after?"
    assert at.query_params["layer"] == FAR
    assert tells(texts(at), FAR, "4 bits", "16 levels", "a few values rule")
    assert [m.label for m in at.metric] == [
        "Range", "Scale (step)", "Zero-point", "Clipped", "Levels used", "Error / step",
        "Outlier ratio",
    ]  # fmt: skip
    assert tells(title(at, 0), "1 of 18 inputs", "outliers")
    assert tells(title(at), "Only", "3 of 16 levels", "99.8 %", "nothing clipped")


def test_does_not_lead_back_to_the_first_layer(runs):
    """Taking the layer out of the address (the browser's way back) is not undone."""
    at = open_page()
    del at.query_params["layer"]
    at.run()
    assert not at.exception and "layer" not in at.query_params


def test_an_address_with_a_layer_is_kept(runs):
    at = open_page(layer="blocks.1.attn.qkv", h_t="Weight")
    assert at.query_params["layer"] == "blocks.1.attn.qkv"
    assert tells(texts(at), "16 levels", "each", "64 channels")


@pytest.mark.parametrize("stage", ["Float", "Rounded", "Codes", "Error"])
@pytest.mark.parametrize("tensor", ["Weight", "Input", "Output"])
def test_every_tensor_at_every_stage(runs, tensor, stage):
    at = open_page(layer="blocks.1.mlp.fc1", h_t=tensor, h_stage=stage)
    assert len(figures(at)) == 2
    if (tensor, stage) == ("Output", "Codes"):
        assert tells(texts(at), "output", "no integer codes")
    assert tells(texts(at), "output", "no grid") is (tensor == "Output")


def test_channels_of_a_weight(runs):
    at = open_page(layer="blocks.1.mlp.fc1", h_t="Weight", h_ch="true")
    assert len(figures(at)) == 3
    assert [t["type"] for t in list(figures(at).values())[1]["data"]] == ["heatmap"]
    at.selectbox(key="h_one").set_value(4).run()
    assert tells(title(at), "Channel 4", "%")
    at.segmented_control(key="h_t").set_value("input").run()
    assert not at.exception and len(figures(at)) == 2


def test_an_attention_product_has_two_inputs(runs):
    at = open_page(layer=PRODUCT)
    assert at.segmented_control(key="h_side").value == "left"
    assert "left inputs of blocks.0.attn.scores" in json.dumps(figures(at))
    at.segmented_control(key="h_side").set_value("right").run()
    assert "right inputs of blocks.0.attn.scores" in json.dumps(figures(at))
    at.segmented_control(key="h_t").set_value("weight").run()
    assert tells(texts(at), "two inputs", "no weights") and not at.exception


def test_methods_laid_over_each_other(runs):
    at = open_page(layer="blocks.1.mlp.fc1", h_stage="Rounded", h_with="BRECQ")
    assert at.multiselect(key="h_with").options == ["BRECQ"]
    names = [t.get("name") for t in list(figures(at).values())[-1]["data"]]
    assert {"Nearest", "BRECQ"} <= set(names)


def test_follows_the_bits_of_the_bar(runs):
    at = open_page(b="W2A2", layer="blocks.1.mlp.fc1")
    assert tells(texts(at), "2 bits", "4 levels")


@pytest.mark.parametrize(
    "query", [{"h_t": "magic"}, {"h_stage": "9"}, {"h_bins": "7"}, {"h_with": "gone"},
              {"h_side": "up"}, {"h_one": "4000", "h_ch": "true", "h_t": "Weight"}],
)  # fmt: skip
def test_links_with_unknown_values_fall_back(runs, query):
    assert len(figures(open_page(**query))) >= 2


def test_axes_and_order_of_the_view(runs):
    at = open_page(layer=FAR, h_sym="true", h_log="false", h_bins="64", h_o="Outliers first")
    ladder, main = figures(at).values()
    assert ladder["layout"]["yaxis"]["ticktext"][0] == FAR
    assert main["layout"]["yaxis"]["type"] == "linear"
    assert "0" in main["layout"]["xaxis"]["ticktext"]


def test_data_of_the_figures(runs):
    at = open_page()
    bins, every = (d.value for d in at.dataframe[-2:])
    assert len(bins) == 256 and bins["float values"].sum() == bins["after rounding"].sum()
    assert {"Layer", "Tensor", "Outlier ratio", "Clipped (%)"} <= set(every.columns)
    assert len(every) == 51


# ---- clicks ---------------------------------------------------------------------------------


def test_a_click_on_a_rung_chooses_layer_and_side(monkeypatch):
    seen = []
    monkeypatch.setattr(context, "set_layer", seen.append)
    session = {page.LADDER: {"selection": {"points": []}}}
    page.clicked(session)
    assert not seen and set(session) == {page.LADDER}
    session[page.LADDER]["selection"]["points"] = [{"customdata": [PRODUCT, "right", ""]}]
    page.clicked(session)
    assert seen == [PRODUCT] and session["h_side"] == "right"


def test_the_ladder_does_not_depend_on_the_layer(runs):
    one, two = (open_page(layer=layer) for layer in (FAR, "blocks.0.attn.qkv"))
    ladders = [next(iter(figures(at).values())) for at in (one, two)]
    assert ladders[0] == ladders[1]


# ---- what is missing ------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path, monkeypatch) -> Path:
    """One demo run without counts; the folder for own runs is returned."""
    demo, own = tmp_path / "demo", tmp_path / "own"
    (fake_runs.write_run(demo, spec()) / "hist.npz").unlink()
    own.mkdir()
    monkeypatch.setenv("QLIB_DEMO", str(demo))
    monkeypatch.setenv("QLIB_RUNS", str(own))
    return own


def test_a_run_without_counts_can_be_made_again(plain, monkeypatch):
    seen = []

    def submit(wanted, folder):
        seen.append((wanted, folder))
        return jobs.Job(wanted.key, wanted, folder / ".jobs" / wanted.key, place=1)

    monkeypatch.setattr(jobs, "submit", submit)
    at = open_page()
    assert "hist.npz is missing" in texts(at)
    at.button(key="h-collect").click().run()
    assert not at.exception and seen == [(spec(), plain)]
    assert any("It is queued" in link.proto.label for link in at.get("page_link"))


def test_a_refusal_of_the_queue_is_told(plain, monkeypatch):
    def submit(wanted, folder):
        raise InvalidSpec("The runs folder cannot be written; check its permissions.")

    monkeypatch.setattr(jobs, "submit", submit)
    at = open_page()
    at.button(key="h-collect").click().run()
    assert [e.value for e in at.error] == [
        "The runs folder cannot be written; check its permissions."
    ]


def test_a_run_that_was_made_again_is_offered(plain):
    fake_runs.write_run(plain, spec())
    old = plain.parent / "demo" / spec().key
    old.rename(old.with_name("digits-vit_nearest_W4A4_0123456789"))  # keys of older versions
    at = open_page(run="digits-vit_nearest_W4A4_0123456789")
    assert any("open it" in link.proto.label for link in at.get("page_link"))


def test_damaged_counts_are_named(runs, stored, tmp_path, monkeypatch):
    demo = tmp_path / "broken"
    shutil.copytree(stored / spec().key, demo / spec().key)
    (demo / spec().key / "hist.npz").write_bytes(b"PK")
    monkeypatch.setenv("QLIB_DEMO", str(demo))
    assert "hist.npz" in texts(open_page())


def test_a_layer_left_in_float(tmp_path, monkeypatch):
    monkeypatch.setenv("QLIB_DEMO", str(tmp_path / "demo"))
    monkeypatch.setenv("QLIB_RUNS", str(tmp_path / "own"))
    folder = fake_runs.write_run(tmp_path / "demo", spec())
    layer = "blocks.0.mlp.fc1"
    kept = [replace(t, bits=0) if layer in t.name else t for t in hist_kit.network()]
    hist_kit.write(folder, kept)
    at = open_page(layer=layer, h_stage="Codes")
    assert tells(texts(at), "inputs", "in float", "nothing is rounded")
    assert tells(texts(at), "no grid", "no codes", "no error")
    assert [m.label for m in at.metric] == ["Range", "Outlier ratio"]
    assert tells(title(at), "float", "no grid", "nothing is rounded")


def test_a_tensor_that_was_not_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("QLIB_DEMO", str(tmp_path / "demo"))
    monkeypatch.setenv("QLIB_RUNS", str(tmp_path / "own"))
    folder = fake_runs.write_run(tmp_path / "demo", spec())
    layer = "blocks.0.mlp.fc1"
    some = [t for t in hist_kit.network() if t.name != f"{layer}.output"]
    hist_kit.write(folder, [*some, Made("blocks.0.boundary", np.linspace(-1, 1, 99))])
    at = open_page(layer=layer, h_t="Output")
    assert tells(texts(at), "no counts", "output")
    some = [t for t in some if t.name != f"{layer}.input"]
    hist_kit.write(folder, [*some, Made("blocks.0.boundary", np.linspace(-1, 1, 99))])
    assert tells(texts(open_page(layer=layer)), "rounded", "enter", "blocks.0")


# ---- sentences ------------------------------------------------------------------------------


def told(tmp_path, *made: Made, channels: int = 1) -> str:
    hist_kit.write(tmp_path, made)
    (hist,) = tensors.load(tmp_path).values()
    return text.answer(Seen(hist, {"channels": channels}))


def test_who_rules_the_grid(tmp_path):
    x = np.append(np.random.default_rng(0).uniform(0, 1, 5000), 12.0)
    stretched = told(tmp_path, Made("a.input", x, 4))
    assert tells(
        stretched, "4 bits", "16 levels", "none is clipped", "largest", "12 times", "p99.9"
    )
    assert tells(stretched, "a few values rule", "only", 2, "16 levels", "99.8 %")
    clipped = told(tmp_path, Made("a.input", x, 4, 0, 1))
    assert tells(clipped, "0.02 %", "clipped", "few are clipped", "many", "smaller step")
    tame = told(tmp_path, Made("a.input", x[:-1], 4))
    assert tells(tame, "none is clipped", "no outlier", "all 16 levels", "99.8 %")
    rows = np.stack([x, x])
    own = told(tmp_path, Made("a.weight", rows, 4), channels=2)
    assert tells(own, "16 levels", "each", "2 channels", "outlier", "its own channel only")


def test_error_comes_from_the_run_where_it_told_it(tmp_path):
    hist_kit.write(tmp_path, [Made("a.input", np.linspace(0, 15, 9999), 4)])
    (hist,) = tensors.load(tmp_path).values()
    assert Seen(hist, {}).error == pytest.approx(12**-0.5, rel=0.02)
    assert Seen(hist, {"rmse_step": 0.5}).error == 0.5
    assert Seen(hist, {"rmse_step": ""}).error == pytest.approx(12**-0.5, rel=0.02)


def test_table_of_all_tensors(tmp_path):
    hist_kit.write(tmp_path, hist_kit.network())
    known = {name: Seen(hist, {}) for name, hist in tensors.load(tmp_path).items()}
    table = text.table(known)
    assert table.loc[table["Outlier ratio"].idxmax(), "Layer"] == FAR
    outputs = table[table["Tensor"] == "output"]
    assert pd.isna(outputs["Step"]).all() and not pd.isna(outputs["Max"]).any()


def test_the_lesson_of_the_outlier_is_in_order():
    lesson = lessons.load("outlier")
    assert 4 <= len(lesson.steps) <= 6
    assert {step.page for step in lesson.steps} == {"distributions"}
    assert all(step.question for step in lesson.steps)
