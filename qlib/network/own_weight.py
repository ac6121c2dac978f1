"""Layers in forms whose weight has an output channel along its first axis and multiplies as it is.

A weight that is quantized must be the one that multiplies, and its channels are the layer's
outputs. A transposed convolution keeps its weight the other way round, and a layer with a forward
of its own may make its weight out of others at every call: both are held here in an exact form.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from qlib.network.kinds import TRANSPOSED

PRODUCTS = (
    F.linear,
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
)


class OwnWeight(nn.Module):
    """A layer with ``weight`` (out, in / groups, …) and ``bias`` (out,) or None.

    It answers for ``original``, the layer that it stands for, whose own weight is gone: its stride
    and so on are read here as there.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, original: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        # before there is an original to answer for them
        for name, value in (("weight", weight), ("bias", bias)):
            kept = None if value is None else nn.Parameter(value, requires_grad=False)
            self.register_parameter(name, kept)
        vars(original)["part_of_a_layer"] = True  # so that it becomes none itself
        self.original = original

    def __getattr__(self, name: str) -> Any:
        return answered_by(self, "original", name)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer returns for ``x`` with another weight and bias of the same shapes."""
        raise NotImplementedError

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """``output_size``: what PyTorch's transposed convolutions take; see `OutputFirst`."""
        return self.product(input, self.weight, self.bias)


class OutputFirst(OwnWeight):
    """A transposed convolution whose weight is (out, in / groups, *kernel), as a convolution's is.

    PyTorch's is (in, out / groups, *kernel). ``output_padding``: what one call of it used, where
    the network asks for a size of its output.
    """

    def __init__(self, conv: nn.Module, output_padding: tuple[int, ...] | None = None) -> None:
        assert isinstance(conv, TRANSPOSED)
        bias = None if conv.bias is None else conv.bias.detach()
        super().__init__(conv, _turned(conv.weight.detach(), conv.groups), bias)
        conv.weight = conv.bias = None  # pyright: ignore[reportAttributeAccessIssue] -- held above
        self.padding_behind = output_padding or tuple(conv.output_padding)
        dims = len(conv.kernel_size)
        self._call = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv = self.original
        assert isinstance(conv, TRANSPOSED)
        return self._call(
            x, _turned(weight, conv.groups), bias, conv.stride,
            conv.padding,  # pyright: ignore[reportArgumentType] -- never a word, as the stub says
            self.padding_behind, conv.groups, conv.dilation,
        )  # fmt: skip


class MadeOnce(OwnWeight):
    """A layer with a forward of its own, whose product is given a weight that was made once."""

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with _Given(weight, bias):
            return self.original(x)


class _Given(TorchFunctionMode):
    """Puts a weight and a bias into the one product inside."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in PRODUCTS:
            return func(*args, **kwargs)
        x, *rest = [kwargs["input"] if not args else args[0], *args[3:]]
        others = {k: v for k, v in kwargs.items() if k not in ("input", "weight", "bias")}
        return func(x, self.weight, self.bias, *rest, **others)


def answered_by(module: nn.Module, child: str, name: str) -> Any:
    """An attribute of a module, or where it has none, that of its child: for ``__getattr__``.

    Raises:
        AttributeError: neither has it.
    """
    try:
        return nn.Module.__getattr__(module, name)
    except AttributeError:
        inner = vars(module).get("_modules", {}).get(child)
        if inner is None or name.startswith("__"):  # copying and pickling ask before it is there
            raise
        return getattr(inner, name)


def _turned(weight: Tensor, groups: int) -> Tensor:
    """(a, b / groups, *kernel) as (b, a / groups, *kernel): back and forth."""
    split = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    return split.flatten(0, 1).contiguous()
