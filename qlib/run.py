"""One run: a specification in, a record out. The only file where model, data and method meet."""

import hashlib
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qlib import metrics
from qlib._artifacts import save_predictions, save_quantizers
from qlib._process import peak_mb
from qlib._registry import discover
from qlib.calibration import Calibration
from qlib.datasets._base import Dataset, Images
from qlib.datasets._prepare import batches, to_tensor
from qlib.model import QuantModel
from qlib.models._base import Built
from qlib.models._units import find_blocks
from qlib.records import Event, Refused, Report, RunRecord, RunSpec, ignore
from qlib.scheme import PER_CHANNEL, PER_TENSOR, BitPlan, Granularity, Scheme
from qlib.specs import checked, source_of

GROUP = 64  # weights that share a scale when granularity is "group"
EVAL_BATCH = 128


@dataclass
class Clock:
    """Hands events on and adds up the time spent in each phase."""

    report: Report
    seconds: dict[str, float] = field(default_factory=dict)
    _phase: str = "load"
    _since: float = field(default_factory=time.perf_counter)

    def __call__(self, event: Event) -> None:
        if event.phase != self._phase:
            self.turn(event.phase)
        self.report(event)

    def turn(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def totals(self) -> dict[str, float]:
        self.turn("save")
        named = {k: self.seconds.get(k, 0.0) for k in ("load", "calibrate", "reconstruct")}
        named["evaluate"] = self.seconds.get("evaluate", 0.0)
        return named | {"total": sum(self.seconds.values())}


def run(spec: RunSpec, report: Report = ignore, folder: Path | None = None) -> RunRecord:
    """Quantize a network as ``spec`` says and measure what that did.

    Args:
        report: hears every step; raising `Cancelled` in it stops the run.
        folder: an existing private folder that gets ``run.json``'s companions; None writes nothing.

    Raises:
        Refused: wrong input, in one sentence. With a folder, what was finished is in it.
    """
    from qlib import store

    spec = checked(spec)
    device = _device(spec)
    clock = Clock(report)
    clock(Event("load", spec.model))
    generator = torch.Generator(device).manual_seed(spec.seed)
    built, source, calib_images, same_source = _load(spec)
    test_images = source.test(spec.test)
    net = built.module.to(device)
    calib = _calibration_tensor(calib_images, built, device, clock)
    model = QuantModel(net, calib[:2], find_blocks(net), spec.placement).to(device)
    data = Calibration(calib, generator, _observer(spec.weight_observer),
                       _observer(spec.act_observer), report=clock)  # fmt: skip
    plan = bit_plan(model, spec)
    predict = _Predictor(built, test_images, device, clock)

    clock(Event("calibrate", note="ranges"))
    discover("methods")["nearest"]().apply(model, plan, data, clock)
    model.switch(weights=True, inputs=True)
    clock(Event("evaluate", "float"))
    with model.quantized(weights=False, inputs=False):
        float_logits = predict(net, "float")
    nearest_logits = predict(model, "nearest")
    quant_logits = nearest_logits
    if spec.method != "nearest":
        method = discover("methods")[spec.method](**spec.settings)
        try:
            clock(Event("calibrate", note=spec.method))
            method.apply(model, plan, data, clock)
        except Refused:
            if folder is not None:
                save_quantizers(model, folder)
            raise
        model.switch(weights=True, inputs=True)
        quant_logits = predict(model, spec.method)

    labels = torch.from_numpy(test_images.labels)
    found = metrics.accuracy(labels, quant_logits, float_logits)
    found["top1_nearest"] = metrics.accuracy(labels, nearest_logits, float_logits)["top1"]
    found |= metrics.costs(model)
    clock(Event("save"))
    classes = source.classes
    rows = metrics.layer_rows(model, data.histograms(model))
    if folder is not None:
        logits = {"float": float_logits, "quant": quant_logits, "nearest": nearest_logits}
        save_predictions(folder, test_images, logits, classes)
        save_quantizers(model, folder)
    record = RunRecord(
        spec=spec,
        metrics=found,
        seconds=clock.totals(),
        peak_mb=_peak_mb(device),
        layers=rows,
        versions=versions(),
        data={
            "calib_hash": _hash(calib_images.ids),
            "test_hash": _hash(test_images.ids),
            "calib_n": len(calib_images),
            "classes": len(classes),
            "same_source": same_source,
        },
        notes=model.notes,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if folder is not None:
        store.write_record(record, folder)
    return record


def bit_plan(model: QuantModel, spec: RunSpec) -> BitPlan:
    """The grids that a specification asks for."""
    sharing = {"channel": PER_CHANNEL, "tensor": PER_TENSOR, "group": Granularity("group", GROUP)}
    weight = Scheme(spec.weight_bits, spec.symmetric_weights, granularity=sharing[spec.granularity])
    act = Scheme(spec.act_bits, spec.symmetric_acts)
    allocator = discover("allocators")["same"]()
    return allocator.allocate(model, weight, act, edge_layers=spec.edge_layers)


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "timm", "numpy")},
        "threads": str(torch.get_num_threads()),
    }


class _Predictor:
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

    def _batches(self) -> Iterator[Tensor]:
        if self._kept:
            yield from self._kept
            return
        numel = len(self._images) * int(np.prod(self._built.preprocess.input_size))
        for _, x in batches(self._images, self._built.preprocess, EVAL_BATCH):
            if 4 * numel <= self.KEEP:
                self._kept.append(x)
            yield x


def _device(spec: RunSpec) -> torch.device:
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise Refused(
            "device 'cuda' was asked for, but PyTorch finds no CUDA device here; use 'cpu'."
        )
    return torch.device(spec.device)


def _load(spec: RunSpec) -> tuple[Built, Dataset, Images, bool]:
    """Network, source of images, calibration images, and whether these come from that source."""
    built = source_of("models", spec.model)().build(spec.model, spec.weights)
    source = source_of("datasets", spec.data)(spec.data)
    other = source
    if spec.calib_data is not None and spec.calib_data != spec.data:
        other = source_of("datasets", spec.calib_data)(spec.calib_data)
    calib = other.calibration(spec.calib, spec.seed)  # first: test images are what is left
    if len(source.classes) != built.classes:
        raise Refused(
            f"{spec.model} tells {built.classes} classes apart, but {spec.data} has "
            f"{len(source.classes)}; choose images of the task that the network was trained for."
        )
    return built, source, calib, other is source


def _peak_mb(device: torch.device) -> float:
    """Highest memory so far, 10⁶ bytes: of the GPU where one is used, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return peak_mb()


def _calibration_tensor(
    images: Images, built: Built, device: torch.device, report: Report
) -> Tensor:
    x = to_tensor(images, built.preprocess).to(device)
    report(Event("load", note=f"{len(x)} calibration images"))
    return _channels_last(x)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _observer(name: str) -> object:
    return discover("observers")[name]()


def _hash(ids: object) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
