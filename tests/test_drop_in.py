"""One file adds a quantizer, an allocator, an observer, a network or a set of images.

The files below are dropped into a copy of the program, and no other file knows of them.
"""

import json
import shutil
from pathlib import Path

import pytest
from helpers_copy import ROOT, called, copied

QUANTIZER = '''
"""Nearest after a lean to one side."""

import torch
from torch import Tensor

from qlib.core.scheme import Scheme
from qlib.quantizers.base import Quantizer


class Leaning(Quantizer):
    """x̂ = s·(clamp(⌊x/s + lean⌉ + z) − z)."""

    title = "nearest after a lean"

    def __init__(self, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> None:
        super().__init__(scale, zero_point, scheme)
        self.register_buffer("lean", torch.zeros(()))

    @classmethod
    def of(cls, q: Quantizer, lean: float) -> "Leaning":
        made = cls(q.scale, q.zero_point, q.scheme)
        made.lean.fill_(lean)
        return made

    def forward(self, x: Tensor) -> Tensor:
        return self.values(self.nearest(x))

    def nearest(self, x: Tensor) -> Tensor:
        split = self.scheme.granularity.split(x)
        return super().nearest((split + self.lean * self.scale).reshape(x.shape))
'''
METHOD = '''
"""Every grid leans; activations and most weights have one for each of 3, 4 and 5 bits."""

from dataclasses import dataclass

from qlib.methods.base import Method


@dataclass(frozen=True)
class Dropped(Method):
    """Uses the dropped quantizer everywhere."""

    title = "Leaning"
    paper = "Nobody et al., 2020, arXiv 1712.05877"
    promise = "Rounds to nearest after a lean."
    cost = "seconds"
    switchable = True

    def apply(self, model, plan, data, report) -> None:
        from qlib.network import switching
        from qlib.quantizers.leaning import Leaning
        from qlib.quantizers.switchable import Switchable

        def leaning(q, lean):
            if isinstance(q, Switchable):
                return Switchable({b: Leaning.of(q.at(b), lean / b) for b in q.bit_widths})
            return Leaning.of(q, lean)

        free = {s.bits for n, s in plan.weights.items() if n not in plan.fixed}
        free |= {s.bits for n, s in plan.inputs.items() if n.rpartition(".")[0] not in plan.fixed}
        widths = sorted({3, 4, 5} | free)
        data.attach_weights(model, plan, widths=widths)
        data.attach_inputs(model, plan, widths=widths)
        for layer in model.weighted().values():
            if layer.weight_point.quantizer is not None:
                layer.weight_point.fill(leaning(layer.weight_point.quantizer, 0.3))
        for point in model.points.values():
            if point.quantizer is not None:
                point.quantizer = leaning(point.quantizer, 0.2)
        switching.set_plan(model, plan.bits)
'''
ALLOCATOR = '''
"""Three bits and five bits in turn."""

from dataclasses import dataclass, replace
from pathlib import Path

from qlib.allocation.base import Allocator
from qlib.core.scheme import BitPlan


@dataclass(frozen=True)
class InTurns(Allocator):
    """Odd layers get 3 bits, even ones 5. Counts how often it was asked."""

    title = "three and five in turn"

    def spread(self, model, weight, act) -> BitPlan:
        with Path(__file__).with_suffix(".count").open("a") as count:
            count.write("x")
        bits = {name: 3 + 2 * (i % 2) for i, name in enumerate(model.layers)}
        weights = {name: replace(weight, bits=bits[name]) for name in model.weighted()}
        layer = {p: p.rpartition(".")[0] for p in model.points}
        return BitPlan(weights, {p: replace(act, bits=bits.get(n, 5)) for p, n in layer.items()})
'''
OBSERVER = '''
"""Nine tenths of what was seen."""

from dataclasses import dataclass

from qlib.observers.base import Observer


@dataclass(frozen=True)
class NineTenths(Observer):
    """Clips a tenth off both ends."""

    title = "nine tenths"

    def find_range(self, x, scheme, counts=None):
        return 0.9 * x.amin(1).clamp(max=0), 0.9 * x.amax(1).clamp(min=0)
'''
MODEL = '''
"""Two convolutions and a head, with weights that were drawn once."""

from typing import ClassVar

from qlib.core.preprocess import Preprocess
from qlib.models.base import Built, Model


class Dropped(Model):
    """Untrained."""

    title: ClassVar[str] = "Dropped network"

    @classmethod
    def variants(cls):
        return ("dropped-net",)

    def build(self, name, weights):
        import torch
        from torch import nn

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            body = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU()]
            body += [nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)]
            net = nn.Sequential(*body)
        return Built(net.eval(), Preprocess((1, 8, 8), (0.5,), (0.5,)), classes=4)
'''
DATASET = '''
"""Squares of four shades under noise."""

from typing import ClassVar

from qlib.datasets._draw import draw_calibration, draw_test
from qlib.datasets.base import Dataset, Images


class Shades(Dataset):
    """Sixty images to calibrate with, eighty that are held out."""

    title: ClassVar[str] = "Dropped images"

    def __init__(self, name="dropped-shades"):
        pass

    @classmethod
    def variants(cls):
        return ("dropped-shades",)

    @property
    def classes(self):
        return ("black", "dark", "light", "white")

    def calibration(self, n, seed, *, balanced=False):
        return draw_calibration(_images(0, 60), n, seed, "dropped-shades", balanced=balanced)

    def test(self, n=None):
        return draw_test(_images(60, 140), n, "dropped-shades")


def _images(first, last):
    import numpy as np
    from PIL import Image

    def opened(i):
        noise = np.random.default_rng(first + i).integers(0, 60, (8, 8))
        return Image.fromarray((noise + 60 * ((first + i) % 4)).astype(np.uint8))

    labels = np.arange(first, last, dtype=np.int64) % 4
    return Images([f"shade/{i:03d}" for i in range(first, last)], labels, opened)
'''
FILES = {
    "qlib/quantizers/leaning.py": QUANTIZER,
    "qlib/methods/leaning_everywhere.py": METHOD,
    "qlib/allocation/in_turns.py": ALLOCATOR,
    "qlib/observers/nine_tenths.py": OBSERVER,
    "qlib/models/dropped.py": MODEL,
    "qlib/datasets/shades.py": DATASET,
}
LISTED = {
    "quantizers": "leaning", "allocators": "in_turns", "observers": "nine_tenths",
    "models": "dropped-net", "datasets": "dropped-shades", "methods": "leaning_everywhere",
}  # fmt: skip
OPTIONS = [
    "--model", "dropped-net", "--data", "dropped-shades", "--method", "leaning_everywhere",
    "--calib", "16", "--allocator", "in_turns", "--weight-observer", "nine_tenths",
    "--act-observer", "nine_tenths", "--json",
]  # fmt: skip
# where tests of everything in a folder are, and what they call the dropped files
CONTRACTS = ("tests/test_contracts.py", "tests/test_quantizers.py")
KEYS = "leaning or in_turns or nine_tenths or dropped or shades or told_apart"

RESTORED = """
import json, sys, torch
from pathlib import Path
from qlib.core.records import ignore
from qlib.live._net import Network
from qlib.network import switching
from qlib.pipeline.experiment import load_experiment
from qlib.pipeline.quantize import quantize
from qlib.quantizers.leaning import Leaning

folder = Path(sys.argv[1])
live = Network(folder, ignore)
experiment = load_experiment(live.spec, torch.device("cpu"), ignore)
quantize(experiment, live.spec, ignore)
images, equal = experiment.predict.first(80), []
with torch.no_grad():
    equal.append(torch.equal(live.model(images), experiment.model(images)))
    answers = [live.model(images)]
    for bits in live.bit_widths:
        live.set_bits(bits)
        switching.set_bits(experiment.model, bits)
        answers.append(live.model(images))
        equal.append(torch.equal(answers[-1], experiment.model(images)))
    live.set_bits(dict.fromkeys(live.units, 3) | {"2": 5})
    live.set_bits(None)  # its own bits again
    equal.append(torch.equal(live.model(images), answers[0]))
kinds = {type(m).__name__ for m in live.model.modules() if isinstance(m, Leaning)}
print(json.dumps({
    "equal": equal, "widths": live.bit_widths, "kinds": sorted(kinds),
    "different": len({tuple(a.flatten().tolist()) for a in answers}),
}))
"""
FORM = """
import json
from streamlit.testing.v1 import AppTest

at = AppTest.from_file("app.py", default_timeout=120).run()
at.switch_page("pages/3_Run.py").run()
assert not at.exception, at.exception[0].message
print(json.dumps({box.key: box.options for box in at.selectbox}))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The program with six files more, and its tests."""
    made = copied(tmp_path_factory.mktemp("copy"), FILES)
    shutil.copytree(ROOT / "tests", made / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", made)
    return made


@pytest.fixture(scope="module")
def run(copy: Path) -> dict:
    return json.loads(called(copy, "-m", "qlib", "run", *OPTIONS))


def stored(printed: dict) -> dict:
    return json.loads((Path(printed["run_dir"]) / "run.json").read_text())


@pytest.mark.parametrize("kind", LISTED)
def test_the_command_line_lists_it(copy: Path, kind: str) -> None:
    assert LISTED[kind] in called(copy, "-m", "qlib", "list", kind).split()


def test_the_form_offers_it(copy: Path) -> None:
    offered = json.loads(called(copy, "-c", FORM).splitlines()[-1])
    assert "dropped-net" in offered["model"] and "dropped-shades" in offered["data"]
    assert "nine_tenths" in offered["wobs"] and "nine_tenths" in offered["aobs"]
    assert offered["alloc"] == ["same for all", "three and five in turn"]


def test_the_contract_tests_hold_for_it(copy: Path) -> None:
    words = ["-m", "pytest", *CONTRACTS, "-vv", "-n", "0", "-p", "no:cacheprovider", "-k", KEYS]
    told = called(copy, *words)  # ends well only where all of them passed
    for name in (path.rpartition("/")[2].removesuffix(".py") for path in FILES):
        assert f"{name}]" in told or f"{name}-" in told, name


def test_the_plan_of_an_allocator_is_stored_and_done(run: dict) -> None:
    record = stored(run)
    assert record["spec"]["allocator"] == "in_turns"
    want = {"0": 8, "2": 5, "4": 3, "7": 8}
    expected = {f"{n}.weight": b for n, b in want.items()}
    assert record["plan"] == expected | {f"{n}.input": b for n, b in want.items()}
    lines = (Path(run["run_dir"]) / "layers.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    bits = {row["point"]: int(row["bits"]) for row in rows if row["tensor"] != "output"}
    assert bits == record["plan"]


def test_show_tells_the_allocator(copy: Path, run: dict) -> None:
    told = called(copy, "-m", "qlib", "show", run["run_dir"])
    assert "allocator in_turns: weights 3, 5, 8; activations 3, 5, 8" in told


def test_a_quantizer_with_a_buffer_comes_back_to_the_bit(copy: Path, run: dict) -> None:
    """From its file, and at every width that the live network is switched to."""
    found = json.loads(called(copy, "-c", RESTORED, run["run_dir"]).splitlines()[-1])
    assert found["widths"] == [3, 4, 5] and found["kinds"] == ["Leaning"]
    assert found["equal"] == [True] * 5
    assert found["different"] == 4


def test_the_analysis_takes_the_stored_quantizers_and_plan(copy: Path, run: dict) -> None:
    count = copy / "qlib" / "allocation" / "in_turns.count"
    before = count.read_text()
    record = stored(json.loads(called(copy, "-m", "qlib", "sensitivity", *OPTIONS)))
    assert record["data"]["base"] == Path(run["run_dir"]).name
    assert record["plan"] == stored(run)["plan"]
    assert count.read_text() == before  # nobody was asked again


def test_a_quantizer_that_is_gone_is_refused_by_name(copy: Path, run: dict, tmp_path: Path) -> None:
    other = copied(tmp_path, {n: t for n, t in FILES.items() if "quantizers" not in n})
    program = f"""
from pathlib import Path
from qlib.core.records import InvalidSpec, ignore
from qlib.live._net import Network
try:
    Network(Path({run["run_dir"]!r}), ignore)
except InvalidSpec as error:
    print(error)
"""
    told = called(other, "-c", program).strip()
    assert told.startswith("There is no quantizer 'leaning' here, only by_channel, columns,")
    assert told.endswith(
        "put the file leaning.py into qlib/quantizers, or quantize the network again."
    )
    assert "\n" not in told
