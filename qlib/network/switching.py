"""Turn the bit-width of a network that was quantized for several of them.

A switch chooses among steps that are there already: no data, no statistics, no new parameter.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from qlib.core.records import InvalidSpec
from qlib.network.costs import weight_bytes
from qlib.network.model import QuantModel
from qlib.network.points import QuantPoint, WeightPoint
from qlib.quantizers.shared_round import SharedRound
from qlib.quantizers.switchable import Switchable


def bit_widths(model: QuantModel) -> tuple[int, ...]:
    """Bit-widths that all switchable quantizers share, ascending; () if there are none."""
    widths = [set(q.bit_widths) for _, _, q in _points(model)]
    return tuple(sorted(set.intersection(*widths))) if widths else ()


def weight_bit_widths(model: QuantModel) -> tuple[int, ...]:
    """The same of the weights alone: () where they keep one bit-width."""
    known = [set(q.bit_widths) for _, p, q in _points(model) if isinstance(p, WeightPoint)]
    return tuple(sorted(set.intersection(*known))) if known else ()


def set_bits(
    model: QuantModel, bits: int | Mapping[str, int], *, weights: int | None = None
) -> None:
    """Switch to one width, or to a width for each unit named; the other units stay as they are.

    Args:
        weights: another width for the weights; only beside a single ``bits``.

    Raises:
        InvalidSpec: a width or a unit that the network does not have; nothing was switched.
    """
    wanted = bits if isinstance(bits, Mapping) else dict.fromkeys(model.units(), bits)
    points = list(_points(model))
    _check(model, wanted, weights, {b for _, _, q in points for b in q.bit_widths})
    for unit, point, _ in points:
        if unit in wanted:
            own = weights if isinstance(point, WeightPoint) else None
            point.set_bits(wanted[unit] if own is None else own)


def set_plan(model: QuantModel, plan: Mapping[str, int | None]) -> None:
    """Switch every point to bits of its own: of ``LAYER.weight``, ``LAYER.input`` and so on.

    Raises:
        KeyError: a point that can be switched does not have that width, or is not in the plan.
    """
    for name, layer in model.weighted().items():
        _set(layer.weight_point, f"{name}.weight", plan)
    for name, point in model.points.items():
        _set(point, name, plan)


def _set(point: QuantPoint, name: str, plan: Mapping[str, int | None]) -> None:
    if isinstance(point.quantizer, Switchable):
        if (bits := plan[name]) is None:
            raise KeyError(name)
        point.set_bits(bits)


def current_bits(model: QuantModel) -> dict[str, int]:
    """Unit → the width of its activations now (of its weights, where only they are switched)."""
    by_unit: dict[str, int] = {}
    for unit, point, q in _points(model):
        if unit not in by_unit or not isinstance(point, WeightPoint):
            by_unit[unit] = q.bits
    return by_unit


def stored_bytes(model: QuantModel) -> float:
    """Bytes of one network for all its widths: weights, a rounding bit for each, all scales.

    Weights of nested steps are integers of the highest width, others the float ones; what has one
    width counts as `qlib.network.costs.weight_bytes` says. A step is 4
    bytes, an asymmetric zero-point one.
    """
    total = 0.0
    for layer in model.weighted().values():
        q = layer.weight_point.quantizer
        if isinstance(q, SharedRound):
            n = layer.weight.numel()
            total += n * (q.bit_widths[-1] / 8 if q.nested else 4) + n / 8 + _set_bytes(q)
        else:
            total += weight_bytes(layer)
    acts = [point.quantizer for point in model.points.values()]
    return total + sum(_set_bytes(q) for q in acts if isinstance(q, Switchable))


def _set_bytes(q: Switchable) -> float:
    return sum(q.at(b).scale.numel() * (4 + (not q.at(b).scheme.symmetric)) for b in q.bit_widths)


@contextmanager
def keeping(model: QuantModel) -> Iterator[None]:
    """Restore every point's bit-width after a ``with`` block."""
    before = [(point, q.bits) for _, point, q in _points(model)]
    try:
        yield
    finally:
        for point, bits in before:
            point.set_bits(bits)


def _points(model: QuantModel) -> Iterator[tuple[str, QuantPoint, Switchable]]:
    """(unit, point, its quantizer) of all that can be switched, weights first."""
    for name, layer in model.weighted().items():
        if isinstance(q := layer.weight_point.quantizer, Switchable):
            yield model.unit_of(name), layer.weight_point, q
    for name, point in model.points.items():
        if isinstance(q := point.quantizer, Switchable):
            yield model.unit_of(name.rpartition(".")[0]), point, q


def _check(
    model: QuantModel, wanted: Mapping[str, int], weights: int | None, known: set[int]
) -> None:
    strange = sorted(set(wanted) - set(model.units()))
    if strange:
        raise InvalidSpec(
            f"This network has no unit {strange[0]!r}; it has {_list(model.units())}."
        )
    widths = {*wanted.values()} | ({weights} if weights is not None else set())
    missing = sorted(widths - known)
    if known and missing:
        raise InvalidSpec(
            f"This network was not made for {missing[0]} bits; it can be switched to "
            f"{_list(sorted(known))}."
        )
    if not known:
        raise InvalidSpec(
            "This network has one bit-width; quantize it with a method for several, such as PTMQ."
        )


def _list(names: list) -> str:
    return ", ".join(map(str, names))
