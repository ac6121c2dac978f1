"""Calibration images, and the clipping ranges that are chosen from them."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from qlib.core.histogram import Histogram
from qlib.core.records import Event, Report, ignore
from qlib.core.scheme import BitPlan, Scheme
from qlib.network.model import QuantModel
from qlib.network.trace import removing
from qlib.observers.base import Observer
from qlib.quantizers.base import Quantizer
from qlib.quantizers.switchable import Switchable
from qlib.quantizers.uniform import Uniform


@dataclass
class Calibration:
    """Unlabelled images that a method may use, and how ranges are chosen from them.

    Args:
        images: (n, c, h, w), preprocessed, on the device of the model.
        generator: all randomness of a method comes from here.
        arithmetic: what layers multiply in while something is learned (see `qlib.network.points`).
    """

    images: Tensor
    generator: torch.Generator
    weight_observer: Observer
    act_observer: Observer
    batch: int = 64
    report: Report = ignore
    arithmetic: torch.dtype = torch.float32
    _histograms: dict[str, Histogram] = field(default_factory=dict)

    def attach(self, model: QuantModel, plan: BitPlan) -> None:
        """Give every tensor of the plan a nearest-rounding quantizer."""
        self.attach_weights(model, plan)
        self.attach_inputs(model, plan)

    def attach_weights(
        self, model: QuantModel, plan: BitPlan, *, bit_widths: Collection[int] = ()
    ) -> None:
        """Ranges from the weights themselves.

        ``bit_widths``: a grid for each of these bit-widths, save where the plan's bits are fixed.
        """
        for i, (name, layer) in enumerate(model.weighted().items()):
            scheme = plan.weights.get(name)
            layer.correction = None
            fit = lambda s, w=layer.weight: Uniform.fit(w, s, self.weight_observer)  # noqa: E731
            wanted = () if name in plan.fixed else bit_widths
            layer.weight_point.fill(_fitted(scheme, wanted, fit) if scheme else None)
            self.report(Event("calibrate", name, i + 1, len(model.layers), note="weights"))

    @torch.no_grad()
    def attach_inputs(
        self,
        model: QuantModel,
        plan: BitPlan,
        *,
        weights_quantized: bool = False,
        bit_widths: Collection[int] = (),
    ) -> None:
        """Ranges from streamed histograms of the float network's activations.

        ``weights_quantized``: of the network with quantized weights instead (BRECQ's stage two).
        ``bit_widths``: as in `attach_weights`.
        """
        seen = self.histograms(model, weights_quantized=weights_quantized)
        for name, point in model.points.items():
            scheme = plan.inputs.get(name)
            fit = lambda s, seen=seen[name]: self._range(seen, s)  # noqa: E731
            wanted = () if name.rpartition(".")[0] in plan.fixed else bit_widths
            point.quantizer = _fitted(scheme, wanted, fit) if scheme else None

    def _range(self, seen: Histogram, scheme: Scheme) -> Quantizer:
        values, counts = seen.values()
        lo, hi = self.act_observer.find_range(values, scheme, counts)
        device = self.images.device
        return Uniform.of_range(lo[0].to(device), hi[0].to(device), scheme)

    @torch.no_grad()
    def histograms(
        self, model: QuantModel, *, weights_quantized: bool = False
    ) -> dict[str, Histogram]:
        """One histogram for each activation point; float ones are made once and kept."""
        if not weights_quantized and self._histograms:
            return self._histograms
        histograms = {name: Histogram() for name in model.points}
        hooks = [
            point.register_forward_pre_hook(lambda m, args, h=histograms[name]: h.update(args[0]))
            for name, point in model.points.items()
        ]
        with removing(hooks), model.quantized(weights=weights_quantized, inputs=False):
            for start in range(0, len(self.images), self.batch):
                model(self.images[start : start + self.batch])
                self.report(Event("calibrate", "", start, len(self.images), note="activations"))
        if not weights_quantized:
            self._histograms = histograms
        return histograms


def _fitted(
    scheme: Scheme, bit_widths: Collection[int], fit: Callable[[Scheme], Quantizer]
) -> Quantizer:
    """One grid, or one for each of some bit-widths."""
    if not bit_widths:
        return fit(scheme)
    return Switchable({bits: fit(replace(scheme, bits=bits)) for bits in bit_widths})
