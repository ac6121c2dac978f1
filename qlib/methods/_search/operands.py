"""What convolutions and linear layers multiply with their weights, as matrices."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)


def operand(call: Callable[[], object]) -> Tensor:
    """What one call of a convolution or linear layer multiplies with its weight.

    Returns:
        (groups, d, positions): d numbers go into one output; a linear layer has one group.
    """
    with _Operands() as seen:
        call()
    (x,) = seen.found
    return x


class _Operands(TorchFunctionMode):
    """Collects the unfolded operand of every product with a weight.

    It stands between the layer and the arithmetic, so that whatever a layer does first (a padding
    of its own, the quantization of its input) is in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.linear:
            self.found.append(_rows(*args, **kwargs))
        elif func in _CONVOLUTIONS:
            self.found.append(_unfolded(*args, **kwargs))
        elif func in _TRANSPOSED:
            self.found.append(_spread(*args, **kwargs))
        return func(*args, **kwargs)


def _rows(input, weight, bias=None) -> Tensor:
    return input.flatten(0, -2).T[None]


def _unfolded(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """The patches that a convolution reads."""
    kernel = weight.shape[2:]
    dilation = _each(dilation, kernel)
    if isinstance(padding, str):
        total = [d * (k - 1) * (padding == "same") for d, k in zip(dilation, kernel, strict=True)]
        ends = [(t // 2, t - t // 2) for t in total]
    else:
        ends = [(p, p) for p in _each(padding, kernel)]
    patches = _patches(_padded(input, ends), kernel, _each(stride, kernel), dilation)
    return _columns(patches, len(kernel), groups)


def _spread(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
) -> Tensor:
    """The patches of a transposed convolution, which is a convolution of a spread-out input.

    Zeros stand between the numbers of its input, and its kernel is turned round.
    """
    kernel = weight.shape[2:]
    stride, dilation = _each(stride, kernel), _each(dilation, kernel)
    wide = [(n - 1) * s + 1 for n, s in zip(input.shape[2:], stride, strict=True)]
    apart = input.new_zeros(*input.shape[:2], *wide)
    apart[(..., *(slice(None, None, s) for s in stride))] = input
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    sides = zip(reach, _each(padding, kernel), _each(output_padding, kernel), strict=True)
    ends = [(r - p, r - p + behind) for r, p, behind in sides]
    patches = _patches(_padded(apart, ends), kernel, [1] * len(kernel), dilation)
    return _columns(patches.flip(tuple(range(-len(kernel), 0))), len(kernel), groups)


def _each(setting: int | Sequence[int], kernel: Sequence[int]) -> list[int]:
    """A setting of a convolution for every direction."""
    given = [setting] if isinstance(setting, int) else list(setting)
    return given * len(kernel) if len(given) == 1 else given


def _padded(x: Tensor, ends: Sequence[tuple[int, int]]) -> Tensor:
    """Zeros before and behind, for every direction; cut off where negative."""
    return F.pad(x, [side for pair in reversed(ends) for side in pair])


def _patches(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """(n, c, …) as (n, c, positions, …, kernel, …), a view."""
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    return x


def _columns(patches: Tensor, dims: int, groups: int) -> Tensor:
    """(n, c, positions, …, kernel, …) as (groups, c / groups × kernel, n × positions)."""
    split = patches.unflatten(1, (groups, -1))
    kernel, places = range(3 + dims, 3 + 2 * dims), range(3, 3 + dims)
    order = split.permute(1, 2, *kernel, 0, *places)
    d = math.prod(order.shape[1 : 2 + dims])
    return order.reshape(groups, d, -1).contiguous()  # a view would be summed in another order
