"""What a unit is run on while it is learned: float inputs, quantized ones, or a random mixture."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from qlib.core.functional import KeepMask, mixed_rows, take
from qlib.learning.calibration import Calibration
from qlib.learning.units import Unit
from qlib.methods._gradient.design import Design
from qlib.methods._gradient.dropping import dropping


@contextmanager
def feeding(
    design: Design, unit: Unit, data: Calibration
) -> Iterator[Callable[[Tensor], Tensor] | None]:
    """Indices → the unit's input; None: from the quantized units before it."""
    if design.inputs == "quantized":
        yield None
    elif design.inputs == "float":
        yield lambda at: take(unit.float_inputs, at)
    elif design.quantize_acts:
        with dropping(unit, design.quant_prob, data.generator) as mixed:
            yield mixed
    else:  # nothing is quantized inside that could be dropped
        masks, pair = KeepMask(design.quant_prob, data.generator), (unit.inputs, unit.float_inputs)
        yield lambda at: mixed_rows(*pair, at, masks.rows(unit.inputs, len(at)))
