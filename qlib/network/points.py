"""Places where a tensor can be quantized, and the two kinds of layer that have them.

Float weights are never written to: a layer is called with its quantized weight in place of the
float one for that call.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from qlib.network.attention import MatMul
from qlib.network.kinds import CONVOLUTIONS
from qlib.network.own_weight import OwnWeight, answered_by
from qlib.quantizers.base import Learner, Quantizer
from qlib.quantizers.switchable import Switchable


class QuantPoint(nn.Module):
    """A place where one tensor can be quantized: identity until filled and switched on.

    ``stand_in``: what is done to the tensor in the quantizer's place (see `standing_in`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.quantizer: Quantizer | None = None
        self.on = False
        self.stand_in: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.on or self.quantizer is None:
            return x
        return (self.stand_in or self.quantizer)(x)

    def set_bits(self, bits: int) -> None:
        """Use the grid of one bit-width, where there are several; else nothing changes."""
        if isinstance(self.quantizer, Switchable):
            self.quantizer.set_bits(bits)


class WeightPoint(QuantPoint):
    """Quantizes a weight; keeps the result while nothing in it is being learned."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: Tensor | None = None

    def fill(self, quantizer: Quantizer | None) -> None:
        """Set the quantizer, or take it away with None."""
        self.quantizer = quantizer
        self.forget()

    def forget(self) -> None:
        """Drop the cached quantized weight; call it after the quantizer has changed."""
        self._kept = None

    def set_bits(self, bits: int) -> None:
        if isinstance(self.quantizer, Switchable) and bits != self.quantizer.bits:
            self.quantizer.set_bits(bits)
            self.forget()

    def forward(self, x: Tensor) -> Tensor:
        if not self.on or self.quantizer is None or self.stand_in is not None:
            return super().forward(x)
        if any(p.requires_grad for p in self.quantizer.parameters()):
            return self.quantizer(x)
        kept = self._kept
        if kept is None:
            with torch.no_grad():
                kept = self._kept = self.quantizer(x)
        return kept


class BiasCorrection(Learner):
    """A correction of a layer's bias, (channels,), added while its weight is quantized."""

    def __init__(self, channels: int, like: Tensor) -> None:
        super().__init__()
        self.added = nn.Parameter(like.new_zeros(channels), requires_grad=False)

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        return {"bias": [self.added]}


class QuantLayer(nn.Module):
    """A convolution or a linear layer with a point on its weight and one on its input.

    It answers for ``layer``: a network that reads its layers' settings finds them here.
    ``correction``: a method's correction of the bias, if it makes one; off with the weight point,
    so that the float network stays what it was. ``arithmetic``: see `multiplying`.
    """

    def __init__(self, layer: nn.Module) -> None:
        """``layer``: one that `qlib.network.plain_layers.multiplies_as_it_is`."""
        super().__init__()
        self.layer = layer
        self.weight_point = WeightPoint()
        self.input_point = QuantPoint()
        self.correction: BiasCorrection | None = None
        self.arithmetic: torch.dtype | None = None

    def __getattr__(self, name: str) -> Any:
        return answered_by(self, "layer", name)

    @property
    def kind(self) -> str:
        """``"conv"`` or ``"linear"``."""
        return "conv" if self.weight.dim() > 2 else "linear"

    @property
    def weight(self) -> Tensor:
        """The float weight, (out, in / groups, *kernel)."""
        return self.layer.weight  # pyright: ignore[reportReturnType] -- the stub: tensor or module

    @property
    def bias(self) -> Tensor | None:
        """The float bias, (out,); None without one."""
        return self.layer.bias  # pyright: ignore[reportReturnType]

    def points(self) -> dict[str, QuantPoint]:
        """Activation points by the name of their tensor."""
        return {"input": self.input_point}

    def correct_bias(self) -> BiasCorrection:
        """Give the layer a correction of 0, in place of any that it had."""
        self.correction = BiasCorrection(self.weight.shape[0], self.weight)
        return self.correction

    def macs(self, input: Tensor, output: Tensor) -> int:
        """Multiply–accumulates of one call.

        Every number of the weight multiplies once for each place of the output, or where the
        convolution is transposed, of the input.
        """
        if self.kind == "linear":
            return output.numel() * self.weight.shape[1]
        places = input if getattr(self.layer, "transposed", False) else output
        return places[:, 0].numel() * self.weight.numel()

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """``input``: PyTorch's layers call it so. ``output_size``: see `OutputFirst`."""
        weight, x = self.weight_point(self.layer.weight), self.input_point(input)
        return _in(self.arithmetic, self._product, x, weight, self._bias_in_use())

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = self.layer
        if type(layer) is nn.Conv2d:
            if _is_thin(layer) and any(t is not None and t.requires_grad for t in (weight, bias)):
                return _of_places_read(layer, x, weight, bias)
            return layer._conv_forward(x, weight, bias)
        if type(layer) is nn.Linear:
            return F.linear(x, weight, bias)
        if type(layer) in CONVOLUTIONS:
            return layer._conv_forward(x, weight, bias)  # pyright: ignore[reportCallIssue]
        if isinstance(layer, OwnWeight):
            return layer.product(x, weight, bias)
        # timm's padded convolutions etc.
        if layer.bias is None or bias is None:
            y = functional_call(layer, {"weight": weight}, (x,))
            return y if bias is None else y + bias.reshape(-1, *(1,) * (weight.dim() - 2))
        return functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    def _bias_in_use(self) -> Tensor | None:
        if self.correction is None or not self.weight_point.on:
            return self.bias
        added = self.correction.added
        return added if self.bias is None else self.bias + added


class QuantMatMul(nn.Module):
    """A product of two activations with a point on each."""

    kind = "matmul"

    def __init__(self, product: MatMul) -> None:
        super().__init__()
        self.product = product
        self.left_point = QuantPoint()
        self.right_point = QuantPoint()
        self.arithmetic: torch.dtype | None = None

    def points(self) -> dict[str, QuantPoint]:
        """Activation points by the name of their operand."""
        return {"left": self.left_point, "right": self.right_point}

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return _in(self.arithmetic, self.product, self.left_point(a), self.right_point(b))


@contextmanager
def standing_in(work: Mapping[QuantPoint, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Replace what some points compute inside a ``with`` block by the functions given for them."""
    for point, call in work.items():
        point.stand_in = call
    try:
        yield
    finally:
        for point in work:
            point.stand_in = None


@contextmanager
def multiplying(layers: Iterable[QuantLayer | QuantMatMul], dtype: torch.dtype) -> Iterator[None]:
    """Inside a ``with`` block these layers round their operands to ``dtype``, sums are not rounded.

    What enters and leaves a layer, quantizers and gradients included, stays what it is.
    """
    layers = list(layers)
    for layer in layers:
        layer.arithmetic = None if dtype == torch.float32 else dtype
    try:
        yield
    finally:
        for layer in layers:
            layer.arithmetic = None


def _in(
    dtype: torch.dtype | None, product: Callable[..., Tensor], x: Tensor, *others: Tensor | None
) -> Tensor:
    if dtype is None:
        return product(x, *others)
    return product(x.to(dtype), *(y if y is None else y.to(dtype) for y in others)).to(x.dtype)


def _is_thin(conv: nn.Conv2d) -> bool:
    """Whether PyTorch must not get this convolution's gradient in one piece.

    With channels-last inputs of 2 to 15 channels the gradient for the weight or the bias of a 1×1
    convolution with a stride and without groups writes outside of its memory: the process dies
    (PyTorch 2.14.1, processor with AVX-512; seen with strides 2 and 4, in one direction or both, on
    images of 96² and 224²). Not with 1 or 16 channels, a stride of 1, larger kernels, padding,
    groups, inputs in the plain order, or when only the input has a gradient.
    """
    return (
        conv.kernel_size == (1, 1)
        and max(conv.stride) > 1
        and 1 < conv.in_channels < 16
        and conv.groups == 1
        and conv.padding in ((0, 0), "valid")
    )


def _of_places_read(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same product: a 1×1 convolution over just those places that its stride reads."""
    down, right = conv.stride
    read = x[..., ::down, ::right]
    last = x.is_contiguous(memory_format=torch.channels_last)
    read = read.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    return F.conv2d(read, weight, bias)
