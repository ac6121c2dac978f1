"""The NoisyQuant page: measured and not, while it is measured, its controls, its words."""

import json
from dataclasses import replace

import fake_noise
import fake_profiles
import fake_runs
import numpy as np
import pytest
from prose import tells
from test_pages import figures, open_page, texts, waiting

from qlib import jobs, store
from qlib.core.records import InvalidSpec, RunSpec
from qlib.core.specs import checked
from qlib.guide import facts, findings
from qlib.noise import profile as noise_profile
from qlib.ui.noisyquant import data, measure, saved, theorem
from qlib.ui.noisyquant import text as noise_words
from qlib.ui.shared import resolve, state

PAGE = "pages/6_NoisyQuant.py"
SPEC = checked(RunSpec("digits-vit", "digits", "nearest"))
RESNET = checked(RunSpec("digits-resnet", "digits", "nearest"))
HELPED, HURT = "blocks.1.attn.proj", "blocks.0.attn.proj"
UNMEASURED = "Nobody has measured"  # what a page says that has no analysis to show
LITTLE = "expect little"  # said of networks without attention alone


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A measured network with two runs, and one that is not measured."""
    folder = tmp_path_factory.mktemp("noise")
    fake_runs.write_run(folder, SPEC)
    fake_runs.write_run(folder, checked(RunSpec("digits-vit", "digits", "brecq", 3, 3)))
    fake_runs.write_run(folder, RESNET)
    fake_noise.write(folder, SPEC)
    return folder


@pytest.fixture
def demo(made, tmp_path, monkeypatch):
    """The stored runs; an empty folder for own ones, which is returned."""
    (tmp_path / "RUNS").mkdir()
    monkeypatch.setenv("QLIB_DEMO", str(made))
    monkeypatch.setenv("QLIB_RUNS", str(tmp_path / "RUNS"))
    return tmp_path / "RUNS"


def page(**query):
    return open_page(PAGE, **({"m": "digits-vit"} | query))


def titles(at):
    found = [body["layout"]["title"]["text"] for body in figures(at)]
    return [t.replace("<br>", " ").replace("\N{NO-BREAK SPACE}", " ") for t in found]


def known(layer, bits):
    return next(x for x in fake_noise.layers() if (x.layer, x.bits) == (layer, bits))


# ---- measured -------------------------------------------------------------------------------


def test_the_page_begins_behind_the_gelu_of_a_middle_block_at_six_bits(demo):
    at = page()
    assert at.title[0].value == "When does adding noise remove error?"
    assert at.query_params["layer"] == "blocks.1.mlp.fc2"
    found = known("blocks.1.mlp.fc2", 6)
    assert at.segmented_control(key="n_bits").value == 6
    assert at.slider(key="n_reach").value == found.closed_form
    assert len(figures(at)) == 6 and all(c.proto.alt for c in at.get("plotly_chart"))


@pytest.mark.parametrize(("layer", "word"), [(HELPED, "it helps"), (HURT, "chose no noise")])
def test_the_answer_is_the_records(demo, layer, word):
    at = page(layer=layer, n_bits="4")
    said, found = texts(at), known(layer, 4)
    assert word in said
    assert at.slider(key="n_reach").value == found.closed_form
    share = found.left(found.closed_form)
    assert tells(said, "output error", "calibration", f"{share:.2f}×")
    assert tells(said, "rounding", f"{found.rounding:.2f}", "× step²/12")
    if layer == HELPED:
        held = found.left(found.closed_form, "test")
        assert tells(said, HELPED, f"{100 * (1 - held):.0f} % less", "output error", "held-out")


def test_bits_move_everything_and_start_at_their_own_search(demo):
    at = page(layer=HELPED, n_bits="4", n_reach="1.20")
    assert at.slider(key="n_reach").value == 1.2
    before = titles(at)
    at.segmented_control(key="n_bits").set_value(3).run()
    assert not at.exception
    assert at.slider(key="n_reach").value == known(HELPED, 3).closed_form
    assert "n_reach" not in at.query_params
    assert [a == b for a, b in zip(before, titles(at), strict=True)][:5] == [False] * 5


def test_the_slider_moves_figures_and_the_address(demo):
    at = page(layer=HELPED, n_bits="4")
    at.slider(key="n_reach").set_value(0.2).run()
    assert at.query_params["n_reach"] == "0.20"
    shown = titles(at)
    assert all("±0.20 steps" in t for t in shown[:4])
    share = known(HELPED, 4).left(0.2)
    assert f"{share:.2f}×" in shown[1]


@pytest.mark.parametrize("draw", ["mean", "1", "3", "normal"])
def test_every_draw_is_shown(demo, draw):
    at = page(layer=HELPED, n_bits="4", n_reach="0.50")
    at.selectbox(key="n_draw").set_value(draw).run()
    assert not at.exception
    found = known(HELPED, 4)
    wanted = {"mean": found.calib.mean(0), "normal": found.normal}.get(draw)
    wanted = found.calib[int(draw) - 1] if wanted is None else wanted
    assert f"{wanted[10]:.2f}×" in titles(at)[1]
    assert ("held-out **" in texts(at)) == (draw != "normal")


def test_layers_at_their_own_reach(demo):
    at = page(layer=HELPED, n_bits="4")
    at.segmented_control(key="n_all").set_value("own").run()
    assert tells(titles(at)[2], "each layer", "own reach", "helps")


def test_held_out_or_calibration(demo):
    found = known(HELPED, 4)
    for images, name in (("test", "held-out"), ("calib", "calibration")):
        said = texts(page(layer=HELPED, n_bits="4", d=images))
        share = found.left(found.closed_form, images)
        less = f"{100 * (1 - share):.0f} % less"
        assert tells(said, HELPED, less, "output error", name, "it helps")


def test_sign_flips_between_bits_are_told(demo):
    told = {(x.layer, x.bits): x.left(0.5, "test") for x in fake_noise.layers()}
    names = dict.fromkeys(layer for layer, _ in told)
    layer = next(
        n
        for n in names
        if any(told[n, b] < 0.98 for b in (3, 4, 6)) and any(told[n, b] > 1.02 for b in (3, 4, 6))
    )
    helped = noise_words.bits_of([b for b in (3, 4, 6) if told[layer, b] < 0.98])
    hurt = noise_words.bits_of([b for b in (3, 4, 6) if told[layer, b] > 1.02])
    said = texts(page(layer=layer, n_bits="4", n_reach="0.50"))
    assert tells(said, "flips", helped, "±0.50 steps", "helps", hurt, "hurts")


def test_caution_and_scope_are_told_and_the_run_form_is_a_click_away(demo):
    at = page(layer=HELPED, n_bits="4")
    said = texts(at)
    assert tells(said, "three tricks", "classification", "detection", "out of scope")
    links = [link.proto for link in at.get("page_link")]
    (run,) = [link for link in links if "Run NoisyQuant" in link.label]
    assert "w=4" in run.query_string and "method=NoisyQuant" in run.query_string


def test_all_methods_and_bits_share_one_analysis(demo):
    at = page(q="brecq", b="W3A3", layer=HELPED, n_bits="4")
    assert UNMEASURED not in texts(at) and "it helps" in texts(at)


def test_a_noise_analysis_is_no_sensitivity_profile(demo):
    assert state.analyses() == {}
    at = open_page("pages/5_Sensitivity.py", m="digits-vit", q="nearest", b="W4A4")
    assert tells(texts(at), UNMEASURED, "layers")


def test_links_with_nonsense_fall_back(demo):
    at = page(layer="blocks.9.gone", n_bits="17", n_reach="many", n_draw="nobody")
    assert at.segmented_control(key="n_bits").value == 6
    assert at.selectbox(key="n_draw").value == "mean"


def test_tables_and_recipes(demo):
    at = page(layer=HELPED, n_bits="4", n_reach="0.50")
    before = len(at.dataframe)
    at.session_state["n-data"] = True
    at.run()
    assert not at.exception and len(at.dataframe) == before + 5
    curves = next(
        d.value for d in at.dataframe if "reach (steps)" in d.value and len(d.value) == 31
    )
    told = list(known(HELPED, 4).calib.mean(0))
    assert list(curves["calibration"]) == pytest.approx(told, rel=1e-3)


def test_the_notebooks_recipe_makes_the_figure_again(tmp_path):
    folder = fake_noise.write(tmp_path, SPEC)
    found = known(HELPED, 4)
    calls = {
        "inside_one_cell": "found, 0.5", "error_over_noise": "found, 0.5, 'mean'",
        "who_gains": "profile.layers, 4, None, 'mean', 'test'", "noise_tricks": "found, 'test'",
    }  # fmt: skip
    for plot, call in calls.items():
        code = saved.recipe(saved.Saved(plot, None, "", dict, call), found)
        names = {"specs": [SPEC], "HERE": tmp_path, "run": None}
        exec(code, names)
        assert names["folder"] == folder and names["figure"].data
    assert saved.recipe(saved.Saved("noisy_values", None, "", dict), found) == ""


# ---- other layers ---------------------------------------------------------------------------


def test_layers_that_cannot_have_noise_have_a_stand_in(demo, monkeypatch):
    assert data.nearest("a", ["b", "d"], ["a", "b", "c", "d"]) == "b"
    assert data.nearest("c", ["b"], ["a", "b", "c"]) == "b"
    assert data.nearest("gone", ["b", "d"], ["a", "b"]) == "b"
    assert data.nearest("a", [], ["a"]) == ""
    said = noise_words.stand_in("blocks.0.attn.mix", "blocks.0.attn.proj", "matmul")
    assert tells(said, "blocks.0.attn.mix", "no bias", "instead", "blocks.0.attn.proj")
    said = noise_words.stand_in("stem", "head", "conv2d")
    assert tells(said, "stem", "several positions", "instead", "head")


def test_a_product_of_attention_is_answered_with_the_next_layer(tmp_path, monkeypatch):
    for name in ("DEMO", "RUNS"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"QLIB_{name}", str(tmp_path / name))
    fake_profiles.write_base(tmp_path / "DEMO", SPEC)
    fake_noise.write(tmp_path / "DEMO", SPEC)
    at = page(layer="blocks.1.attn.mix", n_bits="4")
    assert any(tells(i.value, "blocks.1.attn.mix", "blocks.1.attn.proj") for i in at.info)
    assert tells(texts(at), "blocks.1.attn.proj", "4 bits")
    assert not any(LITTLE in i.value for i in at.info)


def test_without_attention_little_is_promised():
    assert noise_words.without_attention(["linear", "matmul"]) == ""
    assert LITTLE in noise_words.without_attention(["conv", "linear"])


def test_clicks_set_the_reach_and_beside_do_nothing(monkeypatch):
    params = {}
    monkeypatch.setattr(data.st, "query_params", params)
    for points in ([], [{"customdata": None}], [{"customdata": ["layer"]}]):
        data.clicked_reach("n", {"n": {"selection": {"points": points}}})
    assert params == {}
    data.clicked_reach("n", {"n": {"selection": {"points": [{"customdata": [0.349]}]}}})
    assert params == {"n_reach": "0.35"}
    assert data.on_grid(7) == 1.5 and data.on_grid(-1) == 0


# ---- words ----------------------------------------------------------------------------------


def curve(values, **changes):
    """A layer whose draws all have these shares at reaches 0, ½, 1, 1½."""
    rows = np.interp(np.arange(31) / 20, [0, 0.5, 1, 1.5], values) + np.zeros((3, 1))
    return replace(known(HURT, 4), calib=rows, test=rows, **changes)


def test_answers_in_all_cases():
    said = noise_words.answer
    right = said(curve([1, 2, 3, 4], closed_form=0.0), "test")
    assert tells(right, "4 bits", "chose no noise", HURT) and not tells(right, "fall to")
    missed = said(curve([1, 0.7, 3, 4], closed_form=0.0), "test")
    assert tells(missed, "chose no noise", HURT, "held-out", "fall to", "0.70×", "±0.50 steps")
    helped = said(curve([1, 0.7, 3, 4], closed_form=0.5), "calib")
    assert tells(helped, "±0.50 steps", HURT, "30 % less", "calibration", "it helps")
    even = said(curve([1, 0.99, 3, 4], closed_form=0.5), "test")
    assert tells(even, "±0.50 steps", "next to nothing", HURT, "held-out")
    worse = said(curve([1, 1.4, 3, 4], closed_form=0.5), "test")
    assert tells(worse, HURT, "40 % more", "hurts", "although")
    many = said(curve([1, 2, 3, 4], closed_form=1.0), "test")
    assert tells(many, "±1.00 steps", "3.0 times", HURT, "it hurts")
    none = np.full(4, np.nan)
    assert tells(said(curve(none, closed_form=np.nan), "test"), "no number", HURT)


def test_flips_in_all_cases():
    def told(shares, reach=0.5):
        layers = [
            replace(curve([1, share, share, share]), bits=bits, layer="x")
            for bits, share in zip((3, 4, 6), shares, strict=True)
        ]
        profile = noise_profile.NoiseProfile(SPEC, tuple(layers), 3, 128)
        return noise_words.flips(profile, "x", reach)

    flips = "flips", "6 bits", "±0.50 steps", "helps", "3 and 4 bits", "hurts"
    assert tells(told((2, 2, 0.5)), *flips)
    assert tells(told((2, 2, 0.5), reach=0.0), *flips)
    some = told((0.5, 0.5, 1))
    assert tells(some, "±0.50 steps", "helps", "3 and 4 bits", "next to nothing", "6 bits")
    assert "hurts" not in some
    harm = told((2, 2, 2))
    assert tells(harm, "±0.50 steps", "hurts", "3, 4 and 6 bits") and "helps" not in harm
    assert tells(told((1, 1.01, 0.99)), "no bit-width", "±0.50 steps", "2 %")


# ---- not measured ---------------------------------------------------------------------------


def no():
    raise InvalidSpec("There is no job.")


def test_missing_analysis_is_explained_and_offered(demo):
    at = page(m="digits-resnet")
    said = texts(at)
    assert tells(said, UNMEASURED, "digits-resnet") and tells(said, "How long", "not known")
    assert tells(said, "digits-resnet", "has to be measured")
    assert at.button(key="n-measure").label == "Measure it"
    assert len(figures(at)) == 1  # the theorem needs no run


def test_measure_queues_the_analysis(demo, monkeypatch):
    seen = []

    def submit(spec, runs):
        seen.append(spec)
        return waiting(spec, runs)

    monkeypatch.setattr(jobs, "submit", submit)
    monkeypatch.setattr(jobs, "status", lambda key, runs: waiting(seen[0], runs) if seen else no())
    at = page(m="digits-resnet")
    at.button(key="n-measure").click().run()
    (spec,) = seen
    assert spec == noise_profile.spec_of(RESNET) == checked(spec)
    assert any("the next to start" in i.value for i in at.info)
    assert at.button(key="n-cancel")


def job_page(demo, monkeypatch, status, many, **fields):
    spec = noise_profile.spec_of(RESNET)
    job = waiting(spec, demo, state=status, place=0, **fields)
    job.folder.mkdir(parents=True)
    lines = [
        {"phase": "profile", "unit": f"layer{i}", "index": i + 1, "of": 18, "loss": 0.9 + 0.05 * i,
         "note": "noise 4", "t": 1.0 + i, "mb": 1.0}
        for i in range(many)
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (job.folder / "events.jsonl").write_text(text)
    monkeypatch.setattr(jobs, "status", lambda key, runs: job if key == spec.key else no())
    monkeypatch.setattr(jobs, "list_jobs", lambda folder: [job])
    return page(m="digits-resnet")


def test_a_running_analysis_shows_what_it_has(demo, monkeypatch):
    at = job_page(demo, monkeypatch, "running", 4, started=1.0)
    (bar,) = at.get("progress")
    assert tells(bar.proto.text, "4 of 18")
    assert tells(texts(at), "lowers", "2 of 4")
    assert at.button(key="n-cancel") and "n-measure" not in {b.key for b in at.button}


@pytest.mark.parametrize(
    ("status", "word"), [("cancelled", "cancelled"), ("failed", "refused"), ("crashed", "died")]
)
def test_an_ended_analysis_says_why(demo, monkeypatch, status, word):
    at = job_page(demo, monkeypatch, status, 3, message="Because.")
    (said,) = [w.value for w in at.warning]
    assert tells(said, word, "Because.", 3)
    assert at.button(key="n-measure").label == "Measure it again"


def test_nothing_measured_yet_is_no_share():
    share, text = measure.progress([])
    assert share == 0 and text.startswith("Preparing")


def test_a_damaged_analysis_is_named(tmp_path, monkeypatch):
    for name in ("DEMO", "RUNS"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"QLIB_{name}", str(tmp_path / name))
    fake_runs.write_run(tmp_path / "DEMO", SPEC)
    file = fake_noise.write(tmp_path / "DEMO", SPEC) / noise_profile.FILE
    file.write_bytes(file.read_bytes()[:500])
    at = page()
    assert any(f"{noise_profile.FILE} is damaged" in w.value for w in at.warning)
    assert at.button(key="n-measure")


def test_a_failed_search_is_labelled(tmp_path, monkeypatch):
    """A layer whose values are all equal: its error is 0, so nothing can be relative to it."""
    for name in ("DEMO", "RUNS"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"QLIB_{name}", str(tmp_path / name))
    fake_runs.write_run(tmp_path / "DEMO", SPEC)
    out = fake_noise.write(tmp_path / "DEMO", SPEC)
    profile, none = noise_profile.load(out), np.full((3, 31), np.nan)
    bad = {"calib": none, "test": none, "normal": none[0], "predicted": none[0]}
    bad |= {"closed_form": np.nan, "linear_search": np.nan, "stages": np.zeros((4, 2))}
    layers = tuple(replace(x, **bad) if x.layer == HURT else x for x in profile.layers)
    noise_profile.save(out, replace(profile, layers=layers))
    at = page(layer=HURT, n_bits="4")
    assert tells(texts(at), "no number", HURT) and at.slider(key="n_reach").value == 0
    assert tells(titles(at)[1], "no error")
    assert not [t for t in figures(at)[2]["data"] if t.get("name") == "chosen layer"]


def test_no_run_at_all(tmp_path, monkeypatch):
    for name in ("DEMO", "RUNS"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"QLIB_{name}", str(tmp_path / name))
    at = open_page(PAGE)
    assert tells(texts(at), "no finished run") and len(figures(at)) == 1


def test_a_link_to_an_analysis_shows_its_network(demo):
    entries = [e for e in store.list_runs(store.demo_dir()) if not e.record.spec.analysis]
    choice = resolve.choose({"run": noise_profile.spec_of(SPEC).key}, entries, {})
    assert choice.spec.model == "digits-vit" and choice.spec.method == "nearest"


@pytest.mark.parametrize("analysis", ["noise", "sensitivity"])
def test_a_finished_analysis_is_shown_on_its_own_page(tmp_path, monkeypatch, analysis):
    for name in ("DEMO", "RUNS"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"QLIB_{name}", str(tmp_path / name))
    fake = {"noise": fake_noise, "sensitivity": fake_profiles}[analysis]
    out = fake.write(tmp_path / "DEMO", SPEC)
    at = open_page("pages/3_Run.py", job=out.name)
    (link,) = [p.proto for p in at.get("page_link") if p.proto.label.startswith("Look at it on")]
    assert "m=digits-vit" in link.query_string and tells(texts(at), "Done", "digits-vit")


def test_outputs_that_gain_where_inputs_lose_are_explained():
    profile = fake_noise.profile(SPEC)
    found = replace(curve([1, 0.7, 2, 2]), predicted=np.full(31, 1.5))
    assert "partly cancel" in noise_words.curve_note(profile, found, 0.5, "mean")
    assert "partly cancel" not in noise_words.curve_note(profile, found, 1.0, "mean")


# ---- theorem --------------------------------------------------------------------------------


def test_the_theorem_tells_its_numbers_and_its_condition(demo):
    at = page(layer=HELPED)
    assert tells(texts(at), "D = −0.307 b²", "less") and tells(texts(at), "Inside the condition")
    at.slider(key="t_n").set_value(0.1).run()
    assert tells(texts(at), "Outside the condition", "0.10 b", "never crosses")
    assert tells(texts(at), "D = +0.003 b²", "more")
    at.slider(key="t_n").set_value(2.5).run()
    assert tells(texts(at), "Outside the condition", "2.50 b", "third level")
    at.slider(key="t_n").set_value(0.0).run()
    assert tells(texts(at), "Without noise", "D = 0")


def test_the_theorems_table_agrees_with_itself():
    table = theorem.table(0.4)
    gap = (table["D, formula (b²)"] - table["D, simulation (b²)"]).abs()
    assert (gap < 5 * table["standard error"] + 1e-9).all() and len(table) == 10


# ---- findings, lessons ----------------------------------------------------------------------


def test_a_finding_names_the_layer_that_gains_most(made):
    record = store.load(made / SPEC.key)
    profile = fake_noise.profile(SPEC)
    found = findings.noise_helps(record, profile)
    here = [x for x in profile.layers if x.bits == 4 and x.closed_form > 0]
    best = min(here, key=lambda x: x.left(x.closed_form, "test"))
    assert found.set == {"layer": best.layer, "n_bits": "4"} and found.page == "noisyquant"
    count = sum(x.left(x.closed_form, "test") < 1 for x in here)
    most = f"{100 * (1 - best.left(best.closed_form, 'test')):.0f} %"
    assert tells(found.text, "lowers", f"{count} of 16", "4 bits", best.layer, most)
    assert findings.noise_helps(record, None) is None
    none = tuple(replace(x, closed_form=0.0) for x in profile.layers)
    assert findings.noise_helps(record, replace(profile, layers=none)) is None


def test_lessons_know_the_numbers(made):
    record = store.load(made / SPEC.key)
    found = facts.of(record, layer=HELPED, noise=fake_noise.profile(SPEC)).noise
    one = known(HELPED, 4)
    assert found.b4.left == found[HELPED].b4.left
    assert found.b4.half_test == one.left(0.5, "test")
    assert found.b4.clip_test == pytest.approx(100 * one.stages[1, 1])
    here = [x.left(0.5, "test") for x in fake_noise.layers() if x.bits == 4]
    assert found.count.b4.helped == sum(s < 0.98 for s in here)
    assert found.count.b4.of == 16
    for number in (lambda: found.count.b8, lambda: facts.of(record).noise.b4):
        with pytest.raises(InvalidSpec):
            number()
