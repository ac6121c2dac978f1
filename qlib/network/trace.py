"""Records one forward pass: order of calls, shapes, which module feeds which."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Call:
    """One recorded call of one module."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None

    @property
    def input(self) -> Any:
        """The first argument; None without arguments."""
        return self.args[0] if self.args else None


@dataclass
class Trace:
    """All recorded calls in the order in which they began; holds tensors: keep it short-lived."""

    calls: list[Call] = field(default_factory=list)
    output: Any = None

    def of(self, name: str) -> list[Call]:
        """The calls of one module."""
        return [call for call in self.calls if call.name == name]

    def order(self, names: set[str]) -> list[str]:
        """The given modules in the order of their first call."""
        return list(dict.fromkeys(call.name for call in self.calls if call.name in names))

    def readers(self, tensor: Any) -> list[Call]:
        """Calls whose first argument is this very tensor."""
        return [call for call in self.calls if call.input is tensor]


def trace(net: nn.Module, images: Tensor) -> Trace:
    """Run ``net`` once without gradients and remember every module's call."""
    seen = Trace()
    open_calls: list[Call] = []

    def enter(call_name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        call = Call(call_name, module, args, kwargs)
        seen.calls.append(call)
        open_calls.append(call)

    def leave(output: Any) -> None:
        open_calls.pop().output = output

    hooks = []
    for name, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # takes no hooks
        hooks.append(
            module.register_forward_pre_hook(
                lambda m, a, k, name=name: enter(name, m, a, k), with_kwargs=True
            )
        )
        hooks.append(module.register_forward_hook(lambda m, a, out: leave(out)))
    with removing(hooks), torch.no_grad():
        seen.output = net(images)
    return seen


@contextmanager
def removing(hooks: list) -> Iterator[None]:
    """Remove hooks after a ``with`` block, also after an error."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
