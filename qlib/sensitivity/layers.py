"""Sensitivity of each layer: a network with one layer quantized, or all but one.

What lies before the layer does not change, so each measurement runs on from there (`onward`): a
profile of L layers in a row costs about L/2 forward passes for each mode and split, not L.

The measure is the KL divergence from the float network's answers, which needs no labels (ZeroQ,
Cai et al., CVPR 2020, arXiv 2001.00281). `qlib.sensitivity.profile` says what the columns of a
row mean.
"""

import math
from typing import Any

import torch
from torch import Tensor

from qlib.core.records import Event, Report, ignore
from qlib.measure.statistics import wilson
from qlib.network.answers import Classes
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer, QuantPoint
from qlib.network.prefix_cache import PrefixCache, flipped

WHOLE = ("none", "weights", "inputs", "both")
# most useful first: a profile that is stopped keeps what it has
ORDER = tuple(
    (mode, split) for split in ("both", "weights", "inputs") for mode in ("alone", "left_out")
)

Row = dict[str, Any]


def measure(
    model: QuantModel, images: Tensor, labels: Tensor | None, report: Report = ignore
) -> list[Row]:
    """All rows of a profile: the whole network first, then `ORDER`, layers as they run.

    Args:
        model: with its quantizers in place; its switches are the same afterwards.
        images: (n, c, h, w), preprocessed. Halves a and b are every other image.
        labels: (n,); None without any. Without them, and of features, rows have no accuracy.
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

    def __init__(
        self, model: QuantModel, images: Tensor, labels: Tensor | None, report: Report
    ) -> None:
        self.model, self.report = model, report
        self.answers, self.classed = model.answers, isinstance(model.answers, Classes)
        self.labels = labels if self.classed else None
        self.passes = PrefixCache(model, images, report, "profile")
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

    def run(self) -> list[Row]:
        with (
            torch.no_grad(),
            self.passes.heard(),
            self.model.quantized(weights=False, inputs=False),
        ):
            for split in WHOLE:
                self._whole(split)
            for mode, split in ORDER:
                self._layers(mode, split)
        return self.rows

    def _whole(self, split: str) -> None:
        self._begin("", len(self.rows) + 1, f"all {split}")
        with self.model.quantized(**_switches(split)):
            logits = self.passes.logits()
            if split == "none":
                self.reference = logits
            self.known[self._state()] = self._compared(self.reference, logits)
            self._finish("all", split, "")

    def _layers(self, mode: str, split: str) -> None:
        """Every layer of one mode and split. Rows come with the last chunk of the images."""
        todo, first = self.todo[mode, split], len(self.rows) + 1
        starts = self.passes.starts
        seen: dict[str, list[Tensor]] = {layer: [] for layer in todo}
        done = 0
        with self.model.quantized(**_switches(split if mode == "left_out" else "none")):
            for start in starts:
                reference = self.reference[start : start + self.passes.size]
                for layer, logits in self.passes.iter_layers(self.passes.chunk(start), list(todo)):
                    self._begin(layer, first + done // len(starts), f"{mode} {split}")
                    with flipped(todo[layer]):
                        state = self._state()
                        if state not in self.known:
                            seen[layer].append(self._compared(reference, logits()))
                        if start == starts[-1]:
                            if state not in self.known:
                                self.known[state] = torch.cat(seen.pop(layer))
                            self._finish(mode, split, layer)
                    done += 1

    def _state(self) -> frozenset[int]:
        """Which points are on: a product alone is the same in the splits inputs and both."""
        weights = [layer.weight_point for layer in self.model.weighted().values()]
        points = [*weights, *self.model.points.values()]
        return frozenset(id(p) for p in points if p.on and p.quantizer is not None)

    def _begin(self, layer: str, index: int, note: str) -> None:
        images = len(self.passes.images)
        self.passes.doing = Event("profile", layer, index, self.of, 0, images, note=note)

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

    def _compared(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """(n, 4): for each image KL to float in nats, the answer, Σ error², Σ reference²."""
        kl = self.answers.divergences(reference, outputs)
        x, y = (self.answers.read(part).double() for part in (reference, outputs))
        columns = [kl, self._answer(outputs), (x - y).square().sum(1), x.square().sum(1)]
        return torch.stack(columns, 1).cpu()

    def _answer(self, outputs: Tensor) -> Tensor:
        """The first guess, as a number of double precision; features answer nothing."""
        best = outputs.argmax(1) if self.classed else outputs.new_zeros(len(outputs))
        return best.double()

    def _numbers(self, seen: Tensor) -> Row:
        kl, answer, noise, signal = seen.unbind(1)
        error = float(noise.sum())
        same = answer == self._answer(self.reference).cpu()
        return {
            "kl": float(kl.mean()),
            "kl_a": float(kl[::2].mean()),
            "kl_b": float(kl[1::2].mean()) if len(kl) > 1 else None,
            **_accuracy(answer, self.labels),
            "agreement": 100 * float(same.double().mean()) if self.classed else None,
            "sqnr_db": 10 * math.log10(float(signal.sum()) / error) if error else math.inf,
            "n": len(seen),
            "data": "test",
        }


def _switches(split: str) -> dict[str, bool]:
    return {"weights": split in ("weights", "both"), "inputs": split in ("inputs", "both")}


def _accuracy(answer: Tensor, labels: Tensor | None) -> Row:
    """Top-1 in percent with its interval; None where there are no labels."""
    if labels is None:
        return dict.fromkeys(("top1", "top1_low", "top1_high"))
    right = int((answer == labels).sum())
    low, high = wilson(right, len(labels))
    return {"top1": 100 * right / len(labels), "top1_low": 100 * low, "top1_high": 100 * high}
