"""Every page opens: with demo runs, without, with broken ones, with links to what is not there."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import fake_runs
import pytest
from prose import tells
from streamlit.testing.v1 import AppTest

from qlib import jobs, store
from qlib.core import specs
from qlib.core.params import params
from qlib.core.records import RunRecord, RunSpec
from qlib.core.registry import discover
from qlib.core.specs import checked
from qlib.ui.shared import pickers, resolve
from qlib.ui.shared import stored as start

ROOT = Path(__file__).resolve().parents[1]
RIGHT = "is right on"  # in the answer of Start and of a finished run
IDENTICAL = "identical run"
RUN, COMPARE = "pages/3_Run.py", "pages/9_Compare.py"
TITLES = {key: owner.title for key, owner in discover("methods").items()}


@pytest.fixture(scope="session")
def stored(tmp_path_factory) -> Path:
    """A demo folder: two networks, two methods, three bit-widths."""
    folder = tmp_path_factory.mktemp("demo")
    models, methods = ["digits-vit", "digits-resnet"], ["nearest", "brecq"]
    return fake_runs.write_demo(folder, models=models, methods=methods, bits=(8, 4, 3))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Empty folders for demo runs and own runs."""
    for name in ("DEMO", "RUNS"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"QLIB_{name}", str(tmp_path / name))
    return tmp_path / "DEMO", tmp_path / "RUNS"


@pytest.fixture
def demo(stored, folders, monkeypatch):
    """The stored demo runs, and an empty folder for own ones, which is returned."""
    monkeypatch.setenv("QLIB_DEMO", str(stored))
    return folders[1]


def open_page(path: str = "", /, **query: str) -> AppTest:
    """The app on one of its pages, as a link with these parameters opens it."""
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    at.query_params.update(query)
    at.run()  # the root address leads to Start
    if path:
        at.switch_page(path)
        at.query_params.update(query)
        at.run()
    assert not at.exception, at.exception[0].message
    return at


def figures(at: AppTest) -> list[dict]:
    return [json.loads(chart.proto.spec or chart.spec) for chart in at.get("plotly_chart")]


def texts(at: AppTest) -> str:
    parts = [*at.title, *at.markdown, *at.caption, *at.info, *at.warning, *at.success, *at.error]
    return "\n".join(p.value for p in parts).replace("\xa0", " ")


# ---- Start ----------------------------------------------------------------------------------


def test_start_answers_from_stored_runs(demo):
    at = open_page()
    assert at.title[0].value == "What does quantization do to this model?"
    (answer,) = (m.value for m in at.markdown if RIGHT in m.value)
    assert tells(answer, "digits-vit", RIGHT, 597)
    assert "\xa0%" in answer and " %" not in answer  # no line begins with a percent sign
    strip, curve = figures(at)
    assert len(strip["layout"]["images"]) == 6
    assert curve["layout"]["yaxis"]["title"]["text"] == "top-1 accuracy (%)"
    assert all(chart.proto.alt for chart in at.get("plotly_chart"))
    assert not at.dataframe  # closed, the table is not sent: the figure comes sooner
    at.session_state["details"] = True
    assert len(at.run().dataframe[0].value) == 6


def test_start_controls_change_the_answer(demo):
    at = open_page()
    before = texts(at)
    at.segmented_control(key="b").set_value("W4A4").run()
    assert tells(texts(at), "16 levels", "4 bits", "digits-vit") and texts(at) != before
    at.segmented_control(key="q").set_value("brecq").run()
    assert tells(texts(at), "BRECQ", "4 bits", "digits-vit", RIGHT)
    at.segmented_control(key="m").set_value("digits-resnet").run()
    assert tells(texts(at), "BRECQ", "4 bits", "digits-resnet", RIGHT)
    assert not at.exception


def test_start_draws_the_method_of_the_button():
    """At 4 bits both learned methods are right equally often, QDrop with the lower KL."""
    found = {4: (("nearest", 80, 0.9), ("brecq", 90, 0.4), ("qdrop", 90, 0.3)),
             8: (("nearest", 99, 0.0), ("brecq", 95, 0.1), ("qdrop", 94, 0.1))}  # fmt: skip
    records = []
    for bits, runs in found.items():
        for method, top1, kl in runs:
            spec = RunSpec("digits-vit", "digits", method, weight_bits=bits, act_bits=bits)
            records.append(RunRecord(spec, {"top1": float(top1), "kl": kl}, {}, 0.0))
    for bits, method in ((4, "qdrop"), (8, "brecq")):
        assert resolve.best(records, f"W{bits}A{bits}") == method
        shown = next(r for r in records if r.spec.weight_bits == bits)
        lines = start.two_lines(records, "nearest", shown)
        assert {r.spec.method for r in lines} == {"nearest", method}
    lines = start.two_lines(records, "brecq", records[0])
    assert {r.spec.method for r in lines} == {"nearest", "brecq"}


def test_start_link_restores_the_view(demo):
    at = open_page(m="digits-resnet", b="4")
    assert tells(texts(at), "nearest", "16 levels", "4 bits", "digits-resnet", RIGHT)


@pytest.mark.parametrize("query", [{"m": "gone"}, {"b": "7"}, {"b": "many"}, {"q": "magic"}])
def test_start_link_with_unknown_values_falls_back(demo, query):
    assert tells(texts(open_page(**query)), "digits-vit", RIGHT)


def test_start_click_on_a_point_sets_the_bits(demo, monkeypatch):
    at = open_page()
    at.session_state["bits-figure"] = {"selection": {"points": [{"customdata": [3, 1, 2, "x"]}]}}
    at.run()
    assert not at.exception
    from qlib.ui.shared import stored as page

    seen = []
    monkeypatch.setattr(page, "change", lambda *change: seen.append(change))
    state = {"bits-figure": {"selection": {"points": []}}}
    page.follow_click(state)
    assert seen == []
    state["bits-figure"]["selection"]["points"] = [{"customdata": [3, 50.0, 60.0, "brecq"]}]
    page.follow_click(state)
    assert seen == [("b", "W3A3")]


def test_start_without_demo_says_how_to_rebuild(folders):
    at = open_page()
    assert tells(texts(at), "no stored runs")
    assert at.code[0].value == "python -m benchmarks.demo"


def test_start_names_unreadable_runs(stored, folders):
    shutil.copytree(stored, folders[0], dirs_exist_ok=True)
    victim = sorted(folders[0].iterdir())[0]
    (victim / "run.json").write_text("{")
    at = open_page()
    assert f"{victim.name}/run.json is damaged" in texts(at)
    assert "python -m benchmarks.demo" in texts(at)
    assert len(figures(at)) == 2


def test_start_survives_damaged_predictions(stored, folders):
    shutil.copytree(stored, folders[0], dirs_exist_ok=True)
    key = checked(RunSpec("digits-vit", "digits", "nearest", 3, 3)).key
    (folders[0] / key / "preds.npz").write_bytes(b"PK")
    at = open_page()
    assert tells(texts(at), "predictions", "cannot", f"{key}/preds.npz")
    assert len(figures(at)) == 1  # the accuracy figure needs no predictions


# ---- Run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(discover("methods")))
def test_form_of_every_method(demo, method):
    """Fields, limits and help come from the method; the drafted run is the checked default."""
    at = open_page(RUN)
    at.pills(key="method").set_value(method).run()
    assert not at.exception
    for name, p in params(discover("methods")[method]).items():
        (widget,) = [w for w in every_widget(at) if w.key == f"{method}.{name}"]
        assert widget.value == p.default and widget.help == p.help
        if p.type in (int, float):
            assert (widget.min, widget.max) == (p.low, p.high)
    assert at.button(key="start")


def form(at: AppTest) -> tuple:
    """Backbone, method and bits that the form says."""
    bits = [at.button_group(key=key).value for key in "wa"]
    return at.selectbox(key="model").value, at.pills(key="method").value, *bits


def test_form_begins_with_what_is_looked_at(demo):
    at = open_page(m="digits-resnet", q="brecq", b="W3A3")
    at.switch_page(RUN).run()
    assert form(at) == ("digits-resnet", "brecq", 3, 3)
    assert tells(texts(at), "defaults", "BRECQ")
    at.pills(key="method").set_value("gptq").run()
    assert form(at) == ("digits-resnet", "gptq", 3, 3)  # what a person sets stays


def test_form_begins_with_what_its_own_address_says(demo):
    assert form(open_page(RUN, m="digits-resnet", q="qdrop", b="W3A4")) == (
        "digits-resnet", "qdrop", 3, 4
    )  # fmt: skip
    assert form(open_page(RUN, q="qdrop", method="GPTQ")) == ("digits-vit", "gptq", 4, 4)
    assert form(open_page(RUN, m="gone", q="magic", b="W9A4")) == ("digits-vit", "brecq", 4, 4)


def every_widget(at: AppTest) -> list:
    kinds = (at.number_input, at.toggle, at.selectbox, at.text_input)
    return [widget for kind in kinds for widget in kind]


@pytest.mark.parametrize("method", sorted(discover("methods")))
def test_presets_fill_the_form(demo, method):
    at = open_page(RUN)
    at.pills(key="method").set_value(method).run()
    owner = discover("methods")[method]
    at.button(key="use-Paper settings").click().run()
    assert not at.exception
    for name, value in owner.paper_settings.items():
        assert next(w for w in every_widget(at) if w.key == f"{method}.{name}").value == value
    assert at.selectbox(key="place").value == owner.paper_placement
    at.button(key="use-Quick look").click().run()
    assert at.number_input(key="calib").value == 64
    at.button(key="use-Standard").click().run()
    assert at.number_input(key="calib").value == 256
    assert at.selectbox(key="place").value == "inputs"


def values_of(at: AppTest, method: str) -> dict:
    """What the form says of a method's fields now."""
    names = {f"{method}.{name}": name for name in params(discover("methods")[method])}
    return {names[w.key]: w.value for w in every_widget(at) if w.key in names}


@pytest.mark.parametrize("start", ["adaround", "flexround", "nupes"])
def test_your_own_starts_from_a_named_method(demo, start):
    at = open_page(RUN)
    at.pills(key="method").set_value("custom").run()
    assert tells(texts(at), "All choices", "QDrop")
    at.selectbox(key="from").set_value(start).run()
    assert not at.exception
    owner = discover("methods")[start]
    assert values_of(at, "custom") == asdict(owner().design())
    assert tells(texts(at), "All choices", owner.title)
    at.selectbox(key="custom.unit").set_value("stage").run()
    assert tells(texts(at), "Differs", owner.title, "unit") and not tells(texts(at), "All choices")


def test_every_method_with_a_design_can_be_started_from(demo):
    at = open_page(RUN, method="Your own")
    assert at.pills(key="method").value == "custom"
    offered = {k for k, o in discover("methods").items() if k != "custom" and o().design()}
    titles = {discover("methods")[key].title for key in offered}
    assert set(at.selectbox(key="from").options) == titles
    at.pills(key="method").set_value("brecq").run()
    assert not any(box.key == "from" for box in at.selectbox)


def test_fields_without_a_say_are_greyed(demo):
    at = open_page(RUN)
    at.pills(key="method").set_value("custom").run()
    assert at.number_input(key="custom.window").disabled
    assert not at.number_input(key="custom.penalty").disabled
    at.selectbox(key="custom.learn").set_value("window").run()
    assert not at.number_input(key="custom.window").disabled
    assert at.number_input(key="custom.penalty").disabled


def test_a_choice_that_does_not_fit_is_told_and_not_started(demo):
    at = open_page(RUN)
    at.pills(key="method").set_value("custom").run()
    at.selectbox(key="custom.error").set_value("kl").run()
    assert "needs unit 'network'" in texts(at)
    at.selectbox(key="custom.unit").set_value("network").run()
    assert "needs unit 'network'" not in texts(at)


def test_form_link_restores_settings(demo):
    at = open_page(RUN, method="QDrop", w="3", a="8", calib="99", model="digits-resnet")
    assert at.pills(key="method").value == "qdrop"
    assert at.segmented_control(key="w").value == 3
    assert at.number_input(key="calib").value == 99
    assert at.selectbox(key="model").value == "digits-resnet"


def test_identical_run_is_offered(demo):
    at = open_page(RUN)
    assert any(IDENTICAL in s.value for s in at.success)
    at.button(key="open").click().run()
    assert tells(texts(at), "digits-vit", RIGHT)
    assert [m.label for m in at.metric][:2] == ["Top-1", "Float model"]
    assert figures(at)[0]["layout"]["yaxis"]["type"] == "log"
    at.button(key="another").click().run()
    assert at.button(key="start")


def test_another_run_starts_from_the_settings_of_the_last(demo):
    spec = RunSpec(
        "digits-resnet", "digits", "qdrop", 3, 8, seed=4, calib=32, test=50, edge_layers="same"
    )
    spec = checked(replace(spec, settings={"steps": 7}, tune_norms=True, tune_biases=40))
    fake_runs.write_run(demo, spec)
    at = open_page(RUN, job=spec.key)
    at.button(key="another").click().run()
    assert not at.exception and "job" not in at.query_params
    assert any(IDENTICAL in s.value for s in at.success)
    assert at.number_input(key="qdrop.steps").value == 7
    assert at.text_input(key="seed").value == "4"
    assert (at.toggle(key="norms").value, at.number_input(key="biases").value) == (True, 40)


@pytest.mark.parametrize(
    ("name", "key", "filling"),
    [
        ("digits-vit", "digits-vit", ""),
        ("timm:deit_tiny_patch16_224", "timm:NAME", "deit_tiny_patch16_224"),
        ("gone", None, ""),
    ],
)
def test_patterns_are_found_again(name, key, filling):
    assert pickers.unfilled(name, specs.model_keys()) == (key, filling)


def test_wrong_settings_are_one_sentence(demo):
    at = open_page(RUN)
    at.selectbox(key="model").set_value("timm:NAME").run()
    (said,) = [w.value for w in at.warning]
    assert "pattern: write a real name" in said
    assert at.button(key="start").disabled
    at.selectbox(key="model").set_value("cifar10-resnet20").run()
    assert at.selectbox(key="data").value == "cifar10"
    at.text_input(key="weights").set_value("/nowhere/w.pth").run()
    assert "There is no file or folder /nowhere/w.pth" in at.warning[0].value


@pytest.mark.parametrize("seed", ["9" * 25, str(2**63), "-1", "1.5", "one"])
def test_seed_that_no_generator_takes_is_one_sentence(demo, seed):
    at = open_page(RUN, seed=seed)
    assert not at.exception
    assert any(tells(w.value, "seed must be a whole number from 0 to", seed) for w in at.warning)
    at.text_input(key="seed").set_value(str(2**63 - 1)).run()
    assert not at.exception and not at.warning


def test_options_of_timm_reach_the_job_in_one_spelling(demo, monkeypatch):
    seen = []
    monkeypatch.setattr(jobs, "submit", lambda spec, runs: seen.append(spec) or waiting(spec, runs))
    monkeypatch.setattr(jobs, "status", lambda key, runs: waiting(seen[0], runs))
    at = open_page(RUN, model="timm:NAME", name="test_vit?in_chans=1&img_size=96")
    at.button(key="start").click().run()
    assert [s.model for s in seen] == ["timm:test_vit?img_size=96&in_chans=1"]
    at = open_page(RUN, model="timm:NAME", name="test_vit?size=96")
    assert any(tells(w.value, "come options such as", "size=96") for w in at.warning)


def test_start_submits_once_and_shows_the_job(demo, monkeypatch):
    seen = []

    def submit(spec, runs):
        seen.append(spec)
        return waiting(spec, runs)

    monkeypatch.setattr(jobs, "submit", submit)
    monkeypatch.setattr(jobs, "status", lambda key, runs: waiting(seen[0], runs))
    at = open_page(RUN)
    at.text_input(key="seed").set_value("7").run()
    assert not seen  # nothing happens before Start
    at.button(key="start").click().run()
    assert [s.seed for s in seen] == [7] and seen[0] == checked(seen[0])
    assert at.query_params["job"] == seen[0].key
    assert any(tells(i.value, "Waiting", "next") for i in at.info)
    assert at.button(key="cancel")


def test_refusal_of_submit_is_shown(demo, monkeypatch):
    from qlib.core.records import InvalidSpec

    def submit(spec, runs):
        raise InvalidSpec("The runs folder cannot be written; check its permissions.")

    monkeypatch.setattr(jobs, "submit", submit)
    at = open_page(RUN)
    at.button(key="start").click().run()
    assert [e.value for e in at.error] == [
        "The runs folder cannot be written; check its permissions."
    ]


def waiting(spec: RunSpec, runs: Path, **fields) -> jobs.Job:
    return jobs.Job(spec.key, spec, runs / ".jobs" / spec.key, **({"place": 1} | fields))


def job_page(runs: Path, monkeypatch, events=(), **fields) -> AppTest:
    """The Run page of a job in some state, with events and a log on disk."""
    spec = checked(RunSpec("digits-vit", "digits", "brecq", seed=5))
    job = waiting(spec, runs, **fields)
    job.folder.mkdir(parents=True)
    job.log.write_text("what the worker said\n")
    lines = "".join(json.dumps(e) + "\n" for e in events)
    (job.folder / "events.jsonl").write_text(lines)
    monkeypatch.setattr(jobs, "status", lambda key, folder: job)
    monkeypatch.setattr(jobs, "list_jobs", lambda folder: [job])
    monkeypatch.setattr(jobs, "events", lambda key, folder, start=0: store.events(job.folder))
    return open_page(RUN, job=spec.key)


def test_running_job_shows_stage_loss_and_memory(demo, monkeypatch):
    events = fake_runs.reconstruction_events("brecq")[:100]
    at = job_page(demo, monkeypatch, events, state="running", started=1.0)
    (curve,) = figures(at)
    assert tells(curve["layout"]["title"]["text"], "Unit 1 of 4", "error", "fallen")
    metrics = {m.label: m.value for m in at.metric}
    assert metrics["Memory"] == "510 MB"
    assert metrics["Left in this round"].startswith("about ")
    assert at.button(key="cancel") and not at.button(key="cancel").disabled
    assert any("digits-vit" in c.value for c in at.sidebar.caption)


def test_cancelling_job_cannot_be_cancelled_twice(demo, monkeypatch):
    at = job_page(demo, monkeypatch, state="cancelling", started=1.0)
    assert at.button(key="cancel").disabled
    assert {m.label: m.value for m in at.metric}["Left in this round"] == "measuring…"


@pytest.mark.parametrize(
    ("state", "head", "advice"),
    [
        ("failed", "refused", "Change"),
        ("crashed", "died", "fewer calibration images"),
        ("cancelled", "cancelled", "start the same run again"),
    ],
)
def test_unfinished_jobs_say_what_to_do(demo, monkeypatch, state, head, advice):
    at = job_page(demo, monkeypatch, state=state, message="Something was wrong.")
    shown = texts(at)
    for part in (head, "Something was wrong.", "kept", advice):
        assert tells(shown, part)
    assert at.get("download_button")


def test_link_to_an_unknown_run_is_a_notice(demo):
    at = open_page(RUN, job="digits-vit_brecq_W4A4_0000000000")
    assert any(tells(i.value, "no run", "digits-vit_brecq_W4A4_0000000000") for i in at.info)
    assert at.button(key="start")


def test_finished_run_that_cannot_be_read(demo):
    spec = checked(RunSpec("digits-vit", "digits", "brecq", seed=9))
    folder = fake_runs.write_run(demo, spec)
    (folder / "layers.csv").write_text("point,layer\ncut")
    at = open_page(RUN, job=spec.key)
    assert any("layers.csv is damaged" in e.value for e in at.error)


# ---- the app as a whole ---------------------------------------------------------------------


def test_pages_are_short_scripts():
    pages = list((ROOT / "pages").glob("*.py"))
    assert len(pages) >= 8
    for page in pages:
        assert len(page.read_text().splitlines()) <= 120, page.name
    assert len((ROOT / "app.py").read_text().splitlines()) <= 25


def test_app_never_imports_torch(demo):
    """All pages run in one process, and torch is not among its modules afterwards."""
    script = (
        "import pathlib, sys\n"
        "from streamlit.testing.v1 import AppTest\n"
        "at = AppTest.from_file('app.py', default_timeout=60).run()\n"
        "pages = sorted(pathlib.Path('pages').glob('[1-9]*.py'))\n"
        "assert len(pages) >= 8, pages\n"
        "for page in pages:\n"
        "    at.switch_page(str(page)).run()\n"
        "    assert not at.exception, at.exception[0].message\n"
        "heavy = {'torch', 'torchvision', 'timm', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
