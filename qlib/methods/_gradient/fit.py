"""Fits a network as a design says: every gradient-based method goes through here."""

from collections.abc import Mapping

from torch import nn

from qlib.core.records import Report
from qlib.core.scheme import BitPlan
from qlib.learning.calibration import Calibration
from qlib.learning.reconstruct import BetaSchedule, FitSettings, Rate, reconstruct
from qlib.learning.units import Unit
from qlib.learning.walk import iter_units
from qlib.methods._gradient.design import Design
from qlib.methods._gradient.feeding import feeding
from qlib.methods._gradient.losses import objective
from qlib.methods._gradient.selection import frozen_weights
from qlib.methods._search.exponents import power_grids
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer
from qlib.quantizers.flex_round import FlexRound
from qlib.quantizers.free_power import FreePower
from qlib.quantizers.free_round import FreeRound
from qlib.quantizers.power import Power
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
    exponents: Mapping[str, nn.Parameter] = {}
    if design.learn == "power":
        exponents = power_grids(model, plan, data, report, by=design.exponents)
    settings = _settings(design)
    for unit in iter_units(model, data, by=design.unit, weights=True, inputs=design.quantize_acts):
        frozen = frozen_weights(design, unit, data)  # asked of the fitted quantizers
        _free(unit, design, exponents)
        for layer, mask in zip(unit.weighted, frozen, strict=True):
            if mask is not None and (quantizer := layer.weight_point.quantizer) is not None:
                quantizer.freeze(mask, layer.weight)
        with feeding(design, unit, data) as inputs:
            reconstruct(
                unit,
                settings,
                generator=data.generator,
                report=report,
                objective=objective(design, unit, data, inputs),
            )
        del unit, inputs  # nothing of it stays while the next one is prepared


def _settings(design: Design) -> FitSettings:
    return FitSettings(
        learn=_rates(design),
        steps=design.steps,
        batch=design.batch,
        optimizer=design.optimizer,
        penalty=design.penalty,
        beta_schedule=BetaSchedule(cosine=design.beta_schedule == "cosine"),
        early_stop_undecided=design.early_stop_undecided,
    )


def _rates(design: Design) -> dict[str, Rate]:
    """The rate of each role; the weights' own has a schedule of its own."""
    weights = "shift" if design.learn == "shift" else "rounding"
    others = {
        "weight_scale": design.weight_scale_lr,
        "act_scale": design.act_scale_lr,
        "bias": design.bias_lr,
        "zero_point": design.zero_point_lr,
        "exponent": design.exponent_lr,
    }
    cooled = {role: Rate(rate, cosine=True) for role, rate in others.items() if rate > 0}
    return {weights: Rate(design.lr, cosine=design.schedule == "cosine"), **cooled}


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


def _free_powers(unit: Unit, exponents: Mapping[str, nn.Parameter]) -> None:
    """Codes, ranges and exponents may move; values stay what they were."""
    for name, layer in unit.layers.items():
        if isinstance(layer, QuantLayer) and isinstance(layer.weight_point.quantizer, Power):
            fitted = layer.weight_point.quantizer
            layer.weight_point.fill(FreePower.from_nearest(fitted, layer.weight, exponents[name]))
    for point in unit.points():
        if isinstance(point.quantizer, Power):
            point.quantizer.hold_reach()
