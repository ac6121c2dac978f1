"""Sensitivity of each unit at each bit-width, alone: the table that mixed precision needs.

`qlib.sensitivity.layers` asks which layer is to blame in one network; here a network with several
bit-widths is asked unit by unit and width by width, so that `qlib.allocation.front` can mix them.
"""

from dataclasses import replace

import torch

from qlib.core.records import Event, Report, ignore
from qlib.core.rows import UnitRow
from qlib.network import costs, switching
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer, QuantPoint
from qlib.network.prefix_cache import PrefixCache, flipped
from qlib.sensitivity.layers import points_of

FLOAT = 32  # bits that a unit without any quantizer is told to have


def block_sensitivity(
    model: QuantModel, images: torch.Tensor, report: Report = ignore
) -> list[UnitRow]:
    """The rows of `RunRecord.blocks` (see `qlib.allocation.front`), units as they run, widths up.

    A block's boundary belongs to the block. Units whose width does not follow have one row. In a
    chain of units that is about half a pass over the images for each row, as what comes before the
    unit is float and computed once.

    Args:
        model: quantized for several widths; switches and widths are the same afterwards.
        images: (n, c, h, w), preprocessed; no labels are needed.
        report: hears of every finished row (``steps`` is 0, ``loss`` the KL), and between
            two units of every pass.

    Returns:
        no rows for a network of one width.
    """
    widths = switching.bit_widths(model)
    if not widths:
        return []
    with torch.no_grad(), switching.keeping(model):
        rows = _priced(model, widths)
        _measure(model, images, rows, report)
    return [row for own in rows.values() for row in own]


def _priced(model: QuantModel, widths: tuple[int, ...]) -> dict[str, list[UnitRow]]:
    """Unit → its rows, with what they cost; the KL is 0 until measured."""
    free = switching.current_bits(model)
    rows: dict[str, list[UnitRow]] = {unit: [] for unit in model.units()}
    for bits in widths:
        switching.set_bits(model, bits)
        for unit, own in rows.items():
            if unit in free:
                own.append(_row(model, unit, bits))
            elif not own:
                own.append(_row(model, unit, _fixed_bits(model, unit)))
    return rows


def _row(model: QuantModel, unit: str, bits: int) -> UnitRow:
    names = model.layers_of(unit)
    weighted = [m for n in names if isinstance(m := model.layers[n], QuantLayer)]
    return {
        "unit": unit,
        "bits": bits,
        "kl": 0.0,
        "params": sum(layer.weight.numel() for layer in weighted),
        "macs": sum(model.macs[name] for name in names),
        "weight_bytes": sum(map(costs.weight_bytes, weighted)),
        "bops": sum(costs.bit_operations(model, name) for name in names),
    }


def _fixed_bits(model: QuantModel, unit: str) -> int:
    quantizers = (p.quantizer for p in _points(model, unit))
    return max((q.scheme.bits for q in quantizers if q is not None), default=FLOAT)


def _points(model: QuantModel, unit: str) -> list[QuantPoint]:
    return [point for name in model.layers_of(unit) for point in points_of(model, name, "both")]


def _measure(
    model: QuantModel, images: torch.Tensor, rows: dict[str, list[UnitRow]], report: Report
) -> None:
    """Fill in the KL: each chunk of images adds its share."""
    passes = PrefixCache(model, images, report, "profile")
    points = {unit: found for unit in rows if (found := _points(model, unit))}
    first = {model.layers_of(unit)[0]: unit for unit in points}
    places = {unit: at for at, unit in enumerate(rows, 1)}
    with passes.heard(), model.quantized(weights=False, inputs=False):
        for start in passes.starts:
            x = passes.chunk(start)
            passes.doing = Event("profile", of=len(rows), steps=len(images), note="float")
            reference = passes.each(model, x)
            for layer, logits in passes.iter_layers(x, first):
                unit = first[layer]
                for row in rows[unit]:
                    event = Event("profile", unit, places[unit], len(rows), note=_name(row))
                    passes.doing = replace(event, steps=len(images))
                    if len(rows[unit]) > 1:
                        switching.set_bits(model, {unit: row["bits"]})
                    with flipped(points[unit]):
                        kl = float(model.answers.divergences(reference, logits()).mean())
                    row["kl"] += kl * len(x) / len(images)
                    if start == passes.starts[-1]:
                        report(replace(event, loss=row["kl"]))


def _name(row: UnitRow) -> str:
    return f"{row['bits']}-bit"
