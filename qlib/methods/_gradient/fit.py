"""Fits a network as a design says: every gradient-based method goes through here."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from qlib.core.functional import KeepMask, mixed_rows, take
from qlib.core.records import Report
from qlib.core.scheme import BitPlan
from qlib.learning import reconstruct as loop
from qlib.learning.calibration import Calibration, Unit
from qlib.methods._gradient.design import Design
from qlib.methods._gradient.dropping import dropping
from qlib.methods._gradient.losses import measured
from qlib.methods._gradient.selection import held
from qlib.network.model import QuantModel
from qlib.quantizers.flex_round import FlexRound
from qlib.quantizers.free_power import FreePower
from qlib.quantizers.free_round import FreeRound
from qlib.quantizers.shifted import Shifted
from qlib.quantizers.soft_round import SoftRound

MAKERS = {
    "up-or-down": lambda design: SoftRound.from_nearest,
    "window": lambda design: lambda q, w: FreeRound.from_nearest(q, w, design.window),
    "free": lambda design: FreeRound.from_nearest,
    "shift": lambda design: Shifted.from_nearest,
    "divisors": lambda design: FlexRound.from_nearest,
}


def fit(
    design: Design, model: QuantModel, plan: BitPlan, data: Calibration, report: Report
) -> None:
    """Ranges for every tensor of the plan; then unit after unit is learned and made hard.

    Raises:
        InvalidSpec: the network cannot be cut into the units asked for, or a loss was not finite.
    """
    data.attach(model, plan)
    bent = design.learn == "power"
    exponents = _power_grids(design, model, plan, data, report) if bent else {}
    for unit in data.iter_units(model, by=design.unit, weights=True, inputs=design.quantize_acts):
        still = held(design, unit, data)
        _free(unit, design, exponents)
        for layer, mask in zip(unit.weighted, still, strict=True):
            if mask is not None:
                layer.weight_point.quantizer.freeze(mask, layer.weight)
        with _feeding(design, unit, data) as inputs:
            loop.reconstruct(
                unit,
                learn=_rates(design),
                steps=design.steps,
                batch=design.batch,
                penalty=design.penalty,
                generator=data.generator,
                report=report,
                inputs=inputs,
                **_unusual(design, unit, data, inputs),
            )
        del unit, inputs  # nothing of it stays while the next one is prepared


def _rates(design: Design) -> dict[str, loop.Rate]:
    """The rate of each role; the weights' own has a schedule of its own."""
    weights = "shift" if design.learn == "shift" else "rounding"
    others = {
        "weight_scale": design.weight_scale_lr,
        "act_scale": design.act_scale_lr,
        "bias": design.bias_lr,
        "zero_point": design.zero_point_lr,
        "exponent": design.exponent_lr,
    }
    cooled = {role: loop.Rate(rate, cosine=True) for role, rate in others.items() if rate > 0}
    return {weights: loop.Rate(design.lr, cosine=design.schedule == "cosine"), **cooled}


def _unusual(
    design: Design, unit: Unit, data: Calibration, inputs: Callable[[Tensor], Tensor] | None
) -> dict[str, Any]:
    """What the loop is told beyond its defaults."""
    told = measured(design, unit, data, inputs)
    if design.beta_schedule == "cosine":
        told["beta_schedule"] = loop.BetaSchedule(cosine=True)
    if design.early_stop_undecided:
        told["early_stop_undecided"] = design.early_stop_undecided
    if design.optimizer != "adam":
        told["optimizer"] = design.optimizer
    return told


def _free(unit: Unit, design: Design, exponents: Mapping[str, nn.Parameter]) -> None:
    """Let what is learned move, from where nearest has it."""
    if design.learn == "power":
        _free_powers(unit, exponents)
    else:
        unit.replace_weights(MAKERS[design.learn](design))
    if design.learn == "shift":
        for point in unit.points():
            point.quantizer = Shifted.from_nearest(point.quantizer) if point.quantizer else None
    if design.bias_lr > 0 or design.learn == "shift":  # shifts move means, biases mend them
        for layer in unit.weighted:
            if layer.weight_point.quantizer is not None:
                layer.correct_bias()


def _power_grids(
    design: Design, model: QuantModel, plan: BitPlan, data: Calibration, report: Report
) -> dict[str, nn.Parameter]:
    """A bent grid for every tensor; a layer's own best exponent, or the best one for all."""
    from qlib.methods._search import exponents as _power

    best = _power.exponents(model, plan, data, report, by=design.exponents, share="layer", norm=2.0)
    return _power.attach(model, plan, data, best)


def _free_powers(unit: Unit, exponents: Mapping[str, nn.Parameter]) -> None:
    """Codes, ranges and exponents may move; values stay what they were."""
    for name, layer in unit.layers.items():
        if layer in unit.weighted and layer.weight_point.quantizer is not None:
            fitted = layer.weight_point.quantizer
            layer.weight_point.fill(FreePower.from_nearest(fitted, layer.weight, exponents[name]))
    for point in unit.points():
        if point.quantizer is not None:
            point.quantizer.hold_reach()


@contextmanager
def _feeding(
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
