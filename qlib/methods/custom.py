"""Your own: each choice of a gradient-based method by itself.  Study: arXiv 2308.07662"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlib.methods._gradient.design import Design
from qlib.methods.base import Method

if TYPE_CHECKING:
    from qlib.core.records import Report
    from qlib.core.scheme import BitPlan
    from qlib.learning.calibration import Calibration
    from qlib.network.model import QuantModel


@dataclass(frozen=True)
class Custom(Design, Method):
    """min over what is learned of Σ over images of error(unit(x), float unit(x)) + λ·penalty.

    The fields are the axes of `Design`. A named method is one point of that space: start from it
    and change one choice, and the difference in the result is that choice's.
    """

    title = "Your own"
    paper = "Study: Yvinec et al., 2023, arXiv 2308.07662"
    promise = "Starts from a named method; you change what is learned, where, on what, and how."
    cost = "minutes"
    open_design = True

    def design(self) -> Design:
        return self

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        from qlib.methods._gradient.fit import fit

        fit(self, model, plan, data, report)
