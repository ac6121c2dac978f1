"""Brings the quantizers of a finished run back from its file, so that nothing is fitted twice."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from qlib.model import QuantModel
from qlib.quantizers._base import Quantizer
from qlib.quantizers._by_channel import ByChannel, Columns
from qlib.quantizers._logarithm import Logarithm
from qlib.quantizers._noisy import Noisy
from qlib.quantizers._twin import TwinSign, TwinUnit
from qlib.quantizers.power import Power
from qlib.quantizers.uniform import Uniform
from qlib.records import Refused
from qlib.scheme import BitPlan, Scheme

FILE = "quantizers.safetensors"


class Stored(Quantizer):
    """A weight whose integer codes are known, on its grid, however they were found."""

    title = "as stored"

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
        Refused: the file is missing or damaged, or does not fit the network or the plan. The
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
        raise Refused(
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
            layer.weight_point.fill(Stored(grid, codes.to(layer.weight.dtype)))
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
    scale, zero_point = (_taken(found, f"{name}.{part}", shape) for part in ("scale", "zero_point"))
    if f"{name}.exponent" in found:
        exponent = nn.Parameter(_taken(found, f"{name}.exponent", ()), requires_grad=False)
        return Power(scale, zero_point, scheme, exponent)
    if f"{name}.unit_shift" in found:
        return TwinUnit(_taken(found, f"{name}.unit_shift", ()), scheme)
    if f"{name}.sign_shift" in found:
        return TwinSign(scale, _taken(found, f"{name}.sign_shift", ()), zero_point, scheme)
    if f"{name}.per_octave" in found:
        return Logarithm(scale, _taken(found, f"{name}.per_octave", ()), scheme)
    if f"{name}.ratio" in found:
        channels = found[f"{name}.ratio"].shape[:1]
        parts = (_taken(found, f"{name}.{part}", channels) for part in ("ratio", "offset"))
        return ByChannel(scale, zero_point, *parts, scheme)
    if f"{name}.noise" in found:
        noise = _taken(found, f"{name}.noise", found[f"{name}.noise"].shape[:1])
        return Noisy(scale, zero_point, noise, scheme)
    if f"{name}.column" in found:
        column = _taken(found, f"{name}.column", found[f"{name}.column"].shape[:1])
        return Columns(Uniform(scale, zero_point, scheme), column)
    return Uniform(scale, zero_point, scheme)


def _taken(found: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = found.pop(name)
    if tensor.shape != torch.Size(shape):
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(shape)}")
    return tensor
