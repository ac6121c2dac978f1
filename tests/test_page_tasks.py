"""Every page with a run that has no accuracy: an encoder's, and one on images without labels."""

from pathlib import Path

import fake_runs
import pytest
from helpers import settings
from prose import tells
from test_pages import open_page, texts

from qlib import store
from qlib.core.records import RunSpec, ignore
from qlib.core.specs import absolute, checked
from qlib.export import report
from qlib.guide import facts, findings
from qlib.pipeline.run import run
from qlib.sensitivity import profile

NETS = Path(__file__).with_name("own_nets.py")
PAGES = sorted(Path(__file__).parents[1].glob("pages/[0-9]_*.py"))
KINDS = ("features", "features without labels", "unlabelled")


def spec(kind: str, method: str) -> RunSpec:
    function = "seven" if kind == "unlabelled" else "encoder"
    labels = "given" if kind == "features" else "none"
    made = RunSpec(f"{NETS}:{function}", "digits", method, calib=16, test=40, weight_bits=3,
                   act_bits=3, settings=settings(method, 2), weight_observer="minmax",
                   act_observer="minmax", labels=labels)  # fmt: skip
    return absolute(checked(made))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """For each kind a runs folder: nearest with its sensitivity, BRECQ, and PTMQ's many widths."""
    folders = {}
    for kind in KINDS:
        folders[kind] = runs = tmp_path_factory.mktemp(kind.replace(" ", "_"))
        for method in ("nearest", "brecq", "ptmq"):
            _finished(runs, spec(kind, method))
        _finished(runs, profile.spec_of(spec(kind, "nearest")))
    return folders


def _finished(runs: Path, given: RunSpec) -> None:
    with store.private(runs, given.key) as folder:
        run(given, ignore, folder, [runs])
        store.finish(folder, runs, given.key)


@pytest.fixture(params=KINDS)
def kind(request, made, tmp_path, monkeypatch) -> str:
    (tmp_path / "DEMO").mkdir()
    monkeypatch.setenv("QLIB_DEMO", str(tmp_path / "DEMO"))
    monkeypatch.setenv("QLIB_RUNS", str(made[request.param]))
    return request.param


@pytest.mark.parametrize("method", ["nearest", "ptmq"])
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_page_opens(page, method, kind):
    at = open_page(f"pages/{page.name}", run=spec(kind, method).key)
    assert not at.exception
    told = texts(at)
    assert "0.0 % top-1" not in told and "nan" not in told.lower().split()


def test_result_card(kind):
    at = open_page("pages/3_Run.py", job=spec(kind, "brecq").key)
    shown = {m.label: m.value for m in at.metric}
    assert "Top-1" not in shown and "Weights" in shown
    wanted = {"features": "k-NN accuracy", "unlabelled": "Agreement"}
    assert wanted.get(kind, "Cosine to float") in shown


def test_table_of_all_runs_has_gaps_and_no_zeros(kind):
    at = open_page("pages/9_Compare.py")
    table = at.dataframe[-1].value
    assert table["Top-1"].isna().all() and table["Float"].isna().all()
    assert (table["95 % interval"] == "–").all()
    assert ("Cosine" in table) == kind.startswith("features")
    assert ("k-NN" in table) == (kind == "features")
    assert "has no accuracy" in texts(at)


def test_bits_lists_every_width(kind):
    at = open_page("pages/8_Bits.py", run=spec(kind, "ptmq").key)
    table = at.dataframe[0].value
    assert {3, 8} <= set(table["Activation bits"]) and "KL (nats)" in table
    assert ("k-NN (%)" in table) == (kind == "features")
    assert "there is no accuracy" in texts(at)


def test_sensitivity_says_what_it_lacks(kind):
    view = {"run": spec(kind, "nearest").key}
    assert "KL" in texts(open_page("pages/5_Sensitivity.py", **view))
    at = open_page("pages/5_Sensitivity.py", **view)
    at.selectbox(key="s_metric").set_value("top1").run()
    assert not at.exception and "This run has no Top-1" in texts(at)


def test_report_notebook_findings_and_facts(kind, made):
    entries = [e for e in store.list_runs(made[kind]) if not e.record.spec.analysis]
    records = [store.load(e.folder) for e in entries]
    text = report.page("Runs", [], records, "today")
    assert records[0].notes[0][:40] in text.replace("&#x27;", "'")
    assert "? %" not in text and "Top-1" not in text
    assert "–" in text
    for record, entry in zip(records, entries, strict=True):
        found = findings.of(record, preds=store.load_preds(entry.folder))
        assert all("nan" not in f.text for f in found)
        assert facts.of(record).kl == record.metrics["kl"]


def test_beside_accurate_runs_only_those_are_ranked(kind, made, tmp_path, monkeypatch):
    """The figures of Start, Bits and Compare are about accuracy; the table has all runs."""
    fake_runs.write_run(
        tmp_path / "DEMO", checked(RunSpec("digits-vit", "digits", "nearest", 3, 3))
    )
    assert tells(texts(open_page("pages/1_Start.py")), "digits-vit", "is right on")
    assert tells(texts(open_page("pages/8_Bits.py", m="digits-vit")), "digits-vit")
    at = open_page("pages/9_Compare.py", m="digits-vit")
    assert tells(texts(at), "is right on")
    assert at.dataframe[-1].value["Top-1"].isna().sum() == 3
