"""Saves and loads a network's quantizers: everything but its float weights.

``quantizers.safetensors`` has, of every quantization point, the tensors of its quantizer
(``POINT.scale``, ``LAYER.weight.codes``, …) and, in the metadata, its key, its scheme and how it
is built (`qlib.quantizers.base.State`); ``LAYER.bias.added`` where a bias is corrected. A point
that is not named stays in float. The file alone brings a quantized network back, to the bit.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor

from qlib.core.records import InvalidSpec
from qlib.core.scheme import Granularity, Scheme
from qlib.network.model import QuantModel
from qlib.network.points import QuantPoint
from qlib.quantizers.base import Quantizer, State, restored
from qlib.quantizers.fixed_codes import FixedCodes
from qlib.quantizers.switchable import Switchable

FILE = "quantizers.safetensors"
ENTRY = "quantizers"  # of the metadata

Plan = Mapping[str, int | None]  # quantization point -> bits; None: it stays in float


def save(model: QuantModel, file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the quantizers of ``model``; ``metadata``: words of one's own, see `load`."""
    tensors, entries = {}, {}
    for name, point, weight in _points(model):
        if point.quantizer is not None:
            state = _hard(point.quantizer, weight).state(weight)
            entries[name] = _told(state)
            tensors |= _named(name, state)
    for name, layer in model.weighted().items():
        if layer.correction is not None:
            tensors[f"{name}.bias.added"] = layer.correction.added
    ready = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    about = {**(metadata or {}), ENTRY: json.dumps(entries, separators=(",", ":"))}
    file.write_bytes(serialized(ready, about))  # the library's own errors are no OSError


@torch.no_grad()
def load(model: QuantModel, file: Path, plan: Plan | None = None) -> dict[str, str]:
    """Fill every point of ``model`` from a file; the model then computes what that one did.

    Args:
        plan: the bits that the points must have then, where a record tells them.

    Returns:
        the words of one's own that were given to `save`.

    Raises:
        InvalidSpec: the file is missing or damaged, has a quantizer of an unknown key, or does not
            fit the network or the plan. The model is then without quantizers.
    """
    try:
        with safe_open(file, "pt", device=str(next(model.parameters()).device)) as opened:
            words = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        _fill(model, _described(words), tensors)
        if plan and plan != bits(model):
            raise ValueError("other bits than the record tells")
        return words
    except InvalidSpec:
        clear(model)
        raise
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError,
            SafetensorError) as error:  # fmt: skip
        clear(model)
        raise InvalidSpec(
            f"{file.parent.name}/{file.name} does not hold quantizers of this network "
            f"({type(error).__name__}: {error}); make it again."
        ) from None


def clear(model: QuantModel) -> None:
    """Remove every quantizer and every bias correction."""
    for layer in model.weighted().values():
        layer.weight_point.fill(None)
        layer.correction = None
    for point in model.points.values():
        point.quantizer = None


def bits(model: QuantModel) -> dict[str, int | None]:
    """The bits of every quantization point as it is filled now: the plan behind a file."""
    quantizers = {name: point.quantizer for name, point, _ in _points(model)}
    return {name: q.scheme.bits if q is not None else None for name, q in quantizers.items()}


def _points(model: QuantModel) -> Iterator[tuple[str, QuantPoint, Tensor | None]]:
    """(name, point, weight or None) of all places that can be quantized."""
    for name, layer in model.weighted().items():
        yield f"{name}.weight", layer.weight_point, layer.weight
    for name, point in model.points.items():
        yield name, point, None


def _hard(quantizer: Quantizer, weight: Tensor | None) -> Quantizer:
    """What a device keeps: a grid; of a weight its codes, unless it has a grid for each width."""
    if weight is None or isinstance(quantizer, Switchable):
        return quantizer.as_grid()
    return FixedCodes.of(quantizer, quantizer.codes(weight))


def _fill(model: QuantModel, told: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    clear(model)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite")
    for name, point, weight in _points(model):
        if name in told:
            made = restored(_state(name, told.pop(name), tensors), weight)
            _check_shape(name, made, weight)
            point.quantizer = made
    for name, layer in model.weighted().items():
        if f"{name}.bias.added" in tensors:
            added = tensors.pop(f"{name}.bias.added")
            layer.correct_bias().added.copy_(added)
    if told or tensors:
        raise ValueError(f"it has {sorted({*told, *tensors})[0]}, which the network has not")


def _check_shape(name: str, made: Quantizer, weight: Tensor | None) -> None:
    """Raises:
    ValueError: a quantizer for a tensor of another shape.
    """
    if weight is None:
        if made.scale.numel() != 1:
            raise ValueError(f"{name} has {made.scale.numel()} scales, and activations have one")
        return
    codes, scale = made.codes(weight).shape, made.scheme.granularity.scale_shape(weight)
    if codes != weight.shape or made.scale.shape != torch.Size(scale):
        raise ValueError(f"{name} is for another shape than {tuple(weight.shape)}")


# ---- states as words and tensors ----------------------------------------------------------------


def _described(words: dict[str, str]) -> dict[str, Any]:
    """What the metadata tell of each point; taken out of them."""
    if ENTRY not in words:
        raise ValueError("it was written by an earlier version")
    return json.loads(words.pop(ENTRY))


def _told(state: State) -> dict[str, Any]:
    """A state without its tensors, whose names are kept; what is empty is left out."""
    found = {
        "key": state.key,
        "scheme": asdict(state.scheme),
        "tensors": sorted(state.tensors),
        "options": state.options,
        "parts": {name: _told(part) for name, part in state.parts.items()},
    }
    return {name: value for name, value in found.items() if value}


def _named(name: str, state: State) -> dict[str, Tensor]:
    """The tensors of a state and of its parts, as the file names them."""
    found = {f"{name}.{tensor}": value for tensor, value in state.tensors.items()}
    for part, inner in state.parts.items():
        found |= _named(f"{name}.{part}", inner)
    return found


def _state(name: str, told: dict[str, Any], tensors: dict[str, Tensor]) -> State:
    """The reverse of `_told` and `_named`; takes what it needs out of ``tensors``."""
    own = {tensor: tensors.pop(f"{name}.{tensor}") for tensor in told.get("tensors", ())}
    inner = told.get("parts", {})
    parts = {part: _state(f"{name}.{part}", t, tensors) for part, t in inner.items()}
    scheme = dict(told["scheme"])
    scheme["granularity"] = Granularity(**scheme["granularity"])
    return State(told["key"], Scheme(**scheme), own, told.get("options", {}), parts)
