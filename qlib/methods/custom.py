"""Your own: each choice of a gradient-based method by itself.  Study: arXiv 2308.07662"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlib.methods._base import Method
from qlib.methods._design import Design

if TYPE_CHECKING:
    from qlib.calibration import Calibration
    from qlib.model import QuantModel
    from qlib.records import Report
    from qlib.scheme import BitPlan


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

    def design(self) -> Design:
        return self

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        from qlib.methods._fitting import fit

        fit(self, model, plan, data, report)
