"""Two ranges after softmax and GELU; scales searched by what errors cost.  arXiv 2111.12293"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlib.core.catalogue import Look
from qlib.core.params import param
from qlib.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

    from qlib.core.records import Report
    from qlib.core.scheme import BitPlan
    from qlib.learning.calibration import Calibration
    from qlib.methods._search.products import Product
    from qlib.methods._search.scales import Grid
    from qlib.network.model import QuantModel
    from qlib.quantizers.base import Quantizer


@dataclass(frozen=True)
class Ptq4Vit(Method):
    """Twin uniform quantizers and a scale search weighted by the diagonal Fisher matrix.

    Errors of a layer's output weigh the squared gradient of the cross-entropy to a label drawn
    from the network's own prediction. (The authors' loss compares the float network with itself,
    so that its gradient is round-off; here it is that of the paper's formula.) Where all gradients
    vanish, errors weigh the same. One of the twin ranges is selected (adding both as the authors'
    code does is an option), and both steps differ by a power of two. Grids are otherwise those of
    the specification: channels with scales of their own keep them, where the paper has one for each
    layer (three in qkv) and one for each head.
    """

    title = "PTQ4ViT"
    paper = "Yuan et al., ECCV 2022, arXiv 2111.12293"
    promise = "Gives softmax and GELU two ranges each; weighs errors by what they cost the answer."
    cost = "minutes"
    look = Look("magenta", "dashdot", "bowtie")
    paper_settings = {  # noqa: RUF012 (read only)
        "error": "fisher", "low": 0.01, "high": 1.2, "candidates": 100, "rounds": 3,
    }  # fmt: skip

    error: str = param(
        "fisher",
        "What squared errors of outputs weigh: by the Fisher diagonal, or all the same.",
        choices=("fisher", "mse"),
    )
    twins: bool = param(True, "Two ranges after softmax and after GELU.")
    form: str = param(
        "select",
        "How the ranges after softmax become one value: one is selected, or as in the published "
        "code both are added, which bends all values, zero among them.",
        choices=("select", "sum"),
    )
    low: float = param(0.5, "Smallest multiple of the first scale.", low=0.01, high=1.0)
    high: float = param(1.2, "Largest multiple of the first scale.", low=1.0, high=4.0)
    candidates: int = param(100, "Scales between these two.", low=2, high=1000)
    rounds: int = param(2, "How often both operands take their turn at most.", low=1, high=10)
    rows: int = param(512, "Rows of each layer that the search looks at.", low=16, high=2048)

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        from qlib.core.records import Event
        from qlib.methods._search.consumers import GELUS, SOFTMAX, readers
        from qlib.methods._search.layer_samples import each, products
        from qlib.methods._search.scales import Sides, Stretched, alternate, operands, put, spread

        data.attach(model, plan)
        found = products(model, data, self.rows, gradients=self.error == "fisher")
        highs = {
            name: data.histograms(model)[f"{name}.input"].hi
            for name in readers(model, data.images[:2], GELUS)
            if f"{name}.input" in model.points
        }
        probable = readers(model, data.images[:2], SOFTMAX)
        for i, name, product in each(model, found):
            if product.importance is not None and not product.importance.any():
                product.importance = None
            factors = spread(self.low, self.high, self.candidates, product.x)
            left, right = operands(model, name)
            twin = None
            if left is not None and self.twins:
                twin = self._twin(product, left, factors, highs.get(name, 0.0), name in probable)
            sides = Sides.of(
                model, name, product,
                twin or (left and Stretched(left, factors)), right and Stretched(right, factors),
            )  # fmt: skip
            put(model, name, *alternate(sides, "mse", self.rounds))
            report(Event("calibrate", name, i + 1, len(model.layers), note="scales"))

    def _twin(
        self, product: "Product", left: "Quantizer", factors: "Tensor", high: float, probable: bool
    ) -> "Grid | None":
        """Candidates with two ranges where the left operand is made for them, else None."""
        from qlib.methods._search.twins import Halves, Splits

        if high > 0:
            return Halves(high, left.scheme, factors)
        return Splits(product.x, left.scheme, self.form == "sum") if probable else None
