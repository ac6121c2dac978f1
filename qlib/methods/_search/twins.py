"""Candidates of the two twin quantizers, for the search in `qlib.methods._search.scales`.

Paper: PTQ4ViT, Yuan et al., ECCV 2022, arXiv 2111.12293
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from qlib.core.scheme import Scheme
from qlib.methods._search.scales import WholeTensor
from qlib.quantizers.twin_sign import TwinSign
from qlib.quantizers.twin_unit import TwinUnit

SPLITS = 20  # places where the ranges of a probability may meet: 1, 1/2, … 2⁻¹⁹


@dataclass
class Splits:
    """Candidates for a post-softmax tensor: powers of two where small and large values may part.

    The search begins at the one that rounds ``x`` itself best.
    """

    x: Tensor
    scheme: Scheme
    summed: bool = False
    factors: Tensor = field(init=False)
    start: Tensor = field(init=False)
    stride: int = 1

    def __post_init__(self) -> None:
        self.factors = torch.arange(SPLITS, device=self.x.device, dtype=self.x.dtype)
        grids = [self.made(m[None]) for m in self.factors]
        gaps = torch.stack([(grid(self.x) - self.x).square().sum() for grid in grids])
        self.start = self.factors[gaps.argmin()][None]

    def tried(self, x: Tensor, factors: Tensor) -> Tensor:
        """``x`` on the grids of all candidates, (k, *x.shape)."""
        m = factors.reshape(-1, *(1,) * x.dim())
        return TwinUnit(m, self.scheme, summed=self.summed)(x[None])

    def made(self, factor: Tensor) -> TwinUnit:
        """The quantizer of one candidate."""
        return TwinUnit(factor[0], self.scheme, summed=self.summed)


@dataclass
class Halves(WholeTensor):
    """Candidates for a post-GELU tensor: multiples of the step that reaches its top, ``high``."""

    high: float
    scheme: Scheme
    factors: Tensor
    start: Tensor = field(init=False)
    stride: int = 4

    def _grid(self, factor: Tensor) -> TwinSign:
        step = self.high / (2 ** (self.scheme.bits - 1) - 0.5)
        return TwinSign.of_step(factor * step, self.scheme)
