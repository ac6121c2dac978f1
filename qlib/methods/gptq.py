"""Round weights one after the other; the ones still free make up for it.  arXiv 2210.17323"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlib.core.catalogue import Look
from qlib.core.params import param
from qlib.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

    from qlib.core.records import Report
    from qlib.core.scheme import BitPlan
    from qlib.learning.calibration import Calibration
    from qlib.learning.units import Unit
    from qlib.network.model import QuantModel
    from qlib.quantizers.base import Quantizer


@dataclass(frozen=True)
class Gptq(Method):
    """One pass over the layers, no optimisation: each rounding error is spread over the weights
    that are still free so that Σ ‖(w − ŵ)x‖² grows least, x being the layer's quantized inputs.

    ``order``: "index" is GPTQ as published, "activation" takes the strongest input first (the
    authors' later option), "greedy" is OBQ (Frantar & Alistarh, NeurIPS 2022, arXiv 2208.11580),
    where every row rounds its cheapest weight next. An input that never moves is rounded to
    nearest. Convolutions count each group of channels as a matrix of its own.
    """

    title = "GPTQ"
    paper = "Frantar et al., ICLR 2023, arXiv 2210.17323"
    promise = "Rounds weights one by one in one pass; those still free make up for each error."
    cost = "seconds"
    look = Look("blue", "dash", "triangle-down")
    paper_settings = {  # noqa: RUF012 (read only)
        "damping": 0.01, "order": "index", "target": "quantized",
    }  # fmt: skip

    damping: float = param(
        0.01, "Share of the mean second moment added to each.", low=1e-6, high=1.0
    )
    order: str = param(
        "activation",
        "Which weight comes next: by index, strongest input first, or each row's cheapest "
        "(OBQ, slow on wide layers).",
        choices=("index", "activation", "greedy"),
    )

    target: str = param(
        "float",
        "What a layer shall reproduce: its float output, or as published what the float weight "
        "makes of the quantized inputs.",
        choices=("float", "quantized"),
    )

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        from qlib.core.records import Event
        from qlib.learning.walk import iter_units
        from qlib.quantizers.fixed_codes import FixedCodes

        data.attach(model, plan)
        for unit in iter_units(model, data, by="layer", weights=True, inputs=True):
            report(Event("calibrate", unit.title, unit.index, unit.of, note="one-shot rounding"))
            unit.replace_weights(
                lambda fitted, weight, unit=unit: FixedCodes.of(
                    fitted, self._codes(unit, fitted, weight)
                )
            )

    def _codes(self, unit: "Unit", fitted: "Quantizer", weight: "Tensor") -> "Tensor":
        from qlib.methods._search import obq

        hessian, cross = _moments(unit, against_float=self.target == "float")
        groups = len(hessian)
        levels = obq.Levels.of(fitted, weight, groups)
        rows = obq.as_rows(weight, groups).double()
        if cross is not None:
            rows = obq.matched(rows, cross, hessian, self.damping)
        rounding = {
            "index": obq.round_in_order,
            "activation": obq.round_strongest_first,
            "greedy": obq.round_cheapest_first,
        }[self.order]
        steps = rounding(rows, hessian, levels, self.damping).reshape(weight.shape)
        split = fitted.scheme.granularity.split(steps)
        return (split + fitted.zero_point).reshape(weight.shape)


def _moments(unit: "Unit", *, against_float: bool) -> "tuple[Tensor, Tensor | None]":
    """Σ x̂·x̂ᵀ over all images, and Σ x·x̂ᵀ with what the float network has in the same place."""
    from functools import partial

    import torch

    from qlib.methods._search.obq import product
    from qlib.methods._search.operands import operand

    (layer,) = unit.weighted
    run = partial(unit.model.partial.layer_output, unit.title)
    room = 2**24 // (unit.inputs[0].numel() * max(1, layer.weight[0, 0].numel()))
    at_once = max(1, min(64, room))  # unfolding makes images larger
    hessian = cross = torch.zeros((), dtype=torch.float64, device=unit.inputs.device)
    for start in range(0, len(unit.inputs), at_once):
        part = slice(start, start + at_once)
        x = operand(lambda part=part: run(unit.inputs[part]))
        hessian = hessian + product(x, x)
        if against_float:
            with unit.model.quantized(weights=False, inputs=False):
                there = operand(lambda part=part: run(unit.float_inputs[part]))
            cross = cross + product(there, x)
    return hessian, cross if against_float else None
