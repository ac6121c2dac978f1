"""What a network costs in its present state: bytes of weights, operations counted in bits."""

from qlib.core.rows import Coverage
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer

FLOAT = 32  # bits of what is not quantized


def weight_bytes(layer: QuantLayer) -> float:
    """Σ weights × bits / 8, with a 4-byte scale and a one-byte zero-point for each grid."""
    quantizer = layer.weight_point.quantizer
    if quantizer is None:
        return 4.0 * layer.weight.numel()
    grid = quantizer.scale.numel() * (4 + (not quantizer.scheme.symmetric))
    return layer.weight.numel() * quantizer.scheme.bits / 8 + grid


def bit_operations(model: QuantModel, layer: str) -> int:
    """Multiply–accumulates × bits × bits of the two operands, for one image; 32 where float."""
    left, right = _bits(model, layer)
    return model.macs[layer] * left * right


def coverage(model: QuantModel) -> Coverage:
    """Share of the multiply–accumulates with two quantized operands, and what is in float."""
    left_float = dict(model.coverage.left_float)
    left_float |= {n: macs for n, macs in model.macs.items() if max(_bits(model, n)) == FLOAT}
    share = 1 - sum(left_float.values()) / max(1, model.coverage.macs)
    return {
        "quantized": min(1.0, max(0.0, share)),
        "float": sorted(left_float, key=lambda part: -left_float[part]),
    }


def costs(model: QuantModel) -> dict[str, float]:
    """weight_mb and weight_mb_float (10⁶ bytes), gbops (10⁹): of all that multiplies.

    What multiplies outside of quantizable layers counts with 32 bits, its operands and its weights.
    """
    layers, rest = model.weighted().values(), FLOAT / 8 * model.float_weights
    operations = sum(bit_operations(model, name) for name in model.macs)
    return {
        "weight_mb": (sum(weight_bytes(layer) for layer in layers) + rest) / 1e6,
        "weight_mb_float": (sum(4 * layer.weight.numel() for layer in layers) + rest) / 1e6,
        "gbops": (operations + model.float_macs * FLOAT * FLOAT) / 1e9,
    }


def _bits(model: QuantModel, layer: str) -> tuple[int, int]:
    """Bits of the two operands of a layer; 32 where float."""
    module = model.layers[layer]
    operands = [p.quantizer for p in module.points().values()]
    if isinstance(module, QuantLayer):
        boundary = model.boundaries.get(model.unit_of(layer))
        if f"{layer}.input" not in model.points and boundary is not None:
            operands = [boundary.quantizer]
        operands.append(module.weight_point.quantizer)
    first, second = (FLOAT if q is None else q.scheme.bits for q in operands)
    return first, second
