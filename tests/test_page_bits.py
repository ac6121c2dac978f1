"""The Bits page: with a network of many widths, without one, clicks, steps, units, jobs."""

import time
from dataclasses import replace
from types import SimpleNamespace

import fake_runs
import fake_widths as fake
import pytest
from prose import tells
from test_pages import figures, open_page, texts, waiting

from qlib import jobs, store
from qlib.allocation import front
from qlib.core.records import InvalidSpec, RunSpec
from qlib.core.specs import checked
from qlib.guide import facts
from qlib.ui.bits import bar as bits_bar
from qlib.ui.bits import figures as bits_figures
from qlib.ui.bits import measured, queue, sides, view
from qlib.ui.bits import mix as bits_mix
from qlib.ui.bits import units as bits_units
from qlib.ui.shared import lessons, live

PAGE = "pages/8_Bits.py"
WIDTHS = (8, 6, 4, 3, 2)
FIRST_TO_BREAK = "break first"  # said of one side, where the widths measured tell


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """One network with a run of PTMQ and a naive switch; one with single runs alone."""
    folder = tmp_path_factory.mktemp("bits")
    fake_runs.write_demo(folder, ["digits-vit"], ["nearest", "qdrop"], WIDTHS)
    fake_runs.write_demo(folder, ["digits-resnet"], ["nearest"], (8, 4, 3))
    fake_runs.write_run(folder, single(8, 4))
    fake.write(folder)
    fake.write(folder, fake.naive())
    return folder


def single(w, a, method="nearest", model="digits-resnet", **more) -> RunSpec:
    return checked(RunSpec(model, "digits", method, w, a, **more))


@pytest.fixture
def demo(made, tmp_path, monkeypatch):
    """The stored runs; an empty folder for own ones, which is returned."""
    (tmp_path / "RUNS").mkdir()
    monkeypatch.setenv("QLIB_DEMO", str(made))
    monkeypatch.setenv("QLIB_RUNS", str(tmp_path / "RUNS"))
    monkeypatch.setattr(live, "switch", lambda *told, **more: False)
    return tmp_path / "RUNS"


def page(**query):
    return open_page(PAGE, **query)


def titles(at):
    return [body["layout"]["title"]["text"] for body in figures(at)]


def numbers(at) -> dict[str, str]:
    return {m.label: m.value for m in at.metric}


def line(at, start):
    drawn = (t for t in figures(at)[0]["data"] if t.get("mode") == "lines+markers")
    return next(t for t in drawn if t["name"].startswith(start))


# ---- what it shows --------------------------------------------------------------------------


def test_it_opens_with_the_network_of_many_widths(demo):
    at = page()
    assert at.title[0].value == "How low can I go, and where?"
    said = texts(at)
    assert tells(said, "PTMQ", "one stored model", 597, "test images", "no loss", "bits")
    assert tells(said, "Activations", FIRST_TO_BREAK, "3 bits")
    assert tells(said, "6 widths", "PTMQ", "one model", "0.92 MB", "float weights", "5 models")
    assert len(figures(at)) == 4 and all(c.proto.alt for c in at.get("plotly_chart"))
    names = [t["name"] for t in figures(at)[0]["data"] if t.get("mode") == "lines+markers"]
    assert names == [
        "Nearest: 5 models", "PTMQ: one model, 6 widths", "Naive switch: one model, 6 widths",
        "QDrop: 5 models",
    ]  # fmt: skip


def test_readout_follows_the_bits_of_weights_and_of_activations(demo):
    for w, a in ((4, 4), (8, 3)):
        row = fake.row(fake.spec_of(), w, a)
        shown = numbers(page(b=f"W{w}A{a}"))
        assert shown[f"Top-1, W{w}A{a}"] == f"{row['top1']:.1f} %"
        assert shown[f"Weights, W{w}A{a}"] == f"{row['weight_mb']:.3f} MB"
        assert shown[f"Bit-operations, W{w}A{a}"] == f"{row['gbops']:.3f} G"


def test_the_naive_switch_is_a_line_of_its_own_and_its_link_names_the_run(demo, made):
    at = page(run=fake.naive().key, b="W5A5")
    row = fake.row(fake.naive(), 5, 5)
    assert numbers(at)["Top-1, W5A5"] == f"{row['top1']:.1f} %"
    assert tells(texts(at), "Naive switch", 597)
    assert line(at, "Naive switch")["line"]["width"] > line(at, "PTMQ:")["line"]["width"]
    plain = page(q="ptmq")
    assert tells(texts(plain), "PTMQ", 597)


@pytest.mark.parametrize("cost", bits_figures.COSTS.values())
def test_the_axis_can_count_size_and_operations(demo, cost):
    at = page(b_x=cost)
    axis = figures(at)[0]["layout"]["xaxis"]
    assert axis["type"] == ("category" if cost == "Bits" else "log")


def test_unknown_values_of_a_link_are_told(demo):
    at = page(m="gone", q="magic", b="W9A9", b_x="no", run="x", mix="abc")
    assert any(tells(i.value, "no run", "x", "digits-vit") for i in at.info)
    assert any(tells(i.value, "no bits", "W9A9", "instead", "W8A8") for i in at.info)
    assert any(tells(i.value, "no bits", "many", "W4A4") for i in page(b="many").info)


def test_runs_of_other_conditions_are_left_out_and_counted(made, demo):
    fake_runs.write_run(demo, single(6, 6, model="digits-vit", calib=64))
    fake_runs.write_run(demo, single(5, 5, model="digits-vit"))
    at = page()
    assert tells(texts(at), "1 run", "other conditions", "not shown")
    known = line(at, "Nearest")
    assert known["name"] == "Nearest: 6 models" and "5" in known["x"]


def test_no_run_at_all(tmp_path, monkeypatch):
    for name in ("DEMO", "RUNS"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"QLIB_{name}", str(tmp_path / name))
    assert tells(texts(page()), "no stored runs")


# ---- without a network of many widths -------------------------------------------------------


def test_without_ptmq_lines_are_shown_and_ptmq_is_offered(demo, monkeypatch):
    seen = []

    def submit(spec, runs):
        seen.append(spec)
        return waiting(spec, runs)

    monkeypatch.setattr(jobs, "submit", submit)
    at = page(m="digits-resnet")
    said = texts(at)
    assert tells(said, "No network", "many bit-widths", "PTMQ")
    assert tells(said, "each unit", "switched", "PTMQ")
    assert line(at, "Nearest")["x"] == ["8", "4", "3"] and len(figures(at)) == 2
    button = at.button(key="b-queue")
    assert button.label == "Queue PTMQ for digits-resnet" and not seen
    button.click().run()
    (spec,) = seen
    assert spec == checked(replace(single(4, 4), method="ptmq", settings={}))


def test_a_missing_cell_is_offered_with_the_settings_of_the_others(demo, monkeypatch):
    seen = []
    monkeypatch.setattr(jobs, "submit", lambda spec, runs: seen.append(spec))
    at = page(m="digits-resnet", q="nearest", b="W4A8")
    assert tells(texts(at), "W4A8", "Nearest", "not measured")
    assert at.button(key="b-queue").label == "Compute W4A8"
    at.button(key="b-queue").click().run()
    assert seen == [single(4, 8)]
    hatched = next(t for t in figures(at)[1]["data"] if t["name"] == "not measured")
    assert len(hatched["x"]) == 9 - 4  # 8, 4, 3 by 8, 4, 3: three equal ones and W8A4


def jobs_are(monkeypatch, *found):
    by_key = {job.key: job for job in found}

    def status(key, runs):
        if key not in by_key:
            raise InvalidSpec("There is no job.")
        return by_key[key]

    monkeypatch.setattr(jobs, "status", status)
    monkeypatch.setattr(jobs, "list_jobs", lambda runs: list(found))


def test_a_failed_width_is_marked_and_never_drawn_as_a_number(demo, monkeypatch):
    job = waiting(single(2, 2), demo, state="crashed", place=0, message="Memory ran out.")
    jobs_are(monkeypatch, job)
    at = page(m="digits-resnet", q="nearest", b="W2A2")
    cross = next(t for t in figures(at)[0]["data"] if t["name"] == "did not finish")
    assert cross["x"] == ["2"] and "2" not in line(at, "Nearest")["x"]
    signs = next(t for t in figures(at)[1]["data"] if t["name"] == "signs")
    assert signs["text"].count("<b>✕</b>") == 1
    assert any(tells(w.value, "died", "Memory ran out.") for w in at.warning)
    assert at.button(key="b-queue").label == "Compute W2A2 again"


def test_a_running_job_shows_its_progress(demo, monkeypatch):
    spec = checked(replace(single(4, 4), method="ptmq", settings={}))
    job = waiting(spec, demo, state="running", place=0, started=1.0)
    event = {"phase": "reconstruct", "unit": "layer1.0", "index": 2, "of": 9, "step": 30}
    events = [event | {"index": 1, "unit": "stem", "t": 3.0, "steps": 60, "mb": 300.0}]
    events += [event | {"t": 5.0, "steps": 60, "mb": 300.0}]
    jobs_are(monkeypatch, job)
    monkeypatch.setattr(jobs, "events", lambda key, runs: events)
    at = page(m="digits-resnet")
    (bar,) = at.get("progress")
    assert tells(bar.proto.text, "2 of 9", "layer1.0", "30 of 60")
    assert at.button(key="b-cancel") and "b-queue" not in {b.key for b in at.button}


def test_widths_that_the_stored_network_never_had_need_a_run(demo):
    at = page(b="W2A4")
    assert tells(texts(at), "W2A4", "PTMQ", "not measured", "learns", "again")
    spec = queue.wanted(bits_now(b="W2A4")).spec
    assert (spec.weight_bits, spec.act_bits, spec.method) == (2, 4, "ptmq")


def bits_now(**query) -> view.Shown:
    """What the page would show for an address, outside of any browser."""
    from unittest import mock

    with mock.patch.object(view.address, "asked", lambda: query):
        return view.find()


# ---- moving ---------------------------------------------------------------------------------


@pytest.fixture
def put(monkeypatch):
    """What is written to the address, in order."""
    seen = []
    monkeypatch.setattr(view.address, "put", seen.append)
    return seen


def clicked(key, *data):
    points = [{"customdata": list(data)}] if data else []
    return {key: {"selection": {"points": points}}}


def test_a_click_on_a_point_looks_at_its_line_and_bits(put):
    places = {"ptmq_naive": {"q": "ptmq", "run": "digits-vit_ptmq_X"}}
    session = clicked("b-curve", 5, 1.0, 2.0, "ptmq", "ptmq_naive") | {"b-places": places}
    bits_figures.point_clicked(session)
    bits_figures.point_clicked(clicked("b-curve") | {"b-places": places})
    assert put == [{"b": "W5A5", "q": "ptmq", "run": "digits-vit_ptmq_X"}]


def test_a_click_on_a_cell_sets_both_bits(put):
    sides.cell_clicked(clicked("b-map", 8, 3))
    sides.cell_clicked(clicked("b-map"))
    assert put == [{"b": "W8A3"}]


def test_sliders_move_together_or_alone(demo):
    at = page(b="W4A4")
    at.select_slider(key="bits-a").set_value(3).run()
    assert at.query_params["b"] == "W3A3"
    at.toggle(key="b_same").set_value(False).run()
    at.select_slider(key="bits-a").set_value(6).run()
    assert at.query_params["b"] == "W3A6"
    assert at.select_slider(key="bits-w").value == 3


def test_steps_walk_the_widths_that_are_stored(demo):
    at = page(m="digits-vit", q="qdrop", b="W8A8")
    assert at.button(key="b-more").disabled
    seen = []
    while not at.button(key="b-fewer").disabled:
        at.button(key="b-fewer").click().run()
        seen.append(at.query_params["b"])
    assert seen == ["W6A6", "W4A4", "W3A3", "W2A2"]
    at.button(key="b-more").click().run()
    assert at.query_params["b"] == "W3A3"
    assert (bits_bar.below((8, 3), (8, 6, 4, 3)), bits_bar.above((8, 3), (8, 6, 4))) == (6, 4)


def test_play_goes_down_once_a_turn_and_stops_at_the_end(put, monkeypatch):
    session, now, again = {}, [100.0], []
    monkeypatch.setattr(bits_bar, "st", SimpleNamespace(session_state=session, rerun=again.append))
    monkeypatch.setattr(bits_bar.st, "rerun", lambda: again.append(now[0]))
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    track = SimpleNamespace(equal=[8, 4, 3])
    bits_bar.start(SimpleNamespace(track=track, pair=(3, 3)))  # nothing below: from the top
    assert put == [{"b": "W8A8"}] and session[bits_bar.PLAYING]
    bits_bar.tick((8, 8), (8, 4, 3), True)  # the page itself runs: too early for the next
    assert len(put) == 1
    for pair in ((8, 8), (4, 4)):
        now[0] += bits_bar.EVERY
        bits_bar.tick(pair, (8, 4, 3), True)
    assert put[1:] == [{"b": "W4A4"}, {"b": "W3A3"}] and len(again) == 2
    assert not session[bits_bar.PLAYING]
    now[0] += 9
    bits_bar.tick((3, 3), (8, 4, 3), True)
    assert len(put) == 3


def test_play_and_stop_are_one_button(demo):
    at = page(b="W8A8")
    at.button(key="b-run").click().run()
    assert at.button(key="b-run").label == "Stop"
    at.button(key="b-run").click().run()
    assert at.button(key="b-run").label == "Play"


# ---- bits for units -------------------------------------------------------------------------


def test_the_budget_chooses_the_best_assignment_at_once(demo):
    at = page()
    table = fake.blocks()
    choices = front.front(table)
    low, high = choices[0].weight_mb, choices[-1].weight_mb
    for place in (0, 17, 60):
        at.slider(key="b_budget_weight_mb").set_value(place).run()
        budget = low + place * (high - low) / bits_units.STEPS
        best = front.cheapest(table, weight_mb=budget + 1e-12)
        assert numbers(at)["Predicted KL"] == f"{best.kl:.2g} nats"
        assert numbers(at)["Weights"] == f"{best.weight_mb:.3f} MB"
    assert any(tells(c.value, "KL", "prediction", "not a measurement") for c in at.caption)


def test_a_link_can_name_an_assignment_and_the_budget_takes_over(demo):
    widths = bits_mix.widths_of(fake.blocks())
    own = dict(zip(widths, (5, 4, 4, 4, 4, 8), strict=True))
    price = front.priced(fake.blocks(), own)
    at = page(mix="544448")
    assert numbers(at)["Predicted KL"] == f"{price.kl:.2g} nats"
    assert tells(titles(at)[2], "8 bits", "block 5", 4, "4 units")
    at.slider(key="b_budget_weight_mb").set_value(3).run()
    assert "mix" not in at.query_params
    at = page(mix="5444")
    assert any(tells(i.value, "6 units", "digit") for i in at.info)


def test_codes_there_and_back():
    widths = bits_mix.widths_of(fake.blocks())
    assert list(widths) == [f"blocks.{b}" for b in range(6)] and widths["blocks.0"][0] == 8
    bits_ = dict(zip(widths, (8, 7, 6, 5, 4, 3), strict=True))
    assert bits_mix.encode(bits_, widths) == "876543"
    assert bits_mix.decode("876543", widths) == bits_
    for wrong in ("", "87654", "8765432", "876542", "x76543", "²76543"):
        assert bits_mix.decode(wrong, widths) is None


def test_edits_of_the_table_become_the_assignment(put):
    units = ("a", "b", "c")
    session = {
        "b-units-0": {"edited_rows": {1: {"Bits": 8}, "2": {"Bits": None}}},
        "b-base": {"code": "444"},
    }
    bits_units.edited("b-units-0", units, {"a": 4, "b": 4, "c": 4}, session)
    assert put == [{"mix": "484"}] and session["b-base"]["code"] == "484"


def test_the_table_keeps_its_place_while_its_own_edits_are_shown(made):
    entry = next(e for e in store.list_runs(made) if e.record and e.record.blocks)
    widths = bits_mix.widths_of(entry.record.blocks)

    def mix(code):
        bits_ = bits_mix.decode(code, widths)
        price = front.priced(entry.record.blocks, bits_)
        return bits_mix.Mix(entry, widths, price, "weight_mb")

    session = {}
    key, start = bits_units._base(session, mix("444444"))
    session["b-base"]["code"] = "484444"  # as its callback writes
    assert bits_units._base(session, mix("484444")) == (key, start)
    other, fresh = bits_units._base(session, mix("333333"))
    assert other != key and set(fresh.values()) == {3}


def test_a_click_on_the_front_takes_its_assignment(put):
    bits_units.front_clicked(clicked("b-front", "444444"))
    bits_units.front_clicked(clicked("b-front"))
    assert put == [{"mix": "444444"}]


def test_the_live_network_measures_the_assignment(demo, monkeypatch):
    asked = []

    def answer(entry, bits_, images, weights=None):
        asked.append((entry.record.spec.method, bits_, images, weights))
        return SimpleNamespace(top1=91.234, top1_low=88.0, top1_high=93.0, seconds=1.24)

    monkeypatch.setattr(live, "switch", lambda *told, **more: "turned" not in more)  # here alone
    monkeypatch.setattr(live, "answer", answer)
    at = page(mix="544448")
    at.button(key="b-measure").click().run()
    widths = bits_mix.widths_of(fake.blocks())
    assert asked == [("ptmq", bits_mix.decode("544448", widths), "test", None)]
    assert tells(texts(at), "Top-1", "91.2 %", "95 %", "88.0", "93.0", "float")
    assert "b-measure" not in {b.key for b in at.button}  # it is known now


def test_a_live_network_that_refuses_is_told(demo, monkeypatch):
    def answer(*asked):
        raise InvalidSpec("The network did not answer.")

    monkeypatch.setattr(live, "switch", lambda *told, **more: "turned" not in more)  # here alone
    monkeypatch.setattr(live, "answer", answer)
    at = page()
    at.button(key="b-measure").click().run()
    assert any("The network did not answer." in w.value for w in at.warning)


# ---- data -----------------------------------------------------------------------------------


def test_tracks_of_one_backbone(demo):
    shown = bits_now(m="digits-vit")
    assert list(shown.tracks) == ["ptmq", "ptmq_naive", "nearest", "qdrop"]
    ptmq, qdrop = shown.tracks["ptmq"], shown.tracks["qdrop"]
    assert ptmq.one and len(ptmq.cells) == 36 and ptmq.equal == list(fake.WIDTHS)
    assert not qdrop.one and qdrop.equal == list(WIDTHS)
    runs = [e.record for e in qdrop.runs.values()]
    assert qdrop.stored_mb == pytest.approx(sum(r.metrics["weight_mb"] for r in runs))
    assert ptmq.stored_mb == ptmq.first.record.metrics["stored_mb"]
    assert shown.pair == (4, 4) and shown.many is ptmq
    assert bits_now(m="digits-vit", q="qdrop", b="6").pair == (6, 6)


def test_each_side_alone_is_told(demo):
    named = [(r["Rounded low"], r["Bits"]) for r in sides.sides(bits_now(b="W4A3"))]
    assert named == [
        ("Both", "W4A3"), ("Weights alone", "W4A8"), ("Activations alone", "W8A3"),
        ("Neither", "W8A8"),
    ]  # fmt: skip
    named = [r["Rounded low"] for r in sides.sides(bits_now(b="W8A3"))]
    assert named == ["Activations alone", "Neither"]
    assert [r["Bits"] for r in sides.sides(bits_now(q="qdrop", b="W2A2"))] == [
        "W2A2",
        "W8A8",
    ]


def test_only_the_diagonal_of_a_large_network_is_enough(tmp_path, monkeypatch):
    monkeypatch.setenv("QLIB_DEMO", str(tmp_path / "DEMO"))
    monkeypatch.setenv("QLIB_RUNS", str(tmp_path / "RUNS"))
    fake.write(tmp_path / "DEMO", equal=True)
    at = page(b="W8A3")
    assert tells(titles(at)[1], "PTMQ", "6 of 36", "measured")
    assert not tells(texts(at), "Activations", FIRST_TO_BREAK, "bits")
    assert not tells(texts(at), "Weights", FIRST_TO_BREAK, "bits")


def test_lessons_know_every_width_and_the_worst_unit(demo, made):
    record = store.load(made / fake.spec_of().key)
    found = facts.of(record)
    row = fake.row(fake.spec_of(), 8, 3)
    assert found.widths["W8A3"].top1 == row["top1"]
    assert found.widths["W8A3"].drop == record.metrics["top1_float"] - row["top1"]
    low = {r["unit"]: r["kl"] for r in fake.blocks() if r["bits"] == 3}
    units = found.units
    assert (units.n, units.bits, units.worst) == (6, 3, "blocks.5")
    assert units.sum == pytest.approx(sum(low.values())) and units.kl == max(low.values())
    plain = facts.of(store.load(made / single(8, 8).key))
    for number in (lambda: plain.widths["W8A8"], lambda: plain.units.n):
        with pytest.raises(InvalidSpec):
            number()


def test_a_lesson_speaks_of_the_width_of_its_step(demo):
    params = {"m": "digits-vit", "q": "ptmq", "b": "W3A3"}
    assert lessons._of(params).top1 == fake.row(fake.spec_of(), 3, 3)["top1"]
    assert lessons._of(params).bits == "W3A3"
    naive = lessons._of(params | {"run": fake.naive().key})
    assert naive.top1 == fake.row(fake.naive(), 3, 3)["top1"]
    with pytest.raises(InvalidSpec, match="PTMQ is not stored at W2A2"):
        lessons._of(params | {"b": "W2A2"})


def test_pairs_that_nobody_stored_are_measured_by_the_live_network(tmp_path, monkeypatch):
    monkeypatch.setenv("QLIB_DEMO", str(tmp_path / "DEMO"))
    monkeypatch.setenv("QLIB_RUNS", str(tmp_path / "RUNS"))
    monkeypatch.setattr(live, "switch", lambda *told, **more: False)
    fake.write(tmp_path / "DEMO", equal=True)
    asked = []

    def answer(entry, bits_, images, weights=None):
        asked.append((bits_, images, weights))
        return SimpleNamespace(top1=70.0, top1_low=66.0, top1_high=74.0, seconds=1.0)

    monkeypatch.setattr(live, "answer", answer)
    at = page(b="W8A3")
    assert any(tells(c.value, "turn on", "Try it now") for c in at.caption)
    assert "b-queue" not in {b.key for b in at.button}  # no run is needed
    monkeypatch.setattr(live, "wanted", lambda: True)
    at = page(b="W8A3")
    at.button(key="b-measure-pair").click().run()
    assert asked == [(3, "test", 8)] and tells(texts(at), "Top-1", "70.0 %")
    monkeypatch.setattr(measured, "missing", lambda: "PyTorch is not installed here.")
    assert page(b="W8A3").button(key="b-queue").label == "Compute W8A3"
