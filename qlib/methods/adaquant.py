"""Learn a shift of every weight, the bias and both grids, layer by layer.  arXiv 2006.10518"""

from dataclasses import dataclass

from qlib.core.catalogue import Look
from qlib.core.params import param
from qlib.methods._gradient.design import Design
from qlib.methods._gradient.method import GradientMethod


@dataclass(frozen=True)
class AdaQuant(GradientMethod):
    """Learns shifts of the weights, both grids and the biases, layer by layer.

    min over V, b', s, z of ‖f(WX + b) − f(Q(W + V)·Q(X) + b')‖², f being the activation function
    that follows. ``inputs="sequential"``: X on the quantized side comes from the quantized layers
    before, for every image; ``"parallel"``: layers know nothing of each other and see float inputs.

    ::

        choose clipping ranges
        for each layer in order of execution:
            V ← 0, b' ← b
            repeat for ``steps``:
                x̂, y ← a batch of the layer's inputs, and its float outputs after f
                V, b', scales, zero-points ← Adam step on ‖y − f(Q(W + V)·Q(x̂) + b')‖²,
                    straight through every rounding
            round V and the zero-points for good

    Rates of grids and shifts are relative, a shift being counted in steps: the published ones are
    absolute (weights 1e-5, biases 1e-3, weight ranges 1e-3, activation ranges 1e-1), so that only
    what keeps its meaning is among the paper's settings. The paper's batch-norm and bias tuning
    can follow any method: see `qlib.learning.tuning`.
    """

    title = "AdaQuant"
    paper = "Hubara et al., ICML 2021, arXiv 2006.10518"
    promise = "Learns a small change of each weight, the biases and both grids, layer by layer."
    cost = "minutes"
    learns = True
    look = Look("olive", "longdashdot", "star-diamond")
    paper_settings = {"steps": 1_000, "batch": 50, "bias_lr": 1e-3}  # noqa: RUF012 (read only)

    steps: int = param(500, "Optimisation steps for each layer.", low=0, high=100_000)
    inputs: str = param(
        "sequential",
        "A layer is fitted on inputs from the quantized layers before it, or on float inputs.",
        choices=("sequential", "parallel"),
    )
    lr: float = param(1e-2, "Learning rate of the weight shifts, in steps.", low=0.0, high=1.0)
    bias_lr: float = param(1e-3, "Learning rate of the biases.", low=0.0, high=1.0)
    weight_scale_lr: float = param(
        1e-3, "Learning rate of weight scales, relative.", low=0.0, high=1.0
    )
    act_scale_lr: float = param(1e-3, "Learning rate of input scales, relative.", low=0.0, high=1.0)
    zero_point_lr: float = param(
        1e-2, "Learning rate of the zero-points, in steps.", low=0.0, high=1.0
    )
    batch: int = param(32, "Images for each step.", low=1, high=1024)

    def rounding_design(self) -> Design:
        return Design(
            learn="shift",
            unit="layer",
            inputs="float" if self.inputs == "parallel" else "quantized",
            penalty=0.0,
            steps=self.steps,
            schedule="cosine",
            lr=self.lr,
            bias_lr=self.bias_lr,
            weight_scale_lr=self.weight_scale_lr,
            act_scale_lr=self.act_scale_lr,
            zero_point_lr=self.zero_point_lr,
            batch=self.batch,
        )
