"""Lessons: what a file may say, numbers from runs, guess and reveal, and that all fit the demo."""

import re
from pathlib import Path

import fake_profiles
import fake_runs
import pytest
from streamlit.testing.v1 import AppTest

from qlib import store
from qlib.core.records import InvalidSpec, RunSpec
from qlib.core.specs import checked
from qlib.guide import facts, lessons
from qlib.ui.shared import lessons as shown
from qlib.ui.shared import resolve

ROOT = Path(__file__).resolve().parents[1]
STEP = {  # field → its source
    "page": "'start'",
    "text": "lambda f: f'Look: {f.top1:.0f} %.'",
    "question": "'How much was lost?'",
    "choices": "('nothing', lambda f: f'{f.drop:.1f} points')",
    "right": "lambda f: (f.top1 >= f.top1_float, f.top1 < f.top1_float)",
    "reveal": "lambda f: f'It lost {f.drop:.1f} points with {f.method} at {f.bits}.'",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder that the app takes its lessons from."""
    made = tmp_path / "lessons"
    made.mkdir()
    monkeypatch.setattr(lessons, "FOLDER", made)
    return made


def write(folder: Path, *steps: dict[str, str], name: str = "one", **changes) -> str:
    """A lesson's file; ``steps``: the source of each field."""
    called = ["Step(" + ", ".join(f"{k}={v}" for k, v in step.items()) + ")" for step in steps]
    given = {"title": "One", "promise": "A promise."} | changes
    words = "".join(f"{key}={value!r}, " for key, value in given.items())
    (folder / f"{name}.py").write_text(
        "from qlib.guide.lessons.base import Lesson, Step\n"
        f"LESSON = Lesson({words}steps=({''.join(f'{c}, ' for c in called)}))\n"
    )
    return name


def some(**numbers) -> facts.Facts:
    return facts.Facts("this run", numbers)


# ---- numbers of a run -----------------------------------------------------------------------


def test_facts_of_a_run(tmp_path):
    spec = checked(RunSpec("digits-vit", "digits", "brecq"))
    record = store.load(fake_profiles.write_base(tmp_path, spec))
    rows = fake_profiles.profile()
    found = facts.of(record, layer="blocks.1.mlp.fc2", profile=rows)
    m = record.metrics
    assert (found.drop, found.won) == (m["top1_float"] - m["top1"], m["top1"] - m["top1_nearest"])
    assert (found.bits, found.n) == ("W4A4", 597)
    row = {(r["layer"], r["tensor"]): r for r in record.layers}
    assert found.weight.sqnr_db == row["blocks.1.mlp.fc2", "weight"]["sqnr_db"]
    assert found.layers["head"].weight.sqnr_db == row["head", "weight"]["sqnr_db"]
    alone = {r["layer"]: r["kl"] for r in rows if (r["mode"], r["split"]) == ("alone", "both")}
    assert found.worst.profile == max(alone, key=alone.__getitem__)
    told = [r for r in record.layers if r["tensor"] == "output"]
    assert found.worst.local == min(told, key=lambda r: r["local_sqnr_db"])["layer"]
    assert found.profile.in_float >= found.profile.both


MISSING = [
    (lambda f: f.weight.mse, "'weight' of this run is not known"),
    (lambda f: f.worst.profile, "'profile' of the worst layer"),
    (lambda f: f.profile.both, "'both' of the sensitivity run"),
    (lambda f: f.noise.b6.half, "'b6' of the noise analysis"),
    (lambda f: f.noise["head"].b6, "'layers' of the noise analysis"),
    (lambda f: f.units.worst, "'worst' of the units"),
    (lambda f: f.widths["W3A3"].kl, "no pair of widths 'W3A3'"),
    (lambda f: f.layers["nowhere"].weight, "no layer 'nowhere'"),
    (lambda f: f.layers["head"].weight.outlier_ratio, "'outlier_ratio' of head.weight"),
    (lambda f: f.runs["near"].kl, "no other run 'near'"),
]


@pytest.mark.parametrize(("read", "why"), MISSING)
def test_a_number_that_is_missing_is_named(tmp_path, read, why):
    spec = checked(RunSpec("digits-vit", "digits", "brecq"))
    plain = facts.of(store.load(fake_profiles.write_base(tmp_path, spec)))
    with pytest.raises(InvalidSpec, match=re.escape(why)):
        read(plain)


def test_a_name_that_no_run_has_is_a_mistake_of_the_lesson():
    with pytest.raises(AttributeError, match="Facts has no 'top_one'"):
        getattr(some(top_one=1), "top_one")  # noqa: B009 (type checkers know better)


# ---- files ----------------------------------------------------------------------------------


def test_a_lesson_is_read(folder):
    step = STEP | {"set": "{'b': 4, 'flag': True}"}
    name = write(folder, step, set={"m": "x", "b": 8}, order=2)
    lesson = lessons.load(name)
    (step,) = lesson.steps
    assert step.params == {"m": "x", "b": "4", "flag": "true"}  # a step's own word wins
    assert (lesson.name, lesson.title, lesson.order) == ("one", "One", 2)
    assert step.choices[0] == "nothing"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"text": "''"}, "text is empty"),
        ({"text": repr("x" * 301)}, "has 301 characters"),
        ({"question": "''"}, "a question needs"),
        ({"reveal": "''"}, "a question needs"),
        ({"choices": "('one',)", "right": "0"}, "two choices or more"),
        ({"right": "2"}, "right is 2, and there are 2 choices"),
        ({"hide": "('q',)", "show": "('b',)"}, "show names only what hide names"),
        ({"set": "{'step': 3}"}, "does not name the lesson"),
        ({"colour": "'red'"}, "colour"),
        ({"text": "unheard_of"}, "unheard_of"),
    ],
)
def test_wrong_steps_are_named(folder, change, why):
    with pytest.raises(InvalidSpec, match=f"one.py cannot be used: .*{why}"):
        lessons.load(write(folder, STEP | change))


def test_files_that_are_no_lessons(folder):
    (folder / "cut.py").write_text("LESSON = Lesson(")
    (folder / "list.py").write_text("LESSON = []")
    (folder / "none.py").write_text("x = 1")
    (folder / "stops.py").write_text("1 / 0")
    (folder / "_private.py").write_text("1 / 0")
    write(folder, name="empty")
    write(folder, STEP, name="good")
    found, problems = lessons.every()
    assert [lesson.name for lesson in found] == ["good"]
    bad = ["cut.py", "empty.py", "list.py", "none.py", "stops.py"]
    assert [p.split()[2] for p in problems] == bad
    assert "it has no steps" in problems[1] and "it has no 'LESSON'" in problems[3]
    with pytest.raises(InvalidSpec, match="choose one of cut, empty, good, list, none, stops"):
        lessons.load("gone")


def test_the_right_choice_is_computed(folder):
    (step,) = lessons.load(write(folder, STEP)).steps
    numbers = {"top1": 90.0, "top1_float": 95.0, "drop": 5.0, "method": "qdrop", "bits": "W2A2"}
    told = lessons.tell(step, some(**numbers))
    assert told.text == "Look: 90 %." and told.choices == ("nothing", "5.0 points")
    assert told.right == 1 and told.reveal == "It lost 5.0 points with qdrop at W2A2."
    assert lessons.tell(step, some(**numbers | {"top1": 95.0})).right == 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"right": "lambda f: (f.top1, f.top1)"}, "More than one choice"),
        ({"right": "lambda f: (1, 2, 3)"}, "2 choices, and 3 values"),
        (
            {"text": "lambda f: f'{f.top1 / (f.drop - 5):.1f}'"},
            "be computed: float division",
        ),
        ({"text": "lambda f: f'{f.bits:.1f}'"}, "cannot be computed: Unknown format code"),
        ({"text": "lambda f: f'{f.topp1}'"}, "Facts has no 'topp1'"),
        ({"text": "lambda f: f'{f.kl}'"}, "'kl' of this run is not known"),
    ],
)
def test_words_that_cannot_be_told_are_one_sentence(folder, change, why):
    (step,) = lessons.load(write(folder, STEP | change)).steps
    numbers = {"top1": 90.0, "top1_float": 95.0, "drop": 5.0, "method": "qdrop", "bits": "W2A2"}
    with pytest.raises(InvalidSpec, match=re.escape(why)) as caught:
        lessons.tell(step, some(**numbers))
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_only_keys_are_hidden():
    assert lessons.hidden("q, b,try-this") == ["q", "b", "try-this"]
    assert lessons.hidden(("x{}</style>", "", "ok_1")) == ["ok_1"]


# ---- in the app -----------------------------------------------------------------------------


@pytest.fixture
def app(folder, tmp_path, monkeypatch) -> AppTest:
    demo = fake_runs.write_demo(
        tmp_path / "demo", models=["digits-vit"], methods=["nearest", "brecq"], bits=(8, 4)
    )
    monkeypatch.setenv("QLIB_DEMO", str(demo))
    monkeypatch.setenv("QLIB_RUNS", str(tmp_path / "runs"))
    write(
        folder,
        STEP | {"set": "{'b': 'W4A4'}", "hide": "('q', 'try-this')"},
        STEP | {"set": "{'q': 'brecq'}", "page": "'compare'",
                "runs": "{'plain': {'q': 'nearest'}}",
                "reveal": "lambda f: f'{f.runs[\"plain\"].top1 - f.top1:+.1f}'"},
        {"page": "'start'", "text": "'The end.'"},
        set={"m": "digits-vit", "b": "W8A8"},
    )  # fmt: skip
    return AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()


def follow(at: AppTest, **query: str) -> AppTest:
    at.query_params.clear()
    at.switch_page("pages/0_Lesson.py")
    at.query_params.update(query)
    at.run()
    assert not at.exception, at.exception[0].message
    return at


def said(at: AppTest) -> str:
    return "\n".join(p.value for p in [*at.markdown, *at.info, *at.success, *at.warning])


def styles(at: AppTest) -> str:
    return "\n".join(str(block.proto) for block in at.get("html"))


def test_a_step_sets_the_view_and_hides(app):
    at = follow(app, lesson="one", step="1")
    assert at.query_params == {"m": "digits-vit", "b": "W4A4", "lesson": "one", "step": "1"}
    assert "Rounded to the nearest of 16 levels" in said(at)
    assert "step 1 of 3" in said(at) and at.button(key="lesson-previous").disabled
    assert ".st-key-q, .st-key-try-this { display: none" in styles(at)


def test_guess_then_reveal(app):
    at = follow(app, lesson="one", step="1")
    reveal = "points with nearest at W4A4"
    assert reveal not in said(at)
    guess = at.get("pills")[0]
    guess.set_value([0]) if isinstance(guess.value, list) else guess.set_value(0)
    at.run()
    assert reveal in at.warning[0].value and "**Answer: " in at.warning[0].value
    guess = at.get("pills")[0]
    guess.set_value([1]) if isinstance(guess.value, list) else guess.set_value(1)
    at.run()
    assert at.success[0].value.startswith("**Right.**") and reveal in at.success[0].value


def test_the_evidence_appears_with_the_answer(app, folder):
    hide = {"hide": "('answer', 'strip-figure', 'bits-figure')", "show": "('strip-figure',)"}
    write(folder, STEP | hide, name="two")
    at = follow(app, lesson="two", step="1")
    assert ".st-key-answer, .st-key-strip-figure, .st-key-bits-figure {" in styles(at)
    guess = at.get("pills")[0]
    guess.set_value([0]) if isinstance(guess.value, list) else guess.set_value(0)
    at.run()
    assert ".st-key-answer, .st-key-bits-figure {" in styles(at)


def test_next_and_previous_move(app):
    at = follow(app, lesson="one", step="1")
    at.button(key="lesson-next").click().run()
    assert at.query_params["step"] == "2" and at.query_params["q"] == "brecq"
    assert at.title[0].value == "Which method should I choose?"
    assert ".st-key-q" not in styles(at)
    at.button(key="lesson-next").click().run()
    assert "The end." in said(at) and at.query_params["b"] == "W8A8"
    assert "q" not in at.query_params  # nothing of the step before is left
    assert not any(b.key == "lesson-next" for b in at.button)
    at.button(key="lesson-previous").click().run()
    assert at.query_params["step"] == "2"


def test_leave_keeps_the_view(app):
    at = app.switch_page("pages/1_Start.py")
    at.query_params.update(lesson="one", step="3", q="brecq")
    at.run()
    assert "step 3 of 3" in said(at) and at.button(key="lesson-leave").label == "Finish"
    at.button(key="lesson-leave").click().run()
    assert at.query_params == {"q": "brecq"} and "step 3 of 3" not in said(at)


def test_off_the_step_there_is_a_way_back(app):
    at = follow(app, lesson="one", step="2")
    at.switch_page("pages/3_Run.py").run()
    assert "This step is on the page *Compare*." in said(at)
    at.button(key="lesson-back").click().run()
    assert at.title[0].value == "Which method should I choose?"


@pytest.mark.parametrize("step", ["9", "0", "x", ""])
def test_step_out_of_range_is_the_nearest(app, step):
    at = follow(app, lesson="one", step=step)
    assert f"step {3 if step == '9' else 1} of 3" in said(at)


def test_unknown_lesson_lists_the_others(app):
    at = follow(app, lesson="gone")
    assert at.title[0].value == "What would you like to understand?"
    assert [i.value for i in at.info] == ["There is no lesson `gone`; there are *One* (`one`)."]
    at.switch_page("pages/1_Start.py")
    at.query_params["lesson"] = "gone"
    at.run()
    assert any("There is no lesson `gone`" in i.value for i in at.info)


def test_numbers_that_are_missing_are_told(app, folder):
    write(folder, STEP | {"text": "lambda f: f'{f.input.sqnr_db}'"}, name="two")
    at = follow(app, lesson="two", step="1")
    assert any("cannot be told from the runs" in c.value for c in at.caption)


def test_hide_in_an_address(app):
    at = follow(app)
    at.switch_page("pages/1_Start.py")
    at.query_params["hide"] = "m,q}{"
    at.run()
    assert ".st-key-m { display: none" in styles(at)
    at.query_params["hide"] = "answer,titles"
    at.run()
    assert ".st-key-answer, .js-plotly-plot .g-gtitle { display: none" in styles(at)


# ---- the lessons that come with the project -------------------------------------------------

STEPS = [
    pytest.param(lesson, place, id=f"{lesson.name}-{place + 1}")
    for lesson in lessons.every()[0]
    for place in range(len(lesson.steps))
]


def test_all_lesson_files_can_be_used():
    found, problems = lessons.every()
    assert problems == []
    assert len({lesson.order for lesson in found}) == len(found)


@pytest.mark.parametrize(("lesson", "place"), STEPS)
def test_steps_fit_the_stored_runs(lesson, place, monkeypatch, tmp_path):
    """Page, run, layer and every number are there, the words fit, and one choice is right."""
    monkeypatch.setenv("QLIB_RUNS", str(tmp_path))
    step = lesson.steps[place]
    assert step.page in shown.page_files()
    told = lessons.tell(step, shown._facts(step))
    assert len(told.text) < 400 and len(told.reveal) < 400
    if told.question:
        assert len(set(told.choices)) == len(told.choices) > told.right >= 0
    assert not re.search(r"\bnan\b|\binf\b", " ".join([told.text, told.reveal, *told.choices]))
    if layer := step.params.get("layer"):
        entries = [e for e in store.list_runs(store.demo_dir()) if e.record]
        entries = [e for e in entries if not e.record.spec.analysis]
        choice = resolve.choose(step.params, entries, {})
        assert layer in resolve.layers_of(store.load(choice.entry.folder))


@pytest.mark.parametrize(("lesson", "place"), STEPS)
def test_steps_open(lesson, place, monkeypatch, tmp_path):
    """The page opens with the step's settings, and knows each of them."""
    monkeypatch.setenv("QLIB_RUNS", str(tmp_path))
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    at = follow(at, lesson=lesson.name, step=str(place + 1))
    step = lesson.steps[place]
    assert f"step {place + 1} of {len(lesson.steps)}" in said(at)
    unknown = {key for key in step.set if key not in at.session_state} - {"run", "present", "hide"}
    assert not unknown - ({"layer", "d", "m", "q", "b"} & set(at.query_params))
    source = "".join(p.read_text() for d in ("pages", "qlib/ui") for p in (ROOT / d).rglob("*.py"))
    for key in step.hide:
        assert f'"{key}' in source, f"nothing has the key {key}"
