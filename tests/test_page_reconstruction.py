"""The Reconstruction page: what it says, draws and offers, with stored, bare and running runs."""

import csv
import io
import json
import shutil
from itertools import pairwise
from pathlib import Path

import fake_runs
import numpy as np
import pytest
from prose import tells
from test_pages import figures, folders, open_page, texts  # noqa: F401 (a fixture)

from qlib import jobs, store
from qlib.core.records import RunSpec
from qlib.core.specs import checked
from qlib.measure.statistics import exact_paired
from qlib.ui.reconstruction import ablation, layer_gains, losses

PAGE = "pages/7_Reconstruction.py"
W4 = {"m": "digits-vit", "b": "W4A4"}
LAYER = "blocks.1.mlp.fc1"


def spec(method: str, bits: int = 4) -> RunSpec:
    return checked(RunSpec("digits-vit", "digits", method, weight_bits=bits, act_bits=bits))


def write(folder: Path, method: str, bits: int = 4, *, soft=True, gains=True) -> Path:
    """A run whose learned layers have a weight error of 1.5 and half of nearest's output error."""
    run = fake_runs.write_run(folder, spec(method, bits))
    _write_rows(run / "layers.csv", method == "nearest", gains)
    lines = (run / "events.jsonl").read_text().splitlines()
    events = [_soft(json.loads(line), soft) for line in lines]
    (run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return run


def _write_rows(file: Path, still: bool, gains: bool) -> None:
    kept = ("point", "layer", "unit", "kind", "tensor", "bits", "params", "sqnr_db")
    rows = [
        {k: row[k] for k in kept}
        for row in csv.DictReader(io.StringIO(file.read_text()))
        if row["tensor"] == "weight"
    ]
    outputs = []
    for i, row in enumerate(rows):
        row["flipped"] = 0.0 if still else 0.05 + 0.01 * i
        if gains:
            row |= {"mse": 0.02 if still else 0.03, "mse_nearest": 0.02}
            place = {k: row[k] for k in ("layer", "unit", "kind")}
            place |= {"point": f"{row['layer']}.output", "tensor": "output"}
            both = {"acc_mse": 4.0 if still else 2.0, "acc_mse_test": 5.0 if still else 2.5}
            outputs.append(place | both | ({} if still else {"acc_mse_nearest": 1.6}))
    names = dict.fromkeys(k for row in rows + outputs for k in row)
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(names), restval="")
        writer.writeheader()
        writer.writerows(rows + outputs)


def _soft(event: dict, soft: bool) -> dict:
    """Every 20th step tells its soft rounding: from even to the two ends at step 100."""
    event = {k: v for k, v in event.items() if k not in ("soft", "flipped")}
    if not soft or event["phase"] != "reconstruct" or event["step"] % 20:
        return event
    done = event["step"] / 100
    counts = np.full(20, 50 * (1 - done))
    counts[[0, -1]] += 500 * done
    return event | {"soft": counts.round().astype(int).tolist(), "flipped": 0.1 * done}


@pytest.fixture(scope="session")
def learned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    for method in fake_runs.METHODS:
        write(folder, method)
    write(folder, "nearest", 8)
    return folder


@pytest.fixture
def demo(learned, folders, monkeypatch):  # noqa: F811
    """The stored runs above, and an empty folder for own ones, which is returned."""
    monkeypatch.setenv("QLIB_DEMO", str(learned))
    return folders[1]


def named(at, start: str) -> dict:
    """The figure whose title begins (or goes on) with some words."""
    return next(f for f in figures(at) if start in title(f))


def title(figure: dict) -> str:
    return figure["layout"]["title"]["text"].replace("\N{NO-BREAK SPACE}", " ").replace("<br>", " ")


# ---- what it says and draws -----------------------------------------------------------------


def test_page_answers_and_draws_everything(demo):
    at = open_page(PAGE, q="brecq", layer=LAYER, **W4)
    assert at.title[0].value == "What does learning the rounding change?"
    said = texts(at)
    assert tells(said, "BRECQ", "12 %", "weights", "nearest")
    assert tells(said, "weight error", "grew", "1.5") and tells(
        said, "output error", "fell", "half"
    )
    assert tells(said, LAYER, "11 %", "12,288 weights", "weight error", "1.5")
    assert len(figures(at)) == 5
    assert all(chart.proto.alt for chart in at.get("plotly_chart"))
    arrows = named(at, "Weights worse, output better: 16 of 16 layers")
    assert arrows["layout"]["yaxis"]["title"]["text"].startswith("output error against the nearest")
    assert named(at, "of weights moved; most: 3.mlp.fc2 (20 %)")
    assert named(at, "blocks.1: error fell from")["layout"]["yaxis"]["type"] == "log"
    assert "Step 100: 100 % of weights chose a side, 10 % moved" in title(figures(at)[3])
    assert at.selectbox(key="r_unit").value == "blocks.1"
    assert len(at.dataframe) == 4


def test_page_begins_with_a_run_that_learned(demo):
    at = open_page(PAGE)
    assert at.query_params["q"] != "nearest" and "moved **" in texts(at)


def test_page_compares_with_the_layer_alone(demo):
    at = open_page(PAGE, q="brecq", layer=LAYER, r_against="layer alone", **W4)
    assert "the output error **grew to 1.2 times**" in texts(at)  # 2.0 against 1.6
    assert "16 layers have a larger output error: a unit is fitted as a whole" in texts(at)
    assert named(at, "In no layer did moving weights bring the output closer")


def test_page_shows_held_out_or_calibration_images(demo):
    assert "output errors on held-out images" in texts(open_page(PAGE, q="brecq", **W4))
    assert "output errors on calibration" in texts(open_page(PAGE, q="brecq", d="calib", **W4))


def test_page_lays_methods_over(demo):
    at = open_page(PAGE, q="brecq", layer=LAYER, **W4)
    at.pills(key="r_with").set_value(["qdrop"]).run()
    assert not at.exception
    names = {t["name"] for t in named(at, "Weights worse")["data"]}
    assert {"BRECQ", "QDrop"} <= names and "AdaRound" not in names
    assert {"BRECQ", "QDrop"} <= {t["name"] for t in named(at, "blocks.1: error")["data"]}


def test_page_link_restores_what_is_laid_over_and_how(demo):
    at = open_page(PAGE, q="brecq", r_with="QDrop", r_look="smooth", r_metric="KL divergence", **W4)
    assert at.pills(key="r_with").value == ["qdrop"] and at.pills(key="r_look").value == ["smooth"]
    loss = named(at, ": error")
    assert loss["layout"]["yaxis"].get("type") != "log" and "yaxis2" not in loss["layout"]
    assert any("KL to the float" in f["layout"]["yaxis"]["title"]["text"] for f in figures(at))


def test_page_without_any_look_is_plain(demo):
    at = open_page(PAGE, q="brecq", **W4)
    at.pills(key="r_look").set_value([]).run()
    assert not at.exception and "yaxis2" not in named(at, ": error")["layout"]


# ---- layer and unit are one truth -----------------------------------------------------------


def test_picking_a_unit_sets_the_layer(demo):
    at = open_page(PAGE, q="brecq", layer=LAYER, **W4)
    at.selectbox(key="r_unit").set_value("blocks.3").run()
    assert at.query_params["layer"] == "blocks.3.mlp.fc2"
    assert named(at, "blocks.3: error") and at.selectbox(key="r_unit").value == "blocks.3"


def test_choosing_a_layer_sets_the_unit(demo):
    at = open_page(PAGE, q="brecq", layer="blocks.2.attn.qkv", **W4)
    assert at.selectbox(key="r_unit").value == "blocks.2"
    assert "**`blocks.2.attn.qkv`**" in texts(at)
    heads = next(t for t in named(at, "Weights worse")["data"] if t["name"] == "BRECQ")["marker"]
    assert sum(size > 12 for size in heads["size"]) == 1
    band = named(at, "of weights moved")["layout"]["shapes"][0]
    assert (band["x0"], band["x1"]) == (7.5, 8.5)


def test_page_with_an_unknown_layer_tells(demo):
    assert "has no layer `blocks.9.gone`" in texts(
        open_page(PAGE, q="brecq", layer="blocks.9.gone")
    )


# ---- soft rounding --------------------------------------------------------------------------


def test_step_is_kept_in_the_address(demo):
    at = open_page(PAGE, q="brecq", layer=LAYER, r_step="47", **W4)
    assert at.select_slider(key="r_step").value == 40  # the snapshot nearest to it
    at.select_slider(key="r_step").set_value(60).run()
    assert at.query_params["r_step"] == "60" and named(at, "Step 60: 64 %")
    at.select_slider(key="r_step").set_value(100).run()
    assert "r_step" not in at.query_params  # the last one needs no word


def test_run_without_snapshots_explains(folders):  # noqa: F811
    write(folders[0], "brecq", soft=False)
    assert "stored without pictures of soft rounding" in texts(open_page(PAGE, q="brecq"))


def test_method_that_rounds_hard_explains():
    """Told from the run itself, so that it is true of any method."""
    learned = {"phase": "reconstruct", "flipped": None}
    assert "rounded hard all along" in losses._why_not("custom", [learned | {"flipped": 0.1}])
    assert "stored without" in losses._why_not("custom", [learned])
    assert "learned nothing" in losses._why_not("nearest", [{"phase": "calibrate"}])


def test_steps_between_methods_are_tested_image_by_image(tmp_path):
    """The p values against a hand count on the stored predictions; the smallest is tripled."""
    found = {}
    for method in ("nearest", "adaround", "brecq", "qdrop"):
        folder = write(tmp_path, method, 3)
        found[method] = next(e for e in store.list_runs(tmp_path) if e.folder == folder)
    preds = {m: dict(np.load(e.folder / "preds.npz")) for m, e in found.items()}
    for metric, answers in (("top1", "labels"), ("agreement", "float_top5")):
        plain = {}
        for before, after in pairwise(found):
            truth = preds[after][answers]
            truth = truth if truth.ndim == 1 else truth[:, 0]
            one, two = (preds[m]["quant_top5"][:, 0] == truth for m in (before, after))
            plain[after] = exact_paired(int((one & ~two).sum()), int((two & ~one).sum()))
        p = ablation.tests(found, metric)
        assert list(p) == ["adaround", "brecq", "qdrop"]
        least = min(plain, key=plain.get)
        assert p[least] == pytest.approx(min(1, 3 * plain[least])) and p[least] < 0.05
        assert all(p[m] >= plain[m] for m in p)
    assert ablation.tests(found, "kl") == {}
    (found["brecq"].folder / "preds.npz").unlink()
    assert ablation.tests(found, "top1") == {}


# ---- what is missing ------------------------------------------------------------------------


def test_nearest_offers_the_runs_that_learned(demo):
    at = open_page(PAGE, q="nearest", **W4)
    assert "**Nothing was learned in this run**" in texts(at)
    assert [b.label for b in at.button if b.key.startswith("r_see")] == [
        "AdaRound W4A4", "BRECQ W4A4", "QDrop W4A4",
    ]  # fmt: skip
    assert len(figures(at)) == 1  # the ingredients
    next(b for b in at.button if b.label == "BRECQ W4A4").click().run()
    assert at.query_params["q"] == "brecq" and "BRECQ moved **" in texts(at)


def test_nearest_at_other_bits_offers_what_there_is(demo):
    at = open_page(PAGE, m="digits-vit", q="nearest", b="W8A8")
    assert "runs of the same network and other bits did learn" in texts(at)
    assert "too few methods are stored under equal conditions" in texts(at)
    next(b for b in at.button if b.label == "QDrop W4A4").click().run()
    assert at.query_params["b"] == "W4A4" and "QDrop moved **" in texts(at)


def test_nothing_learned_anywhere(folders):  # noqa: F811
    write(folders[0], "nearest")
    assert "No stored run of this network learned its rounding yet" in texts(open_page(PAGE))


def test_older_run_without_errors_of_its_layers(folders):  # noqa: F811
    write(folders[0], "brecq", gains=False)
    at = open_page(PAGE, q="brecq")
    assert "What that did to the errors is not stored in this run." in texts(at)
    assert "stored without the errors of its layers" in texts(at)
    assert len(figures(at)) == 3  # bars, loss and soft rounding


def test_page_without_any_run(folders):  # noqa: F811
    at = open_page(PAGE)
    assert at.title[0].value == "What does learning the rounding change?"
    assert "There is no finished run to look at yet." in texts(at)


def test_unfair_runs_are_not_laid_over(demo, learned, folders):  # noqa: F811
    other = checked(RunSpec("digits-vit", "digits", "adaround", 4, 4, seed=7))
    fake_runs.write_run(folders[1], other)
    at = open_page(PAGE, run=other.key)
    assert at.pills(key="r_none").disabled
    assert at.segmented_control(key="r_against").options == ["layer alone"]


def test_damaged_neighbour_is_left_out(learned, folders):  # noqa: F811
    write(folders[0], "brecq")
    broken = write(folders[0], "qdrop")
    (broken / "layers.csv").write_text("point,layer\nx")
    at = open_page(PAGE, q="brecq")
    assert not at.exception and at.pills(key="r_none").disabled


# ---- live -----------------------------------------------------------------------------------


def running(runs: Path, monkeypatch, events, of: RunSpec) -> None:
    job = jobs.Job(of.key, of, runs / ".jobs" / of.key, "running", started=1.0)
    job.folder.mkdir(parents=True)
    (job.folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    monkeypatch.setattr(jobs, "list_jobs", lambda folder: [job])
    monkeypatch.setattr(jobs, "events", lambda key, folder, start=0: store.events(job.folder))


def test_a_working_job_takes_over_the_curves(demo, monkeypatch):
    events = [
        {"phase": "reconstruct", "unit": "blocks.1", "index": 2, "of": 4, "step": s, "steps": 90,
         "loss": 8.0 / s}
        for s in (1, 2, 4)
    ]  # fmt: skip
    running(demo, monkeypatch, events, spec("brecq"))
    at = open_page(PAGE, q="brecq", layer=LAYER, **W4)
    assert "A run of this method and these bits is working now" in texts(at)
    live = named(at, "blocks.1: error fell from 8 to 2 (75 %)")
    assert next(t for t in live["data"] if t["name"] == "BRECQ")["y"] == [8.0, 4.0, 2.0]
    assert named(at, "Weights worse")  # still the stored run's


def test_a_job_that_has_not_come_to_the_unit_leaves_the_stored_loss(demo, monkeypatch):
    far = {"phase": "reconstruct", "unit": "blocks.0", "step": 1, "steps": 9, "loss": 1.0}
    running(demo, monkeypatch, [far], spec("brecq"))
    at = open_page(PAGE, q="brecq", layer=LAYER, **W4)
    assert "it is at `blocks.0` and has not come to this unit" in texts(at)
    assert (
        len(next(t for t in named(at, "blocks.1: error")["data"] if t["name"] == "BRECQ")["x"]) > 9
    )


def test_a_diverged_unit_is_flagged_and_others_are_shown(demo, monkeypatch):
    events = [
        {"phase": "reconstruct", "unit": u, "index": 1, "of": 2, "step": s, "steps": 9, "loss": x}
        for u, s, x in (("blocks.0", 1, 2.0), ("blocks.0", 2, 1.0), ("blocks.1", 1, 3.0),
                        ("blocks.1", 2, None))
    ]  # fmt: skip
    running(demo, monkeypatch, events, spec("brecq"))
    at = open_page(PAGE, q="brecq", layer=LAYER, **W4)
    assert named(at, "blocks.1: the loss stopped being a number")
    assert "This unit diverged: try a smaller learning rate." in texts(at)
    at = open_page(PAGE, q="brecq", layer="blocks.0.mlp.fc1", **W4)
    assert named(at, "blocks.0: error fell from 2 to 1 (50 %)")


def test_jobs_of_other_settings_do_not_take_over(demo, monkeypatch):
    running(demo, monkeypatch, [], spec("qdrop"))
    assert "is working now" not in texts(open_page(PAGE, q="brecq", **W4))


def test_only_the_working_job_of_the_same_kind_is_live(demo, monkeypatch):
    of = spec("brecq")
    queued = jobs.Job(of.key, of, demo / ".jobs" / of.key)
    monkeypatch.setattr(jobs, "list_jobs", lambda folder: [queued])
    assert losses.live(queued) is None


# ---- words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (0.5, "but the output error **fell to half**"),
        (0.8, "but the output error **fell to 0.80 times**"),
        (1.0, "and the output error **stayed the same**"),
        (1.3, "and the output error **grew to 1.3 times**"),
    ],
)
def test_answer_says_what_the_data_say(output, words):
    gain = layer_gains.Gain("a", "u", 10, weight=1.4, output=output, flipped=0.2)
    assert layer_gains.answer((gain,), "BRECQ").rstrip(".").endswith(words)


def test_answer_of_a_run_that_moved_levels_and_no_weight():
    gain = layer_gains.Gain("a", "u", 10, weight=0.8, output=0.5, flipped=0.0)
    said = layer_gains.answer((gain,), "PowerQuant")
    assert "PowerQuant **moved the levels, not the weights**" in said
    assert "weight error **fell to 0.80 times** what nearest rounding gives, and" in said
    same = layer_gains.Gain("a", "u", 10, weight=1.0, output=0.5, flipped=0.0)
    assert "**Nothing was learned in this run**" in layer_gains.answer((same,), "EasyQuant")


def test_page_shows_what_a_bent_grid_does(learned, folders):  # noqa: F811
    shutil.copytree(learned, folders[0], dirs_exist_ok=True)
    run = write(folders[0], "powerquant")
    file = run / "layers.csv"
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    for row in rows:
        if row["tensor"] == "weight":
            row |= {"flipped": "0.0", "mse": "0.015", "mse_nearest": "0.015"}
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    at = open_page(PAGE, **W4, q="powerquant")
    assert "moved the levels, not the weights" in texts(at)
    assert "weight error **fell to 0.75 times**" in texts(at)


def test_units_that_were_fitted_together_show_their_fit(folders):  # noqa: F811
    run = write(folders[0], "brecq")
    lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    joined = {"blocks.0": "blocks.0 … blocks.1"}
    kept = [e for e in lines if e.get("unit") != "blocks.1"]
    kept = [e | ({"unit": joined[e["unit"]]} if e.get("unit") in joined else {}) for e in kept]
    (run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in kept))
    at = open_page(PAGE, **W4, layer=LAYER)
    assert at.selectbox(key="r_unit").value == "blocks.0 … blocks.1"
    assert "No loss is stored" not in texts(at)
    assert "blocks.1" not in at.selectbox(key="r_unit").options
