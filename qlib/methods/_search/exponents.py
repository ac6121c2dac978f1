"""Exponents of power-function grids: who must share one, which is best, and putting them in."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from qlib.core.histogram import Histogram
from qlib.core.records import Event, Report
from qlib.core.scheme import BitPlan, Scheme
from qlib.learning.calibration import Calibration
from qlib.learning.units import Unit
from qlib.learning.walk import iter_units
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer
from qlib.quantizers.power import EXPONENTS, Power

STEP = 0.1  # of the first look; a second one goes by hundredths
ENOUGH = 2**18  # weights of a layer that the search looks at
IMAGES = 32  # images on which outputs are compared
TRIED = tuple(round(0.5 + STEP * i, 2) for i in range(8))  # … with these: errors are flat


@dataclass(frozen=True)
class Family:
    """Tensors that meet in products, so that they share one exponent.

    A layer's weight and its input; a block's boundary and every layer that reads it; the two
    operands of an attention product, which have no weight.
    """

    unit: str
    weights: list[str] = field(default_factory=list)  # layers
    points: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The name of its first tensor."""
        return [*self.points, *self.weights][0]


def power_grids(
    model: QuantModel,
    plan: BitPlan,
    data: Calibration,
    report: Report,
    *,
    by: str,
    share: str = "layer",
    norm: float = 2.0,
) -> dict[str, nn.Parameter]:
    """Search exponents, and give every tensor of the plan a power quantizer with its own.

    Args:
        by: "weights": see `search`, with ``norm``; "outputs": see `search_outputs`.
        share: "layer": to each family its own; "network": one for all.

    Returns:
        the exponent of each point and of each layer's weight, by name; a family shares one.
    """
    every, seen = families(model), data.histograms(model)
    if by == "outputs":
        best, common = search_outputs(model, plan, data, report, every, seen)
        keys = lambda family: [family.key]  # noqa: E731
    else:
        best, common = search(model, plan, data, norm, report)
        keys = lambda family: family.weights  # noqa: E731

    def exponent_of(family: Family) -> float:
        own = [best[key] for key in keys(family) if key in best]
        return own[0] if share == "layer" and len(own) == 1 else common

    exponents: dict[str, nn.Parameter] = {}
    for family in every:
        start = torch.tensor(exponent_of(family), device=data.images.device)
        shared = nn.Parameter(start, requires_grad=False)
        exponents |= dict.fromkeys((*family.weights, *family.points), shared)
        _fill(family, shared, model, plan, data, seen)
    return exponents


def families(model: QuantModel) -> list[Family]:
    """All groups of tensors that share an exponent, as they run; each tensor is in one."""
    groups: dict[str, Family] = {}
    for name, layer in model.layers.items():
        own = [f"{name}.{t}" for t in layer.points() if f"{name}.{t}" in model.points]
        unit = model.unit_of(name)
        shared = not own and f"{unit}.boundary" in model.points
        points = [f"{unit}.boundary"] if shared else own
        family = groups.setdefault(points[0] if points else name, Family(unit, [], points))
        if isinstance(layer, QuantLayer):
            family.weights.append(name)
    for name in model.boundaries:  # read by no layer directly, by a normalisation perhaps
        groups.setdefault(f"{name}.boundary", Family(name, [], [f"{name}.boundary"]))
    return list(groups.values())


@torch.no_grad()
def search(
    model: QuantModel, plan: BitPlan, data: Calibration, norm: float, report: Report
) -> tuple[dict[str, float], float]:
    """The exponent with the least Σ over layers of ‖w − ŵ‖_norm; uses the weights alone.

    The error ripples at few bits, so all of a coarse grid is looked at, then the hundredths around
    the best. Ties go to the exponent nearest to 1.

    Returns:
        the best one of each layer that the plan quantizes, and the best for all together.
    """
    layers = {n: m for n, m in model.weighted().items() if plan.weights.get(n) is not None}
    table: dict[str, dict[float, float]] = {n: {} for n in layers}

    def look(name: str, exponents: Iterable[float]) -> None:
        scheme, whole = plan.weights[name], layers[name].weight
        weight = whole[:: max(1, whole.numel() // ENOUGH)]  # some of the channels
        for a in exponents:
            if a not in table[name]:
                made = Power.fit(weight, scheme, data.weight_observer, a)
                gap = (made(weight) - weight).double().abs()
                table[name][a] = float(gap.pow(norm).sum() ** (1 / norm))

    low, high = EXPONENTS
    coarse = [round(1 + STEP * i, 2) for i in range(-10, 10) if low <= 1 + STEP * i <= high]
    for i, name in enumerate(layers):
        look(name, coarse)
        look(name, _around(_best(table[name])))
        report(Event("calibrate", name, i + 1, len(layers), note="exponents"))
    near = _around(_best_of_all(table, coarse))
    for name in layers:
        look(name, near)
    return {name: _best(tried) for name, tried in table.items()}, _best_of_all(table, near)


@torch.no_grad()
def search_outputs(
    model: QuantModel,
    plan: BitPlan,
    data: Calibration,
    report: Report,
    every: list[Family],
    seen: dict[str, Histogram],
) -> tuple[dict[str, float], float]:
    """The exponent with the least relative squared error of outputs, on a few calibration images.

    A layer's output with its weight and its input on grids of one exponent is compared with its
    float output, both on the float network's inputs. Two operands without a weight are compared
    themselves, over their histograms. 1 is among the candidates, so that by this measure no family
    is worse off than on even steps. Ties go to the exponent nearest to 1.

    Returns:
        the best one of each family, by its key, and the best for all together.
    """
    few = replace(data, images=data.images[:IMAGES])
    family_of = {name: family for family in every for name in family.weights}
    tables = {family.key: dict.fromkeys(TRIED, 0.0) for family in every}
    for unit in iter_units(model, few, by="layer", weights=False, inputs=False):
        (name,), point = unit.layers, unit.weighted[0].weight_point
        family = family_of[name]
        held, want = point.quantizer, model.partial.layer_output(name, unit.float_inputs)
        for a in TRIED:
            tables[family.key][a] += _output_error(unit, want, plan, data, family, seen, a)
        point.fill(held)
        report(Event("calibrate", unit.title, unit.index, unit.of, note="exponents"))
    for family in (f for f in every if not f.weights):
        for a in TRIED:
            tables[family.key][a] = _value_error(plan, data, family, seen, a)
    return {key: _best(tried) for key, tried in tables.items()}, _best_of_all(tables, [*TRIED])


def _output_error(
    unit: Unit,
    want: Tensor,
    plan: BitPlan,
    data: Calibration,
    family: Family,
    seen: dict[str, Histogram],
    exponent: float,
) -> float:
    (name,), (layer,) = unit.layers, unit.weighted
    scheme = plan.weights.get(name)
    made = Power.fit(layer.weight, scheme, data.weight_observer, exponent) if scheme else None
    layer.weight_point.fill(made)
    x = unit.float_inputs
    for name in family.points:
        x = _rounded(x, name, plan, data, seen, exponent)
    with unit.model.quantized(weights=True, inputs=False):
        got = unit.model.partial.layer_output(unit.title, x)
    return float((got - want).square().sum() / want.square().sum().clamp(min=1e-30))


def _value_error(
    plan: BitPlan, data: Calibration, family: Family, seen: dict[str, Histogram], exponent: float
) -> float:
    total = 0.0
    for name in family.points:
        values, counts = seen[name].values()
        gap = _rounded(values, name, plan, data, seen, exponent) - values
        whole = (values.square() * counts).sum().clamp(min=1e-30)
        total += float((gap.square() * counts).sum() / whole)
    return total


def _rounded(
    x: Tensor,
    name: str,
    plan: BitPlan,
    data: Calibration,
    seen: dict[str, Histogram],
    exponent: float,
) -> Tensor:
    """``x`` as the point of that name would round it; untouched where the plan has no grid."""
    scheme = plan.inputs.get(name)
    if scheme is None:
        return x
    return _fitted(scheme, data, seen[name], exponent, x.device)(x)


def _fitted(
    scheme: Scheme,
    data: Calibration,
    seen: Histogram,
    exponent: nn.Parameter | float,
    device: torch.device,
) -> Power:
    """The grid of an activation, from all its values."""
    values, counts = (t.to(device) for t in seen.values())
    return Power.fit(values, scheme, data.act_observer, exponent, counts)


def _around(best: float) -> list[float]:
    low, high = EXPONENTS
    return [a for i in range(-5, 6) if low <= (a := round(best + i / 100, 2)) <= high]


def _best(tried: dict[float, float]) -> float:
    return min(tried, key=lambda a: (tried[a], abs(a - 1)))


def _best_of_all(table: dict[str, dict[float, float]], exponents: list[float]) -> float:
    return _best({a: sum(tried[a] for tried in table.values()) for a in exponents})


@torch.no_grad()
def _fill(
    family: Family,
    exponent: nn.Parameter,
    model: QuantModel,
    plan: BitPlan,
    data: Calibration,
    seen: dict[str, Histogram],
) -> None:
    """Power quantizers with one exponent for all tensors of a family that the plan quantizes."""
    for name in family.weights:
        layer, scheme = model.weighted()[name], plan.weights.get(name)
        layer.correction = None
        layer.weight_point.fill(
            Power.fit(layer.weight, scheme, data.weight_observer, exponent) if scheme else None
        )
    for name in family.points:
        scheme = plan.inputs.get(name)
        model.points[name].quantizer = (
            _fitted(scheme, data, seen[name], exponent, data.images.device) if scheme else None
        )
