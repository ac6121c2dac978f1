"""Learn to round each weight up or down, layer by layer.  Paper: arXiv 2004.10568"""

from dataclasses import dataclass

from qlib.core.catalogue import Ingredient, Look
from qlib.core.params import param
from qlib.methods._gradient.design import Design
from qlib.methods._gradient.method import GradientMethod


@dataclass(frozen=True)
class AdaRound(GradientMethod):
    """Learns whether each weight rounds up or down, layer by layer.

    min over V of ‖f(Wx) − f(Ŵ(V)x̂)‖² + λ·Σ(1 − |2h(V) − 1|^β): f is the activation function that
    follows, x̂ comes from layers whose weights are already rounded, activations stay in float.

    ::

        choose clipping ranges; round every weight to nearest
        for each layer in order of execution:
            V ← where the soft weight ŵ = s·(⌊w/s⌋ + h(V)) is the float weight
            repeat for ``steps``:
                x̂, y ← a batch of the layer's inputs, and its float outputs after f
                V ← Adam step on ‖y − f(Ŵ(V)·x̂)‖² + λ·Σ(1 − |2h(V) − 1|^β)
                β ← falls by a cosine from 20 to 2, after a fifth of the steps
            V ← up where h(V) ≥ ½, else down
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
