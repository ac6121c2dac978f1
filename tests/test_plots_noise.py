"""Figures about noise: their numbers are the record's, their words are true in help and in harm."""

from dataclasses import replace

import fake_noise
import hist_kit
import numpy as np
import pytest

from qlib.noise import theorem
from qlib.plots.noise import (
    _fast_figure,
    curves,
    error_over_noise,
    inside_one_cell,
    noise_tricks,
    noisy_values,
    theorem_map,
    who_gains,
)
from qlib.store import tensors

LAYERS = fake_noise.layers()
HELPED, HURT = ("blocks.1.attn.proj", 4), ("blocks.0.attn.proj", 4)
LOOKS = [{}, {"dark": True}, {"large": True}]


def at(layer, bits=4):
    return next(x for x in LAYERS if (x.layer, x.bits) == (layer, bits))


def trace(figure, name):
    return next(t for t in figure.data if t.name == name)


# ---- inside one cell ------------------------------------------------------------------------


def test_half_a_step_of_noise_gives_step_squared_over_12_everywhere():
    info = inside_one_cell.info(at(*HELPED), 0.5)
    assert info.noisy == pytest.approx(1 / 12)
    assert info.crossings == pytest.approx([-(12**-0.5), 12**-0.5], abs=1e-3)
    assert info.after == pytest.approx(1 / 12)


@pytest.mark.parametrize("reach", [0.05, 0.3, 0.6, 0.75, 0.95, 1.3, 1.5])
def test_the_noisy_curve_is_what_drawing_noise_gives(reach):
    """Beyond the theorem's range too, where the noise reaches further levels."""
    info = inside_one_cell.info(at(*HELPED), reach)
    draw = np.random.default_rng(0).uniform(-reach, reach, 200_000)
    for place in (0, 20, 64, 100):
        moved = info.at[place] + draw
        told = np.square(np.rint(moved) - moved).mean()
        assert info.noisy[place] == pytest.approx(told, abs=1e-3)


@pytest.mark.parametrize("reach", [0.2, 0.5, 0.75])
def test_the_curves_cross_where_the_theorem_says(reach):
    edge = float(theorem.helps_below(reach, 0.5))
    assert edge <= reach <= 1 - edge  # the theorem's condition
    crossings = inside_one_cell.info(at(*HELPED), reach).crossings
    assert crossings[-1] == pytest.approx(0.5 - edge, abs=2e-3)


@pytest.mark.parametrize(("key", "word"), [(HELPED, "help"), (HURT, "hurt")])
def test_the_cell_tells_help_and_harm_of_this_layers_values(key, word):
    found = at(*key)
    info = inside_one_cell.info(found, 0.5)
    assert info.before == pytest.approx(found.rounding / 12, rel=0.03)
    assert info.share == pytest.approx(1 / found.rounding, rel=0.03)
    assert f"±0.50 steps {word}" in inside_one_cell.headline(info)
    assert (info.share < 1) == (word == "help")


def test_the_areas_lie_between_the_curves_and_the_mass_is_the_layers():
    found = at(*HELPED)
    info = inside_one_cell.info(found, 0.5)
    figure = inside_one_cell.figure(info)
    helps, hurts = (np.array(trace(figure, f"noise {w}").y) for w in ("helps", "hurts"))
    lower = info.noisy < info.plain
    assert (helps[lower] == info.noisy[lower]).all() and (helps[~lower] == info.plain[~lower]).all()
    assert (hurts[~lower] == info.noisy[~lower]).all()
    assert trace(figure, "noise hurts").fillpattern.shape == "/"
    mass = np.array(trace(figure, "this layer's values").y)[:-1]
    assert mass / 64 == pytest.approx(found.phase) and mass.mean() == pytest.approx(1)


def test_without_noise_there_is_no_gain_to_draw():
    info = inside_one_cell.info(at(*HURT), 0.0)
    names = {t.name for t in inside_one_cell.figure(info).data}
    assert info.share == 1 and not info.crossings
    assert "noise helps" not in names and "±½ step would give" in names
    assert f"{12 * info.before:.2f} × step²/12" in inside_one_cell.headline(info)


def test_a_peak_that_leaves_the_axis_is_told():
    phase = np.full(64, 0.5 / 63)
    phase[32] = 0.5
    info = inside_one_cell.info(replace(at(*HURT), phase=phase), 0.5)
    notes = [n.text for n in inside_one_cell.figure(info).layout.annotations]
    assert "peak 32" in notes


def test_empty_cells_are_told():
    none = replace(at(*HURT), phase=np.zeros(64), clipped=1.0)
    assert "Every value is clipped" in inside_one_cell.headline(inside_one_cell.info(none, 0.5))


# ---- error over noise -----------------------------------------------------------------------


@pytest.mark.parametrize("draw", ["mean", "1", "3", "normal"])
def test_curves_are_those_of_the_record(draw):
    found = at(*HELPED)
    info = error_over_noise.info(found, 0.5, draw)
    figure = error_over_noise.figure(info)
    wanted = {"mean": found.calib.mean(0), "normal": found.normal}.get(draw)
    wanted = found.calib[int(draw) - 1] if wanted is None else wanted
    assert list(trace(figure, "calibration").y) == pytest.approx(list(wanted))
    assert list(trace(figure, "predicted (inputs)").y) == pytest.approx(list(found.predicted))
    assert list(trace(figure, "lowest draw").y) == pytest.approx(list(found.calib.min(0)))
    assert list(trace(figure, "highest draw").y) == pytest.approx(list(found.calib.max(0)))
    held = found.test[int(draw) - 1] if draw.isdigit() else found.test.mean(0)
    assert list(trace(figure, "held-out").y) == pytest.approx(list(held))
    assert [d[0] for d in trace(figure, "calibration").customdata] == list(found.reaches)


@pytest.mark.parametrize(("key", "word"), [(HELPED, "helps"), (HURT, "hurts")])
def test_the_curve_tells_help_and_harm(key, word):
    info = error_over_noise.info(at(*key), 0.5)
    share = info.at(info.calib)
    assert error_over_noise.headline(info).endswith(f"{share:.2f}×, noise {word}")
    assert (share < 1) == (word == "helps")
    assert f"{share:.3f} on calibration rows" in error_over_noise.alt(info)


def test_help_and_harm_are_shaded_alike_and_both_searches_marked():
    found = at(*HELPED)
    figure = error_over_noise.figure(error_over_noise.info(found, 0.5))
    areas = [s for s in figure.layout.shapes if s.type == "rect"]
    assert {s.fillcolor.rsplit(",", 1)[1] for s in areas} == {"0.1)"} and len(areas) == 2
    assert areas[0].y1 == areas[1].y0 == 1
    texts = [n.text for n in figure.layout.annotations]
    assert f"expected best {found.closed_form:.2f}" in texts
    assert f"paper's search {found.linear_search:.2f}" in texts
    least = found.calib.mean(0).min()
    assert f"least {least:.2f}×" in texts


def test_none_is_a_legal_winner():
    flat = np.ones((3, 31)) + np.linspace(0, 1, 31)
    info = error_over_noise.info(replace(at(*HURT), calib=flat), 0.0)
    assert "0 is a legal winner" in error_over_noise.headline(info)


def test_a_layer_without_error_has_no_curves():
    none = np.full((3, 31), np.nan)
    found = replace(at(*HURT), calib=none, test=none, closed_form=np.nan, predicted=none[0])
    info = error_over_noise.info(found, 0.0)
    assert "no error that noise could change" in error_over_noise.headline(info)
    assert not error_over_noise.figure(info).data
    assert "by expectation" not in error_over_noise.alt(info)
    assert curves.failed(found) and curves.searched(found) == 0.0


# ---- who gains ------------------------------------------------------------------------------


@pytest.mark.parametrize("images", ["calib", "test"])
def test_every_layer_is_a_mark_at_its_numbers(images):
    info = who_gains.info(LAYERS, 4, 0.5, images=images)
    figure = who_gains.figure(info, chosen=HELPED[0])
    marks = {
        d[0]: (x, y)
        for t in figure.data
        if t.customdata is not None
        for d, x, y in zip(t.customdata, t.x, t.y, strict=True)
    }
    here = [x for x in LAYERS if x.bits == 4]
    assert set(marks) == {x.layer for x in here}
    for found in here:
        assert marks[found.layer] == pytest.approx((found.rounding, found.left(0.5, images)))
    helped = sum(x.left(0.5, images) < 0.98 for x in here)
    hurt = sum(x.left(0.5, images) > 1.02 for x in here)
    assert who_gains.headline(info).endswith(f"helps {helped} of 16 layers, hurts {hurt}")
    ring = trace(figure, "chosen layer")
    assert (ring.x[0], ring.y[0]) == pytest.approx(marks[HELPED[0]])


def test_theory_is_one_over_x_and_solid_at_half_a_step_only():
    half, more = (who_gains.figure(who_gains.info(LAYERS, 4, r)) for r in (0.5, 0.8))
    line = trace(half, "theory at ±½")
    assert np.array(line.x) * np.array(line.y) == pytest.approx(1)
    assert (line.line.dash, trace(more, "theory at ±½").line.dash) == ("solid", "dot")


def test_theory_is_right_about_the_inputs():
    """At half a step the inputs keep 1/x of their error, where nothing is clipped."""
    found = at("blocks.1.attn.qkv", 6)
    reach = list(found.reaches).index(0.5)
    assert found.predicted[reach] == pytest.approx(1 / found.rounding, rel=0.02)


def test_each_layer_at_its_own_reach():
    info = who_gains.info(LAYERS, 4, None)
    assert {d.reach for d in info.dots} == {x.closed_form for x in LAYERS if x.bits == 4}
    assert "each" in who_gains.headline(info).lower() and all(d.y == 1 for d in info.idle)


def test_no_reach_is_shown_as_half_a_step():
    assert who_gains.info(LAYERS, 4, 0.0).dots == who_gains.info(LAYERS, 4, 0.5).dots


def test_many_kinds_share_the_last_symbol():
    kinds = [replace(x, layer=f"{x.block}.k{i}") for i, x in enumerate(LAYERS[:20])]
    kinds = [replace(x, bits=4) for x in kinds]
    names = list(who_gains.groups(who_gains.info(kinds, 4, 0.5)))
    assert len(names) == len(who_gains.SYMBOLS) and names[-1] == "others"


# ---- tricks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "column"), [("calib", 0), ("test", 1)])
def test_bars_go_from_stage_to_stage(images, column):
    found = at(*HELPED)
    info = noise_tricks.info(found, images)
    assert info.values == pytest.approx(100 * found.stages[:, column])
    assert info.others == pytest.approx(100 * found.stages[:, 1 - column])
    bars = [s for s in noise_tricks.figure(info).layout.shapes if s.type == "rect"]
    assert [(s.y0, s.y1) for s in bars] == list(zip(info.values, info.values[1:], strict=False))


def test_a_trick_that_adds_error_is_told_as_such():
    stages = np.array([[0.01, 0.01], [0.004, 0.004], [0.004, 0.004], [0.006, 0.006]])
    info = noise_tricks.info(replace(at(*HURT), stages=stages))
    said = noise_tricks.headline(info)
    assert said == "Of the plain error: clip −60 %, shift ±0 %, noise +20 %"
    colors = [s.fillcolor for s in noise_tricks.figure(info).layout.shapes if s.type == "rect"]
    assert colors[0] != colors[2]


# ---- values ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hist")
    hist_kit.write(folder, hist_kit.network("nearest", 4))
    return next(h for h in tensors.load(folder).values() if h.tensor == "input")


def test_noise_moves_values_and_loses_none(hist):
    wide = (hist.edges[-1] - hist.edges[0]) / 8
    found = replace(at(*HELPED), step=float(wide))  # the window of ±5 steps holds everything
    info = noisy_values.info(found, hist, 0.5)
    step = info.edges[1] - info.edges[0]
    assert (info.before * step).sum() == pytest.approx(1)
    assert np.trapezoid(info.after, info.at) == pytest.approx(1, abs=0.1)
    assert info.flatter < 1 and f"{100 * info.flatter:.0f} %" in noisy_values.headline(info)


def test_no_noise_leaves_values_where_they_are(hist):
    info = noisy_values.info(at(*HELPED), hist, 0.0)
    names = [t.name for t in noisy_values.figure(info).data]
    assert names == ["input x", "levels"]
    assert np.isin(info.levels, np.rint(info.levels)).all()


# ---- theorem --------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("n", [0.0, 0.1, 0.75, 1.0, 1.5, 2.0, 2.6, 3.0])
def test_formula_and_simulation_agree(x, n):
    trial = theorem_map.trial(x, n, seed=3)
    assert trial.agrees and trial.condition == (n > 0 and x <= n <= 2 - x)
    if trial.condition:
        assert trial.closed == pytest.approx(n**2 / 3 - (n - x) ** 2 / n)


def test_the_map_is_zero_on_the_theorems_boundary():
    x, n, change = theorem_map.field()
    edge = theorem.helps_below(n)
    for row, (reach, limit) in enumerate(zip(n, edge, strict=True)):
        if 0 < reach <= 2 - limit and 0 < limit < 1:
            inside = (x >= 0) & (x <= np.minimum(reach, 2 - reach))  # the theorem's condition
            assert (change[row][inside & (x < limit - 1e-9)] < 0).all()
            assert (change[row][inside & (x > limit + 1e-9)] > 0).all()


def test_the_headline_of_the_map():
    assert "noise helps" in theorem_map.headline(theorem_map.trial(0.0, 1.5))
    assert "D = −0.750 b²" in theorem_map.headline(theorem_map.trial(0.0, 1.5))
    assert "noise hurts, D = +0.333 b²" in theorem_map.headline(theorem_map.trial(1.0, 1.0))


# ---- all ------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("reach", [0.0, 0.5, 1.5])
def test_every_figure_is_framed_titled_and_small(look, reach, hist):
    found = at(*HURT)
    infos = {
        inside_one_cell: inside_one_cell.info(found, reach),
        error_over_noise: error_over_noise.info(found, reach),
        who_gains: who_gains.info(LAYERS, 4, reach),
        noise_tricks: noise_tricks.info(found),
        noisy_values: noisy_values.info(found, hist, reach),
        theorem_map: theorem_map.trial(0.2, 2 * reach),
    }
    for plot, info in infos.items():
        figure = plot.figure(info, **look)
        said = figure.layout.title.text.replace("<br>", " ").replace("\N{NO-BREAK SPACE}", " ")
        assert said == plot.headline(info)
        assert plot.headline(info) in plot.alt(info) and any(c.isdigit() for c in plot.alt(info))
        assert figure.layout.xaxis.title.text or plot is noise_tricks
        assert figure.layout.yaxis.title.text
        assert sum(len(t.x) for t in figure.data) < 1500


def test_a_quick_figure_takes_the_last_word():
    one = {"title": {"text": "a", "font": {"size": 3}}, "x": 1}
    assert _fast_figure.merged(one, {"title": {"text": "b"}, "y": 2}) == {
        "title": {"text": "b", "font": {"size": 3}}, "x": 1, "y": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.5, "50 % less"), (1.2, "20 % more"), (2.4, "2.4 times the"), (0.9955, "0.4 % less")],
)
def test_changes_in_words(share, words):
    assert curves.change(share) == words
