"""Levels that are powers of two, or of √2: for probabilities, most of which are small.

It has no negative levels and one grid for the whole tensor.
Papers: FQ-ViT, Lin et al., IJCAI 2022, arXiv 2111.13824 (log2); RepQ-ViT, Li et al., ICCV 2023,
arXiv 2212.08254 (log√2)
"""

import torch
from torch import Tensor

from qlib.core.scheme import Scheme
from qlib.quantizers.base import Quantizer


class Logarithm(Quantizer):
    """x̂ = s·2^(−k/r), k = ⌊−r·log2(x/s)⌉ limited to 0 … 2^b − 2; 0 for 0 and what lies below.

    ``scale``: s, the largest level. ``per_octave``: r, 1 for log2 and 2 for log√2, whose levels
    are s·2^(−⌈k/2⌉)·(√2 where k is odd): a shift and one of two factors. Codes rise with the value,
    the lowest is 0. (RepQ-ViT's code keeps 2^b levels beside 0, one more than b bits can tell.)
    """

    title = "nearest on a logarithmic grid"
    fits_alone = False
    per_octave: Tensor

    def __init__(self, scale: Tensor, per_octave: Tensor, scheme: Scheme) -> None:
        super().__init__(scale, torch.full_like(scale, scheme.qmin), scheme)
        self.register_buffer("per_octave", per_octave.detach().clone())

    @classmethod
    def of_values(cls, x: Tensor, counts: Tensor, per_octave: int, scheme: Scheme) -> "Logarithm":
        """With the quantile 0.999, 0.9999, 0.99999 or 1 as s that has the least squared error.

        Args:
            x, counts: (1, n) values, not negative, and how much each of them weighs.
        """
        order = x[0].argsort()
        x, counts = x[0][order], counts[0][order].double()
        share = counts.cumsum(0) / counts.sum()
        quantiles = share.new_tensor([0.999, 0.9999, 0.99999, 2.0])
        at = torch.searchsorted(share, quantiles).clamp(max=len(x) - 1)
        r = x.new_tensor(float(per_octave))
        grids = [cls(s, r, scheme) for s in x[at].clamp(min=torch.finfo(x.dtype).tiny)]
        gaps = [((grid(x) - x).double().square() * counts).sum() for grid in grids]
        return grids[int(torch.stack(gaps).argmin())]

    def forward(self, x: Tensor) -> Tensor:
        return self.values(self.nearest(x))

    def nearest(self, x: Tensor) -> Tensor:
        k = (-self.per_octave * (x / self.scale).clamp(min=0).log2()).round()  # ∞ at 0
        return self.scheme.qmax - k.clamp(0, self.scheme.steps)

    def values(self, codes: Tensor) -> Tensor:
        k = self.scheme.qmax - codes
        return torch.where(
            k < self.scheme.steps, self.scale * torch.exp2(-k / self.per_octave), 0.0
        )

    def learnable(self) -> dict[str, list]:
        return {}
