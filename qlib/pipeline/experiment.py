"""What a specification names, opened: network, images, ranges, and a way to ask for answers."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qlib.core.records import Event, InvalidSpec, Report, RunSpec
from qlib.core.specs import source_of
from qlib.datasets.base import Dataset, Images
from qlib.datasets.preprocessing.augment import noise, shifted
from qlib.datasets.preprocessing.prepare import batches, to_tensor
from qlib.learning.calibration import Calibration
from qlib.models.base import Built
from qlib.network.blocks import find_blocks
from qlib.network.model import QuantModel
from qlib.observers.base import Observer, observers

EVAL_BATCH = 64  # more and the activations of a vision transformer leave the cache


@dataclass
class Experiment:
    """The float network and its quantizable copy, calibration and held-out images."""

    net: torch.nn.Module
    model: QuantModel
    data: Calibration
    test: Images
    calib: Images
    classes: tuple[str, ...]
    same_source: bool  # calibration and test images come from one dataset
    predict: "Predictor"

    @property
    def labels(self) -> Tensor:
        """(n,) of the held-out images."""
        return torch.from_numpy(self.test.labels)


def load_experiment(spec: RunSpec, device: torch.device, report: Report) -> Experiment:
    """Load all that a checked specification names; nothing is quantized yet.

    Raises:
        InvalidSpec: something is missing, or does not fit together.
    """
    report(Event("load", spec.model))
    generator = torch.Generator(device).manual_seed(spec.seed)
    built, source, calib_images, same_source = _load(spec)
    test_images = _held_out(source, spec)
    net = built.module.to(device)
    calib = _chosen(to_tensor(calib_images, built.preprocess), spec)
    calib = _channels_last(calib.to(device))
    report(Event("load", note=f"{len(calib)} calibration images"))
    model = QuantModel(net, calib[:2], find_blocks(net), spec.placement).to(device)
    data = Calibration(calib, generator, _observer(spec.weight_observer),
                       _observer(spec.act_observer), report=report,
                       arithmetic=getattr(torch, spec.precision))  # fmt: skip
    predict = Predictor(built, test_images, device, report)
    return Experiment(
        net, model, data, test_images, calib_images, source.classes, same_source, predict
    )


def device_of(spec: RunSpec) -> torch.device:
    """Raises:
    InvalidSpec: it is not there.
    """
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise InvalidSpec(
            "device 'cuda' was asked for, but PyTorch finds no CUDA device here; use 'cpu'."
        )
    return torch.device(spec.device)


class Predictor:
    """Logits of test images; prepared images are kept while they are few."""

    KEEP = 512e6  # bytes

    def __init__(self, built: Built, images: Images, device: torch.device, report: Report) -> None:
        self._built, self._images, self._device, self._report = built, images, device, report
        self._kept: list[Tensor] = []

    def __call__(self, net: torch.nn.Module, name: str) -> Tensor:
        """(n, classes) on the CPU, in the current state of ``net``."""
        out, n = [], len(self._images)
        with torch.no_grad():
            for x in self._batches():
                out.append(net(_channels_last(x.to(self._device))).float().cpu())
                self._report(Event("evaluate", name, step=sum(map(len, out)), steps=n))
        return torch.cat(out)

    def first(self, n: int) -> Tensor:
        """The first ``n`` images (all, where there are fewer), prepared, on the device."""
        if self._kept:
            found = torch.cat([*self._kept[: -(-n // EVAL_BATCH)]])[:n]
        else:
            found = to_tensor(self._images, self._built.preprocess, 0, n)
        return _channels_last(found.to(self._device))

    def at(self, position: int) -> Tensor:
        """One image, (1, channels, height, width), prepared, on the device."""
        x = to_tensor(self._images, self._built.preprocess, position, position + 1)
        return _channels_last(x.to(self._device))

    def _batches(self) -> Iterator[Tensor]:
        if self._kept:
            yield from self._kept
            return
        numel = len(self._images) * int(np.prod(self._built.preprocess.input_size))
        for _, x in batches(self._images, self._built.preprocess, EVAL_BATCH):
            if 4 * numel <= self.KEEP:
                self._kept.append(x)
            yield x


def _load(spec: RunSpec) -> tuple[Built, Dataset, Images, bool]:
    """Network, source of images, calibration images, and whether these come from that source."""
    built = source_of("models", spec.model)().build(spec.model, spec.weights)
    source = source_of("datasets", spec.data)(spec.data)
    other = source
    if spec.calib_data is not None and spec.calib_data != spec.data:
        other = source_of("datasets", spec.calib_data)(spec.calib_data)
    balanced = spec.calib_choice == "balanced"
    # first: test images are what is left
    calib = other.calibration(spec.calib, spec.seed, balanced=balanced)
    if len(source.classes) != built.classes:
        raise InvalidSpec(
            f"{spec.model} tells {built.classes} classes apart, but {spec.data} has "
            f"{len(source.classes)}; choose images of the task that the network was trained for."
        )
    return built, source, calib, other is source


def _chosen(images: Tensor, spec: RunSpec) -> Tensor:
    """The calibration images as they are, or others made from them."""
    draws = torch.Generator().manual_seed(spec.seed)
    if spec.calib_choice == "noise":
        return noise(images, draws)
    if spec.calib_choice in ("shifted", "mirrored"):
        return shifted(images, draws, mirror=spec.calib_choice == "mirrored")
    return images


def _held_out(source: Dataset, spec: RunSpec) -> Images:
    """The images that are measured; an analysis makes do with fewer than it asked for."""
    if spec.analysis and spec.test and len(found := source.test()) < spec.test:
        return found
    return source.test(spec.test)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _observer(name: str) -> Observer:
    return observers()[name]()
