"""Bend the grid by a power function; one exponent is searched without data.  arXiv 2301.09858"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlib._params import param
from qlib.methods._base import Method

if TYPE_CHECKING:
    from qlib.calibration import Calibration
    from qlib.model import QuantModel
    from qlib.records import Report
    from qlib.scheme import BitPlan


@dataclass(frozen=True)
class PowerQuant(Method):
    """Weights and activations become sign(x)·|x|^a before they are rounded.

    Power functions are the only bends that keep products, so two tensors that are multiplied share
    a. The search looks at weights alone. Ranges come from the observers on the bent axis: with
    min–max ones this is the paper, where m is the largest magnitude; activations get theirs from
    the calibration images, where the paper reads them off batch norms.
    """

    title = "PowerQuant"
    paper = "Yvinec et al., ICLR 2023, arXiv 2301.09858"
    promise = "Bends the grid by a power function: finer near zero, with products kept exact."
    cost = "seconds"
    paper_settings = {"share": "network", "norm": 2.0}  # noqa: RUF012 (read only)

    share: str = param(
        "network",
        "Who shares one exponent: the whole network as published, or a layer with its input.",
        choices=("network", "layer"),
    )
    norm: float = param(2.0, "Order of the norm of the weights' error.", low=1.0, high=8.0)

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        from qlib.methods._power import Family, attach, search

        data.attach(model, plan)
        best, common = search(model, plan, data, self.norm, report)

        def exponent(family: Family) -> float:
            own = [best[name] for name in family.weights if name in best]
            return own[0] if self.share == "layer" and len(own) == 1 else common

        attach(model, plan, data, exponent)
