"""The network beside the app: a process that answers, is killed, ends, and is never in the way."""

import importlib.util
import io
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fake_live
import numpy as np
import psutil
import pytest
import torch

from qlib import live, store
from qlib.core.records import InvalidSpec, RunSpec, ignore
from qlib.core.specs import checked
from qlib.live import Live, Superseded
from qlib.live._net import Network, best
from qlib.pipeline.quantizer_file import FILE
from qlib.pipeline.run import run

ROOT = Path(__file__).resolve().parents[1]
QUICK = {"steps": 2, "lowest": 3, "highest": 5, "batch": 8}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Two real runs of a small network: one of several widths (3, 4, 5), one of W3A4 alone."""
    folder = tmp_path_factory.mktemp("runs")
    common = {"calib": 32, "test": 140, "act_bits": 4}  # more than one batch
    specs = {
        "many": RunSpec("digits-vit", "digits", "ptmq", 4, settings=QUICK, **common),
        "single": RunSpec("digits-vit", "digits", "nearest", 3, **common),
    }
    for name, spec in specs.items():
        with store.private(folder, name) as private:
            run(checked(spec), folder=private)
            store.finish(private, folder, name)
    return {name: folder / name for name in specs}


@pytest.fixture(scope="module")
def real(runs):
    """The real process, once."""
    network = Live()
    network.start(runs["many"])
    yield network
    network.close()


@pytest.fixture(scope="module")
def here(runs) -> dict[str, Network]:
    """The same networks in this process, with as many threads as the other has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {name: Network(folder, ignore) for name, folder in runs.items()}
    torch.set_num_threads(threads)


@pytest.fixture
def fake():
    network = Live(fake_live.COMMAND)
    yield network
    network.close()


def comes_true(what: Callable[[], object], patience: float = 60.0) -> bool:
    """Whether something becomes true; ``patience`` ends a test that waits in vain."""
    until = time.monotonic() + patience
    while not what() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(what())


def gone(pid: int) -> bool:
    """Whether a process ends; a zombie has ended."""

    def ended() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return comes_true(ended)


def asked(folder: Path) -> bool:
    """Whether the long question to a slow network of `fake_live` has been begun."""
    return comes_true((folder / "asked").exists)


# ---- the real network ------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [5, 3, 4, {"blocks.0": 5, "blocks.3": 3, "head": 8}, None])
def test_answers_are_the_librarys_own_bit_for_bit(real, here, runs, bits):
    network = here["many"]
    network.set_bits(bits)
    logits = network.predict(network.model, "here")
    classes, probs = best(logits)
    found = real.ask(runs["many"], bits, "test")
    assert np.array_equal(found.top5, classes.numpy())
    assert np.array_equal(found.prob, probs.numpy())
    right = (logits.argmax(1).numpy() == network.test.labels).mean()
    assert found.top1 == pytest.approx(100 * right)
    assert found.top1_low < found.top1 < found.top1_high
    few = real.ask(runs["many"], bits, "shown")
    classes, probs = network.guess(network.shown)
    assert few.images == tuple(range(12)) and few.top1 is None
    assert np.array_equal(few.top5, classes.numpy())
    assert np.array_equal(few.prob, probs.numpy())


def test_answers_are_those_that_the_run_stored(real, runs):
    stored = store.load_preds(runs["many"])
    for bits in (3, 4, 5):
        found = real.ask(runs["many"], bits, (139, 7))
        assert np.allclose(found.prob, stored[f"w{bits}_prob"][[139, 7]], atol=2e-3)
        assert np.array_equal(found.top5[:, 0], stored[f"w{bits}_top5"][[139, 7], 0])


def test_weights_can_have_a_width_of_their_own(real, here, runs):
    network = here["many"]
    network.set_bits(5, 3)
    probs = network.guess(network.shown)[1]
    assert np.array_equal(real.ask(runs["many"], 5, weights=3).prob, probs.numpy())


def test_units_left_out_are_at_the_runs_own_width(real, runs):
    """Whatever was asked before: an answer depends on its question alone."""
    before = real.ask(runs["many"], {"blocks.1": 3}).prob
    real.ask(runs["many"], 5)
    assert np.array_equal(real.ask(runs["many"], {"blocks.1": 3}).prob, before)
    assert np.array_equal(real.ask(runs["many"], {}).prob, real.ask(runs["many"], 4).prob)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"bits": 7}, "was not made for 7 bits"),
        ({"bits": {"blocks.0": 2}}, "was not made for 2 bits"),
        ({"bits": {"blocks.99": 4}}, "no unit 'blocks.99'"),
        ({"bits": 4, "weights": 8}, "was not made for 8 bits"),
        ({"bits": 4, "images": (0, 140)}, "held-out images 0 to 139"),
        ({"bits": 4, "images": ()}, "no image at all"),
    ],
)
def test_what_is_not_there_is_refused_in_one_sentence(real, runs, question, said):
    with pytest.raises(InvalidSpec, match=said) as caught:
        real.ask(runs["many"], **question)
    assert "Traceback" not in str(caught.value) and str(caught.value).endswith(".")
    assert real.ask(runs["many"], 4).bits == 4  # and it goes on


def test_a_run_of_one_width_answers_that_one(real, runs):
    real.start(runs["single"])
    assert real.opened(runs["single"], 60).bit_widths == ()
    assert real.opened(runs["many"], 60).bit_widths == (3, 4, 5)
    stored = store.load_preds(runs["single"])
    found = real.ask(runs["single"], 4, weights=3)
    assert np.allclose(found.prob, stored["quant_prob"][:12], atol=2e-3)
    for wrong in ({"bits": 3}, {"bits": 4, "weights": 4}, {"bits": {"blocks.0": 2}}):
        with pytest.raises(InvalidSpec, match="holds W3A4 alone"):
            real.ask(runs["single"], **wrong)


def test_a_run_that_answers_otherwise_than_it_stored_is_refused(real, runs, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(runs["single"], changed)
    preds = store.load_preds(changed)
    preds["quant_top5"] = np.roll(preds["quant_top5"], 1, axis=1)
    np.savez(changed / "preds.npz", **preds)
    with pytest.raises(InvalidSpec, match="does not give the answers"):
        real.ask(changed, 4)
    (changed / FILE).unlink()
    with pytest.raises(InvalidSpec, match=f"changed/{FILE}"):
        real.ask(changed, 4)


# ---- the process -----------------------------------------------------------------------------


def test_nothing_runs_before_it_is_started(fake, tmp_path):
    assert not fake.alive and fake.pid is None and fake.stage is None
    assert fake.opened(tmp_path) is None
    with pytest.raises(InvalidSpec, match="No network is loaded"):
        fake.ask(tmp_path, 4)


def test_a_killed_process_is_one_sentence_and_starts_again(fake, tmp_path):
    fake.start(tmp_path)
    assert fake.ask(tmp_path, 3).top5.tolist() == [[3], [4]]
    slow = tmp_path / "slow"
    slow.mkdir()
    fake.start(slow)
    told = []

    def wait() -> None:
        try:
            fake.ask(slow, 3, "test")
        except InvalidSpec as error:
            told.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert asked(slow)
    psutil.Process(fake.pid).kill()
    waiting.join(60)
    assert told == [
        "The live network was killed, most often because the machine ran out of memory (SIGKILL). "
        "Start it again, or go on with stored results."
    ]
    assert not fake.alive
    with pytest.raises(InvalidSpec, match="was killed"):
        fake.opened(tmp_path)
    fake.start(tmp_path)
    assert fake.ask(tmp_path, 2).top5.tolist() == [[2], [3]]


def test_a_crash_says_its_last_words(fake, tmp_path):
    fake.start(tmp_path / "crash")
    with pytest.raises(InvalidSpec, match=r"gave up inside a compiled library.*\(SIGABRT\)"):
        fake.opened(tmp_path / "crash", 10)
    broken = Live((sys.executable, "-c", "raise SystemExit('no such thing')"))
    broken.start(tmp_path)
    with pytest.raises(InvalidSpec, match=r"\(no such thing\)"):
        broken.opened(tmp_path, 10)
    with pytest.raises(InvalidSpec, match="cannot be started"):
        Live(("/nowhere/python",)).start(tmp_path)


def test_a_run_that_cannot_be_loaded_does_not_end_it(fake, tmp_path):
    fake.start(tmp_path / "gone")
    with pytest.raises(InvalidSpec, match="The run is gone"):
        fake.opened(tmp_path / "gone", 10)
    fake.start(tmp_path / "gone")  # tried again: it may be there now
    with pytest.raises(InvalidSpec, match="The run is gone"):
        fake.opened(tmp_path / "gone", 10)
    assert fake.alive and fake.ask(tmp_path, 4).seconds >= 0


def test_the_same_persons_newest_question_wins(fake, tmp_path):
    slow = tmp_path / "slow"
    slow.mkdir()
    fake.start(slow)
    fake.opened(slow, 60)
    first: queue.SimpleQueue[object] = queue.SimpleQueue()

    def ask() -> None:
        try:
            first.put(fake.ask(slow, 2, "test", asker="me"))
        except Superseded as error:
            first.put(error)

    threading.Thread(target=ask).start()
    assert asked(slow)
    assert fake.ask(slow, 3, "test", asker="me").top5[:, 0].tolist() == [3, 4, 5, 6]
    assert isinstance(first.get(timeout=60), Superseded)


def test_it_ends_when_nobody_asks(tmp_path):
    network = Live((*fake_live.COMMAND, "0.3"))
    network.start(tmp_path)
    assert gone(network.pid)
    with pytest.raises(InvalidSpec, match="without a question"):
        network.ask(tmp_path, 4)
    network.start(tmp_path)
    assert network.ask(tmp_path, 4).bits == 4
    network.close()


PARENT = """
import sys, time
from pathlib import Path
from qlib.live import Live
network = Live({command!r})
folder = Path("slow")
network.start(folder)
network.ask(folder, 3)
heavy = {{"torch", "torchvision", "timm", "sklearn", "scipy"}} & set(sys.modules)
assert not heavy, heavy
print(network.pid, flush=True)
network.ask(folder, 3, "test") if {busy} else time.sleep(60)
"""


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
def test_it_ends_with_the_app_however_that_dies(busy):
    """Also while it computes. And the asking process has no torch."""
    program = PARENT.format(command=fake_live.COMMAND, busy=busy)
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with parent:
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        os.kill(parent.pid, signal.SIGKILL)
        assert gone(pid)


def test_without_pytorch_it_says_so(monkeypatch, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(live, "find_spec", lambda name: None if name == "torch" else real(name))
    assert "PyTorch is not installed" in live.missing()
    with pytest.raises(InvalidSpec, match="PyTorch is not installed"):
        Live(fake_live.COMMAND).start(tmp_path)


# ---- the desk --------------------------------------------------------------------------------


class Busy(fake_live.Network):
    """Others ask while it measures: after the first batch, once."""

    def measure(self):
        self.desk._lines.put({"id": 8, "run": "x", "images": "shown", "bits": 2, "weights": None})
        return super().measure()


@pytest.fixture
def desk():
    out = io.StringIO()
    made = fake_live.FakeDesk(out, 0.0)
    made._held["x"] = Busy(made)
    made.out = out
    return made


def said(desk) -> list[dict]:
    return [json.loads(line) for line in desk.out.getvalue().splitlines()]


def test_a_short_question_is_answered_between_the_batches_of_a_long_one(desk):
    desk._answer({"id": 7, "run": "x", "images": "test", "bits": 4, "weights": None})
    short, long = said(desk)
    assert (short["id"], short["top5"]) == (8, [[2], [3]])
    assert (long["id"], long["top5"]) == (7, [[4], [5], [6], [7]])  # at its own width throughout


def test_a_question_taken_back_is_not_answered(desk):
    desk._short.append({"id": 1, "run": "x", "images": "shown", "bits": 2, "weights": None})
    desk._sort({"drop": 1})
    desk._sort({"drop": 5})  # was answered already
    desk._answer(desk._short.popleft())
    desk._lines.put({"drop": 7})
    desk._answer({"id": 7, "run": "x", "images": "test", "bits": 4, "weights": None})
    assert [m["id"] for m in said(desk)] == []
    assert not desk._dropped
