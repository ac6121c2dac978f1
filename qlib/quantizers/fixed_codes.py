"""Codes that an algorithm has worked out at once, such as one-shot rounding. Nothing to learn."""

import torch
from torch import Tensor, nn

from qlib.core.scheme import Scheme
from qlib.quantizers.base import Quantizer


class FixedCodes(Quantizer):
    """x̂ = s·(q − z) for codes q that are kept; until some are given, the nearest ones.

    Made for one weight tensor: what it is called with says the shape alone.
    """

    title = "codes worked out at once"
    chosen: Tensor | None

    def __init__(self, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> None:
        super().__init__(scale, zero_point, scheme)
        self.register_buffer("chosen", None)

    @classmethod
    def of(cls, fitted: Quantizer, codes: Tensor) -> "FixedCodes":
        """Whole codes, shaped like the weight, on the grid of a fitted quantizer."""
        made = cls(fitted.scale, fitted.zero_point, fitted.scheme)
        made.chosen = codes.detach().clone()
        return made

    def forward(self, x: Tensor) -> Tensor:
        return self.values(self.codes(x))

    def codes(self, x: Tensor) -> Tensor:
        chosen = self.chosen
        if chosen is None:
            with torch.no_grad():
                self.chosen = chosen = self.nearest(x)
        return chosen

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        return {}
