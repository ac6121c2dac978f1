"""The layers at a network's ends: those that read the images, those that give the answer."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qlib.network.trace import removing

_IMAGES = ""  # stands for the images where layers stand for what they return


@torch.inference_mode(False)
def edges(
    net: nn.Module, layers: Mapping[str, nn.Module], example: Tensor
) -> tuple[list[str], list[str]]:
    """Names of the first layers and of the last ones, in the order of ``layers``.

    A first layer reads the images and nothing that another layer has returned; a last layer's
    output goes into the network's answer and into no other layer. There are several where a network
    has two stems or two heads. Seen from which gradients could flow on one pass, so that a network
    that cuts or refuses gradients may have none: then it is the layer that runs first, or last.

    Args:
        layers: those with a weight, in order of execution.
    """
    sources: dict[int, str] = {}  # node at which a tensor enters the graph → where it comes from
    read: dict[str, set[str]] = {name: set() for name in layers}
    reach = _Reach(sources)

    def enter(name: str, given: tuple) -> None:
        read[name] |= reach(given)

    def leave(name: str, output: Tensor) -> Tensor:
        return _source(output, name, sources, reach)

    hooks = []
    for name, layer in layers.items():
        before = lambda m, args, kwargs, name=name: enter(name, (args, kwargs))  # noqa: E731
        hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        after = lambda m, args, y, name=name: leave(name, y)  # noqa: E731
        hooks.append(layer.register_forward_hook(after))
    try:
        with removing(hooks), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a number read from a tensor that has a gradient
            answers = reach(net(_source(example, _IMAGES, sources, reach)))
    except RuntimeError:  # a network that cannot run with gradients
        answers, read = frozenset[str](), {name: set() for name in layers}
    others = {name: behind - {name} for name, behind in read.items()}  # a layer may run twice
    between = set().union(*others.values())
    first = [name for name in layers if others[name] == {_IMAGES}]
    last = [name for name in layers if name in answers - between]
    names = list(layers)
    return first or names[:1], last or names[-1:]


def _source(x: Tensor, name: str, sources: dict[int, str], reach: "_Reach") -> Tensor:
    """The same values, at the beginning of a graph of their own; they may be written to."""
    begun = x.detach().clone().requires_grad_()
    y = begun.clone()
    sources[id(y.grad_fn)] = name
    reach.kept.append(y.grad_fn)
    return y


class _Reach:
    """Which sources lie behind some tensors."""

    def __init__(self, sources: dict[int, str]) -> None:
        self.sources = sources
        self.kept: list[Any] = []  # a number stands for a node as long as the node is there
        self._behind: dict[int, frozenset[str]] = {}

    def __call__(self, values: Any) -> frozenset[str]:
        found = [self._of(x.grad_fn) for x in _tensors(values) if x.grad_fn is not None]
        return frozenset().union(*found)

    def _of(self, last: Any) -> frozenset[str]:
        stack = [last]
        while stack:  # deep networks are deeper than Python's own stack
            node = stack[-1]
            if id(node) in self._behind:
                stack.pop()
                continue
            before = [n for n, _ in node.next_functions if n is not None]
            if id(node) in self.sources:
                self._set(node, frozenset({self.sources[id(node)]}))
            elif open_ones := [n for n in before if id(n) not in self._behind]:
                stack += open_ones
            else:
                self._set(node, frozenset().union(*(self._behind[id(n)] for n in before)))
        return self._behind[id(last)]

    def _set(self, node: Any, sources: frozenset[str]) -> None:
        self._behind[id(node)] = sources
        self.kept.append(node)


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
