"""Records one forward pass: order of calls, shapes, which module feeds which, who writes where."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from qlib.network.ports import copy_of, tensors_in


@dataclass
class Call:
    """One recorded call of one module.

    ``versions``: of the tensors among its arguments when it began, by their identity.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    versions: dict[int, int] = field(default_factory=dict)

    def reads(self, tensor: Tensor, version: int) -> bool:
        """Is its input this very tensor, not written into since it had that version?"""
        return self.input is tensor and self.versions.get(id(tensor)) == version

    @cached_property
    def input(self) -> Any:
        """The first tensor among the arguments, by position or by keyword; None without one."""
        return next(iter(tensors_in((self.args, self.kwargs))), None)


@dataclass
class Trace:
    """All recorded calls in the order in which they began; holds tensors: keep it short-lived.

    Attributes:
        overwritten: names of modules whose output was written into after they had returned it.
        writes: was any tensor written into that a module was given or had returned?
        writes_images: were the images of the network among them?
    """

    calls: list[Call] = field(default_factory=list)
    output: Any = None
    overwritten: frozenset[str] = frozenset()
    writes: bool = False
    writes_images: bool = False

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
    seen, open_calls = Trace(), list[Call]()
    given, returned = list[_Watched](), list[tuple[str, _Watched]]()

    def enter(call_name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        call = Call(call_name, module, args, kwargs)
        seen.calls.append(call)
        open_calls.append(call)
        given.append(_Watched((args, kwargs)))
        call.versions = given[-1].versions

    def leave(output: Any) -> None:
        call = open_calls.pop()
        call.output = output
        returned.append((call.name, _Watched(output)))

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
        seen.output = net(images.clone())
    seen.overwritten = frozenset(name for name, watched in returned if watched.written)
    seen.writes = bool(seen.overwritten) or any(watched.written for watched in given)
    seen.writes_images = bool(given) and given[0].written  # the network itself begins first
    return seen


@dataclass
class Visit:
    """One call of a module, with copies of all tensors as they were then.

    Attributes:
        given: the arguments, (args, kwargs); back: what the module returned.
        given_written, back_written: was the tensor itself written into afterwards?
    """

    given: Any
    back: Any = None
    given_written: bool = False
    back_written: bool = False


def visits(
    net: nn.Module, images: Tensor, names: Collection[str], shapes: Collection[str] = ()
) -> tuple[dict[str, list[Visit]], Any]:
    """The calls of some modules in one pass without gradients, and what the network returned.

    ``shapes``: more names; of the tensors of those that are not in ``names`` only shapes are kept.
    """
    shapes = set(shapes) - set(names)
    names = [*names, *shapes]
    seen: dict[str, list[Visit]] = {name: [] for name in names}
    begun = list[tuple[Visit, _Watched]]()
    watched = list[tuple[Visit, _Watched, _Watched]]()

    def enter(name: str, args: tuple, kwargs: dict) -> None:
        visit = Visit(copy_of((args, kwargs), shapes=name in shapes))
        seen[name].append(visit)
        begun.append((visit, _Watched((args, kwargs))))

    def leave(name: str, output: Any) -> None:
        visit, given = begun.pop()
        visit.back = copy_of(output, shapes=name in shapes)
        watched.append((visit, given, _Watched(output)))

    hooks = []
    for name in names:
        module = net.get_submodule(name)
        before = lambda m, a, k, name=name: enter(name, a, k)  # noqa: E731
        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        after = lambda m, a, out, name=name: leave(name, out)  # noqa: E731
        hooks.append(module.register_forward_hook(after))
    with removing(hooks), torch.no_grad():
        answers = copy_of(net(images.clone()))
    for visit, given, back in watched:
        visit.given_written, visit.back_written = given.written, back.written
    return seen, answers


class _Watched:
    """Tensors whose version counters tell whether somebody wrote into them in the meantime."""

    def __init__(self, value: Any) -> None:
        self._tensors = [t for t in tensors_in(value) if not t.is_inference()]
        self.versions = {id(t): t._version for t in self._tensors}

    @property
    def written(self) -> bool:
        """Has any of them changed since?"""
        return any(t._version != self.versions[id(t)] for t in self._tensors)


@contextmanager
def removing(hooks: list) -> Iterator[None]:
    """Remove hooks after a ``with`` block, also after an error."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
