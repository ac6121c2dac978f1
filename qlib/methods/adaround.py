"""Learn to round each weight up or down, layer by layer.  Paper: arXiv 2004.10568"""

from dataclasses import dataclass

from qlib.core.catalogue import Ingredient, Look
from qlib.core.params import param
from qlib.methods._gradient.design import Design
from qlib.methods._gradient.method import GradientMethod


@dataclass(frozen=True)
class AdaRound(GradientMethod):
    """min over V of ‖f(Wx) − f(Ŵ(V)x̂)‖² + λ·Σ(1 − |2h(V) − 1|^β), one layer after the other.

    f is the activation function that follows, x̂ comes from layers whose weights are already
    rounded, activations stay float while weights are learned.
    """

    title = "AdaRound"
    paper = "Nagel et al., ICML 2020, arXiv 2004.10568"
    promise = "Learns for each weight whether to round up or down, one layer at a time."
    cost = "minutes"
    learns = True
    look = Look("ochre", "dash", "diamond")
    ingredient = Ingredient(1, "learned,<br>layer by layer")
    paper_settings = {"steps": 10_000, "lr": 1e-3, "penalty": 0.01}  # noqa: RUF012 (read only)

    steps: int = param(1_000, "Optimisation steps for each layer.", low=0, high=100_000)
    lr: float = param(3e-3, "Learning rate of the rounding variables.", low=0.0, high=1.0)
    penalty: float = param(0.01, "Weight λ of the term that makes rounding hard.", low=0.0)
    batch: int = param(32, "Images for each step.", low=1, high=1024)

    def rounding_design(self) -> Design:
        return Design(
            learn="up-or-down",
            unit="layer",
            inputs="quantized",
            quantize_acts=False,
            beta_schedule="cosine",
            penalty=self.penalty,
            steps=self.steps,
            lr=self.lr,
            act_scale_lr=0.0,
            batch=self.batch,
        )
