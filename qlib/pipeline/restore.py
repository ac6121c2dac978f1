"""Brings the quantizers of a finished run back from its file, so that nothing is fitted twice."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from qlib.core.records import InvalidSpec
from qlib.core.scheme import BitPlan, Scheme
from qlib.network.model import QuantModel
from qlib.quantizers.base import Quantizer
from qlib.quantizers.by_channel import ByChannel
from qlib.quantizers.columns import Columns
from qlib.quantizers.logarithm import Logarithm
from qlib.quantizers.noisy import Noisy
from qlib.quantizers.power import Power
from qlib.quantizers.shared_round import SharedRound, unpack
from qlib.quantizers.switchable import Switchable
from qlib.quantizers.twin_sign import TwinSign
from qlib.quantizers.twin_unit import TwinUnit
from qlib.quantizers.uniform import Uniform

FILE = "quantizers.safetensors"
PARTS = ("scale", "zero_point")


class Stored(Quantizer):
    """A weight whose integer codes are known, on its grid, however they were found."""

    title = "as stored"
    stored: Tensor

    def __init__(self, grid: Quantizer, codes: Tensor) -> None:
        super().__init__(grid.scale, grid.zero_point, grid.scheme)
        self.grid, self.mixed = grid, grid.mixed
        self.register_buffer("stored", codes)

    def forward(self, x: Tensor) -> Tensor:
        """The rounded weight, bit by bit as it was: q − z is whole, whoever chose it."""
        return self.grid.values(self.stored)

    def codes(self, x: Tensor) -> Tensor:
        return self.stored

    def nearest(self, x: Tensor) -> Tensor:
        return self.grid.nearest(x)

    def values(self, codes: Tensor) -> Tensor:
        return self.grid.values(codes)


@torch.no_grad()
def restore(model: QuantModel, plan: BitPlan, file: Path) -> None:
    """Fill every point of ``plan`` with what a run stored; the model then computes what that did.

    Raises:
        InvalidSpec: the file is missing or damaged, or does not fit the network or the plan. The
            model is then without quantizers.
    """
    device = next(model.parameters()).device
    try:
        _fill(model, plan, load_file(file, device=str(device)))
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        for layer in model.weighted().values():
            layer.weight_point.fill(None)
            layer.correction = None
        for point in model.points.values():
            point.quantizer = None
        raise InvalidSpec(
            f"{file.parent.name}/{file.name} does not hold the quantizers of this run "
            f"({type(error).__name__}: {error}); delete the folder, or run it again."
        ) from None


def _fill(model: QuantModel, plan: BitPlan, found: dict[str, Tensor]) -> None:
    for name, layer in model.weighted().items():
        scheme = plan.weights.get(name)
        layer.weight_point.fill(None)
        layer.correction = None
        if scheme is not None:
            shape = scheme.granularity.scale_shape(layer.weight)
            grid = _grid(found, f"{name}.weight", shape, scheme)
            codes = _taken(found, f"{name}.weight.codes", layer.weight.shape)
            codes = codes.to(layer.weight.dtype)
            made = _shared(found, f"{name}.weight", layer.weight, grid)
            layer.weight_point.fill(made or Stored(grid, codes))
        if f"{name}.bias.added" in found:
            added = _taken(found, f"{name}.bias.added", layer.weight.shape[:1])
            layer.correct_bias().added.copy_(added)
    for name, point in model.points.items():
        scheme = plan.inputs.get(name)
        point.quantizer = _grid(found, name, (), scheme) if scheme else None
    if found:
        raise ValueError(f"more than was asked for: {', '.join(sorted(found)[:3])}")


def _grid(found: dict[str, Tensor], name: str, shape: tuple[int, ...], scheme: Scheme) -> Quantizer:
    """Even steps, or another kind of grid where a part of it was stored."""
    if f"{name}.noise" in found:
        noise = found.pop(f"{name}.noise")
        return Noisy(_grid(found, name, shape, scheme), noise)
    scale, zero_point = (_taken(found, f"{name}.{part}", shape) for part in PARTS)
    if f"{name}.widths" in found:
        return _switchable(found, name, shape, scheme)
    if f"{name}.exponent" in found:
        exponent = nn.Parameter(_taken(found, f"{name}.exponent", ()), requires_grad=False)
        return Power(scale, zero_point, scheme, exponent)
    if f"{name}.unit_shift" in found:
        summed = found.pop(f"{name}.unit_sum", None) is not None
        return TwinUnit(_taken(found, f"{name}.unit_shift", ()), scheme, summed=summed)
    if f"{name}.sign_shift" in found:
        return TwinSign(scale, _taken(found, f"{name}.sign_shift", ()), zero_point, scheme)
    if f"{name}.per_octave" in found:
        return Logarithm(scale, _taken(found, f"{name}.per_octave", ()), scheme)
    if f"{name}.ratio" in found:
        channels = found[f"{name}.ratio"].shape[:1]
        ratio, offset = (_taken(found, f"{name}.{part}", channels) for part in ("ratio", "offset"))
        return ByChannel(scale, zero_point, ratio, offset, scheme)
    if f"{name}.column" in found:
        column = _taken(found, f"{name}.column", found[f"{name}.column"].shape[:1])
        return Columns(Uniform(scale, zero_point, scheme), column)
    return Uniform(scale, zero_point, scheme)


def _switchable(
    found: dict[str, Tensor], name: str, shape: tuple[int, ...], scheme: Scheme
) -> Switchable:
    widths = found.pop(f"{name}.widths").tolist()
    sets = [_taken(found, f"{name}.{part}s", (len(widths), *shape)) for part in PARTS]
    grids = zip(widths, *sets, strict=True)
    made = Switchable({b: Uniform(s, z, replace(scheme, bits=b)) for b, s, z in grids})
    return made.set_bits(scheme.bits)


def _shared(
    found: dict[str, Tensor], name: str, weight: Tensor, grid: Quantizer
) -> SharedRound | None:
    """The weight at every width, from the float weight and its rounding bits; None: one width."""
    if f"{name}.rounding" not in found:
        return None
    if not isinstance(grid, Switchable):
        raise ValueError(f"{name} has rounding bits for several widths, but only one width")
    nested = f"{name}.base" in found
    rounding = unpack(found.pop(f"{name}.rounding"), grid.scheme.granularity.split(weight).shape)
    made = SharedRound.of_bits({b: grid.at(b) for b in grid.bit_widths}, rounding, nested=nested)
    made.set_bits(grid.bits)
    if nested and not torch.equal(made.base_codes(weight), found.pop(f"{name}.base").to(weight)):
        raise ValueError(f"{name} was rounded from another weight")
    return made


def _taken(found: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = found.pop(name)
    if tensor.shape != torch.Size(shape):
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(shape)}")
    return tensor
