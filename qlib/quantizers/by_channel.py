"""One scale and zero-point for each activation channel, at the cost of one grid (RepQ-ViT).

After a layer norm, channels differ much in range. Channel c on a grid of its own (s_c, z_c) has
the codes that x' = x/r_c + s·d_c has on one grid (s, z) for all, with r_c = s_c/s, d_c = z_c − z:
⌊x'/s⌉ + z = ⌊x/s_c⌉ + z_c. The norm before gives x' for nothing, the layer behind takes it back.
Here float tensors stay as they are. The quantizer of the activation holds r and d, that of the
weight rounds w·r, and `folded` is the network that would be deployed, with the same integers.
Paper: RepQ-ViT, Li et al., ICCV 2023, arXiv 2212.08254
"""

from torch import Tensor

from qlib.core.scheme import Scheme
from qlib.quantizers.base import Quantizer


class ByChannel(Quantizer):
    """x̂ = s_c·(clamp(⌊x/s_c⌉ + z_c) − z_c) along the last axis.

    With s_c = ``ratio``·s and z_c = z + ``offset``; ``scale`` and ``zero_point`` are those of the
    one grid (s, z), the means; z is whole.
    """

    title = "nearest on a grid for each channel"
    fits_alone = False
    mixed = True
    ratio: Tensor
    offset: Tensor

    def __init__(
        self, scale: Tensor, zero_point: Tensor, ratio: Tensor, offset: Tensor, scheme: Scheme
    ) -> None:
        super().__init__(scale, zero_point, scheme)
        self.register_buffer("ratio", ratio.detach().clone())
        self.register_buffer("offset", offset.detach().clone())

    @classmethod
    def of_grids(cls, scales: Tensor, zero_points: Tensor, scheme: Scheme) -> "ByChannel":
        """From a scale and a zero-point for each channel, (channels,)."""
        s, z = scales.mean(), zero_points.mean().round()
        return cls(s, z, scales / s, zero_points - z, scheme)

    @property
    def grids(self) -> int:
        return self.ratio.numel()

    def forward(self, x: Tensor) -> Tensor:
        step, zero = self.ratio * self.scale, self.offset + self.zero_point
        low, high = self.scheme.qmin - zero, self.scheme.qmax - zero
        return (x / step).round_().clamp_(low, high).mul_(step)

    def nearest(self, x: Tensor) -> Tensor:
        steps = (x / (self.ratio * self.scale)).round()
        return (steps + self.offset + self.zero_point).clamp(self.scheme.qmin, self.scheme.qmax)

    def values(self, codes: Tensor) -> Tensor:
        return (codes - self.offset - self.zero_point) * (self.ratio * self.scale)

    def learnable(self) -> dict[str, list]:
        return {}


def folded(
    norm: tuple[Tensor, Tensor], layer: tuple[Tensor, Tensor | None], grid: ByChannel
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Gain and offset of the norm, weight and bias of the layer behind, with ``grid`` folded in.

    γ' = γ/r, β' = β/r + s·d, w' = w·r, b' = b − w'·(s·d): the same outputs, and an activation that
    one grid (s, z) fits. With a rounded ŵ' in place of w' the bias must be folded with ŵ' too, else
    (w' − ŵ')·s·d remains as an error.
    """
    (gain, offset), (weight, bias) = norm, layer
    moved = grid.scale * grid.offset
    wide = weight * grid.ratio
    start = weight.new_zeros(len(weight)) if bias is None else bias
    return (gain / grid.ratio, offset / grid.ratio + moved), (wide, start - wide @ moved)
