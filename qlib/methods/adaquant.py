"""Learn a shift of every weight, the bias and both grids, layer by layer.  arXiv 2006.10518"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlib._params import param
from qlib.methods._base import Method

if TYPE_CHECKING:
    from qlib.calibration import Calibration, Unit
    from qlib.model import QuantModel
    from qlib.records import Report
    from qlib.scheme import BitPlan


@dataclass(frozen=True)
class AdaQuant(Method):
    """min over V, b', s, z of ‖f(WX + b) − f(Q(W + V)·Q(X) + b')‖², one layer after the other.

    f is the activation function that follows. ``inputs="sequential"``: X on the quantized side
    comes from the quantized layers before, for every image; ``"parallel"``: layers know nothing of
    each other and see float inputs. Rates of grids and shifts are relative, a shift being counted
    in steps: the published ones are absolute (weights 1e-5, biases 1e-3, weight ranges 1e-3,
    activation ranges 1e-1), so that only what keeps its meaning is among the paper's settings.
    The paper's batch-norm and bias tuning can follow any method: see `qlib.tuning`.
    """

    title = "AdaQuant"
    paper = "Hubara et al., ICML 2021, arXiv 2006.10518"
    promise = "Learns a small change of each weight, the biases and both grids, layer by layer."
    cost = "minutes"
    paper_settings = {"steps": 1_000, "batch": 50, "bias_rate": 1e-3}  # noqa: RUF012 (read only)

    steps: int = param(500, "Optimisation steps for each layer.", low=0, high=100_000)
    inputs: str = param(
        "sequential",
        "A layer is fitted on inputs from the quantized layers before it, or on float inputs.",
        choices=("sequential", "parallel"),
    )
    rate: float = param(1e-2, "Learning rate of the weight shifts, in steps.", low=0.0, high=1.0)
    bias_rate: float = param(1e-3, "Learning rate of the biases.", low=0.0, high=1.0)
    step_rate: float = param(1e-3, "Learning rate of weight scales, relative.", low=0.0, high=1.0)
    act_rate: float = param(1e-3, "Learning rate of input scales, relative.", low=0.0, high=1.0)
    zero_rate: float = param(1e-2, "Learning rate of the zero-points, in steps.", low=0.0, high=1.0)
    batch: int = param(32, "Images for each step.", low=1, high=1024)

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        from qlib.reconstruct import Rate, reconstruct

        data.attach(model, plan)
        rates = {"shift": self.rate, "bias": self.bias_rate, "step": self.step_rate,
                 "scale": self.act_rate, "zero": self.zero_rate}  # fmt: skip
        for unit in data.walk(model, by="layer", weights=True, inputs=True):
            _free(unit)
            reconstruct(
                unit,
                learn={role: Rate(rate, cosine=True) for role, rate in rates.items()},
                inputs=(lambda at: unit.float_inputs[at]) if self.inputs == "parallel" else None,  # noqa: B023
                steps=self.steps,
                batch=self.batch,
                generator=data.generator,
                report=report,
            )


def _free(unit: "Unit") -> None:
    """Let the unit's weights, grids and biases move; they start where nearest has them."""
    from qlib.quantizers.shifted import Shifted

    unit.replace_weights(Shifted.around)
    for point in unit.points():
        point.quantizer = Shifted.around(point.quantizer) if point.quantizer else None
    for layer in unit.weighted:
        if layer.weight_point.quantizer is not None:
            layer.correct_bias()
