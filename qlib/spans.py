"""Units in a row that are run as one: a stage of a network."""

from typing import Any

from torch import Tensor, nn

from qlib.model import QuantModel, _Arrived, _blank
from qlib.trace import removing


def stages(model: QuantModel) -> list[tuple[str, ...]]:
    """All units, in order; neighbouring blocks whose outputs have one shape stand together."""
    found: list[tuple[str, ...]] = []
    for unit in model.units():
        last = found[-1][-1] if found else unit
        both = {last, unit} <= set(model.blocks)
        if found and both and model.unit_shapes[last] == model.unit_shapes[unit]:
            found[-1] += (unit,)
        else:
            found.append((unit,))
    return found


def call(model: QuantModel, span: tuple[str, ...], x: Tensor) -> Tensor:
    """Run from the first unit's input to the last one's output, with gradients, at one pass's cost.

    Units before the span return placeholders; the network must be a chain where there are several.
    """
    first, last = span[0], span[-1]
    if first == last:
        return model.call_unit(first, x)
    units = model.units()
    blanks = {name: _blank(x, model.unit_shapes[name]) for name in units[: units.index(first)]}

    def enter(module: nn.Module, args: tuple) -> tuple:
        return (x, *args[1:])

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        raise _Arrived(output)

    net, images = model.net, x.new_zeros(()).expand(len(x), *model._image_shape)
    hooks = [net.get_submodule(first).register_forward_pre_hook(enter, prepend=True)]
    hooks.append(net.get_submodule(last).register_forward_hook(leave))
    with removing(hooks):
        try:
            model._resume(blanks, None, images)
        except _Arrived as arrived:
            return arrived.value
    raise RuntimeError(f"The network ended before it left {last}.")
