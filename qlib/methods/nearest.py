"""The baseline: choose the ranges, round to the nearest level, learn nothing."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlib.core.catalogue import Ingredient, Look
from qlib.methods.base import Method

if TYPE_CHECKING:
    from qlib.core.records import Report
    from qlib.core.scheme import BitPlan
    from qlib.learning.calibration import Calibration
    from qlib.network.model import QuantModel


@dataclass(frozen=True)
class Nearest(Method):
    """Round to nearest (RTN)."""

    title = "Nearest"
    paper = "Jacob et al., CVPR 2018, arXiv 1712.05877"
    promise = "Rounds every number to the nearest level. The baseline that others must beat."
    cost = "seconds"
    look = Look("grey", "dot", "circle")
    ingredient = Ingredient(0, "nearest rounding")

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        data.attach(model, plan)
