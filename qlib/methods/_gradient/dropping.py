"""Activation quantization that is dropped at random while a unit is learned (QDrop, 2203.05740)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qlib.learning.calibration import Unit


@contextmanager
def dropping(
    unit: "Unit", quant_prob: float, generator: "torch.Generator"
) -> "Iterator[Callable[[Tensor], Tensor]]":
    """Make the unit's activation points drop; yields indices → mixed unit input.

    Where the unit's input is quantized as one tensor (its boundary), that and the mixing are one
    draw: an element is either quantized and from the quantized network, or float.
    """
    from qlib.core import functional

    masks = functional.KeepMask(quant_prob, generator)
    entry = None if unit.boundary is None else unit.boundary.quantizer

    def mixed(at: "Tensor") -> "Tensor":
        mask = masks.rows(unit.inputs, len(at))
        if entry is not None:
            return entry.partly_rows(unit.inputs, unit.float_inputs, at, mask)
        return functional.mixed_rows(unit.inputs, unit.float_inputs, at, mask)

    inner = [p.quantizer for p in unit.points() if p.quantizer and p is not unit.boundary]
    if unit.boundary is not None:
        unit.boundary.on = False
    for quantizer in inner:
        quantizer.forward = lambda x, q=quantizer: q.partly(x, masks.like(x))
    try:
        yield mixed
    finally:
        for quantizer in inner:
            del quantizer.forward
        if unit.boundary is not None:
            unit.boundary.on = True
