"""Bend the grid by a power function; one exponent is searched without data.  arXiv 2301.09858"""

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
class PowerQuant(Method):
    """Weights and activations become sign(x)·|x|^a before they are rounded.

    Power functions are the only bends that keep products, so two tensors that are multiplied share
    a. The paper's search looks at weights alone (``by="weights"``): at few bits their error can
    fall while outputs get worse, as levels that are fine near zero are coarse where weights count
    most. ``by="outputs"`` compares each layer's output on a few calibration images instead.
    Ranges come from the observers on the bent axis: with min–max ones this is the paper, where m
    is the largest magnitude; activations get theirs from the calibration images, where the paper
    reads them off batch norms.
    """

    title = "PowerQuant"
    paper = "Yvinec et al., ICLR 2023, arXiv 2301.09858"
    promise = "Bends the grid by a power function: finer near zero, with products kept exact."
    cost = "seconds"
    look = Look("olive", "dot", "cross")
    paper_settings = {"by": "weights", "share": "network", "norm": 2.0}  # noqa: RUF012 (read only)

    by: str = param(
        "outputs",
        "What an exponent makes small: the error of outputs, or as published that of weights.",
        choices=("outputs", "weights"),
    )
    share: str = param(
        "layer",
        "Who shares one exponent: the whole network as published, or a layer with its input.",
        choices=("network", "layer"),
    )
    norm: float = param(
        2.0, "Order of the norm of the weights' error, where that is made small.", low=1.0, high=8.0
    )

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        from qlib.methods._search.exponents import power_grids

        data.attach(model, plan)
        power_grids(model, plan, data, report, by=self.by, share=self.share, norm=self.norm)
