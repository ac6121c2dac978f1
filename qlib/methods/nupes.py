"""Learn the codes of a power-function grid and its exponents, block by block.  arXiv 2308.05600"""

from dataclasses import dataclass

from qlib.core.catalogue import Look
from qlib.core.params import param
from qlib.methods._gradient.design import Design
from qlib.methods._gradient.method import GradientMethod


@dataclass(frozen=True)
class Nupes(GradientMethod):
    """Learns codes and exponents of power-function grids, block by block.

    ::

        give every tensor a power-function grid with a searched exponent a (see PowerQuant)
        for each block in order of execution:
            v ← the weights' places on their grids, in steps, before rounding
            repeat for ``steps``:
                x̂, y ← a batch of inputs behind quantized blocks, and its float outputs
                v, a, activation ranges ← Adam step on ‖y − block(x̂)‖² with
                    ŵ = sign(k)·m·(|k|/K)^(1/a), k = ⌊v⌉, straight through the rounding
            keep the codes ⌊v⌉

    The paper's text is not public beyond its abstract: the codes' parametrisation and the rates
    here are this project's reading of it. Rounding is hard from the first step, so there is no
    rounding penalty; exponents move slowly and stay between 0.25 and 1.25.
    """

    title = "NUPES"
    paper = "Yvinec et al., TPAMI 2025, arXiv 2308.05600"
    promise = "Learns weight codes over the whole of a power-function grid, and its exponents."
    cost = "minutes"
    learns = True
    look = Look("violet", "solid", "x")
    paper_placement = "inputs"

    steps: int = param(500, "Optimisation steps for each block.", low=0, high=100_000)
    by: str = param(
        "weights",
        "What the exponents make small at the start: the error of weights or of outputs.",
        choices=("weights", "outputs"),
    )
    lr: float = param(1e-2, "Learning rate of the codes, in steps.", low=0.0, high=1.0)
    exponent_lr: float = param(1e-4, "Learning rate of the exponents.", low=0.0, high=1.0)
    act_scale_lr: float = param(1e-3, "Learning rate of input ranges, relative.", low=0.0, high=1.0)
    batch: int = param(32, "Images for each step.", low=1, high=1024)

    def rounding_design(self) -> Design:
        return Design(
            learn="power",
            exponents=self.by,
            unit="block",
            inputs="quantized",
            penalty=0.0,
            steps=self.steps,
            schedule="cosine",
            lr=self.lr,
            exponent_lr=self.exponent_lr,
            act_scale_lr=self.act_scale_lr,
            batch=self.batch,
        )
