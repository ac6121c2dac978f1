"""Which layer is to blame? A quantized network measured with one layer quantized, or all but one.

What lies before the layer does not change, so it is computed once and not for every layer: the
tensor that enters a unit moves forward with the walk, and each measurement runs on from there. A
profile of L layers in a row costs about L/2 forward passes for each mode and split, not L.

The measure is the KL divergence from the float network's answers, which needs no labels (ZeroQ,
Cai et al., CVPR 2020, arXiv 2001.00281). `qlib.profile` says what the columns of a row mean.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qlib.model import QuantModel
from qlib.points import QuantLayer, QuantPoint
from qlib.records import Event, Report, ignore
from qlib.statistics import wilson
from qlib.trace import removing

CHUNK = 128  # images whose tensors between units are held at once
PASS = 40e9  # multiply–accumulates of one pass: large networks take fewer images at once
WHOLE = ("none", "weights", "inputs", "both")
# most useful first: a profile that is stopped keeps what it has
ORDER = tuple((mode, split) for split in ("both", "weights", "inputs") for mode in ("only", "but"))

Row = dict[str, Any]


def measure(
    model: QuantModel, images: Tensor, labels: Tensor, report: Report = ignore
) -> list[Row]:
    """All rows of a profile: the whole network first, then `ORDER`, layers as they run.

    Args:
        model: with its quantizers in place; its switches are the same afterwards.
        images: (n, c, h, w), preprocessed; labels: (n,). Halves a and b are every other image.
        report: hears of every finished row (``steps`` is 0, ``loss`` the KL), and between two
            units of every pass (``step`` of ``steps`` images).
    """
    return _Profile(model, images, labels, report).run()


def points_of(model: QuantModel, layer: str, split: str) -> list[QuantPoint]:
    """The filled points that belong to a layer in a split.

    A block's boundary belongs to the block's first layer, whoever else reads it.
    """
    module, unit = model.layers[layer], model.unit_of(layer)
    weights = [module.weight_point] if isinstance(module, QuantLayer) else []
    names = [f"{layer}.{tensor}" for tensor in module.points()]
    if layer == model.layers_of(unit)[0]:
        names.insert(0, f"{unit}.boundary")
    inputs = [model.points[name] for name in names if name in model.points]
    chosen = (weights if split != "inputs" else []) + (inputs if split != "weights" else [])
    return [point for point in chosen if point.quantizer is not None]


class _Profile:
    """One profile in the making. ``known``: what was measured, by the set of points that were on.

    One measurement is a tensor (n, 4): KL, the answer, squared error and square of the logits.
    """

    def __init__(self, model: QuantModel, images: Tensor, labels: Tensor, report: Report) -> None:
        self.model, self.images, self.labels, self.report = model, images, labels, report
        self.batch = max(1, min(CHUNK, int(PASS / max(1, sum(model.macs.values())))))
        self.todo = {
            (mode, split): {
                layer: found for layer in model.layers if (found := points_of(model, layer, split))
            }
            for mode, split in ORDER
        }
        self.of = len(WHOLE) + sum(map(len, self.todo.values()))
        self.rows: list[Row] = []
        self.known: dict[frozenset[int], Tensor] = {}
        self.reference = torch.empty(0)  # logits of the float network
        self.doing = Event("profile")

    def run(self) -> list[Row]:
        with torch.no_grad(), self._heard(), self.model.quantized(weights=False, inputs=False):
            for split in WHOLE:
                self._whole(split)
            for mode, split in ORDER:
                self._layers(mode, split)
        return self.rows

    def _whole(self, split: str) -> None:
        self._begin("", len(self.rows) + 1, f"all {split}")
        with self.model.quantized(**_switches(split)):
            starts = range(0, len(self.images), CHUNK)
            logits = torch.cat([self._each(self.model, self._chunk(start)) for start in starts])
            if split == "none":
                self.reference = logits
            self.known[self._state()] = _compared(self.reference, logits)
            self._finish("all", split, "")

    def _layers(self, mode: str, split: str) -> None:
        """Every layer of one mode and split. Rows come with the last chunk of the images."""
        todo, first = self.todo[mode, split], len(self.rows) + 1
        starts = range(0, len(self.images), CHUNK)
        seen: dict[str, list[Tensor]] = {layer: [] for layer in todo}
        done = 0
        with self.model.quantized(**_switches(split if mode == "but" else "none")):
            for start in starts:
                reference = self.reference[start : start + CHUNK]
                for layer, logits in self._walk(self._chunk(start), list(todo)):
                    self._begin(layer, first + done // len(starts), f"{mode} {split}")
                    with _flipped(todo[layer]):
                        state = self._state()
                        if state not in self.known:
                            seen[layer].append(_compared(reference, logits()))
                        if start == starts[-1]:
                            if state not in self.known:
                                self.known[state] = torch.cat(seen.pop(layer))
                            self._finish(mode, split, layer)
                    done += 1

    def _walk(
        self, images: Tensor, layers: list[str]
    ) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """Each layer with a function that goes on from the input of its unit to the logits."""
        model, units = self.model, self.model.units()
        if not model.chain:
            yield from ((layer, lambda: self._each(model, images)) for layer in layers)
            return
        x = self._each(lambda part: model.arrive(part, units[0]), images)
        for unit, then in zip(units, [*units[1:], None], strict=True):

            def onward(part: Tensor, until: str | None = None, unit: str = unit) -> Tensor:
                return model.hop(unit, model.call_unit(unit, part), until)

            for layer in model.layers_of(unit):
                if layer in layers:
                    yield layer, lambda x=x, onward=onward: self._each(onward, x)
            if then is not None:
                x = self._each(lambda part, go=onward, then=then: go(part, then), x)

    def _chunk(self, start: int) -> Tensor:
        device = next(self.model.parameters()).device
        return self.images[start : start + CHUNK].to(device)

    def _each(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        found = []
        for part in x.split(self.batch):
            found.append(call(part))
            self.doing = replace(self.doing, step=sum(map(len, found)))
        return torch.cat(found)

    def _state(self) -> frozenset[int]:
        """Which points are on: a product alone is the same in the splits inputs and both."""
        points = [layer.weight_point for layer in self.model.weighted().values()]
        points += self.model.points.values()
        return frozenset(id(p) for p in points if p.on and p.quantizer is not None)

    def _begin(self, layer: str, index: int, note: str) -> None:
        self.doing = Event("profile", layer, index, self.of, 0, len(self.images), note=note)

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Report at every unit, so that a cancelled profile stops within one."""
        modules = {name: self.model.net.get_submodule(name) for name in self.model.units()}
        hooks = [m.register_forward_pre_hook(self._tick) for m in modules.values()]
        with removing(hooks):
            yield

    def _tick(self, *_: object) -> None:
        self.report(self.doing)

    def _finish(self, mode: str, split: str, layer: str) -> None:
        row = {
            "mode": mode,
            "split": split,
            "layer": layer,
            "unit": self.model.unit_of(layer) if layer else "",
            "kind": self.model.layers[layer].kind if layer else "",
            **self._numbers(self.known[self._state()]),
        }
        self.rows.append(row)
        at = (len(self.rows), self.of)
        self.report(Event("profile", layer, *at, loss=row["kl"], note=f"{mode} {split}"))

    def _numbers(self, seen: Tensor) -> Row:
        kl, answer, noise, signal = seen.unbind(1)
        right = int((answer == self.labels).sum())
        low, high = wilson(right, len(seen))
        error = float(noise.sum())
        return {
            "kl": float(kl.mean()),
            "kl_a": float(kl[::2].mean()),
            "kl_b": float(kl[1::2].mean()),
            "top1": 100 * right / len(seen),
            "top1_low": 100 * low,
            "top1_high": 100 * high,
            "agreement": 100 * float((answer == self.reference.argmax(1)).double().mean()),
            "sqnr_db": 10 * math.log10(float(signal.sum()) / error) if error else math.inf,
            "n": len(seen),
            "data": "test",
        }


def _switches(split: str) -> dict[str, bool]:
    return {"weights": split in ("weights", "both"), "inputs": split in ("inputs", "both")}


@contextmanager
def _flipped(points: list[QuantPoint]) -> Iterator[None]:
    """The switches of some points turned over for a while."""
    for point in points:
        point.on = not point.on
    try:
        yield
    finally:
        for point in points:
            point.on = not point.on


def _compared(reference: Tensor, logits: Tensor) -> Tensor:
    """(n, 4): for each image KL(reference ‖ logits) in nats, the answer, Σ error², Σ reference²."""
    x, y = reference.double(), logits.double()
    p, q = x.log_softmax(1), y.log_softmax(1)
    kl = (p.exp() * (p - q)).sum(1)
    columns = [kl, y.argmax(1).double(), (x - y).square().sum(1), x.square().sum(1)]
    return torch.stack(columns, 1).cpu()
