"""A grid a channel after layer norms at the price of one; log√2 after softmax: 2212.08254."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlib.core.catalogue import Look
from qlib.core.params import param
from qlib.methods.base import Method

if TYPE_CHECKING:
    from qlib.core.records import Report
    from qlib.core.scheme import BitPlan, Scheme
    from qlib.learning.calibration import Calibration
    from qlib.network.model import QuantModel


@dataclass(frozen=True)
class RepQVit(Method):
    """Linear layers that read a layer norm get a grid for each input channel.

    Folded into the norm and the layer (`qlib.quantizers.by_channel`) it is one grid with the same
    integer codes, so that hardware needs nothing new. The weights' columns change by the fold, so
    their ranges are found again. The bias is folded with the rounded weight, where the authors
    fold it with the float one and keep a small error. Probabilities get powers of √2; all other
    ranges come from the observers.
    """

    title = "RepQ-ViT"
    paper = "Li et al., ICCV 2023, arXiv 2212.08254"
    promise = "A range for each channel after layer norms, folded away; log-sqrt2 after softmax."
    cost = "seconds"
    look = Look("green", "longdash", "hourglass")
    paper_settings = {"channels": True, "softmax": "log-root-2"}  # noqa: RUF012 (read only)

    channels: bool = param(True, "A grid for each channel after layer norms.")
    softmax: str = param(
        "log-root-2",
        "Levels for probabilities: powers of the root of 2 as published, of 2, or evenly spaced.",
        choices=("log-root-2", "log2", "even"),
    )
    rows: int = param(2048, "Rows from which channels get their ranges.", low=16, high=65536)

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        data.attach(model, plan)
        if self.softmax != "even":
            self._logarithms(model, data, 2 if self.softmax == "log-root-2" else 1)
        if self.channels:
            self._by_channel(model, data, report)

    def _logarithms(self, model: "QuantModel", data: "Calibration", per_octave: int) -> None:
        from qlib.methods._search.consumers import SOFTMAX, readers
        from qlib.quantizers.logarithm import Logarithm

        for name in readers(model, data.images[:2], SOFTMAX):
            point = model.points.get(f"{name}.left")
            if point is not None and point.quantizer is not None:
                scheme, device = point.quantizer.scheme, data.images.device
                seen = data.histograms(model)[f"{name}.left"].values()
                values, counts = (t.to(device) for t in seen)
                point.quantizer = Logarithm.of_values(values, counts, per_octave, scheme)

    def _by_channel(self, model: "QuantModel", data: "Calibration", report: "Report") -> None:
        from qlib.core.functional import qparams
        from qlib.core.records import Event
        from qlib.methods._search.consumers import NORMS, of_channels, readers
        from qlib.quantizers.by_channel import ByChannel
        from qlib.quantizers.columns import Columns
        from qlib.quantizers.uniform import Uniform

        linear = {n: layer for n, layer in model.weighted().items() if layer.kind == "linear"}
        found = readers(model, data.images[:2], NORMS, cut=True)
        schemes = {n: scheme for n in found if n in linear and (scheme := _own_scheme(model, n))}
        seen = of_channels(model, data, [*schemes], self.rows)
        for i, (name, scheme) in enumerate(schemes.items()):
            layer, point, (values, counts) = linear[name], model.points[f"{name}.input"], seen[name]
            lo, hi = data.act_observer.find_range(values, scheme, counts)
            grid = ByChannel.of_grids(*qparams(lo, hi, scheme), scheme)
            point.quantizer, old = grid, layer.weight_point.quantizer
            if old is not None:
                wide = Uniform.fit(layer.weight * grid.ratio, old.scheme, data.weight_observer)
                layer.weight_point.fill(Columns(wide, grid.ratio))
            report(Event("calibrate", name, i + 1, len(schemes), note="channels"))


def _own_scheme(model: "QuantModel", name: str) -> "Scheme | None":
    """The scheme of a layer's own rounded input, if it has one."""
    point = model.points.get(f"{name}.input")
    return None if point is None or point.quantizer is None else point.quantizer.scheme
