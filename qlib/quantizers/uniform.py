"""Round to the nearest level of a uniform grid; the step size can be learned.

Paper: Learned step size quantization, Esser et al., ICLR 2020, arXiv 1902.08153
"""

from torch import Tensor

from qlib.core import fused
from qlib.core.functional import fake_quantize
from qlib.quantizers.base import Quantizer


class Uniform(Quantizer):
    """x̂ = s·(clamp(⌊x/s⌉ + z) − z)."""

    title = "nearest"
    up_or_down = True

    def forward(self, x: Tensor) -> Tensor:
        return self.partly(x, None)

    def partly(self, x: Tensor, keep: Tensor | None) -> Tensor:
        split = self.scheme.granularity.split(x)
        return fake_quantize(split, self.scale, self.low, self.high, keep=keep).reshape(x.shape)

    def partly_rows(self, x: Tensor, other: Tensor, at: Tensor, keep: Tensor | None) -> Tensor:
        return fused.run(
            fused.MixedFakeQuantizeFn, x, other, at, self.scale, self.low, self.high, keep,
            plain=lambda: super(Uniform, self).partly_rows(x, other, at, keep),
        )  # fmt: skip
