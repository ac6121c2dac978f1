"""The preview: what it tells agrees with the network, and its process is never in the way."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from qlib.core.preview import Preview, essence
from qlib.core.records import InvalidSpec, RunSpec
from qlib.core.specs import absolute, checked
from qlib.live.preview import Previews
from qlib.pipeline.experiment import load_experiment
from qlib.pipeline.preview import preview

NETS = Path(__file__).with_name("own_nets.py")
MINE = """
import torch
from torch import nn

class Bright(nn.Module):
    '''Scores are mean brightness, upside down, and one that no picture reaches.'''
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 3)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[-9.0], [9.0], [0.0]]))
            self.layer.bias.copy_(torch.tensor([4.5, -4.5, -9.0]))
    def forward(self, x):
        return self.layer((x * 0.5 + 0.25).mean((1, 2, 3))[:, None])

def build():
    return Bright(), {"input_size": (3, 4, 4), "mean": (0.25,) * 3, "std": (0.5,) * 3}

class Recurrent(nn.Module):
    '''Almost all that it multiplies is in a recurrent layer.'''
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(12, 32, batch_first=True), nn.Linear(32, 3)
    def forward(self, x):
        return self.head(self.cell(x.transpose(1, 2).flatten(2))[0].mean(1))

def recurrent():
    return Recurrent(), {"input_size": (3, 4, 4)}

def broken():
    class Broken(Bright):
        def forward(self, x):
            raise RuntimeError("not today")
    return Broken(), {"input_size": (3, 4, 4)}

def dies():
    import os
    os.abort()
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    """A folder with ``mine.py``, and pictures: ten dark, ten bright, four grey ones."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(MINE)
    for name, many, level in (("bright", 10, 255), ("dark", 10, 0), ("grey", 4, 120)):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(many):
            Image.new("RGB", (4, 4), (level,) * 3).save(folder / "pictures" / name / f"{i}.png")
    return folder


def spec(folder: Path, function: str = "build", **more) -> RunSpec:
    names = f"{folder / 'mine.py'}:{function}", f"folder:{folder / 'pictures'}"
    return absolute(checked(RunSpec(*names, "brecq", calib=8, **more)))


def test_pictures_counts_and_guesses(mine):
    found = preview(spec(mine))
    assert len(found.pictures) == 8 and found.calib == 8 and found.test == 16
    assert sum(found.counts.values()) == 16 and set(found.counts) <= {"bright", "dark", "grey"}
    level = {"bright": 255, "dark": 0, "grey": 120}
    for picture in found.pictures:
        assert picture.name.startswith(f"{picture.label}/")
        assert (picture.pixels == level[picture.label]).all()  # normalisation is undone
        x = level[picture.label] / 255
        scores = torch.tensor([4.5 - 9 * x, 9 * x - 4.5, -9.0]).softmax(0)
        assert picture.guess == ("bright", "dark", "grey")[int(scores.argmax())]
        assert picture.prob == pytest.approx(float(scores.max()), abs=1e-4)
    assert found.share == 1 and found.first == found.last == ("layer",) and not found.refused


def test_coverage_and_ends_are_those_of_the_run():
    given = absolute(checked(RunSpec(f"{NETS}:transformer", "digits", "nearest", calib=16, test=8)))
    found, real = preview(given), load_experiment(given, torch.device("cpu"), lambda event: None)
    assert found.share == real.model.coverage.share
    assert (found.first, found.last) == (("patches",), ("head",))
    assert set(real.model.notes) <= set(found.notes)
    assert (found.calib, found.outputs) == (16, 10) and found.prepared.startswith("1 × 8 × 8")


def test_too_little_coverage_is_told_and_not_raised(mine):
    given = spec(mine, "recurrent")
    found = preview(given)
    assert found.share < 0.5 and found.left_float and "can be quantized" in found.refused
    with pytest.raises(InvalidSpec, match="can be quantized") as refusal:
        load_experiment(given, torch.device("cpu"), lambda event: None)
    assert str(refusal.value).startswith(f"{found.refused}, or allow it")


def test_features_have_no_guess():
    given = absolute(checked(RunSpec(f"{NETS}:encoder", "digits", "nearest", calib=16)))
    found = preview(given)
    assert found.task == "features" and found.outputs == 0
    assert {p.guess for p in found.pictures} == {""} and found.pictures[0].label


def test_unlabelled_pictures_have_no_label(mine):
    found = preview(spec(mine, labels="none"))
    assert found.counts == {} and found.task == "unlabelled"
    assert {p.label for p in found.pictures} == {""} and all(p.guess for p in found.pictures)


def test_it_survives_json(mine):
    found = preview(spec(mine))
    again = Preview.from_json(json.loads(json.dumps(found.to_json())))
    assert replace(again, pictures=()) == replace(found, pictures=())
    for one, other in zip(found.pictures, again.pictures, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert (one.name, one.label, one.guess) == (other.name, other.label, other.guess)


def test_what_it_depends_on(mine):
    given = spec(mine)
    same = [{"method": "nearest"}, {"weight_bits": 2}, {"allow_float": True}, {"test": 9}]
    other = [{"calib": 9}, {"labels": "none"}, {"seed": 1}, {"placement": "boundary"}]
    assert all(essence(replace(given, **more)).key == essence(given).key for more in same)
    assert all(essence(replace(given, **more)).key != essence(given).key for more in other)


# ---- the process -----------------------------------------------------------------------------


def test_the_process_answers_and_ends(mine):
    previews = Previews()
    previews.ask("good", spec(mine))
    previews.ask("bad", spec(mine, "broken"))
    with pytest.raises(InvalidSpec, match="previews are being made just now"):
        previews.ask("third", spec(mine))
    good, bad = previews.get("good"), previews.get("bad")
    assert len(good.preview.pictures) == 8
    with pytest.raises(InvalidSpec, match="not today"):
        _ = bad.preview
    for look in (good, bad):
        look._child.process.wait(20)
    before = previews.get("good")
    previews.ask("good", spec(mine))
    assert previews.get("good") is before  # it is there


def test_a_process_that_dies_is_told_and_tried_again(mine):
    previews = Previews()
    previews.ask("dies", spec(mine, "dies"))
    look = previews.get("dies")
    with pytest.raises(InvalidSpec, match=r"The preview gave up .*SIGABRT.*Try it again"):
        _ = look.preview
    previews.ask("dies", spec(mine))
    assert previews.get("dies") is not look and previews.get("dies").preview.share == 1


SLEEPS = (sys.executable, "-c", "import sys, time; sys.stdin.readline(); time.sleep(60)")


def test_cancelling_ends_the_process(mine):
    previews = Previews(SLEEPS)
    previews.ask("slow", spec(mine))
    look = previews.get("slow")
    process = psutil.Process(look._child.process.pid)
    previews.drop("slow")
    assert previews.get("slow") is None
    process.wait(15)


def test_one_that_takes_too_long_is_given_up(mine, monkeypatch):
    monkeypatch.setattr("qlib.live.preview.PATIENCE", 0.2)
    previews = Previews(SLEEPS)
    previews.ask("slow", spec(mine))
    began = time.monotonic()
    with pytest.raises(InvalidSpec, match=r"did not come within 0\.2 s"):
        _ = previews.get("slow").preview
    assert time.monotonic() - began < 20
