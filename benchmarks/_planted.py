"""A product planted into a network: what counts multiplications has to see it."""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from qlib.network.blocks import find_blocks
from qlib.network.coverage import Coverage


def planted(net: nn.Module, images: Tensor) -> tuple[nn.Module, int]:
    """A copy of a network with one product more, and its multiplications for one image.

    The output of the block in the middle (of the network, where there are no blocks) goes through
    ``y @ w``, written into its ``forward`` as people write it. w is the identity, so that every
    tensor stays what it was.
    """
    net = copy.deepcopy(net)
    name, shapes = _place(net, images)
    module = net.get_submodule(name)
    size = shapes[0][-1]
    module.register_parameter("planted", nn.Parameter(torch.eye(size)))
    module.__class__ = _with_product(type(module))
    return net, sum(shape.numel() for shape in shapes) * size // len(images)


def seen(plain: Coverage, with_product: Coverage, macs: int) -> str:
    """Whether what counts multiplications tells of the planted product.

    Returns:
        "quantized", "in float", or "not found: …" with the multiplications that were counted.
    """
    more = with_product.macs - plain.macs
    if more != macs:
        return f"not found: {more} more multiplications and not {macs}"
    more_in_float = sum(with_product.left_float.values()) - sum(plain.left_float.values())
    if more_in_float == 0:
        return "quantized"
    return "in float" if more_in_float == macs else "not found: others changed"


def _place(net: nn.Module, images: Tensor) -> tuple[str, list[torch.Size]]:
    """Name of the module that gets the product, and the shape of its output in each call."""
    shapes: dict[str, list[torch.Size]] = {}
    names = ["", *find_blocks(net)]

    def watch(name: str, module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dtype == torch.float32 and output.dim() > 1:
            shapes.setdefault(name, []).append(output.shape)

    hooks = [net.get_submodule(name).register_forward_hook(partial(watch, name)) for name in names]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    inside = [name for name in names if name and len({s[-1] for s in shapes.get(name, ())}) == 1]
    name = inside[len(inside) // 2] if inside else ""
    return name, shapes[name]


def _with_product(kind: type[nn.Module]) -> type[nn.Module]:
    """A class that people, and code that asks for names, take for ``kind``."""

    class Planted(kind):
        planted: Tensor

        def forward(self, *args: object, **kwargs: object) -> Tensor:
            return super().forward(*args, **kwargs) @ self.planted

    Planted.__name__, Planted.__qualname__ = kind.__name__, kind.__qualname__
    Planted.__module__ = kind.__module__
    return Planted
