"""Search each layer's two scales in turns for the output most like the float one. 2006.16669."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlib.core.catalogue import Look
from qlib.core.params import param
from qlib.methods.base import Method

if TYPE_CHECKING:
    from qlib.core.records import Report
    from qlib.core.scheme import BitPlan
    from qlib.learning.calibration import Calibration
    from qlib.network.model import QuantModel


@dataclass(frozen=True)
class EasyQuant(Method):
    """Scales of weights and inputs, and of both operands of attention products.

    Candidates are multiples of the scales that the observers chose, which are among them: on the
    sampled rows a search for least squares never ends worse than it began. Output channels with
    scales of their own are judged on their own. Unlike the paper, every layer is searched on what
    it reads in the float network (as in PTQ4ViT's baseline), so that one pass shows all rows. A
    boundary that several layers read keeps its range; zero-points stay too.
    """

    title = "EasyQuant"
    paper = "Wu et al., 2020, arXiv 2006.16669"
    promise = "Tries scales of weight and input in turns; keeps what leaves the output most alike."
    cost = "seconds"
    look = Look("ochre", "dot", "triangle-left")
    paper_settings = {  # noqa: RUF012 (read only)
        "error": "cosine", "low": 0.5, "high": 2.0, "candidates": 100,
    }  # fmt: skip

    error: str = param(
        "mse",
        "What a layer's output is judged by: squared error, or as published the cosine, which "
        "does not see an output that is too small or too large throughout.",
        choices=("mse", "cosine"),
    )
    low: float = param(0.5, "Smallest multiple of the first scale.", low=0.01, high=1.0)
    high: float = param(1.2, "Largest multiple of the first scale.", low=1.0, high=4.0)
    candidates: int = param(100, "Scales between these two.", low=2, high=1000)
    rounds: int = param(2, "How often both operands take their turn at most.", low=1, high=10)
    rows: int = param(1024, "Rows of each layer that the search looks at.", low=16, high=2048)

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        from qlib.core.records import Event
        from qlib.methods._search.layer_samples import each, products
        from qlib.methods._search.scales import Sides, Stretched, alternate, operands, put, spread

        data.attach(model, plan)
        for i, name, product in each(model, products(model, data, self.rows)):
            factors = spread(self.low, self.high, self.candidates, product.x)
            left, right = (q and Stretched(q, factors) for q in operands(model, name))
            sides = Sides.of(model, name, product, left, right)
            put(model, name, *alternate(sides, self.error, self.rounds))
            report(Event("calibrate", name, i + 1, len(model.layers), note="scales"))
