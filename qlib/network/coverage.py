"""Which share of a network's multiplications can be quantized, and what stays in float.

One float pass under a dispatch mode sees every convolution and matrix product that reaches
PyTorch's kernels, whoever calls it, with PyTorch's own formulas for their operations. Products
written element by element, such as ``(a * b).sum()``, do not count: they are not matrix products.
"""

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from qlib.network.trace import removing

OWN = "the network itself"
ATEN = torch.ops.aten
WORDS = {
    ATEN.addmm: "linear",
    ATEN.mm: "matmul",
    ATEN.bmm: "matmul",
    ATEN.baddbmm: "matmul",
    ATEN.convolution: "convolution",
    ATEN._convolution: "convolution",
}
# of products that have no formula in PyTorch: vectors, three operands, recurrent layers, and fused
# attention on processors
EXTRA = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: (
        q[..., 0].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
    ),
    ATEN._trilinear: lambda a, b, c, da, db, dc, *_, **__: math.prod(
        torch.broadcast_shapes(*(_spread(x, d) for x, d in ((a, da), (b, db), (c, dc))))
    ),
    ATEN.mkldnn_rnn_layer: lambda x, w1, w2, *_, **__: (
        x[..., 0].numel() * (w1.numel() + w2.numel())
    ),
    ATEN.mv: lambda a, b, **_: a.numel(),
    ATEN.addmv: lambda added, a, b, **_: a.numel(),
    ATEN.dot: lambda a, b, **_: a.numel(),
    ATEN.addbmm: lambda added, a, b, **_: a.numel() * b.shape[-1],
}


@dataclass(frozen=True)
class Coverage:
    """What multiplies in a network.

    Attributes:
        macs: multiply–accumulates for one image, all of them.
        left_float: those outside of quantizable layers, by module and kind of product, such as
            ``"blocks.0.attn matmul"``.
    """

    macs: int
    left_float: dict[str, int]

    @property
    def share(self) -> float:
        """Share of the multiply–accumulates that can be quantized, from 0 to 1."""
        return 1 - sum(self.left_float.values()) / max(1, self.macs)


def coverage(net: nn.Module, example: Tensor, layers: Collection[str]) -> Coverage:
    """Count what multiplies in one pass of a rewritten network in its float state.

    Args:
        example: a small batch, (n, channels, height, width).
        layers: names of the quantizable layers.
    """
    counting = _Counting()
    hooks = []
    for name, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # takes no hooks
        hooks.append(module.register_forward_pre_hook(lambda m, a, name=name: counting.enter(name)))
        hooks.append(module.register_forward_hook(lambda m, a, y: counting.leave()))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its kernels show no products
    try:
        with torch.no_grad(), removing(hooks), counting:
            net(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    inside = set(layers)
    left_float = Counter[str]()
    for (path, kind), macs in counting.macs.items():
        if not inside.intersection(path):
            left_float[f"{path[-1] or OWN} {kind}"] += macs
    images = len(example)
    return Coverage(
        sum(counting.macs.values()) // images,
        {part: macs // images for part, macs in left_float.items()},
    )


def _spread(x: Tensor, places: list[int]) -> tuple[int, ...]:
    """The shape of ``x`` with a 1 at some places."""
    for place in sorted(places):
        x = x.unsqueeze(place)
    return tuple(x.shape)


class _Counting(TorchDispatchMode):
    """Multiply–accumulates by the path of modules that run, and kind of product."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = Counter[tuple[tuple[str, ...], str]]()
        self._path = [""]

    def enter(self, name: str) -> None:
        self._path.append(name)

    def leave(self) -> None:
        self._path.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        counted = packet in flop_registry or packet in EXTRA
        if not counted and func is not ATEN.sym_is_contiguous.default:
            with self:
                whole = func.decompose(*args, **kwargs)  # such as linear, where it comes in one
            if whole is not NotImplemented:
                return whole
        result = func(*args, **kwargs)
        if packet in EXTRA:
            macs = EXTRA[packet](*args, **kwargs)
        elif counted:
            macs = flop_registry[packet](*args, **kwargs, out_val=result) // 2
        else:
            return result
        kind = WORDS.get(packet, str(packet.__name__).strip("_"))
        self.macs[tuple(self._path), kind] += macs
        return result
