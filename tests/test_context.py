"""The context bar: the nearest view of any address, one value for all pages, notices, changes."""

from pathlib import Path

import fake_profiles
import fake_runs
import pytest
from prose import tells
from streamlit.testing.v1 import AppTest

from qlib import store
from qlib.core.records import RunSpec
from qlib.core.specs import checked
from qlib.store import Entry
from qlib.ui.shared import resolve

ROOT = Path(__file__).resolve().parents[1]
OLD = "digits-vit_brecq_W4A4_0123456789"  # keys that no run here has
OLD_PROFILE = "digits-vit_brecq_sensitivity_W4A4_0123456789"
TITLES = {"nearest": "Nearest", "brecq": "BRECQ", "qdrop": "QDrop"}
PAGE = """
import streamlit as st
from qlib.ui.shared import address, context
address.enter({path!r})
seen = context.view(data=True)
if seen:
    st.title(seen.entry.key)
    st.write(f"layer={{seen.layer}} data={{seen.data}} siblings={{len(seen.siblings)}}")
    st.button("click", on_click=context.clicked_layer, args=("chart",), key="click")
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """Two networks; nearest at 8, 4 and 2 bits, BRECQ at 4 and 2."""
    folder = tmp_path_factory.mktemp("demo")
    for model in ("digits-vit", "digits-resnet"):
        for method, bits in (("nearest", (8, 4, 2)), ("brecq", (4, 2))):
            for b in bits:
                spec = RunSpec(model, "digits", method, weight_bits=b, act_bits=b)
                fake_runs.write_run(folder, checked(spec))
    return folder


@pytest.fixture
def own(stored, tmp_path, monkeypatch) -> Path:
    """The stored runs as demo; an empty folder for own runs."""
    monkeypatch.setenv("QLIB_DEMO", str(stored))
    monkeypatch.setenv("QLIB_RUNS", str(tmp_path))
    return tmp_path


@pytest.fixture
def known(stored) -> list[Entry]:
    return store.list_runs(stored)


def opened(path: str = "distributions", **query: str) -> AppTest:
    at = AppTest.from_string(PAGE.format(path=path), default_timeout=60)
    at.query_params.update(query)
    at.run()
    assert not at.exception, at.exception[0].message
    return at


def shown(at: AppTest) -> str:
    """The run, layer and data on the page, without the key's digest."""
    return f"{at.title[0].value[:-11]} {at.markdown[0].value}"


def told(at: AppTest) -> str:
    return " ".join(i.value for i in at.info)


# ---- resolving ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "found", "words"),
    [
        ({}, "digits-vit nearest W2A2", ""),
        ({"m": "digits-resnet", "q": "brecq", "b": "W4A4"}, "digits-resnet brecq W4A4", ""),
        ({"q": "BRECQ", "b": "4"}, "digits-vit brecq W4A4", ""),
        ({"q": "best"}, "digits-vit brecq W2A2", ""),
        ({"m": "digits-resnt"}, "digits-resnet nearest W2A2", "digits-resnt|digits-resnet"),
        ({"m": "gone"}, "digits-vit nearest W2A2", "backbone|gone|digits-vit"),
        ({"q": "magic"}, "digits-vit nearest W2A2", "magic|Nearest"),
        ({"q": "brecq", "b": "W8A8"}, "digits-vit brecq W4A4", "BRECQ|not stored|W8A8|W4A4"),
        ({"b": "W6A6"}, "digits-vit nearest W8A8", "Nearest|not stored|W6A6|W8A8"),
        ({"b": "W3A2"}, "digits-vit nearest W2A2", "Nearest|not stored|W3A2|W2A2"),
        ({"b": "many"}, "digits-vit nearest W2A2", "Nearest|not stored|many|W2A2"),
        ({"run": OLD}, "digits-vit brecq W4A4", f"no run|{OLD}|BRECQ W4A4"),
        ({"run": OLD_PROFILE}, "digits-vit brecq W4A4", f"no run|{OLD_PROFILE}|BRECQ W4A4"),
        ({"run": "x", "q": "brecq"}, "digits-vit brecq W2A2", "no run|x|BRECQ W2A2|digits-vit"),
    ],
)  # fmt: skip
def test_nearest_view_and_what_is_said(known, asked, found, words):
    choice = resolve.choose(asked, known, TITLES)
    params = choice.params
    assert f"{params['m']} {params['q']} {params['b']}" == found
    assert tells(" ".join(choice.notes), *filter(None, words.split("|")))
    assert bool(words) == bool(choice.notes)


def test_a_run_key_wins_over_the_rest(known):
    for entry in known:
        choice = resolve.choose({"run": entry.key, "m": "gone", "b": "W8A8"}, known, TITLES)
        assert choice.entry is entry and choice.notes == ()


def test_nothing_stored_is_none():
    assert resolve.choose({}, [], TITLES) is None


def test_labels():
    assert [resolve.label(t) for t in ("W4A8", "w4a8", "4", "W3", "x", "", None)] == [
        "W4A8", "W4A8", "W4A4", "W3A3", None, None, None,
    ]  # fmt: skip


def test_layers_in_execution_order():
    rows = [
        {"layer": "b", "tensor": "weight", "sqnr_db": 9.0},
        {"layer": "blocks.0", "tensor": "boundary", "sqnr_db": 1.0},
        {"layer": "a", "tensor": "input", "sqnr_db": 5.0},
        {"layer": "b", "tensor": "input", "sqnr_db": None},
    ]

    class Record:
        layers = rows

    assert resolve.layers_of(Record) == ["b", "a"]
    assert resolve.worst_layer(rows) == "a" and resolve.worst_layer([]) is None
    # rows of outputs stand in the order of execution
    Record.layers = [*rows, {"layer": "a", "tensor": "output"}, {"layer": "b", "tensor": "output"}]
    assert resolve.layers_of(Record) == ["a", "b"]
    assert resolve.nearest_layer("b", ["a", "b"], "a") == ("b", "")
    assert resolve.nearest_layer(None, ["a", "b"], "gone") == ("a", "")
    assert resolve.nearest_layer("zzz", ["a", "b"], "b")[0] == "b"


# ---- the bar --------------------------------------------------------------------------------


def test_bar_shows_the_address(own):
    at = opened(m="digits-resnet", q="brecq", b="W4A4", layer="blocks.2.mlp.fc1", d="calib")
    assert shown(at) == ("digits-resnet_brecq_W4A4 layer=blocks.2.mlp.fc1 data=calib siblings=5")
    assert at.selectbox(key="m").value == "digits-resnet"
    assert at.selectbox(key="q").options == ["Nearest", "BRECQ"]
    assert at.select_slider(key="b").options == ["W4A4", "W2A2"]
    assert at.selectbox(key="layer").value == "blocks.2.mlp.fc1"
    assert at.segmented_control(key="d").value == "calib"
    assert tells(at.sidebar.caption[0].value, "597 test images", 256, "calibrate", "seed 0")
    assert told(at) == ""


def test_one_layer_for_all_methods_and_bits(own):
    first = opened().selectbox(key="layer").value
    assert all(
        opened(q=q, b=b).selectbox(key="layer").value == first
        for q, b in (("nearest", "W8A8"), ("brecq", "W4A4"), ("brecq", "W2A2"))
    )


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"m": "gone"}, "backbone|gone|digits-vit"),
        ({"q": "magic"}, "magic|Nearest"),
        ({"b": "W7A7"}, "Nearest|not stored|W7A7|W8A8"),
        ({"layer": "blocks.1.mlp.fc9"}, "no layer|blocks.1.mlp.fc9|blocks.1.mlp.fc2"),
        ({"run": "gone"}, "no run|gone|Nearest W2A2"),
        ({"d": "both"}, "no images|both"),
        ({"d": "calib"}, ""),
    ],
)
def test_links_to_what_is_not_there_are_told(own, query, words):
    at = opened(**query)
    assert tells(told(at), *filter(None, words.split("|"))) and bool(words) == bool(at.info)
    assert at.selectbox(key="layer").value in at.selectbox(key="layer").options


def test_changes_write_the_address(own):
    at = opened()
    at.select_slider(key="b").set_value("W4A4").run()
    assert shown(at).startswith("digits-vit_nearest_W4A4")
    assert at.query_params == {"b": "W4A4"}  # what nobody chose stays out of the address
    at.selectbox(key="layer").set_value("blocks.0.attn.qkv").run()
    at.selectbox(key="q").set_value("brecq").run()
    assert shown(at).startswith("digits-vit_brecq_W4A4 layer=blocks.0.attn.qkv")
    at.segmented_control(key="d").set_value("calib").run()
    assert at.query_params == {
        "b": "W4A4", "layer": "blocks.0.attn.qkv", "q": "brecq", "d": "calib"
    }  # fmt: skip


def test_bits_that_the_new_method_lacks_follow_and_are_told_once(own):
    at = opened(b="W8A8")
    at.selectbox(key="q").set_value("brecq").run()
    assert shown(at).startswith("digits-vit_brecq_W4A4")
    assert tells(told(at), "BRECQ", "not stored", "W8A8", "W4A4")
    assert at.query_params == {"b": "W4A4", "q": "brecq"}
    at.run()
    assert told(at) == ""


def test_previous_and_next_stop_at_the_ends(own):
    at = opened()
    names = at.selectbox(key="layer").options
    at.selectbox(key="layer").set_value(names[0]).run()
    assert at.button(key="layer-previous").disabled
    at.button(key="layer-next").click().run()
    assert f"layer={names[1]} " in shown(at) and at.query_params["layer"] == names[1]
    at.selectbox(key="layer").set_value(names[-1]).run()
    assert at.button(key="layer-next").disabled
    at.button(key="layer-previous").click().run()
    assert f"layer={names[-2]} " in shown(at)


def test_click_in_a_chart_sets_the_layer(own):
    at = opened()
    for points, layer in (
        ([{"customdata": ["blocks.2.mlp.fc2", 3]}], "blocks.2.mlp.fc2"),
        ([{"customdata": "blocks.1.mlp.fc1"}], "blocks.1.mlp.fc1"),
        ([], "blocks.1.mlp.fc1"),
        ([{"x": 1}], "blocks.1.mlp.fc1"),
        ([{"customdata": [""]}], "blocks.1.mlp.fc1"),
    ):
        at.session_state["chart"] = {"selection": {"points": points}}
        at.button(key="click").click().run()
        assert f"layer={layer} " in shown(at)


def test_runs_that_share_method_and_bits(own, stored):
    spec = checked(RunSpec("digits-vit", "digits", "nearest", weight_bits=2, act_bits=2, seed=5))
    fake_runs.write_run(own, spec)
    at = opened()
    assert "seed 0" in at.sidebar.caption[0].value  # the stored run comes first
    picker = at.selectbox(key="run")
    assert [o.split(",")[0] for o in picker.options] == ["stored run", "own run"]
    picker.set_value(spec.key).run()
    assert at.title[0].value == spec.key and at.query_params == {"run": spec.key}
    # other bits: the particular run is left, backbone and method stay
    at.select_slider(key="b").set_value("W4A4").run()
    assert shown(at).startswith("digits-vit_nearest_W4A4") and "run" not in at.query_params


def test_an_own_run_by_its_key(own):
    spec = checked(RunSpec("digits-resnet", "digits", "qdrop", weight_bits=3, act_bits=8, seed=2))
    fake_runs.write_run(own, spec)
    at = opened(run=spec.key, layer="blocks.1.mlp.fc1")
    assert at.title[0].value == spec.key and "own run" in at.sidebar.caption[-1].value
    assert at.selectbox(key="q").value == "qdrop"
    at.selectbox(key="q").set_value("nearest").run()
    assert shown(at).startswith("digits-resnet_nearest_")


def test_nothing_to_look_at(tmp_path, monkeypatch):
    for name in ("DEMO", "RUNS"):
        monkeypatch.setenv(f"QLIB_{name}", str(tmp_path / name))
    (tmp_path / "RUNS" / "half-a-run").mkdir(parents=True)
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    at.switch_page("pages/5_Sensitivity.py").run()
    assert not at.exception
    assert tells(told(at), "no finished run")
    assert any("half-a-run/run.json is missing" in c.value for c in at.caption)


def test_damaged_layers_are_one_sentence(own):
    spec = checked(RunSpec("digits-vit", "digits", "brecq", seed=9))
    (fake_runs.write_run(own, spec) / "layers.csv").write_text("point,layer\ncut")
    at = opened(run=spec.key)
    assert "layers.csv is damaged" in at.error[0].value and not at.title
    assert at.selectbox(key="q").value == "brecq"  # the way out is still there


def test_sensitivity_runs_are_not_listed_but_found(own):
    from qlib.sensitivity import profile
    from qlib.ui.shared import context, state

    base = checked(RunSpec("digits-vit", "digits", "brecq"))
    fake_profiles.write(own, base)
    assert all(not e.record.spec.analysis for e in state.everything().values())
    entry = next(e for e in context.entries() if e.record.spec == base)
    assert context.profile_of(entry.record).key == profile.spec_of(base).key
    other = next(e for e in context.entries() if e.record.spec.method == "nearest")
    assert context.profile_of(other.record) is None


# ---- the address across pages ---------------------------------------------------------------

TWO_PAGES = """
import streamlit as st
from qlib.ui.shared import address
address.enter(st.session_state["here"])
st.write(address.asked())
"""


def walk(*pages: tuple[str, dict[str, str]]) -> list[dict[str, str]]:
    """What the address says on each page, entered with these parameters one after the other."""
    at = AppTest.from_string(TWO_PAGES, default_timeout=60)
    seen = []
    for path, query in pages:
        at.query_params.clear()
        at.query_params.update(query)
        at.session_state["here"] = path
        at.run()
        assert not at.exception
        seen.append({k: v if isinstance(v, str) else v[-1] for k, v in at.query_params.items()})
    return seen


def test_what_was_chosen_survives_the_navigation():
    first, second, run, back = walk(
        ("start", {"m": "a", "b": "W4A4", "present": "1"}),
        ("sensitivity", {}),  # the navigation empties the address
        ("run", {}),
        ("sensitivity", {"b": "W8A8"}),
    )
    assert first == second == {"m": "a", "b": "W4A4", "present": "1"}
    assert run == {"present": "1"}  # settings of a new run are another matter
    assert back == {"m": "a", "b": "W8A8", "present": "1"}  # the link's own word wins


def test_a_particular_run_gives_way_to_a_link():
    *_, kept = walk(("start", {"run": "k", "layer": "x"}), ("sensitivity", {}))
    assert kept == {"run": "k", "layer": "x"}
    *_, other = walk(("start", {"run": "k", "layer": "x"}), ("sensitivity", {"q": "brecq"}))
    assert other == {"q": "brecq", "layer": "x"}


def test_taken_out_on_the_same_page_stays_out():
    *_, gone = walk(("start", {"m": "a", "present": "1"}), ("start", {}), ("sensitivity", {}))
    assert gone == {}
