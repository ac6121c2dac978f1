"""What the methods that learn by gradient descent share: a design, and one way to fit it."""

from abc import abstractmethod
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
class GradientMethod(Method):
    """A method that is a point of the design space: `rounding_design` says all that it does."""

    @abstractmethod
    def rounding_design(self) -> Design:
        """What is learned, where, on what and how, in one walk over the network."""

    def design(self) -> Design | None:
        return self.rounding_design()

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        from qlib.methods._gradient.fit import fit

        fit(self.rounding_design(), model, plan, data, report)
