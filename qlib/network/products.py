"""Exact rewrite: multiplications that a network writes as function calls become modules.

``q @ k``, ``torch.einsum``, ``F.linear(x, self.w)`` or ``F.scaled_dot_product_attention`` have no
module that could be quantized. One float pass shows in whose ``forward`` they stand. That module,
their owner, gets a child for each of them, in order of execution, and a ``forward`` that sends the
calls to the children; its own code stays as it is. Modules without such calls are not touched and
cost nothing. Softmax and GELU, where they stand as calls beside such products, become children
too: some methods give what leaves them grids of their own.

A graph captured by `torch.export` shows the same calls, but loses the modules that blocks, hooks
and names stand on.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from qlib.core.records import InvalidSpec
from qlib.network.attention import MatMul, ScaledDotProduct, linear_layer
from qlib.network.einsum import Contraction
from qlib.network.own_weight import OutputFirst
from qlib.network.trace import removing

Run = Callable[..., Tensor]  # (child, the call's own arguments) → what the call returns
Constant = Callable[[Any], bool]  # does a value depend on weights alone, not on the images?
Child = tuple[nn.Module, Run] | None  # None: this call stays as it is
NOT_PRODUCTS = (nn.Softmax, nn.GELU)


def expose_products(net: nn.Module, example: Tensor, is_layer: Callable[[nn.Module], bool]) -> None:
    """Give, in place, every multiplication outside of layers a module; see also `keep_apart`.

    Args:
        example: a small batch; one forward pass shows the calls.
        is_layer: whether a module's own multiplication is quantized without this rewrite.
    """
    with torch.no_grad():
        owners = _owners(net, example, is_layer)
    calling = {net.get_submodule(name): rows for name, rows in owners.items()}
    others = [module for module, rows in calling.items() if not _expose(module, rows)]
    keep_apart(net, others)  # such as nn.Softmax, which calls a function too


def keep_apart(net: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Let layers inside of owners multiply by themselves: nothing is sent on from there.

    Until this was said of all of them, a network with owners cannot run.
    """
    owners = [m for m in net.modules() if hasattr(m, "_sites")]
    inside = {id(part) for owner in owners for part in owner.modules()}
    for layer in layers:
        if id(layer) in inside:
            layer.__class__ = _apart(type(layer))


@dataclass(frozen=True)
class Call:
    """One function call in an owner's ``forward``, and what would take its place."""

    func: Callable[..., Any]
    name: str
    child: Child


@dataclass(frozen=True)
class Site:
    """Where a call is sent: the name of the owner's child, None where it stays a call."""

    func: Callable[..., Any]
    child: str | None
    run: Run | None


def _expose(owner: nn.Module, rows: list[list[Call]]) -> bool:
    """Whether the owner got children for its calls; where its runs differ all stays as it is."""
    first = rows[0]
    if any([c.func for c in row] != [c.func for c in first] for row in rows):
        return False
    children = [call.child[0] for call in first if call.child]
    if all(isinstance(child, NOT_PRODUCTS) for child in children):
        return False
    vars(owner)["_sites"] = tuple(_site(owner, call) for call in first)
    owner.__class__ = _sending(type(owner))
    return True


def _site(owner: nn.Module, call: Call) -> Site:
    if call.child is None:
        return Site(call.func, None, None)
    module, run = call.child
    name = _free_name(owner, call.name)
    owner.add_module(name, module.eval())
    return Site(call.func, name, run)


def _free_name(owner: nn.Module, wish: str) -> str:
    number = 1
    while hasattr(owner, f"{wish}{number}"):
        number += 1
    return f"{wish}{number}"


# ------------------------------------------------------------------------------ at run time


class _Now(threading.local):
    mode: "_Sending | None" = None


_NOW = _Now()


class _Sending(TorchFunctionMode):
    """Sends the calls of the owner that runs to its children."""

    def __init__(self) -> None:
        super().__init__()
        self.owner: nn.Module | None = None
        self.number = 0  # of the owner's next call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.owner is None or func not in CALLS:
            return func(*args, **kwargs)
        sites, number = vars(self.owner)["_sites"], self.number
        self.number += 1
        if number >= len(sites) or sites[number].func != func:
            raise InvalidSpec(
                f"A {type(self.owner).__name__} of this network computes other products for these "
                "images than for the first ones, so that it cannot be quantized; write it so that "
                "what it computes does not depend on the images."
            )
        site = sites[number]
        if site.child is None or site.run is None:
            return func(*args, **kwargs)
        return site.run(getattr(self.owner, site.child), *args, **kwargs)


@cache
def _sending(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of an owner's class, as `torch.nn.utils.parametrize` makes them."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        mode = _NOW.mode
        if mode is not None:
            before = mode.owner, mode.number
            mode.owner, mode.number = self, 0
            try:
                return kind.forward(self, *args, **kwargs)
            finally:
                mode.owner, mode.number = before
        mode = _NOW.mode = _Sending()
        mode.owner = self
        try:
            with mode:
                return kind.forward(self, *args, **kwargs)
        finally:
            _NOW.mode = None

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


@cache
def _apart(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        mode = _NOW.mode
        if mode is None or mode.owner is None:
            return kind.forward(self, *args, **kwargs)
        owner, mode.owner = mode.owner, None
        try:
            return kind.forward(self, *args, **kwargs)
        finally:
            mode.owner = owner

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


# ------------------------------------------------------------------------------ what one pass shows


def _owners(
    net: nn.Module, example: Tensor, is_layer: Callable[[nn.Module], bool]
) -> dict[str, list[list[Call]]]:
    """Module → the calls in each of its runs; modules without any are left out."""
    seeing = _Seeing(example)
    hooks = []
    for name, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # takes no hooks
        hooks.append(
            module.register_forward_pre_hook(lambda m, a, name=name: seeing.enter(name, m))
        )
        hooks.append(module.register_forward_hook(lambda m, a, y: seeing.leave()))
    with removing(hooks), seeing:
        net(example)
    skipped = {name for name, m in net.named_modules() if is_layer(m)}
    return {name: rows for name, rows in seeing.rows.items() if name not in skipped and any(rows)}


class _Seeing(TorchFunctionMode):
    """Notes calls by the module that makes them, and what depends on the images."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.rows: dict[str, list[list[Call]]] = {}
        self.running: list[tuple[nn.Module, list[Call]]] = []
        self.of_images = {_memory(images)}
        self.alive: list[Any] = [images]  # so that no other tensor gets the same memory

    def enter(self, name: str, module: nn.Module) -> None:
        self.rows.setdefault(name, []).append([])
        self.running.append((module, self.rows[name][-1]))

    def leave(self) -> None:
        self.running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CALLS and self.running:
            owner, calls = self.running[-1]
            calls.append(self._call(func, owner, args, kwargs))
        result = func(*args, **kwargs)
        operands = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        if any(_memory(v) in self.of_images for v in operands):
            results = [v for v in tree_leaves(result) if isinstance(v, Tensor)]
            written = operands[:1] if _writes(func) else []
            self.alive += results + written
            self.of_images.update(map(_memory, results + written))
        return result

    def _call(self, func: Any, owner: nn.Module, args: Any, kwargs: Any) -> Call:
        name, child_of = CALLS[func]
        try:
            child = child_of(self._constant, *args, **kwargs)
        except (TypeError, ValueError):  # a form of the call that is not known here
            child = None
        if child is not None and not isinstance(child[0], NOT_PRODUCTS):
            name = _weight_name(owner, [*args, *kwargs.values()]) + name
        return Call(func, name, child)

    def _constant(self, value: Any) -> bool:
        return not isinstance(value, Tensor) or _memory(value) not in self.of_images


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.startswith("__"))


def _weight_name(owner: nn.Module, args: Iterable[Any]) -> str:
    """``qkv_`` where an operand is the parameter ``qkv.weight``, so that names say what it is."""
    names = {id(p): name for name, p in owner.named_parameters()}
    wish = next((names[id(v)] for v in args if id(v) in names), "")
    return wish.removesuffix(".weight").replace(".", "_") + "_" if wish else ""


# ------------------------------------------------------------------------------ kinds of calls


def _matmul(constant: Constant, *operands: Any, **named: Any) -> Child:
    a, b = (*operands, *named.values())
    if constant(b) and b.dim() == 2 and not constant(a):
        return linear_layer(b.mT, None), lambda child, a, *_, **__: child(a)
    return MatMul(), _run_matmul


def _run_matmul(child: nn.Module, *operands: Tensor, **named: Tensor) -> Tensor:
    return child(*operands, *named.values())


def _added(constant: Constant, added: Tensor, a: Tensor, b: Tensor, **scales: float) -> Child:
    """``addmm``, ``baddbmm``: β · added + α · a @ b."""

    def run(
        child: nn.Module, added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Tensor:
        return beta * added + alpha * product(child, a, b)

    children = _matmul(constant, a, b)
    assert children is not None
    module, product = children
    return module, run


def _linear(constant: Constant, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Child:
    if constant(weight) and weight.dim() == 2:
        own = constant(bias)
        return linear_layer(weight, bias if own else None), partial(_run_layer, own_bias=own)

    def run(child: nn.Module, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = child(input, weight.mT)
        return y if bias is None else y + bias

    return MatMul(), run


def _run_layer(
    child: nn.Module,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *_: Any,
    own_bias: bool,
    **__: Any,
) -> Tensor:
    y = child(input)
    if own_bias or bias is None:
        return y
    trailing = 0 if isinstance(getattr(child, "layer", child), nn.Linear) else y.dim() - 2
    return y + bias.reshape(-1, *[1] * trailing)


def _filled(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().contiguous(), requires_grad=False)
    return layer


def _convolution(
    kind: type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d],
    constant: Constant,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Child:
    if not constant(weight):
        plain = kind is nn.Conv2d and not isinstance(padding, str)
        return (MatMul(), _run_mixed_convolution) if plain else None
    own = constant(bias)  # or there is none
    kept = bias if own else None
    layer = kind(
        weight.shape[1] * groups, weight.shape[0], _sizes(weight), stride=_row(stride),
        padding=padding if isinstance(padding, str) else _row(padding), dilation=_row(dilation),
        groups=groups, bias=kept is not None, device="meta",
    )  # fmt: skip
    return _filled(layer, weight, kept), partial(_run_layer, own_bias=own)


def _transposed(
    kind: type[nn.ConvTranspose1d] | type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d],
    constant: Constant,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Child:
    if not constant(weight):
        return None
    own = constant(bias)  # or there is none
    kept = bias if own else None
    layer = kind(
        weight.shape[0], weight.shape[1] * groups, _sizes(weight), stride=_row(stride),
        padding=_row(padding), output_padding=_row(output_padding), groups=groups,
        bias=kept is not None, dilation=_row(dilation), device="meta",
    )  # fmt: skip
    return OutputFirst(_filled(layer, weight, kept)), partial(_run_layer, own_bias=own)


def _sizes(weight: Tensor) -> Any:
    return tuple(weight.shape[2:])


def _row(numbers: Any) -> Any:
    """PyTorch's functions take one number or a list of them, its layers one number or a tuple."""
    if isinstance(numbers, int):
        return numbers
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _run_mixed_convolution(
    child: nn.Module,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution whose weight depends on the images, as a product of patches and weights."""
    pair = lambda n: (n, n) if isinstance(n, int) else tuple(n) * (3 - len(n))  # noqa: E731
    kernel, step, room, gaps = _sizes(weight), pair(stride), pair(padding), pair(dilation)
    size = [
        (n + 2 * r - g * (k - 1) - 1) // s + 1
        for n, r, g, k, s in zip(input.shape[2:], room, gaps, kernel, step, strict=True)
    ]
    patches = F.unfold(input, kernel, gaps, room, step)  # (batch, channels · kernel, places)
    patches = patches.reshape(len(input), groups, -1, patches.shape[-1])
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)  # (groups, outputs, …)
    y = child(patches.mT, rows.mT).mT.reshape(len(input), weight.shape[0], *size)
    return y if bias is None else y + bias.reshape(-1, 1, 1)


def _einsum(constant: Constant, equation: Any, *operands: Any) -> Child:
    values = operands[0] if len(operands) == 1 else operands
    if not isinstance(equation, str) or len(values) != 2:
        return None
    first, second = values
    turned = constant(first) and not constant(second)
    contraction = Contraction.read(equation, first.shape, second.shape, turned=turned)
    if contraction is None:
        return None
    weight = (first, second)[not turned]
    if constant(weight) and contraction.is_linear:
        rows = contraction.right(weight)

        def run_linear(child: nn.Module, equation: str, *operands: Any) -> Tensor:
            pair = operands[0] if len(operands) == 1 else operands
            left, right = (pair[1], pair[0]) if turned else pair
            return contraction.result(child(contraction.left(left)), left, right)

        return linear_layer(rows.mT, None), run_linear

    def run(child: nn.Module, equation: str, *operands: Any) -> Tensor:
        pair = operands[0] if len(operands) == 1 else operands
        left, right = (pair[1], pair[0]) if turned else pair
        y = child(contraction.left(left), contraction.right(right))
        return contraction.result(y, left, right)

    return MatMul(), run


def _attention(constant: Constant, *args: Any, **kwargs: Any) -> Child:
    return ScaledDotProduct(), lambda child, *args, **kwargs: child(*args, **kwargs)


def _softmax(constant: Constant, input: Tensor, dim: Any = None, *_: Any, **__: Any) -> Child:
    return None if dim is None else (nn.Softmax(dim), _run_softmax)


def _run_softmax(
    child: nn.Module,
    input: Tensor,
    dim: int,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return child(input if dtype is None else input.to(dtype))


def _gelu(constant: Constant, input: Tensor, approximate: str = "none") -> Child:
    return nn.GELU(approximate), lambda child, input, *_, **__: child(input)


# function → how its child is called, and what makes the child
CALLS: dict[Any, tuple[str, Callable[..., Child]]] = {
    **dict.fromkeys(
        (torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm,
         Tensor.__matmul__),
        ("matmul", _matmul),
    ),
    **dict.fromkeys(
        (torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm), ("matmul", _added)
    ),
    torch.einsum: ("einsum", _einsum),
    F.linear: ("linear", _linear),
    F.conv1d: ("conv", partial(_convolution, nn.Conv1d)),
    F.conv2d: ("conv", partial(_convolution, nn.Conv2d)),
    F.conv3d: ("conv", partial(_convolution, nn.Conv3d)),
    F.conv_transpose1d: ("conv", partial(_transposed, nn.ConvTranspose1d)),
    F.conv_transpose2d: ("conv", partial(_transposed, nn.ConvTranspose2d)),
    F.conv_transpose3d: ("conv", partial(_transposed, nn.ConvTranspose3d)),
    F.scaled_dot_product_attention: ("attention", _attention),
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), ("softmax", _softmax)),
    F.gelu: ("gelu", _gelu),
}  # fmt: skip
