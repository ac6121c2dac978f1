"""*Try it now* on the Start page: a network on demand, stored predictions in all other cases."""

import json
from pathlib import Path

import fake_runs
import fake_widths
import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from qlib import live, store
from qlib.core.records import InvalidSpec, RunSpec
from qlib.core.specs import checked
from qlib.live import Answer, Opened, Stage
from qlib.ui.shared import live as screen
from qlib.ui.shared import per_width, resolve
from qlib.ui.shared import stored as start
from qlib.ui.start import strips

ROOT = Path(__file__).resolve().parents[1]
NAMES = [str(digit) for digit in range(10)]


class FakeLive:
    """Right at the positions that are multiples of the bits, wrong at the others."""

    def __init__(self, state: str = "ready") -> None:
        self.state, self.asked, self.started, self.warm = state, [], [], True
        self.ended = "The live network was killed." if state == "dead" else ""

    @property
    def alive(self) -> bool:
        return bool(self.started) and self.state != "dead"

    @property
    def stage(self) -> Stage | None:
        return Stage("Loading PyTorch", 1, 4) if self.alive else None

    def start(self, folder: Path) -> None:
        if self.state == "refused":
            raise InvalidSpec("The live network cannot be started.")
        self.started.append(folder)

    def opened(self, folder: Path, wait: float = 0.0) -> Opened | None:
        if self.state == "dead":
            raise InvalidSpec(self.ended)
        return Opened((), ()) if self.state in ("ready", "mute") and self.started else None

    def ask(self, folder, bits, images, weights=None, *, asker="") -> Answer:
        if self.state == "mute":
            raise InvalidSpec("The network did not answer.")
        assert asker
        self.asked.append((folder, bits, weights))
        labels = store.load_preds(folder)["labels"]
        first = [labels[i] if i % bits == 0 else (labels[i] + 1) % 10 for i in images]
        top5 = np.array([[(c + k) % 10 for k in range(5)] for c in first], dtype=np.int32)
        prob = np.tile(np.array([0.5, 0.2, 0.1, 0.1, 0.1], dtype=np.float32), (len(first), 1))
        return Answer(bits, tuple(images), top5, prob, 0.012, 900.0, weights)


@pytest.fixture(scope="session")
def stored(tmp_path_factory) -> Path:
    """Nearest of two networks; of the first also one network of many widths, and a naive one."""
    folder = tmp_path_factory.mktemp("demo")
    fake_runs.write_demo(folder, ["digits-vit", "digits-resnet"], ["nearest"], (8, 4, 3))
    fake_widths.write(folder, created="2026-11-20T12:00:00")
    fake_widths.write(folder, fake_widths.naive(), created="2026-11-20T13:00:00")
    return folder


@pytest.fixture
def demo(stored, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("QLIB_DEMO", str(stored))
    monkeypatch.setenv("QLIB_RUNS", str(tmp_path))
    return stored


@pytest.fixture
def network(monkeypatch):
    """Puts a network of a state in the place of the process."""

    def put(state: str = "ready") -> FakeLive:
        made = FakeLive(state)
        monkeypatch.setattr(screen, "shared", lambda: made)
        return made

    return put


def open_start(**query: str) -> AppTest:
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    at.query_params.update(query)
    return at.run()


def texts(at: AppTest) -> str:
    parts = [*at.title, *at.markdown, *at.caption, *at.info, *at.warning, *at.error]
    return "\n".join(p.value for p in parts)


def strip_of(at: AppTest) -> dict:
    chart = at.get("plotly_chart")[0]
    return json.loads(chart.proto.spec or chart.spec)


def dozen(at: AppTest) -> str:
    bodies = [found.proto.body for found in at.get("html")]
    return next((body for body in bodies if "qx-dozen" in body), "")


def probabilities(at: AppTest) -> list[float]:
    """Of the first guesses of the quantized network."""
    bars = [t for t in strip_of(at)["data"] if t["type"] == "bar"]
    return [t["x"][0] for t in bars if t["name"].startswith("quantized")]


def test_nothing_is_started_before_somebody_asks(demo, network):
    fake = network()
    at = open_start(m="digits-vit", q="ptmq", b="W3A3")
    assert not at.exception and fake.started == [] and not dozen(at)
    assert at.toggle(key="live").value is False
    assert "Stored with the run." in texts(at)


def test_switched_on_the_bits_drive_one_network(demo, network):
    fake = network()
    at = open_start(m="digits-vit", b="W4A4")
    at.toggle(key="live").set_value(True).run()
    assert not at.exception
    folder = demo / fake_widths.spec_of().key  # not the naive one, which is newer
    assert at.query_params["q"] == "ptmq"
    assert fake.asked[-1] == (folder, 4, 4)
    assert "computed now" in texts(at) and "one PTMQ network, switched to 4 bits" in texts(at)
    assert "3 of the first 12 held-out images are right" in dozen(at)
    assert set(probabilities(at)) == {0.5}
    at.segmented_control(key="b").set_value("W7A7").run()  # a width that no run is stored at
    assert fake.asked[-1] == (folder, 7, 7)
    assert "2 of the first 12 held-out images are right" in dozen(at)
    assert "switched to 7 bits" in texts(at) and "not stored" not in texts(at)
    at.toggle(key="live").set_value(False).run()
    assert not dozen(at) and "Stored with the run." in texts(at)


def test_stored_guesses_follow_the_bits_without_a_network(demo, network):
    """They are those of the width, and so are the numbers of the sentence."""
    network()
    for row in fake_widths.rows(fake_widths.spec_of(), equal=True):
        bits = int(row["act_bits"])
        at = open_start(m="digits-vit", q="ptmq", b=f"W{bits}A{bits}")
        assert (
            f"With PTMQ at {bits} bits, `digits-vit` is right on **{row['top1']:.1f}\u00a0%**"
            in (texts(at))
        )
        preds = store.load_preds(demo / fake_widths.spec_of().key)
        known = {round(float(p), 6) for p in preds[f"w{bits}_prob"][:, 0]}
        assert {round(p, 6) for p in probabilities(at)} <= known


def test_without_a_network_of_many_widths_each_run_answers_for_itself(demo, network):
    fake = network()
    at = open_start(m="digits-resnet", b="W4A4")
    at.toggle(key="live").set_value(True).run()
    assert fake.asked[-1][0] == demo / checked(RunSpec("digits-resnet", "digits", "nearest")).key
    assert "No network with many widths is stored for `digits-resnet`" in texts(at)
    links = {link.proto.label: link.proto for link in at.get("page_link")}
    assert "method=PTMQ" in links["Make one with PTMQ"].query_string
    at.segmented_control(key="b").set_value("W3A3").run()
    assert fake.asked[-1][1:] == (3, 3) and "the stored Nearest run of 3 bits" in texts(at)
    options = at.segmented_control(key="b").options
    assert [str(option) for option in options] == ["8", "4", "3"]


def test_progress_while_it_loads(demo, network):
    network("loading")
    at = open_start(m="digits-vit")
    at.toggle(key="live").set_value(True).run()
    (bar,) = at.get("progress")
    assert (bar.proto.value, bar.proto.text) == (25, "Loading PyTorch (step 2 of 4)")
    assert "Stored with the run." in texts(at) and not dozen(at)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("dead", "The live network was killed."),
        ("refused", "The live network cannot be started."),
        ("mute", "The network did not answer."),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_stored_results_stay(demo, network, state, said):
    fake = network(state)
    at = open_start(m="digits-vit", b="W4A4")
    at.toggle(key="live").set_value(True).run()
    assert not at.exception
    assert [w.value for w in at.warning] == [said]
    assert "Stored with the run." in texts(at) and len(strip_of(at)["layout"]["images"]) == 6
    if state != "mute":
        fake.state, fake.ended = "ready", ""
        at.button(key="live-again").click().run()
        assert "computed now" in texts(at) and not at.warning


def test_without_pytorch_the_switch_is_off_and_says_why(demo, network, monkeypatch):
    network()
    monkeypatch.setattr(live, "find_spec", lambda name: None)
    at = open_start(m="digits-vit")
    at.session_state[screen.ON] = True  # from before it was taken away
    at.run()
    switch = at.toggle(key="live")
    assert switch.disabled and not switch.value
    assert "PyTorch is not installed" in switch.help


# ---- one run told as many --------------------------------------------------------------------


def test_a_network_of_many_widths_counts_at_each_of_them(stored):
    known = [e for e in store.list_runs(stored) if e.record]
    many = [e for e in per_width.entries(known) if e.key == fake_widths.spec_of().key]
    assert [e.record.spec.weight_bits for e in many] == [4, 8, 7, 6, 5, 3]  # its own first
    assert not per_width.is_other(many[0]) and all(map(per_width.is_other, many[1:]))
    rows = {int(r["act_bits"]): r for r in fake_widths.rows(fake_widths.spec_of(), equal=True)}
    for entry in many:
        row = rows[entry.record.spec.act_bits]
        assert entry.record.metrics["top1"] == row["top1"]
        assert entry.record.metrics["weight_mb"] == row["weight_mb"]
    single = [e for e in known if not e.record.bit_widths]
    assert per_width.entries(single) == single


def test_a_line_of_the_curve_is_of_one_network_alone(stored):
    """The naive network's widths never fill the gaps of the other one."""
    known = per_width.entries([e for e in store.list_runs(stored) if e.record])
    for spec in (fake_widths.spec_of(), fake_widths.naive()):
        shown = next(e for e in known if e.key == spec.key)
        line = [r for r in start.comparable(known, shown) if r.spec.method == "ptmq"]
        assert len(line) == 6
        assert {r.spec.settings["learned_at"] for r in line} == {spec.settings["learned_at"]}


def test_links_to_a_width_find_the_network(stored):
    known = per_width.entries([e for e in store.list_runs(stored) if e.record])
    found = resolve.choose({"m": "digits-vit", "q": "ptmq", "b": "W7A7"}, known, {})
    assert found.notes == () and found.params["b"] == "W7A7"
    assert found.entry.key == fake_widths.spec_of().key


def test_the_pictures_stay_the_same_over_all_widths(stored, monkeypatch):
    known = per_width.entries([e for e in store.list_runs(stored) if e.record])
    mine = [e for e in known if e.key == fake_widths.spec_of().key]
    chosen = {strips.pictures(known, entry).chosen for entry in mine}
    assert len(chosen) == 1
    shown = strips.pictures(known, mine[0])
    assert shown.first == tuple(range(12)) and set(shown.chosen) <= set(shown.asked)
