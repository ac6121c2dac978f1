"""Learn a factor that divides each weight before it is rounded.  Paper: arXiv 2306.00317"""

from dataclasses import dataclass

from qlib.core.catalogue import Look
from qlib.core.params import param
from qlib.methods._gradient.design import Design
from qlib.methods._gradient.method import GradientMethod


@dataclass(frozen=True)
class FlexRound(GradientMethod):
    """Learns a divisor for each weight before it is rounded, block by block.

    ŵ = s·⌊w/(s·S)⌉. The paper's "Q + FlexRound": activations are dropped as in QDrop, and there is
    no rounding penalty because rounding is hard from the first step. ``quant_prob=1`` leaves the
    dropping out.

    ::

        choose clipping ranges
        for each block in order of execution:
            S ← 1 for each weight, output channel and input channel (S is their product)
            repeat for ``steps``:
                mixture, y ← a batch of inputs with dropped elements (see QDrop), its float outputs
                S, s, activation scales ← Adam step on ‖y − block(mixture)‖²,
                    straight through the rounding: ∂ŵ/∂S = −w/S²
            keep the codes ⌊w/(s·S)⌉ and s
    """

    title = "FlexRound"
    paper = "Lee et al., ICML 2023, arXiv 2306.00317"
    promise = "Divides each weight by a learned factor before rounding: big weights move far."
    cost = "minutes"
    learns = True
    look = Look("violet", "dashdot", "hexagon")
    paper_placement = "boundary"
    paper_settings = {"steps": 5_000, "lr": 4e-4, "quant_prob": 0.5}  # noqa: RUF012 (read only)

    steps: int = param(500, "Optimisation steps for each block.", low=0, high=100_000)
    quant_prob: float = param(0.5, "Chance that an activation stays quantized.", low=0.0, high=1.0)
    lr: float = param(1e-2, "Learning rate of the factors.", low=0.0, high=1.0)
    weight_scale_lr: float = param(1e-4, "Learning rate of the weight scales.", low=0.0, high=1.0)
    act_scale_lr: float = param(4e-4, "Learning rate of the activation scales.", low=0.0, high=1.0)
    batch: int = param(32, "Images for each step.", low=1, high=1024)

    def rounding_design(self) -> Design:
        return Design(
            learn="divisors",
            unit="block",
            inputs="mixed",
            quant_prob=self.quant_prob,
            penalty=0.0,
            steps=self.steps,
            schedule="cosine",
            lr=self.lr,
            weight_scale_lr=self.weight_scale_lr,
            act_scale_lr=self.act_scale_lr,
            batch=self.batch,
        )
