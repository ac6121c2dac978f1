"""Copies a network, and puts one module in another one's place wherever the network holds it."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qlib.core.records import InvalidSpec

_EVERY_MODULES = frozenset(name for name in vars(nn.Module()) if name.startswith("_"))


def float_copy(net: nn.Module) -> nn.Module:
    """A copy in eval mode, without gradients; ``net`` stays as it is.

    Tensors that some modules keep with the graph that made them (`torch.nn.utils.weight_norm` does)
    are copied as values, which `copy.deepcopy` alone refuses.

    Raises:
        InvalidSpec: it holds something that cannot be copied.
    """
    kept = [value for module in net.modules() for value in _values(module)]
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for value in kept
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        with torch.no_grad():  # modules of torch.jit copy their weights by arithmetic
            twin = copy.deepcopy(net, memo)
    except (TypeError, RuntimeError, ValueError, AttributeError) as error:
        text = (str(error).strip() or "no reason given").splitlines()[0][:200]
        raise InvalidSpec(
            f"The network cannot be copied ({type(error).__name__}: {text}); leave out what it "
            "holds beside modules, tensors and plain values, such as open files or locks."
        ) from None
    return twin.eval().requires_grad_(False)


def replace(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """`replace_all` of one module."""
    replace_all(net, {old: new})


def replace_all(net: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in place of others under every name that the network has for them, in place.

    Lists, tuples and dictionaries that modules keep are names too: a forward pass may go through
    them.

    Args:
        new: module of the network → what comes in its place, which may hold the old one.

    Raises:
        ValueError: one of the old modules is the network itself.
    """
    if net in new:
        raise ValueError("The network itself has no other module around it.")
    newcomers = set(new.values())
    for parent in [module for module in net.modules() if module not in newcomers]:
        for name, child in list(parent._modules.items()):
            if child is not None and child in new:
                parent._modules[name] = new[child]
        if not isinstance(parent, torch.jit.ScriptModule):
            _replace_kept(parent, new)


def _replace_kept(parent: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    def changed(value: Any) -> bool:
        return isinstance(value, nn.Module) and value in new

    for name, value in list(vars(parent).items()):
        if name in _EVERY_MODULES:
            continue
        if changed(value):
            vars(parent)[name] = new[value]
        elif isinstance(value, list):
            value[:] = [new[one] if changed(one) else one for one in value]
        elif isinstance(value, tuple) and any(map(changed, value)):
            vars(parent)[name] = tuple(new[one] if changed(one) else one for one in value)
        elif isinstance(value, dict):
            value.update({key: new[one] for key, one in value.items() if changed(one)})


def _values(module: nn.Module) -> list[Any]:
    """What a module keeps beside parameters, buffers and modules, one level of containers open."""
    if isinstance(module, torch.jit.ScriptModule):
        return []
    values: list[Any] = []
    for value in vars(module).values():
        values.append(value)
        if isinstance(value, list | tuple):
            values.extend(value)
        elif isinstance(value, Mapping):
            values.extend(value.values())
    return values
