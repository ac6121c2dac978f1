"""Learn the rounding of a whole block at once, and its activation steps.  arXiv 2102.05426"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlib.core.catalogue import Ingredient, Look
from qlib.core.params import param
from qlib.methods._gradient.design import Design
from qlib.methods._gradient.method import GradientMethod

if TYPE_CHECKING:
    from qlib.core.records import Report
    from qlib.core.scheme import BitPlan
    from qlib.learning.calibration import Calibration
    from qlib.network.model import QuantModel


@dataclass(frozen=True)
class Brecq(GradientMethod):
    """Learns the rounding of a block and the scales of its activations, block by block.

    ::

        choose clipping ranges
        for each block in order of execution:
            V ← where the soft weights are the float weights
            repeat for ``steps``:
                x̂, y ← a batch of the block's inputs behind quantized blocks, its float outputs
                V (and activation scales) ← Adam step on Σ F·(y − block(x̂))² + λ·Σ(1 − |2h − 1|^β)
            V ← up where h(V) ≥ ½, else down
        with ``acts="after"``: choose activation ranges anew, then for each block
            activation scales ← Adam steps on |y − block(x)|^2.4, x from the float network

    F is 1, as in the published scripts, or with ``error="fisher"`` the paper's Gauss–Newton
    weighting: the diagonal of the true Fisher matrix, of mean 1 so that λ keeps its meaning.
    ``acts="after"`` is the published procedure; ``"joint"`` learns both at once with activations
    quantized, as later re-measurements of BRECQ do (MQBench, QDrop): below 4 activation bits
    rounding has to know the noise that it will live with.
    """

    title = "BRECQ"
    paper = "Li et al., ICLR 2021, arXiv 2102.05426"
    promise = "Learns the rounding of a whole block together, and its activation step sizes."
    cost = "minutes"
    learns = True
    look = Look("magenta", "longdash", "square")
    ingredient = Ingredient(2, "whole blocks,<br>activation steps")
    paper_placement = "boundary"
    paper_settings = {  # noqa: RUF012 (read only)
        "steps": 20_000, "lr": 1e-3, "acts": "after", "act_steps": 5_000, "act_scale_lr": 4e-4,
        "penalty": 0.01,
    }  # fmt: skip

    steps: int = param(500, "Steps for the rounding of each block.", low=0, high=100_000)
    lr: float = param(1e-2, "Learning rate of the rounding variables.", low=0.0, high=1.0)
    acts: str = param(
        "joint",
        "Activation steps are learned together with rounding, or after it as published.",
        choices=("joint", "after"),
    )
    act_steps: int = param(
        125, "Steps for each block's activation scales, when they come after.", low=0, high=100_000
    )
    act_scale_lr: float = param(4e-4, "Learning rate of the activation scales.", low=0.0, high=1.0)
    penalty: float = param(0.01, "Weight λ of the term that makes rounding hard.", low=0.0)
    error: str = param("mse", "How an output error is weighed.", choices=("mse", "fisher"))
    batch: int = param(32, "Images for each step.", low=1, high=1024)

    def design(self) -> Design | None:
        """None as published: a second walk is no choice of the first."""
        return self.rounding_design() if self.acts == "joint" else None

    def rounding_design(self) -> Design:
        joint = self.acts == "joint"
        return Design(
            learn="up-or-down",
            unit="block",
            inputs="quantized",
            quantize_acts=joint,
            error=self.error,
            penalty=self.penalty,
            steps=self.steps,
            lr=self.lr,
            act_scale_lr=self.act_scale_lr if joint else 0.0,
            batch=self.batch,
        )

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        super().apply(model, plan, data, report)
        if self.acts == "after":
            self._learn_act_scales(model, plan, data, report)

    def _learn_act_scales(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        """The second walk: the rounded network, unit by unit on clean inputs as in the code."""
        from qlib.core.functional import take
        from qlib.learning.objective import OutputError
        from qlib.learning.reconstruct import FitSettings, Rate, reconstruct
        from qlib.learning.walk import iter_units

        data.attach_inputs(model, plan, weights_quantized=True)
        rates = {"act_scale": Rate(self.act_scale_lr, cosine=True)}
        settings = FitSettings(rates, steps=self.act_steps, batch=self.batch)
        for unit in iter_units(model, data, weights=True, inputs=True):
            clean = lambda at, unit=unit: take(unit.float_inputs, at)  # noqa: E731
            error = OutputError(unit, clean, power=2.4)
            reconstruct(unit, settings, generator=data.generator, report=report, objective=error)
