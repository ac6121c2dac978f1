"""Loads a run's network and images, and predicts the test images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qlib.core import own_code
from qlib.core.preprocess import Preprocess
from qlib.core.records import Event, InvalidSpec, Report, RunSpec
from qlib.core.rows import PictureNote
from qlib.core.specs import source_of
from qlib.datasets.base import Images
from qlib.datasets.preprocessing.augment import noise, shifted
from qlib.datasets.preprocessing.prepare import batches, to_tensor
from qlib.learning.calibration import Calibration
from qlib.models.base import Complete
from qlib.network.answers import Features
from qlib.network.blocks import find_blocks
from qlib.network.coverage import Coverage
from qlib.network.model import QuantModel
from qlib.observers.base import Observer, observers
from qlib.pipeline.own_network import completed
from qlib.pipeline.sources import Sources, class_names, labelled, open_sources

LEAST_COVERED = 0.5  # share of the multiplications that must be quantizable
EVAL_BATCH = 64  # more and the activations of a vision transformer leave the cache


@dataclass
class Experiment:
    """Everything a run works on: float network, quantizable copy, calibration and test images.

    ``task``: how it is judged, see `RunRecord.task`; ``classes``: names by index, as the images
    have them.
    """

    net: torch.nn.Module
    model: QuantModel
    data: Calibration
    sources: Sources
    classes: tuple[str, ...]
    predict: "Predictor"
    task: str = "classes"

    @property
    def test(self) -> Images:
        """The held-out images."""
        return self.sources.test

    @property
    def calib(self) -> Images:
        """The calibration images, as they are in their files."""
        return self.sources.calib

    @property
    def same_source(self) -> bool:
        """Whether calibration and test images come from one data set."""
        return self.sources.same

    @property
    def pictures(self) -> PictureNote:
        """What was done to the pictures that have been looked at so far."""
        return self.sources.note(self.classes)

    @property
    def labels(self) -> Tensor | None:
        """Labels of the held-out images, (n,); None where they have none."""
        return None if self.test.labels is None else torch.from_numpy(self.test.labels)

    def labelled(self) -> Tensor:
        """Labels of the held-out images, (n,).

        Raises:
            InvalidSpec: they have none.
        """
        if self.labels is None:
            raise InvalidSpec("These images have no labels; choose images in class folders.")
        return self.labels


@dataclass(frozen=True)
class Material:
    """A float network and its images, opened and found to fit; nothing is quantized.

    ``classes``: names by index, as the images have them; ``notes``: what was chosen or assumed.
    """

    built: Complete
    sources: Sources
    classes: tuple[str, ...]
    notes: list[str]

    @property
    def task(self) -> str:
        """How a run of it is judged, see `RunRecord.task`."""
        if not self.built.classes:
            return "features"
        return "classes" if self.sources.test.labels is not None else "unlabelled"


def load_material(spec: RunSpec) -> Material:
    """Load the network and open the images of a checked specification.

    Raises:
        InvalidSpec: something is missing, or does not fit together.
    """
    _check_code(spec)
    source = source_of("models", spec.model)().build(spec.model, spec.weights)
    sources = open_sources(spec, source.label_set)
    # a file of classes says that there are classes, and may name fewer than there are outputs
    folders = 0 if spec.classes else len(sources.tested.classes)
    built, notes = completed(source, sources.calib, spec, folders)
    sources, said = labelled(sources, spec, built.classes)
    classes = sources.tested.classes
    if built.classes and sources.test.labels is not None:  # else nobody asks what is right
        classes = class_names(sources.tested, spec, built.classes, built.names)
    return Material(built, sources, classes, notes + said)


def load_experiment(spec: RunSpec, device: torch.device, report: Report) -> Experiment:
    """Load the network and images of a checked specification; nothing is quantized yet.

    Raises:
        InvalidSpec: something is missing, or does not fit together.
    """
    report(Event("load", spec.model))
    material = load_material(spec)
    built, sources = material.built, material.sources
    net = built.module.to(device)
    calib = _chosen(to_tensor(sources.calib, built.preprocess), spec)
    report(Event("load", note=f"{len(calib)} calibration images"))
    model, data = quantizable(net, calib.to(device), spec, report, encoder=not built.classes)
    model.notes += material.notes
    predict = Predictor(built.preprocess, sources.test, device, report, model.answers.read)
    return Experiment(net, model, data, sources, material.classes, predict, material.task)


def quantizable(
    net: torch.nn.Module, images: Tensor, spec: RunSpec, report: Report, *, encoder: bool = False
) -> tuple[QuantModel, Calibration]:
    """A quantizable copy of a float network and its calibration, as a specification says.

    Args:
        images: (n, c, h, w), preprocessed, on the device of the network.
        encoder: it returns features, not scores of classes.

    Raises:
        InvalidSpec: there is nothing to quantize in the network, or less than half of what it
            multiplies, and the specification does not allow that.
    """
    images = channels_last(images)
    generator = torch.Generator(images.device).manual_seed(spec.seed)
    model = QuantModel(net, images[:2], find_blocks(net), spec.placement).to(images.device)
    _check_coverage(model, spec)
    data = Calibration(images, generator, _observer(spec.weight_observer),
                       _observer(spec.act_observer), report=report,
                       arithmetic=getattr(torch, spec.precision))  # fmt: skip
    if encoder:
        with torch.no_grad(), model.quantized(weights=False, inputs=False):
            model.answers = Features.of(model(part) for part in images.split(data.batch))
    return model, data


def _check_coverage(model: QuantModel, spec: RunSpec) -> None:
    if (why := too_little(model.coverage)) and not spec.allow_float:
        raise InvalidSpec(f"{why}, or allow it (--allow-float, allow_float=True).")


def too_little(covered: Coverage) -> str:
    """Why a network is refused of which less than half can be quantized; "" where it is not.

    The sentence is open at its end: who says it adds how to allow it.
    """
    if covered.share >= LEAST_COVERED:
        return ""
    largest = sorted(covered.left_float, key=lambda part: -covered.left_float[part])
    more = f" and {len(largest) - 3} more" if len(largest) > 3 else ""
    return (
        f"Only {100 * covered.share:.0f} % of this network's multiplications can be quantized; in "
        f"float would stay {', '.join(largest[:3])}{more}. Write them with layers such as "
        "nn.Conv2d and nn.Linear or with matrix products"
    )


def device_of(spec: RunSpec) -> torch.device:
    """The device of a specification. Raises InvalidSpec: it is not there."""
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise InvalidSpec(
            "device 'cuda' was asked for, but PyTorch finds no CUDA device here; use 'cpu'."
        )
    return torch.device(spec.device)


class Predictor:
    """Outputs for test images, one row each; prepared images are kept while they are few.

    ``read`` makes rows of what the network returns: see `qlib.network.answers.Answers.read`.
    """

    KEEP = 512e6  # bytes

    def __init__(
        self,
        preprocess: Preprocess,
        images: Images,
        device: torch.device,
        report: Report,
        read: Callable[[Tensor], Tensor] = lambda outputs: outputs,
    ) -> None:
        self._read = read
        self.preprocess, self._images = preprocess, images
        self._device, self._report = device, report
        self._kept: list[Tensor] = []

    def __call__(self, net: torch.nn.Module, name: str) -> Tensor:
        """(n, classes) or (n, features) on the CPU, in the current state of ``net``."""
        out, n = [], len(self._images)
        with torch.no_grad():
            for x in self._batches():
                out.append(self._read(net(channels_last(x.to(self._device)))).float().cpu())
                self._report(Event("evaluate", name, step=sum(map(len, out)), steps=n))
        return torch.cat(out)

    def first(self, n: int) -> Tensor:
        """The first ``n`` images (all, where there are fewer), prepared, on the device."""
        if self._kept:
            found = torch.cat([*self._kept[: -(-n // EVAL_BATCH)]])[:n]
        else:
            found = to_tensor(self._images, self.preprocess, 0, n)
        return channels_last(found.to(self._device))

    def at(self, position: int) -> Tensor:
        """One image, (1, channels, height, width), prepared, on the device."""
        x = to_tensor(self._images, self.preprocess, position, position + 1)
        return channels_last(x.to(self._device))

    def _batches(self) -> Iterator[Tensor]:
        if self._kept:
            yield from self._kept
            return
        numel = len(self._images) * int(np.prod(self.preprocess.input_size))
        for _, x in batches(self._images, self.preprocess, EVAL_BATCH):
            if 4 * numel <= self.KEEP:
                self._kept.append(x)
            yield x


def _check_code(spec: RunSpec) -> None:
    """Raises:
    InvalidSpec: the file of one's own network is not what it was when the run was asked for.
    """
    if spec.code and own_code.digest(file := own_code.parts(spec.model)[0]) != spec.code:
        raise InvalidSpec(
            f"{file} has changed since this run was asked for, so that its network is another one; "
            "start a new run."
        )


def _chosen(images: Tensor, spec: RunSpec) -> Tensor:
    """The calibration images as they are, or others made from them."""
    draws = torch.Generator().manual_seed(spec.seed)
    if spec.calib_choice == "noise":
        return noise(images, draws)
    if spec.calib_choice in ("shifted", "mirrored"):
        return shifted(images, draws, mirror=spec.calib_choice == "mirrored")
    return images


def channels_last(x: Tensor) -> Tensor:
    """``x`` in the channels-last memory format, in which every network is run."""
    return x.contiguous(memory_format=torch.channels_last)


def _observer(name: str) -> Observer:
    return observers()[name]()
