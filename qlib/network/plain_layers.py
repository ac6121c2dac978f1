"""Exact rewrite: layers whose weight is made of others at every call get the weight itself.

Weight norm of either kind, spectral norm, every other parametrization, standardised convolutions,
and whatever else a class of somebody's own works out from its parameters alone. Transposed
convolutions are turned (`OutputFirst`). What multiplies by a weight that depends on the images, or
in more than one product, is left as it is and told; then its products count one by one.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm, skip_init
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from qlib.network.kinds import TRANSPOSED, WEIGHTED
from qlib.network.own_weight import PRODUCTS, MadeOnce, OutputFirst, OwnWeight
from qlib.network.replace import replace
from qlib.network.trace import removing

CLOSE = 1e-5  # of the largest output: what the order of sums may change
_KINDS = dict(zip(PRODUCTS, (nn.Linear, *WEIGHTED[:-1]), strict=True))
_NAMES = ("input", "weight", "bias", "stride", "padding")  # then they differ


def multiplies_as_it_is(module: nn.Module) -> bool:
    """Whether a layer's output is one product of its input and its own ``weight``, (out, …).

    After `plain_layers` all others are told apart.
    """
    known = (*WEIGHTED[:3], nn.Linear, OwnWeight)
    marks = {"multiplies_otherwise", "part_of_a_layer"}
    return isinstance(module, known) and marks.isdisjoint(vars(module))


def multiplies_by_itself(module: nn.Module) -> bool:
    """Whether the products in a module's own forward are those of a layer (see above)."""
    return multiplies_as_it_is(module) or "part_of_a_layer" in vars(module)


@torch.no_grad()
def plain_layers(net: nn.Module, example: Tensor) -> list[str]:
    """Rewrite the layers of a network in eval mode, in place.

    Args:
        example: two or more images; the network runs on them where it has layers with a forward of
            their own, whose outputs are then compared.

    Returns:
        notes: layers that multiply in a way of their own and are left.
    """
    notes = _scripted(net)
    for module in net.modules():
        _without_norms(module)
    odd = {n: m for n, m in net.named_modules() if _is_odd(m) and m is not net}
    if not odd:
        return notes
    calls = _calls(net, example, odd)
    for name, module in odd.items():
        if not calls[name]:
            continue  # its weights may be read by others; what they do is not seen here
        made, why = _rewritten(module, calls[name])
        if made is not None:
            replace(net, module, made.eval())
        elif why:
            vars(module)["multiplies_otherwise"] = True
            notes.append(
                f"The layer {name!r} ({type(module).__name__}) {why}, so that it is not quantized "
                "as one layer; its products are, one by one, where they can be."
            )
    return notes


def _scripted(net: nn.Module) -> list[str]:
    """A note on modules that PyTorch has compiled, into which nobody sees."""
    names = [n for n, m in net.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    outer = [n for n in names if not any(n.startswith(f"{other}.") for other in names)]
    if not outer:
        return []
    return [f"Compiled by torch.jit and therefore left in float: {', '.join(map(repr, outer))}."]


def _without_norms(module: nn.Module) -> None:
    """Weight norm, spectral norm and parametrizations become the tensors that they make."""
    if isinstance(module, torch.jit.ScriptModule):
        return
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
    if parametrize.is_parametrized(module):
        _without_parametrizations(module)
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)


def _without_parametrizations(module: nn.Module) -> None:
    """As `parametrize.remove_parametrizations`, which would also undo them in the original.

    A parametrized module has a class of its own, which holds the made tensors as properties; copies
    share it.
    """
    made = {name: getattr(module, name).clone() for name in module._modules["parametrizations"]}  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
    module.__class__ = type(module).__mro__[1]
    del module._modules["parametrizations"]
    for name, tensor in made.items():
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


def _is_odd(module: nn.Module) -> bool:
    """Transposed, or of a class of its own."""
    exact = type(module) in WEIGHTED and "forward" not in vars(module)
    return isinstance(module, WEIGHTED) and (type(module) in TRANSPOSED or not exact)


def _calls(
    net: nn.Module, example: Tensor, modules: dict[str, nn.Module]
) -> dict[str, list[tuple[tuple, dict]]]:
    """What each of some modules is called with while the network runs."""
    calls: dict[str, list[tuple[tuple, dict]]] = {name: [] for name in modules}
    hooks = [
        module.register_forward_pre_hook(
            lambda m, args, kwargs, kept=calls[name]: kept.append((args, kwargs)), with_kwargs=True
        )
        for name, module in modules.items()
    ]
    with removing(hooks):
        net(example)
    return calls


def _rewritten(module: nn.Module, calls: list[tuple[tuple, dict]]) -> tuple[nn.Module | None, str]:
    """The same layer in a form that can be quantized, or why there is none; neither: as it is."""
    if type(module) in TRANSPOSED and "forward" not in vars(module):
        return _turned(module, calls)
    x, others = _split(*calls[0])
    if others or not isinstance(x, Tensor) or list(module.children()):
        return None, "takes more than one tensor or holds other layers"
    here, there = _Products.of(module, x), _Products.of(module, x.flip(0) * 0.7 + 0.1)
    if len(here.seen) > 1:
        return None, "multiplies more than once"
    if not here.seen:
        made = _by_settings(module)
        if made is None or not _alike(made, here):
            return None, "multiplies in a way of its own"
        return made, ""
    return _with_weight(module, here, there)


def _with_weight(
    module: nn.Module, here: "_Products", there: "_Products"
) -> tuple[nn.Module | None, str]:
    """`_rewritten` for one product, seen with two inputs."""
    one, weight = here.seen[0], here.seen[0].arguments["weight"]
    if not torch.equal(weight, there.seen[0].arguments["weight"]):
        return None, "makes its weight from the images"
    turned = one.kind in TRANSPOSED
    if weight is getattr(module, "weight", None) and not turned:
        return None, ""
    made = [one.layer()]
    if not turned:
        made.append(MadeOnce(module, weight.clone(), _copied(one.arguments.get("bias"))))
    for layer in made:
        if _alike(layer, here) and _alike(layer, there):
            return layer, ""
    return None, "makes its weight in a way that cannot be repeated"


def _turned(module: nn.Module, calls: list[tuple[tuple, dict]]) -> tuple[nn.Module | None, str]:
    """A transposed convolution; where it is asked for a size of its output, that one size."""
    assert isinstance(module, TRANSPOSED)
    asked = set()
    for args, kwargs in calls:
        x, others = _split(args, kwargs)
        asked.add(
            tuple(
                module._output_padding(
                    x, others[0] if others else None, list(module.stride),
                    list(module.padding),  # pyright: ignore[reportArgumentType] -- no words here
                    list(module.kernel_size), len(module.kernel_size), list(module.dilation),
                )
            )
        )  # fmt: skip
    if len(asked) > 1:
        return None, "is asked for outputs of several paddings"
    return OutputFirst(module, asked.pop()), ""


def _split(args: tuple, kwargs: dict) -> tuple[Any, list[Any]]:
    """The input of a layer, and what else it is called with."""
    given = [*args, *kwargs.values()] if args else [kwargs.get("input"), *list(kwargs.values())[1:]]
    return given[0], [value for value in given[1:] if value is not None]


def _by_settings(module: nn.Module) -> nn.Module | None:
    """The layer of PyTorch with this layer's settings, if it is one without transposing."""
    for kind in (*WEIGHTED[:3], nn.Linear):
        if isinstance(module, kind):
            made = skip_init(kind, 1, 1, 1) if kind is not nn.Linear else skip_init(kind, 1, 1)
            vars(made).update({k: v for k, v in vars(module).items() if k in vars(made)})
            return made
    return None


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _alike(made: nn.Module, seen: "_Products") -> bool:
    """Does a layer return what another one did?"""
    try:
        y = made(seen.x)
    except RuntimeError:
        return False
    if y.shape != seen.output.shape:
        return False
    gap = (y - seen.output).abs().max()
    return bool(gap <= CLOSE * seen.output.abs().max().clamp(min=1e-3))


@dataclass
class _Product:
    """One product with a weight: ``kind`` of layer that computes it, and by name what went in."""

    kind: type[nn.Module]
    arguments: dict[str, Any]

    def layer(self) -> nn.Module:
        """A plain layer that does the same."""
        given = dict(self.arguments)
        given.pop("input")
        weight, bias = given.pop("weight").clone(), _copied(given.pop("bias", None))
        groups = given.get("groups", 1)
        if self.kind is nn.Linear:
            made = skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
        else:
            first, second = weight.shape[0], weight.shape[1] * groups
            wide = (first, second) if self.kind in TRANSPOSED else (second, first)
            kernel = tuple(weight.shape[2:])
            made = skip_init(self.kind, *wide, kernel, bias=bias is not None, **given)
        made.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            made.bias = nn.Parameter(bias, requires_grad=False)
        return OutputFirst(made) if self.kind in TRANSPOSED else made


@dataclass
class _Products:
    """What a layer does with one input: its output, and the products with a weight inside."""

    x: Tensor
    seen: list[_Product] = field(default_factory=list)
    output: Any = None

    @classmethod
    def of(cls, module: nn.Module, x: Tensor) -> "_Products":
        found = cls(x)
        with _Watching(found.seen):
            found.output = module(x)
        return found


class _Watching(TorchFunctionMode):
    """Writes every product with a weight into a list."""

    def __init__(self, seen: list[_Product]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in PRODUCTS:
            kind = _KINDS[func]
            last = ("output_padding", "groups", "dilation") if kind in TRANSPOSED else (
                "dilation", "groups")  # fmt: skip
            named = dict(zip((*_NAMES, *last), args, strict=False))
            self.seen.append(_Product(kind, named | kwargs))
        return func(*args, **kwargs)
