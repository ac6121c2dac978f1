"""What leaves the app: names, data with their origin, the offline report, the notebook."""

import contextlib
import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import fake_runs
import pandas as pd
import pytest
from browser_kit import chromium, serving, window  # noqa: F401 (fixtures)

from qlib import store
from qlib.core.records import RunRecord, RunSpec
from qlib.core.specs import checked
from qlib.export import notebook, report
from qlib.export.report import Part
from qlib.plots.compare import accuracy_vs_size, flips_bars
from qlib.ui.shared import export

TODAY = date.today().isoformat()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[RunRecord]:
    folder = tmp_path_factory.mktemp("runs")
    specs = [RunSpec("digits-vit", "digits", q, test=60) for q in ("nearest", "brecq")]
    return [store.load(fake_runs.write_run(folder, checked(spec))) for spec in specs]


def parts(records) -> list[Part]:
    info = accuracy_vs_size.info(records, cost="time")
    frame = pd.DataFrame({"run": [r.spec.key for r in records], "x": [1.5, float("nan")]})
    return [Part(accuracy_vs_size.figure(info), accuracy_vs_size.alt(info), frame)]


# ---- names and data -------------------------------------------------------------------------


def test_file_names_say_what_is_inside(runs):
    one = export.file_name("accuracy_vs_time", runs[:1])
    assert one == f"digits-vit_nearest_W4A4_accuracy-vs-time_{TODAY}"
    assert export.file_name("flips", runs) == f"digits-vit_several_W4A4_flips_{TODAY}"
    odd = replace(runs[0], spec=replace(runs[0].spec, model="timm:a/b c"))
    assert export.file_name("x/../y", [odd]) == f"timm-a-b-c_nearest_W4A4_x-..-y_{TODAY}"
    assert export.file_name("flips", []) == f"flips_{TODAY}"


def test_toolbar_saves_a_large_picture_under_the_same_name(runs):
    config = export.config("flips", runs, box=True)
    assert config["toImageButtonOptions"]["filename"] == export.file_name("flips", runs)
    assert config["toImageButtonOptions"]["scale"] == 3
    assert "select2d" not in config["modeBarButtonsToRemove"]
    assert "select2d" in export.config("flips", runs)["modeBarButtonsToRemove"]


def carries_origin(about: dict, record: RunRecord) -> None:
    assert RunSpec.from_json(about["spec"]) == record.spec
    assert about["simulated"] is True and about["seed"] == record.spec.seed
    assert about["top1_95"] == [record.metrics["top1_low"], record.metrics["top1_high"]]
    assert about["n"] == 60 and about["versions"]["torch"] and about["data"]["test_hash"]


def test_csv_is_a_table_under_its_origin(runs):
    (part,) = parts(runs)
    text = export.csv(part.table, runs)
    read = pd.read_csv(io.BytesIO(text), comment="#")
    assert list(read["run"]) == [r.spec.key for r in runs]
    first, *told = [line[2:] for line in text.decode().splitlines() if line.startswith("# ")]
    assert first.startswith("Simulated quantization")
    for line, record in zip(told, runs, strict=True):
        carries_origin(json.loads(line), record)


def test_json_is_strict_and_carries_its_origin(runs):
    (part,) = parts(runs)
    body = json.loads(export.rows(part.table, runs), parse_constant=pytest.fail)
    assert body["rows"][1] == {"run": runs[1].spec.key, "x": None}
    for about, record in zip(body["about"]["runs"], runs, strict=True):
        carries_origin(about, record)
    for about, record in zip(json.loads(export.specs(runs)), runs, strict=True):
        carries_origin(about, record)


# ---- the report -----------------------------------------------------------------------------


class Reader(HTMLParser):
    """Every start tag with its attributes; scripts are text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_report_loads_nothing_from_anywhere(runs):
    text = report.page("A view", parts(runs) * 2, runs, "2026-11-20")
    tags = Reader(text).tags
    assert not [t for t, a in tags if {"src", "href"} & set(a) or t in ("link", "iframe")]
    policy = next(a["content"] for t, a in tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert text.count("plotly.js v") == 1  # the library is there once for both figures
    figures = [a for t, a in tags if a.get("role") == "img"]
    assert len(figures) == 2
    assert all(a["aria-label"].startswith("Top-1 accuracy against time") for a in figures)


def test_report_carries_numbers_and_origin(runs):
    text = report.page("A view", parts(runs), runs, "2026-11-20")
    assert "Simulated quantization" in text and "2026-11-20" in text
    for record in runs:
        m = record.metrics
        assert f"{m['top1']:.1f} % ({m['top1_low']:.1f} to {m['top1_high']:.1f})" in text
        assert f"Specification, versions and data of {record.spec.key}" in text
    assert "&quot;seed&quot;: 0" in text and "2.15.0" in text


def test_report_of_a_hostile_run_is_only_text(runs):
    """Run folders come from other people: nothing in them may become markup or script."""
    bad = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
    spec = replace(runs[0].spec, data=f"folder:{bad}", model=bad)
    record = replace(runs[0], spec=spec, notes=[bad], versions={bad: bad})
    info = accuracy_vs_size.info([record], titles={"nearest": bad})
    part = Part(accuracy_vs_size.figure(info), bad, pd.DataFrame({bad: [bad]}))
    text = report.page(bad, [part], [record], "2026-11-20")
    tags = Reader(text).tags
    assert "img" not in [t for t, _ in tags]
    assert [t for t, _ in tags].count("script") == 2  # the library, and the one figure
    assert not [a for _, a in tags if "onerror" in a]


def test_report_of_incomplete_records_says_so():
    record = RunRecord(RunSpec("m", "d", "nearest"), {}, {}, 0.0)
    assert "? % (? to ?)" in report.page("x", [], [record], "2026-11-20")
    assert "plotly.js v" not in report.page("x", [], [record], "2026-11-20")


# ---- the notebook ---------------------------------------------------------------------------


def cells(text: str, kind: str) -> list[str]:
    return ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == kind]


@pytest.mark.parametrize("view", ["accuracy_vs_size", "flips", "some_other_view"])
def test_notebook_has_the_form_of_nbformat_4(runs, view):
    body = json.loads(notebook.text(view, runs))
    assert (body["nbformat"], body["nbformat_minor"]) == (4, 5)
    assert set(body) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    ids = [cell["id"] for cell in body["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", i) for i in ids)
    for cell in body["cells"]:
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"id", "cell_type", "metadata", "source"} | code
        assert all(isinstance(line, str) for line in cell["source"])
    words = "\n".join(cells(notebook.text(view, runs), "markdown"))
    for part in ("**Simulated quantization**", "60 test images", "seed 0", "torch 2.15.0"):
        assert part in words
    for source in cells(notebook.text(view, runs), "code"):
        compile(source, view, "exec")


@pytest.mark.parametrize("view", [*notebook.RECIPES, "some_other_view"])
def test_notebook_makes_the_view_again(tmp_path, monkeypatch, view):
    """Every cell is executed, on a real quantization of a digits network."""
    spec = checked(RunSpec("digits-resnet", "digits", "nearest", 3, 3, calib=16, test=24))
    folder = fake_runs.write_run(tmp_path / "stored", spec)
    stored = store.load(folder)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    said = io.StringIO()
    view = view + "size" if view == "accuracy_vs_" else view
    with contextlib.redirect_stdout(said):
        for source in cells(notebook.text(view, [stored]), "code"):
            exec(compile(source, view, "exec"), names)
    (record,) = names["records"]
    assert record.spec == spec and record.metrics["n"] == 24
    assert (tmp_path / "notebook-runs" / spec.key / "preds.npz").exists()
    assert f"{spec.key}: {record.metrics['top1']:.2f} % here" in said.getvalue()
    if view != "some_other_view":
        assert names["figure"].layout.title.text


def test_notebook_takes_the_recipe_of_a_view(runs):
    text = notebook.text("mine", runs, recipe="figure = len(records)")
    assert cells(text, "code")[-1] == "figure = len(records)"


def test_notebook_of_any_other_view_holds_the_figure(runs):
    (part,) = parts(runs)
    said, names = cells(notebook.text("mine", runs, figure=part.figure), "code")[-1], {}
    exec(compile(said, "mine", "exec"), names)
    assert "as it was exported" in said
    assert names["figure"].data == part.figure.data
    assert names["figure"].layout.title == part.figure.layout.title


# ---- in a browser ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory, chromium):  # noqa: F811
    demo = tmp_path_factory.mktemp("demo")
    fake_runs.write_demo(demo, models=["digits-vit"], methods=["nearest", "brecq"], bits=(4, 2))
    with serving(tmp_path_factory.mktemp("home"), demo) as running:
        yield running


@pytest.mark.browser
def test_report_opens_without_a_network(tmp_path, window, runs):  # noqa: F811
    pair = fake_runs.write_run(tmp_path, runs[0].spec)
    file = pair / "report.html"
    bars = flips_bars.info([("k", "Nearest", flips_bars.Pair(50, 4, 1, 5), 91.0)])
    more = Part(flips_bars.figure(bars), flips_bars.alt(bars))
    file.write_text(report.page("A view", [*parts(runs), more], runs, TODAY))
    context = window.browser.new_context(offline=True)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.goto(file.as_uri())
    page.wait_for_function("() => document.querySelectorAll('.main-svg .gtitle').length === 2")
    with page.expect_download() as saved:
        page.locator(".js-plotly-plot").first.hover()
        page.locator('.modebar-btn[data-title="Save as SVG"]').first.click()
    assert ET.parse(Path(saved.value.path())).getroot().tag.endswith("svg")
    assert errors == []
    context.close()


@pytest.mark.browser
def test_menu_saves_everything(server, window):  # noqa: F811
    page = window.open(server.url("compare"), height=1000)
    page.wait_for_selector(".st-key-scatter .main-svg")
    begin = f"digits-vit_several_W2A2_accuracy-vs-time_{TODAY}"
    for label, end in (("PNG", ".png"), ("SVG", ".svg"), ("HTML", ".html"), ("CSV", ".csv"),
                       ("JSON", ".json"), ("Specification", "_spec.json"),
                       ("Report", "_report.html"), ("Notebook", ".ipynb")):  # fmt: skip
        button = page.get_by_role("button", name=label, exact=True)
        if not button.is_visible():  # saving a picture closes the menu
            page.locator(".st-key-export-accuracy_vs_time button").first.click()
        with page.expect_download() as saved:
            button.click()
        assert saved.value.suggested_filename == begin + end
        body = Path(saved.value.path()).read_bytes()
        start = {".png": b"\x89PNG", ".svg": b"<svg", "_spec.json": b"["}.get(end)
        assert body.startswith(start) if start else len(body) > 500
