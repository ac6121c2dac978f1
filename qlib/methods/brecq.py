"""Learn the rounding of a whole block at once, then its activation steps.  arXiv 2102.05426"""

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
class Brecq(Method):
    """Stage one: rounding, activations in float. Stage two: activation steps, rounding hard.

    The published scripts use ``error="mse"``; ``"fisher"`` is the paper's Gauss–Newton weighting,
    with the diagonal of the true Fisher matrix scaled to mean 1 so that λ keeps its meaning.
    """

    title = "BRECQ"
    paper = "Li et al., ICLR 2021, arXiv 2102.05426"
    promise = "Learns the rounding of a whole block together, then the activation step sizes."
    cost = "minutes"
    paper_placement = "boundary"
    paper_settings = {  # noqa: RUF012 (read only)
        "steps": 20_000, "rate": 1e-3, "act_steps": 5_000, "act_rate": 4e-4, "penalty": 0.01,
    }  # fmt: skip

    steps: int = param(1_000, "Steps for the rounding of each block.", low=0, high=100_000)
    rate: float = param(1e-2, "Learning rate of the rounding variables.", low=0.0, high=1.0)
    act_steps: int = param(250, "Steps for each block's activation scales.", low=0, high=100_000)
    act_rate: float = param(4e-4, "Learning rate of the activation scales.", low=0.0, high=1.0)
    penalty: float = param(0.01, "Weight λ of the term that makes rounding hard.", low=0.0)
    error: str = param("mse", "How an output error is weighed.", choices=("mse", "fisher"))
    batch: int = param(32, "Images for each step.", low=1, high=1024)

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        from qlib.quantizers.soft_round import SoftRound
        from qlib.reconstruct import Rate, reconstruct

        data.attach_weights(model, plan)
        for unit in data.walk(model, weights=True, inputs=False):
            for layer in unit.weighted:
                nearest = layer.weight_point.quantizer
                if nearest is not None:
                    layer.weight_point.fill(SoftRound.around(nearest, layer.weight))
            importance = None
            if self.error == "fisher":
                importance = data.output_gradients(model, unit).square_()
                importance /= importance.mean().clamp(min=1e-30)
            reconstruct(
                unit,
                learn={"rounding": Rate(self.rate)},
                steps=self.steps,
                batch=self.batch,
                importance=importance,
                penalty=self.penalty,
                generator=data.generator,
                report=report,
            )
        data.attach_inputs(model, plan, weights_quantized=True)
        for unit in data.walk(model, weights=True, inputs=True):
            reconstruct(
                unit,
                learn={"scale": Rate(self.act_rate, cosine=True)},
                steps=self.act_steps,
                batch=self.batch,
                power=2.4,
                generator=data.generator,
                report=report,
            )
