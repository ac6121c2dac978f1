"""Activation quantization that is dropped at random while a unit is learned (QDrop, 2203.05740)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qlib.core.functional import KeepMask
    from qlib.learning.units import Unit
    from qlib.quantizers.base import Quantizer


@contextmanager
def dropping(
    unit: "Unit", quant_prob: float, generator: "torch.Generator"
) -> "Iterator[Callable[[Tensor], Tensor]]":
    """Make the unit's activation points drop; yields indices → mixed unit input.

    Where the unit's input is quantized as one tensor (its boundary), that and the mixing are one
    draw: an element is either quantized and from the quantized network, or float.
    """
    from qlib.core import functional
    from qlib.network.points import standing_in

    masks = functional.KeepMask(quant_prob, generator)
    entry = None if unit.boundary is None else unit.boundary.quantizer

    def mixed(at: "Tensor") -> "Tensor":
        mask = masks.rows(unit.inputs, len(at))
        if entry is not None:
            return entry.partly_rows(unit.inputs, unit.float_inputs, at, mask)
        return functional.mixed_rows(unit.inputs, unit.float_inputs, at, mask)

    work = {p: _partly(q, masks) for p in unit.points() if (q := p.quantizer) is not None}
    if unit.boundary is not None:
        work[unit.boundary] = lambda x: x  # what enters is quantized while it is mixed
    with standing_in(work):
        yield mixed


def _partly(quantizer: "Quantizer", masks: "KeepMask") -> "Callable[[Tensor], Tensor]":
    return lambda x: quantizer.partly(x, masks.like(x))
