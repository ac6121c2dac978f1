"""Several grids for one tensor, one of them in use: what a network with many bit-widths is made of.

It needs several fitted ones.
"""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Self

import torch
from torch import Tensor, nn

from qlib.core.scheme import Scheme
from qlib.quantizers.base import Learner, Quantizer


def _of_chosen(name: str) -> Any:
    """A property that the chosen quantizer answers."""
    return property(attrgetter(f"chosen.{name}"))


class Switchable(Quantizer):
    """A quantizer for each of some bit-widths; everything asked of it is answered by the chosen.

    Choosing touches no tensor. The lowest width is chosen at first.
    """

    title = "one grid for each bit-width"
    fits_alone = False
    scheme: Scheme = _of_chosen("scheme")
    scale: nn.Parameter = _of_chosen("scale")
    zero_point: Tensor = _of_chosen("zero_point")
    low: Tensor | float = _of_chosen("low")
    high: Tensor | float = _of_chosen("high")

    def __init__(self, grids: Mapping[int, Quantizer]) -> None:
        Learner.__init__(self)  # grid and scheme are the chosen width's
        self._of = {bits: grids[bits] for bits in sorted(grids)}
        self.members = nn.ModuleList(self._of.values())
        self.bits = min(self._of)

    @property
    def bit_widths(self) -> tuple[int, ...]:
        """The bit-widths there are, ascending."""
        return tuple(self._of)

    def set_bits(self, bits: int) -> Self:
        """Raises:
        KeyError: there is no grid of that width.
        """
        if bits not in self._of:
            raise KeyError(bits)
        self.bits = bits
        return self

    def at(self, bits: int) -> Quantizer:
        """The quantizer of one width."""
        return self._of[bits]

    @property
    def chosen(self) -> Quantizer:
        return self._of[self.bits]

    def forward(self, x: Tensor) -> Tensor:
        return self.chosen(x)

    def partly(self, x: Tensor, keep: Tensor | None) -> Tensor:
        return self.chosen.partly(x, keep)

    def partly_rows(self, x: Tensor, other: Tensor, at: Tensor, keep: Tensor | None) -> Tensor:
        return self.chosen.partly_rows(x, other, at, keep)

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        """The scales of all widths; those of a width that was not drawn get no gradient."""
        return {"act_scale": [q.scale for q in self._of.values()]}

    @torch.no_grad()
    def keep_positive(self) -> None:
        for q in self._of.values():
            q.keep_positive()
