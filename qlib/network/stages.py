"""Units in a row that are run as one: a stage of a network."""

from torch import Tensor, nn

from qlib.network import partial_forward
from qlib.network.model import QuantModel
from qlib.network.trace import removing


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

    Units before the span return placeholders; the network must be sequential where there are
    several.
    """
    first, last = span[0], span[-1]
    if first == last:
        return model.call_unit(first, x)
    net = model.net

    def enter(module: nn.Module, args: tuple) -> tuple:
        return (x, *args[1:])

    with removing([net.get_submodule(first).register_forward_pre_hook(enter, prepend=True)]):
        images = partial_forward.blank(x, model.image_shape)
        return partial_forward.resume(
            net, model.blanks_before(first, x), images, last, through=True
        )
