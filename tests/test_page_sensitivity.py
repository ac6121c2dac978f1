"""The Sensitivity page: with a profile, without, while one is measured; ticks and what-if runs."""

import json
import shutil
from dataclasses import replace

import fake_profiles as fake
import fake_runs
import numpy as np
import pytest
from prose import tells
from test_pages import figures, open_page, texts, waiting

from qlib import jobs, store
from qlib.core.records import RunRecord, RunSpec
from qlib.core.specs import checked
from qlib.sensitivity import profile
from qlib.ui.sensitivity import measure, what_if
from qlib.ui.sensitivity import page as sensitivity
from qlib.ui.sensitivity import text as blame

PAGE = "pages/5_Sensitivity.py"
SPEC = checked(RunSpec("digits-vit", "digits", "nearest", 3, 3))
BRECQ = checked(RunSpec("digits-vit", "digits", "brecq", 3, 3))
FC2 = "blocks.5.mlp.fc2"
VIEW = {"m": "digits-vit", "q": "nearest", "b": "W3A3"}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Two runs with a profile each, and one of another network without."""
    folder = tmp_path_factory.mktemp("profiles")
    for spec in (SPEC, BRECQ):
        fake.write_base(folder, spec)
        fake.write(folder, spec)
    fake.write_base(folder, checked(RunSpec("digits-resnet", "digits", "nearest", 3, 3)))
    return folder


@pytest.fixture
def demo(made, tmp_path, monkeypatch):
    """The stored runs; an empty folder for own ones, which is returned."""
    (tmp_path / "RUNS").mkdir()
    monkeypatch.setenv("QLIB_DEMO", str(made))
    monkeypatch.setenv("QLIB_RUNS", str(tmp_path / "RUNS"))
    return tmp_path / "RUNS"


def page(**query):
    return open_page(PAGE, **(VIEW | query))


def titles(at):
    return [body["layout"]["title"]["text"] for body in figures(at)]


# ---- with a profile -------------------------------------------------------------------------


def test_answer_figures_and_table(demo):
    at = page()
    assert at.title[0].value == "Which layer is to blame?"
    said = texts(at)
    worst = ("blocks.5.mlp.fc2", "blocks.4.mlp.fc2", "blocks.3.mlp.fc2", "20 %", "18 %", "16 %")
    assert tells(said, *worst, "KL 0.90")
    assert tells(said, "inputs", "more than", "weights", "0.60", "0.30")
    assert "not stable" not in said
    assert titles(at)[0].startswith("blocks.5.mlp.fc2 does most damage alone")
    assert len(figures(at)) == 4
    assert all(chart.proto.alt for chart in at.get("plotly_chart"))
    assert [m.value for m in at.markdown if "badge" in m.value] == [
        ":gray-badge[:material/science: simulated quantization]"
    ]
    assert "128 held-out images" in said


@pytest.mark.parametrize("mode", sensitivity.MODES)
@pytest.mark.parametrize("order", sensitivity.ORDERS.values())
def test_every_mode_and_metric_opens(demo, mode, order):
    names = sensitivity.METRICS if mode in ("alone", "left_out") else sensitivity.ERRORS
    key = "s_metric" if mode in ("alone", "left_out") else "s_error"
    at = page(s_mode=sensitivity.MODES[mode], s_order=order)
    for metric in names:
        at.selectbox(key=key).set_value(metric).run()
        assert not at.exception, at.exception[0].message
        assert len(figures(at)) == 4


def test_split_changes_the_numbers(demo):
    at = page(s_split="Weights")
    assert "damage (KL 0.30 nats)" in texts(at)
    assert "its weights rounded" in texts(at)
    body = figures(at)[0]
    absent = [t for t in body["data"] if t.get("name") == "not measured"]
    assert not absent  # products have no weights: nothing is missing


def test_methods_are_laid_over(demo):
    at = page(s_with="BRECQ")
    marks = [t["name"] for t in figures(at)[0]["data"] if t.get("mode") == "markers"]
    assert marks == ["Nearest", "BRECQ"]


def test_unstable_halves_are_told(demo, made, tmp_path, monkeypatch):
    swapped = [
        r | ({"kl_a": 9.0} if r["layer"] == "head" and r["mode"] == "alone" else {})
        for r in fake.profile()
    ]
    folder = tmp_path / "DEMO"
    fake.write_base(folder, SPEC)
    fake.write(folder, SPEC, swapped)
    monkeypatch.setenv("QLIB_DEMO", str(folder))
    assert "**This order is not stable:** the two halves of the images share only 2" in texts(
        page()
    )


def test_harmless_quantization_blames_nobody():
    rows = [fake.row("all", s, None, kl) for s, kl in (("none", 0), ("both", 0.001))]
    rows += [fake.row("alone", "both", layer, 0.0001) for layer in fake.vit()]
    assert blame.answer(rows, "alone", "both").startswith("**Hardly anything to blame**")


def test_unknown_values_of_a_link_fall_back(demo):
    at = page(layer="blocks.9.gone", s_mode="magic", s_with="Nobody", s_keep="gone")
    assert titles(at)[0].startswith("blocks.5.mlp.fc2 does most damage alone")


# ---- clicks ---------------------------------------------------------------------------------


def clicked(key, *data):
    return {key: {"selection": {"points": [{"customdata": list(data)}]}}}


def test_clicks_beside_do_nothing():
    session = {"s-profile": {"selection": {"points": []}}, "s_split": "both"}
    sensitivity.split_clicked("s-profile", session)
    assert session["s_split"] == "both"


def test_click_on_a_split_bar_asks_for_that_split():
    for name, split in (("weights", "weights"), ("none", "both"), ("inputs", "inputs")):
        session = clicked("s-bars", name, "") | {"s_split": "both"}
        sensitivity.split_clicked("s-bars", session)
        assert session["s_split"] == split


def test_chosen_layer_is_told_and_marked(demo):
    at = page(layer=FC2)
    said = texts(at)
    assert (
        f"**`{FC2}`** · alone 0.18 nats, 20 % of the whole · left in float wins back 0.09 nats, "
        "10 % of the whole · own error 19.5 dB · accumulated 5.1 dB" in said
    )
    assert "weight 3 bits · input 3 bits" in said
    shapes = [len(body["layout"].get("shapes", [])) for body in figures(at)]
    assert shapes[0] == 7 + 1 and shapes[2] == 1  # separators of blocks and the band; the frame
    table = shown(at)
    assert list(table.loc[table["Shown"] != "", "Layer"]) == [FC2]


def shown(at):
    """The table of layers as the page's data editor gets it."""
    return next(d.value for d in at.dataframe if TICKED in d.value.columns)


TICKED = what_if.TICK


# ---- without a profile ----------------------------------------------------------------------


def test_missing_profile_is_offered_with_its_cost(demo):
    at = page(m="digits-resnet")
    said = texts(at)
    assert "Nobody has measured the layers of this run yet." in said
    # 26 layers with weights and inputs, 12 products: 4 + 2·(26·3 + 12·2)
    assert "measures the network 208 times on 128 held-out images" in said
    assert "not known yet" in said
    assert "makes the largest error of its own" in said
    assert titles(at)[0].startswith("patch_embed.proj adds the largest error of its own")
    assert at.button(key="s-measure")


def test_measure_queues_the_analysis(demo, monkeypatch):
    seen = []

    def submit(spec, runs):
        seen.append(spec)
        return waiting(spec, runs)

    monkeypatch.setattr(jobs, "submit", submit)
    monkeypatch.setattr(jobs, "status", lambda key, runs: waiting(seen[0], runs) if seen else no())
    at = page(m="digits-resnet")
    assert not seen
    at.button(key="s-measure").click().run()
    (spec,) = seen
    assert spec == profile.spec_of(replace(SPEC, model="digits-resnet"))
    assert any("the next to start" in i.value for i in at.info)
    assert at.button(key="s-cancel")


def no():
    from qlib.core.records import InvalidSpec

    raise InvalidSpec("There is no job.")


def analysis_page(demo, monkeypatch, state, rows, **fields):
    """The page of a run whose profile is in some state of being made."""
    spec = profile.spec_of(checked(RunSpec("digits-resnet", "digits", "nearest", 3, 3)))
    job = waiting(spec, demo, state=state, place=0, **fields)
    job.folder.mkdir(parents=True)
    lines = [
        {"phase": "profile", "unit": r["layer"], "index": i + 1, "of": 208, "loss": r["kl"],
         "note": f"{r['mode']} {r['split']}", "t": 1.0 + 0.1 * i, "mb": 1.0}
        for i, r in enumerate(rows)
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (job.folder / "events.jsonl").write_text(text)
    monkeypatch.setattr(jobs, "status", lambda key, runs: job if key == spec.key else no())
    monkeypatch.setattr(jobs, "list_jobs", lambda folder: [job])
    return page(m="digits-resnet")


PART = [r for r in fake.profile() if r["mode"] == "all"] + [
    r for r in fake.profile() if (r["mode"], r["split"]) == ("alone", "both")
][:7]


def test_running_analysis_shows_what_it_has(demo, monkeypatch):
    at = analysis_page(demo, monkeypatch, "running", PART, started=1.0)
    partial = figures(at)[0]
    assert "so far" in partial["layout"]["title"]["text"]
    dotted = next(t for t in partial["data"] if t.get("name") == "not measured")
    assert len(dotted["x"]) == 38 - 7
    (bar,) = at.get("progress")
    assert "11 of 208 measurements, about 20 s left" in bar.proto.text
    assert at.button(key="s-cancel") and "s-measure" not in {b.key for b in at.button}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("cancelled", "The measurement was cancelled."),
        ("failed", "The measurement was refused."),
        ("crashed", "The measurement's process died."),
    ],
)
def test_ended_analysis_keeps_its_part(demo, monkeypatch, state, words):
    at = analysis_page(demo, monkeypatch, state, PART, message="Because.")
    (said,) = [w.value for w in at.warning]
    assert words in said and "Because." in said and "11 measurements" in said
    assert "so far" in titles(at)[0]
    assert at.button(key="s-measure").label == "Measure it again"


def test_time_left_is_told_only_from_this_job(demo, tmp_path):
    job = waiting(SPEC, tmp_path)
    assert measure.progress([], job)[0] == 0
    rows = [{"index": 2, "of": 10}]
    share, text = measure.progress(rows, job)
    assert share == 0.2 and "left" not in text


def test_older_runs_without_outputs_are_explained(tmp_path, monkeypatch):
    for name in ("DEMO", "RUNS"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"QLIB_{name}", str(tmp_path / name))
    out = fake_runs.write_run(tmp_path / "DEMO", SPEC)
    record = store.load(out)
    rows = [r for r in record.layers if r["tensor"] != "output"]
    store.write_record(replace(record, layers=rows), out)
    at = page()
    assert "This run stored no errors of single layers" in texts(at)
    assert at.button(key="s-measure")


def test_no_run_at_all(tmp_path, monkeypatch):
    for name in ("DEMO", "RUNS"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"QLIB_{name}", str(tmp_path / name))
    at = open_page(PAGE)
    assert "There is no finished run to look at yet" in texts(at)


def test_damaged_profile_is_named(made, tmp_path, monkeypatch):
    folder = tmp_path / "DEMO"
    shutil.copytree(made, folder)
    file = folder / profile.spec_of(SPEC).key / "profile.csv"
    file.write_text(file.read_text()[:-40])
    monkeypatch.setenv("QLIB_DEMO", str(folder))
    monkeypatch.setenv("QLIB_RUNS", str(tmp_path / "RUNS"))
    at = page()
    assert any("profile.csv is damaged" in w.value for w in at.warning)
    assert at.button(key="s-measure")


# ---- what if --------------------------------------------------------------------------------


def test_ticks_and_list_say_the_same():
    layers = ["a", "b", "c"]
    session = {what_if.KEEP: ["c", "z"]}
    key, start = what_if._base(session, layers, {"c", "z"})
    session[key] = {"edited_rows": {"0": {TICKED: True}, 2: {TICKED: False}}}
    what_if.tick(key, layers, start, session)
    assert session[what_if.KEEP] == ["z", "a"]
    again, same = what_if._base(session, layers, {"z", "a"})
    assert (again, same) == (key, start)  # the table keeps its place
    other, fresh = what_if._base(session, layers, {"b"})
    assert other != key and fresh == {"b"}
    assert what_if._base(session, ["b"], {"b"})[0] != other


def test_search_narrows_the_table(demo):
    at = page(s_find="FC2")
    assert set(shown(at)["Layer"]) == {f"blocks.{b}.mlp.fc2" for b in range(6)}
    at.text_input(key="s_find").set_value("(").run()
    assert any("No layer's name" in i.value for i in at.info)


def test_what_if_run_is_queued(demo, monkeypatch):
    seen = []

    def submit(spec, runs):
        seen.append(spec)
        return waiting(spec, runs)

    monkeypatch.setattr(jobs, "submit", submit)
    at = page()
    at.multiselect(key="s_keep").set_value([FC2, "head"]).run()
    assert list(shown(at).query(f"`{TICKED}`")["Layer"]) == [FC2, "head"]
    assert at.button(key="s-run").label == "Run with 2 layers in float"
    at.button(key="s-run").click().run()
    (spec,) = seen
    assert spec == replace(SPEC, keep_float=(FC2, "head")) == checked(spec)
    assert spec.key != SPEC.key


def test_what_if_that_exists_is_compared_image_by_image(demo):
    spec = replace(SPEC, keep_float=(FC2,))
    fake.write_base(demo, spec)
    better(demo / spec.key)
    at = page(s_keep=FC2, run=SPEC.key)
    said = texts(at)
    base = store.load(demo.parents[0] / "RUNS" / spec.key)
    n = int(base.metrics["n"])
    assert f"With `{FC2}` in float" in said
    assert f"Of the same {n} images, " in said and "became right and 0 became wrong" in said
    assert "**It helps.**" in said
    assert "s-run" not in {b.key for b in at.button}


def better(folder):
    """All predictions right: paired with the base run, nothing can be lost."""
    preds = dict(np.load(folder / "preds.npz"))
    rest = np.array([[c for c in range(10) if c != k][:4] for k in preds["labels"]])
    preds["quant_top5"] = np.column_stack([preds["labels"], rest]).astype(np.int16)
    np.savez_compressed(folder / "preds.npz", **preds)


def test_kept_layers_are_no_choice_and_stay_in_the_next_run(demo):
    spec = replace(SPEC, keep_float=("head",))
    fake.write_base(demo, spec)
    fake.write(demo, spec, [r for r in fake.profile() if r["layer"] != "head"])
    at = page(run=spec.key)
    assert "head" not in at.multiselect(key="s_keep").options
    kept = next(t for t in figures(at)[0]["data"] if t.get("name") == "kept in float")
    assert kept["customdata"][0][0] == "head"
    assert what_if.spec_with(spec, [FC2]).keep_float == (FC2, "head")


# ---- words ----------------------------------------------------------------------------------


def test_cost_is_told_from_earlier_profiles():
    table = fake.table()
    assert "took 12 s before" in blame.cost(table, [12.0, 12.4])
    assert "took 12 to 40 s before" in blame.cost(table, [40.0, 12.0])
    assert "not known yet" in blame.cost(table, [])


def test_boundary_counts_for_the_first_layer_of_its_block():
    layers = fake.vit()[1:4]  # qkv, scores, mix
    rows = [r for r in fake.table(layers) if r["point"] != "blocks.0.attn.qkv.input"]
    assert blame.evaluations(rows) == 4 + 2 * (2 + 2 + 2)
    boundary = {"point": "blocks.0.boundary", "layer": "blocks.0", "unit": "blocks.0",
                "kind": "boundary", "tensor": "boundary", "bits": 3}  # fmt: skip
    assert blame.evaluations([boundary, *rows]) == 4 + 2 * (3 + 2 + 2)


@pytest.mark.parametrize(
    ("weights", "inputs", "words"),
    [
        (0.3, 0.1, ("weights", "more than", "inputs", "0.30", "0.10")),
        (0.1, 0.3, ("inputs", "more than", "weights", "0.30", "0.10")),
        (0.3, 0.31, ("weights", "inputs", "same", "0.30", "0.31")),
        (0.001, 0.002, ()),
    ],
)
def test_sides(weights, inputs, words):
    kls = {"none": 0.0, "weights": weights, "inputs": inputs, "both": weights + inputs}
    said = blame.sides([fake.row("all", s, None, kl) for s, kl in kls.items()])
    assert bool(said) is bool(words) and tells(said.lower(), *words)
    assert "exceed" not in said


def test_a_part_that_exceeds_the_whole_is_told():
    kls = {"none": 0.0, "weights": 0.1, "inputs": 0.5, "both": 0.3}
    said = blame.sides([fake.row("all", s, None, kl) for s, kl in kls.items()])
    assert "; inputs alone exceed the whole, as the rounded weights make up for part" in said


def test_the_images_behind_the_errors_are_those_that_the_run_wrote():
    """Under the names that `qlib.pipeline.run` writes, held-out and calibration images apart."""
    record = RunRecord(SPEC, {}, {}, 0.0, data={"errors_n": 32, "errors_n_test": 60})
    assert (sensitivity.images(record, "test"), sensitivity.images(record, "calib")) == (
        60, 32
    )  # fmt: skip
