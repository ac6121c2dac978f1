"""Fixed noise before rounding moves values off the boundaries between levels.  2211.16056."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlib._params import param
from qlib.methods._base import Method

if TYPE_CHECKING:
    from torch import Tensor

    from qlib.calibration import Calibration
    from qlib.histogram import Histogram
    from qlib.model import QuantModel
    from qlib.quantizers._base import Quantizer
    from qlib.records import Report
    from qlib.scheme import BitPlan


@dataclass(frozen=True)
class NoisyQuant(Method):
    """Inputs of linear layers get one random number for each channel, drawn once and uniform.

    How far it reaches has least expected error over the histogram of the calibration images, in
    closed form (`qlib.noise`), clipping included; 0 is among the candidates, so that where noise
    only hurts there is none. The grids are those of the observers. (The authors' code draws from a
    normal distribution and tries reaches by the output's error; this is the paper's rule.)
    """

    title = "NoisyQuant"
    paper = "Liu et al., CVPR 2023, arXiv 2211.16056"
    promise = (
        "Adds fixed noise before rounding and takes it off behind, where that lowers the error."
    )
    cost = "seconds"
    paper_settings = {"reach": 2.0}  # noqa: RUF012 (read only)

    reach: float = param(2.0, "Largest reach of the noise, in steps.", low=0.0, high=4.0)
    candidates: int = param(200, "Reaches that are tried beside 0.", low=1, high=2000)

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        from qlib.records import Event

        data.attach(model, plan)
        linear = [n for n, m in model.weighted().items() if m.kind == "linear"]
        for i, name in enumerate(linear):
            point = model.points.get(f"{name}.input")
            if point is not None and point.quantizer is not None:
                seen = data.histograms(model)[f"{name}.input"]
                channels = model.layers[name].weight.shape[1]
                point.quantizer = self._noisy(point.quantizer, seen, channels, data)
            report(Event("calibrate", name, i + 1, len(linear), note="noise"))

    def _noisy(
        self, fitted: "Quantizer", seen: "Histogram", channels: int, data: "Calibration"
    ) -> "Quantizer":
        import torch

        from qlib.quantizers._noisy import Noisy

        device = data.generator.device
        draw = 2 * torch.rand(channels, generator=data.generator, device=device) - 1
        noise = self._reach(fitted, *seen.values()) * draw
        return Noisy(fitted.scale, fitted.zero_point, noise, fitted.scheme)

    def _reach(self, fitted: "Quantizer", values: "Tensor", counts: "Tensor") -> float:
        """The best reach for values and how much each of them weighs, (1, n)."""
        import numpy as np

        from qlib.noise import best_reach

        step = float(fitted.scale)
        half = step / 2  # levels are whole multiples of the step here, odd ones of a half there
        low, high = (float(end) * step + half for end in (fitted.low, fitted.high))
        tried = np.linspace(0, self.reach * step, self.candidates + 1)
        x = values[0].double().cpu().numpy() + half
        return best_reach(x, counts[0].cpu().numpy(), half, tried, low, high)
