"""Runs part of a network: from what some modules would return, as far as another one."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from qlib.network.trace import removing


def blank(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A placeholder (images, *shape) that takes no memory."""
    return like.new_zeros(()).expand(len(like), *shape)


def resume(
    net: nn.Module,
    returns: Mapping[str, Tensor],
    images: Tensor,
    until: str | None,
    *,
    through: bool = False,
) -> Tensor:
    """Run on ``images`` with modules that are not run but return what is given for them.

    Args:
        until: the module whose input is returned (see `run_until`); None: the network's output.
    """
    modules = {net.get_submodule(name): value for name, value in returns.items()}
    for module, value in modules.items():
        module.forward = lambda *a, value=value, **k: value
    try:
        return run_until(net, images, until, through=through)
    finally:
        for module in modules:
            del module.forward


def run_until(
    net: nn.Module, images: Tensor, until: str | None, *, through: bool = False
) -> Tensor:
    """What enters a module, or with ``through`` what leaves it; nothing after that is computed.

    Raises:
        RuntimeError: the network ended before it got there.
    """
    if until is None:
        return net(images)

    def enter(module: nn.Module, args: tuple) -> None:
        raise _Arrived(args[0])

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        raise _Arrived(output)

    there = net.get_submodule(until)
    hook = (
        there.register_forward_hook(leave)
        if through
        else there.register_forward_pre_hook(enter, prepend=True)
    )
    with removing([hook]):
        try:
            net(images)
        except _Arrived as arrived:
            return arrived.value
    raise RuntimeError(f"The network ended before it reached {until}.")


class _Arrived(Exception):
    """Carries the tensor that reached the place asked for."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value
