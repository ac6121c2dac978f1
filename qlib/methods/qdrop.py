"""Learn rounding while activation quantization is dropped at random.  Paper: arXiv 2203.05740"""

from dataclasses import dataclass

from qlib.core.catalogue import Ingredient, Look
from qlib.core.params import param
from qlib.methods._gradient.design import Design
from qlib.methods._gradient.method import GradientMethod


@dataclass(frozen=True)
class QDrop(GradientMethod):
    """Learns rounding and activation scales while activation quantization drops at random.

    ::

        choose clipping ranges
        for each block in order of execution:
            V ← where the soft weights are the float weights
            repeat for ``steps``:
                x̂, x, y ← a batch of its inputs behind quantized blocks, in float, its float outputs
                draw for every element at the block's input: x̂ with chance ``quant_prob``, else x
                draw for every activation inside: quantized with that chance, else in float
                V, activation scales ← Adam step on ‖y − block(mixture)‖² + λ·Σ(1 − |2h − 1|^β)
            V ← up where h(V) ≥ ½, else down; nothing drops any more
    """

    title = "QDrop"
    paper = "Wei et al., ICLR 2022, arXiv 2203.05740"
    promise = "Like BRECQ, but drops activation quantization at random: flatter, sturdier minima."
    cost = "minutes"
    learns = True
    look = Look("green", "solid", "triangle-up")
    ingredient = Ingredient(3, "random<br>dropping")
    paper_placement = "boundary"
    paper_settings = {  # noqa: RUF012 (read only)
        "steps": 20_000, "lr": 1e-3, "act_scale_lr": 4e-5, "penalty": 0.01, "quant_prob": 0.5,
    }  # fmt: skip

    steps: int = param(500, "Optimisation steps for each block.", low=0, high=100_000)
    quant_prob: float = param(0.5, "Chance that an activation stays quantized.", low=0.0, high=1.0)
    lr: float = param(1e-2, "Learning rate of the rounding variables.", low=0.0, high=1.0)
    act_scale_lr: float = param(4e-4, "Learning rate of the activation scales.", low=0.0, high=1.0)
    penalty: float = param(0.01, "Weight λ of the term that makes rounding hard.", low=0.0)
    batch: int = param(32, "Images for each step.", low=1, high=1024)

    def rounding_design(self) -> Design:
        return Design(
            learn="up-or-down",
            unit="block",
            inputs="mixed",
            quant_prob=self.quant_prob,
            penalty=self.penalty,
            steps=self.steps,
            lr=self.lr,
            act_scale_lr=self.act_scale_lr,
            batch=self.batch,
        )
