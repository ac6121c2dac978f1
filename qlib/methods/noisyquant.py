"""Fixed noise before rounding moves values off the boundaries between levels.  2211.16056."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlib.core.catalogue import Look
from qlib.core.params import param
from qlib.methods.base import Method, methods

if TYPE_CHECKING:
    from torch import Tensor

    from qlib.core.records import Report
    from qlib.core.scheme import BitPlan
    from qlib.learning.calibration import Calibration
    from qlib.methods._search.noise import Noise, Rows
    from qlib.methods._search.products import Product
    from qlib.network.model import QuantModel

BASES = {"observers": "nearest", "easyquant": "easyquant", "ptq4vit": "ptq4vit",
         "repq_vit": "repq_vit"}  # fmt: skip


@dataclass(frozen=True)
class NoisyQuant(Method):
    """Another method, and then inputs of linear layers get one random number for each channel.

    The numbers are drawn once and uniform; on a grid for each channel they are counted in that
    channel's steps, as they would be on the one grid that it is folded to. How far they reach has
    the least error of the input on sampled rows: expected over all draws, in closed form for the
    base's very levels and clipping, or tried with the draw. 0 is among the candidates, so that
    where noise only hurts there is none and the layer is the base's bit by bit.

    A convolution that cuts an image into patches (a patch embedding) is a linear layer on these
    and has a number for each place of a patch; other convolutions have none, since at a padded
    border no bias could take it off.
    """

    title = "NoisyQuant"
    paper = "Liu et al., CVPR 2023, arXiv 2211.16056"
    promise = (
        "Adds fixed noise before rounding and takes it off behind, where that lowers the error."
    )
    cost = "seconds"
    noisy = True
    look = Look("blue", "solid", "pentagon")
    paper_settings = {"search": "linear", "base": "ptq4vit"}  # noqa: RUF012 (read only)

    base: str = param(
        "observers",
        "What chooses the grids before noise is added: the observers of ranges, or another method "
        "with its own defaults.",
        choices=tuple(BASES),
    )
    search: str = param(
        "expectation",
        "How the reach is chosen: by its expected error, or by trying it with the numbers drawn.",
        choices=("expectation", "output", "linear"),
    )
    reach: float = param(1.5, "Largest reach of the noise, in steps.", low=0.0, high=4.0)
    candidates: int = param(150, "Reaches that are tried beside 0.", low=1, high=2000)
    gain: float = param(
        0.5,
        "Percent by which the error must fall, as expected, for a layer to get noise: less than "
        "that is as much chance as gain on a sample of rows.",
        low=0.0,
        high=100.0,
    )
    shift: bool = param(False, "Search one number for all channels beside the noise.")
    clip: bool = param(False, "Search the range again by the error of the layer's output.")
    integers: bool = param(False, "Round noise and the biases that take it off to 16 bits.")
    rows: int = param(512, "Rows of each layer that the search looks at.", low=16, high=65536)

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        methods()[BASES[self.base]]().apply(model, plan, data, report)
        self.add_noise(model, data, report)

    def add_noise(
        self, model: "QuantModel", data: "Calibration", report: "Report"
    ) -> "dict[str, Noise]":
        """What NoisyQuant does to a network that its base has quantized. Returns it by layer."""
        from qlib.core.records import Event
        from qlib.methods._search.layer_samples import products
        from qlib.methods._search.noise import noisy_layers

        names, chosen, changed = noisy_layers(model), {}, {}
        found = products(model, data, self.rows, names) if names else {}
        for i, name in enumerate(names):
            chosen[name], changed[name] = self._to_layer(model, name, found.pop(name), data)
            report(Event("calibrate", name, i + 1, len(names), note="noise"))
        if self.integers and any(chosen.values()):
            worst = max(changed, key=changed.__getitem__)
            model.notes.append(
                "Noise and the biases that take it off are 16-bit integers; their rounding adds at "
                f"most {changed[worst]:.1e} of the error that rounding the input makes ({worst})."
            )
        return chosen

    def _to_layer(
        self, model: "QuantModel", name: str, product: "Product", data: "Calibration"
    ) -> "tuple[Noise, float]":
        """Give one layer its noise; and what 16 bits cost, relative to rounding its input."""
        import torch

        from qlib.methods._search.noise import Noise, Rows, clipped, in_16_bits
        from qlib.methods._search.scales import spread
        from qlib.quantizers.noisy import Noisy, sixteen_bits

        layer, point = model.weighted()[name], model.points[f"{name}.input"]
        grid = point.quantizer
        if grid is None:  # nothing is rounded
            return Noise(), 0.0
        with torch.no_grad():
            q = layer.weight_point.quantizer
            w_hat = layer.weight if q is None else q(layer.weight)
            if self.clip:
                factors = spread(0.3, 1.2, 100, product.x)
                point.quantizer = grid = clipped(product, grid, w_hat, factors)
            draw = _uniform(product.x.shape[2], data)
            rows = Rows.of(product.x[0], grid)
            found = self._noise(rows, draw, product, w_hat)
            if not found or found.left > 1 - self.gain / 100:
                return Noise(), 0.0
            noise = rows.unit * (found.shift + found.reach * draw)
            if self.integers:
                noise = sixteen_bits(noise)
            point.quantizer = Noisy(grid, noise.reshape(layer.weight.shape[1:]))
            return found, in_16_bits(layer, w_hat, noise, rows) if self.integers else 0.0

    def _noise(self, rows: "Rows", draw: "Tensor", product: "Product", w_hat: "Tensor") -> "Noise":
        from qlib.methods._search.noise import by_expectation, by_output, by_trial

        if self.search == "output":
            return by_output(rows, product, w_hat, self.reach, self.candidates, shift=self.shift)
        if self.search == "linear":
            return by_trial(rows, draw, self.reach, self.candidates, shift=self.shift)
        return by_expectation(rows, self.reach, self.candidates, shift=self.shift)


def _uniform(n: int, data: "Calibration") -> "Tensor":
    """(n,) from −1 to 1."""
    import torch

    return 2 * torch.rand(n, generator=data.generator, device=data.generator.device) - 1
