"""What one step of each method costs beside a plain training pass of the same float unit."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import timm
import torch
from torch import Tensor, nn

from qlib.core.functional import take
from qlib.core.records import Event
from qlib.core.registry import discover
from qlib.core.scheme import PER_CHANNEL, BitPlan, Scheme
from qlib.learning.calibration import Calibration
from qlib.learning.units import Unit
from qlib.learning.walk import iter_units
from qlib.models._resnet import SmallResNet
from qlib.network.blocks import find_blocks
from qlib.network.model import QuantModel

ROUNDS, STEPS, PASSES = 3, 50, 20  # rounds in turns; steps of a method, passes of a float unit
DEIT = "deit_tiny_patch16_224"
COLUMNS = ("network", "step", "round", "units", "pass_ms", "step_ms", "dearest", "threads", "torch")


@dataclass
class Subject:
    """A network with random weights and random images: speed depends on neither."""

    name: str
    model: QuantModel
    images: Tensor
    batch: int  # images in each step
    units: Sequence[str]  # blocks whose steps are looked at: they, or their layers

    def calibration(self) -> Calibration:
        """Fresh calibration data of the subject's images."""
        observer = discover("observers")["mse"]()
        generator = torch.Generator().manual_seed(0)
        return Calibration(self.images, generator, observer, observer)

    def looks_at(self, title: str) -> bool:
        """Whether ``title`` names one of `units`, or a layer of one."""
        return any(f"{title}.".startswith(f"{unit}.") for unit in self.units)

    def plan(self) -> BitPlan:
        """The bits of each tensor: W4A4, weights per channel."""
        weights = Scheme(4, granularity=PER_CHANNEL)
        return discover("allocators")["same"]().allocate(self.model, weights, Scheme(4))


def resnet(per_stage: int = 3, images: int = 256) -> Subject:
    """A CIFAR ResNet of ``6 · per_stage + 2`` layers, quantized at the boundaries of blocks.

    One block of each width is looked at; they are the same in shorter and longer networks.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SmallResNet(per_stage, (16, 32, 64), channels=3, projected=False).eval()
    units = ("layer1.0", "layer2.1", "layer3.1")
    return _subject("cifar10-resnet20", net, (images, 3, 32, 32), "boundary", 32, units)


def deit(images: int = 32, blocks: int = 2) -> Subject:
    """DeiT-tiny, cut to its first blocks, which are all alike."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(DEIT, pretrained=False, depth=blocks).eval()
    units = tuple(f"blocks.{i}" for i in range(blocks))
    return _subject(DEIT, net, (images, 3, 224, 224), "inputs", 8, units)


def _subject(
    name: str,
    net: nn.Module,
    shape: Sequence[int],
    placement: str,
    batch: int,
    units: Sequence[str],
) -> Subject:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    model = QuantModel(net, x[:2], find_blocks(net), placement)
    return Subject(name, model, x, batch, units)


@dataclass
class Watch:
    """A report callback that keeps the seconds of each step, by the title of its unit.

    Steps that also look at the unit, of which a long run has few, are left out.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _last: tuple[str, float] = ("", 0.0)

    def __call__(self, event: Event) -> None:
        now = time.perf_counter()
        if event.phase == "reconstruct":
            title, before = self._last
            looked = event.flipped is not None  # 20 of all the steps of a unit
            if title == event.unit and not looked:  # the first step has no start that was seen
                self.seconds[title].append(now - before)
            self._last = (event.unit, time.perf_counter())

    def medians(self) -> dict[str, float]:
        """Median seconds of a step, by the title of its unit."""
        return {title: statistics.median(found) for title, found in self.seconds.items()}


def step_rows(subject: Subject, kinds: Mapping[str, "Kind"]) -> Iterator[dict[str, object]]:
    """A row in `COLUMNS` for each kind of step and each round, all of which are measured in turns.

    ``step_ms`` and ``pass_ms`` are milliseconds of a step and of a plain pass, means over the same
    units; ``dearest`` is the ratio of the two in the unit where it is largest.
    """
    for number in range(ROUNDS):
        for name, kind in kinds.items():
            plain, steps = _float_passes(subject, kind.unit), kind.seconds(subject)
            both = [(steps[t], plain[t]) for t in plain if t in steps]
            step, passed = (1e3 * statistics.mean(column) for column in zip(*both, strict=True))
            yield {
                "network": subject.name,
                "step": name,
                "round": number,
                "units": len(both),
                "pass_ms": round(passed, 2),
                "step_ms": round(step, 2),
                "dearest": round(max(s / p for s, p in both), 2),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__.partition("+")[0],
            }


def summary(rows: Sequence[Mapping[str, str]]) -> list[dict[str, object]]:
    """A line for each kind of step: how many plain passes it takes, median and range of rounds."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        ratio = float(row["step_ms"]) / float(row["pass_ms"])
        seconds.setdefault(row["step"], {}).setdefault(row["network"], []).append(ratio)
    return [
        {
            "a step of": step,
            **{
                network: f"{statistics.median(r):.2f} ({min(r):.2f}–{max(r):.2f})"
                for network, r in ratios.items()
            },
        }
        for step, ratios in seconds.items()
    ]


@dataclass(frozen=True)
class Kind:
    """A method with settings that differ from its defaults, and the precision it multiplies in.

    ``unit``: what it learns at once, "block" or "layer".
    """

    method: str
    settings: Mapping[str, object] = field(default_factory=dict)
    arithmetic: torch.dtype = torch.float32
    unit: str = "block"

    def seconds(self, subject: Subject) -> dict[str, float]:
        """Seconds of a step, by the title of each unit; the method runs as it always does."""
        settings = {"steps": STEPS, "batch": subject.batch, **self.settings}
        watch, data = Watch(), subject.calibration()
        data.arithmetic = self.arithmetic
        method = discover("methods")[self.method](**settings)
        method.apply(subject.model, subject.plan(), data, watch)
        return {t: s for t, s in watch.medians().items() if subject.looks_at(t)}


def _float_passes(subject: Subject, by: str) -> dict[str, float]:
    """Seconds of a plain pass, forward and backward to weights and input, by title of the unit."""
    data, model = subject.calibration(), subject.model
    return {
        unit.title: statistics.median(_passes(unit, subject.batch, data.generator))
        for unit in iter_units(model, data, by=by, weights=False, inputs=False)
        if subject.looks_at(unit.title)
    }


def _passes(unit: Unit, batch: int, generator: torch.Generator) -> Iterator[float]:
    """As a training loop would: some images drawn, the squared error, gradients thrown away."""
    weights = [layer.weight.requires_grad_(True) for layer in unit.weighted]
    with torch.enable_grad():
        for _ in range(PASSES):
            start = time.perf_counter()
            at = torch.randint(len(unit.inputs), (batch,), generator=generator)
            x = take(unit.inputs, at).requires_grad_(True)
            (unit(x) - take(unit.targets, at)).square().sum().backward()
            for weight in weights:
                weight.grad = None
            yield time.perf_counter() - start
    for weight in weights:
        weight.requires_grad_(False)
