"""Fixed noise on each input channel before rounding, and off again behind it.

Not in the catalogue of quantizers: it is made for the input of a linear layer.
Paper: NoisyQuant, Liu et al., CVPR 2023, arXiv 2211.16056
"""

from torch import Tensor

from qlib.functional import fake_quantize
from qlib.quantizers._base import Quantizer
from qlib.scheme import Scheme


class Noisy(Quantizer):
    """x̂ = Q(x + N) − N, one number N_c for each channel along the last axis, drawn once.

    Hardware takes N off in the bias (`denoising_bias`), which is the same: ŵ·(Q(x + N) − N) + b.
    Here it is taken off at once, so that the layer is right also while its weight is in float or
    its input is not rounded.
    """

    title = "nearest under fixed noise"
    mixed = True

    def __init__(self, scale: Tensor, zero_point: Tensor, noise: Tensor, scheme: Scheme) -> None:
        super().__init__(scale, zero_point, scheme)
        self.register_buffer("noise", noise.detach().clone())

    @property
    def grids(self) -> int:
        return self.noise.numel()

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x + self.noise, self.scale, self.low, self.high) - self.noise

    def nearest(self, x: Tensor) -> Tensor:
        return super().nearest(x + self.noise)

    def values(self, codes: Tensor) -> Tensor:
        return super().values(codes) - self.noise


def denoising_bias(rounded_weight: Tensor, bias: Tensor | None, noise: Tensor) -> Tensor:
    """b − ŵ·N for a weight (out, in). With the float weight an error (w − ŵ)·N would remain."""
    taken = rounded_weight @ noise
    return -taken if bias is None else bias - taken
