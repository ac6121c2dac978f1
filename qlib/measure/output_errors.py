"""What the layers of a quantized network do to images: errors at each layer, samples of values.

Each batch passes the network twice: in float, where every layer is also tried quantized alone on
its float input, and fully quantized, where each output is compared with the float one. Only one
batch's outputs are held between the two.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from qlib.core.histogram import flat
from qlib.core.records import Event, Report
from qlib.measure.value_samples import Sample, samples_of
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer, QuantMatMul, QuantPoint, WeightPoint
from qlib.network.trace import removing

IMAGES, LEAST = 128, 32  # images whose errors are summed: fewer where all of them together …
WORK = 4e10  # … would take more multiply–accumulates than this for one pass
SAMPLED = 64  # images whose values are counted: the first calibration images
BATCH, ROOM = 64, 64e6  # images at a time: fewer where their outputs fill more than these bytes
VALUES = 2**16  # values kept of one activation

Layer = QuantLayer | QuantMatMul


@dataclass
class Gap:
    """Running sums over a tensor y and its quantized version ŷ."""

    sums: Tensor | None = None  # Σy², Σŷ², Σyŷ, Σ(ŷ − y)²
    n: int = 0

    def add(self, y: Tensor, y_hat: Tensor) -> None:
        """Add a batch: ``y`` and ``y_hat`` of equal shape."""
        a, b = flat(y), flat(y_hat, like=y)
        gap = b - a
        sums = torch.stack([a.dot(a), b.dot(b), a.dot(b), gap.dot(gap)]).double()
        self.sums = sums if self.sums is None else self.sums + sums
        self.n += a.numel()

    def told(self) -> dict[str, float]:
        """mse, sqnr_db (infinite without error), cosine (of all values as one vector)."""
        if self.sums is None:
            raise ValueError("Nothing has been added up yet.")
        first, second, product, noise = self.sums.tolist()
        with np.errstate(divide="ignore"):
            sqnr = 10 * np.log10(first / noise) if noise else np.inf
        size = np.sqrt(first * second)
        cosine = product / size if size else float(noise == 0)
        return {"mse": noise / self.n, "sqnr_db": float(sqnr), "cosine": float(min(1.0, cosine))}


@dataclass
class Errors:
    """Errors of one layer's output: quantized alone, and in the quantized network.

    ``alone``: this layer quantized, on its float input. ``together``: in the fully quantized
    network. ``nearest``: there too, with this layer's weights at their nearest codes; empty where
    they are there already.
    """

    alone: Gap = field(default_factory=Gap)
    together: Gap = field(default_factory=Gap)
    nearest: Gap = field(default_factory=Gap)


class _Fixed(WeightPoint):
    """Stands in for the point of a weight: always the same values."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values, self.on = values, True

    def forward(self, x: Tensor) -> Tensor:
        return self.values


@dataclass
class Recording:
    """Samples by tensor and errors by layer of one network, in order of execution."""

    samples: dict[str, Sample]
    calib: dict[str, Errors]
    test: dict[str, Errors]
    sampled: int  # images behind the samples of activations and outputs


@torch.no_grad()
def record(model: QuantModel, calib: Tensor, test: Tensor, report: Report) -> Recording:
    """Measure a quantized network on calibration and held-out images, (n, c, h, w) each."""
    samples = {sample.name: sample for sample in samples_of(model)}
    batch, total = _batch(model, calib), len(calib) + len(test)
    sampled = min(SAMPLED, len(calib))
    meter = _Meter(model, _nearest_points(model))
    for start in range(0, len(calib), batch):
        x = calib[start : start + batch]
        share = len(x) / sampled if start < sampled else 0.0
        meter.measure(x, samples, round(share * VALUES))
        report(Event("save", note="errors of layers", step=start + len(x), steps=total))
    errors, meter = meter.errors, _Meter(model, {})
    for start in range(0, len(test), batch):
        x = test[start : start + batch]
        meter.measure(x, samples, 0)
        done = len(calib) + start + len(x)
        report(Event("save", note="errors of layers", step=done, steps=total))
    return Recording(samples, errors, meter.errors, sampled)


def images_for(model: QuantModel) -> int:
    """How many images of each kind to measure: many for small networks, few for large ones."""
    return int(min(IMAGES, max(LEAST, WORK // max(1, sum(model.macs.values())))))


@dataclass
class _Meter:
    """Adds up what happens at each layer, batch by batch."""

    model: QuantModel
    nearest: Mapping[str, WeightPoint]
    errors: dict[str, Errors] = field(default_factory=dict)
    _held: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.errors = {name: Errors() for name in self.model.layers}

    def measure(self, x: Tensor, samples: Mapping[str, Sample], limit: int) -> None:
        """One batch. ``limit``: values to keep of each activation; 0 keeps none."""
        hooks = [
            layer.register_forward_hook(partial(self._in_float, name))
            for name, layer in self.model.layers.items()
        ]
        if limit:
            hooks += [
                point.register_forward_pre_hook(partial(_see, samples[name], limit))
                for name, point in self.model.points.items()
            ]
        with removing(hooks), self.model.quantized(weights=False, inputs=False):
            self.model(x)
        hooks = [
            layer.register_forward_hook(partial(self._quantized, name, samples, limit))
            for name, layer in self.model.layers.items()
        ]
        with removing(hooks), self.model.quantized(weights=True, inputs=True):
            self.model(x)

    def _in_float(self, name: str, layer: Layer, args: tuple, y: Tensor) -> None:
        # a copy where the network writes into it before it is compared, as `x += shortcut` does
        self._held[name].append(y.clone() if name in self.model.overwritten else y)
        self.errors[name].alone.add(y, self._alone(name, layer, args))

    def _alone(self, name: str, layer: Layer, args: tuple) -> Tensor:
        """The output with this layer alone quantized, a boundary that it reads included."""
        points = list(layer.points().values())
        if isinstance(layer, QuantLayer):
            points.append(layer.weight_point)
            boundary = self.model.boundary_of(name)
            if boundary is not None and boundary.quantizer is not None:
                args = (boundary.quantizer(args[0]),)
        with _on(points):
            return layer.forward(*args)

    def _quantized(
        self,
        name: str,
        samples: Mapping[str, Sample],
        limit: int,
        layer: Layer,
        args: tuple,
        y_hat: Tensor,
    ) -> None:
        y, errors = self._held[name].pop(0), self.errors[name]
        errors.together.add(y, y_hat)
        if limit:
            samples[f"{name}.output"].pair(y, y_hat, limit)
        if name in self.nearest and isinstance(layer, QuantLayer):
            learned, layer.weight_point = layer.weight_point, self.nearest[name]
            try:
                errors.nearest.add(y, layer.forward(*args))
            finally:
                layer.weight_point = learned


def _see(sample: Sample, limit: int, point: QuantPoint, args: tuple) -> None:
    if not point.on:  # on: its layer is being tried alone
        sample.take(args[0], limit)


@contextmanager
def _on(points: list[QuantPoint]) -> Iterator[None]:
    for point in points:
        point.on = True
    try:
        yield
    finally:
        for point in points:
            point.on = False


def _nearest_points(model: QuantModel) -> dict[str, WeightPoint]:
    """Stand-ins that round to nearest on the same grid, for layers whose codes lie elsewhere."""
    found = {}
    for name, layer in model.weighted().items():
        q = layer.weight_point.quantizer
        if q is None or torch.equal(q.codes(layer.weight), q.nearest(layer.weight)):
            continue
        found[name] = _Fixed(q.values(q.nearest(layer.weight)))
    return found


def _batch(model: QuantModel, images: Tensor) -> int:
    """A power of two: as many images as leave the layers' outputs within `ROOM`."""
    sizes: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda m, a, y: sizes.append(y.numel() * y.element_size()))
        for layer in model.layers.values()
    ]
    with removing(hooks), model.quantized(weights=False, inputs=False):
        model(images[:1])
    fitting = max(1, int(ROOM // max(1, sum(sizes))))
    return min(BATCH, 2 ** (fitting.bit_length() - 1))
