"""Networks that return several tensors (a tuple, a dictionary, an object): choosing one of them.

The network stays what it is: no module is put around it, so that layers keep the names that their
author gave them. A hook picks the output where the network returns it.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from qlib.core.records import InvalidSpec

NAMED = 12  # outputs that a sentence lists


def tensors(returned: Any) -> dict[str, Tensor]:
    """Every tensor of what a network returned, by name.

    Names are keys, fields and positions, joined by dots where they are nested: ``logits``, ``0``,
    ``features.2``. What is no tensor is passed over. One tensor alone has the name "".
    """
    return dict(_named(returned, ""))


def choosing(net: nn.Module, name: str) -> nn.Module:
    """The same network, returning the output called ``name`` alone.

    It shares weights and layers with ``net``, which is not changed.
    """
    twin = copy.copy(net)
    twin._forward_hooks = OrderedDict(net._forward_hooks)  # its own: the copy shares the original's
    twin.register_forward_hook(Choice(name))
    return twin


@dataclass(frozen=True)
class Choice:
    """A forward hook that passes one output on; copies of the network take it along."""

    name: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...], returned: Any) -> Tensor:
        return chosen(returned, self.name)


def chosen(returned: Any, name: str) -> Tensor:
    """The tensor called ``name``.

    Raises:
        InvalidSpec: there is none of this name; those that there are, are listed.
    """
    there = tensors(returned)
    if isinstance(returned, Tensor):
        raise InvalidSpec(
            f"The output {name!r} was asked for, but the network returns one tensor; leave the "
            "output out."
        )
    if name not in there:
        raise InvalidSpec(
            f"The network returns no tensor {name!r}; {listed(returned)}. Choose one of them: "
            "output=NAME, or --output NAME."
        )
    return there[name]


def asked(returned: Any) -> str:
    """The sentence that asks which of several outputs is meant."""
    return (
        f"The network returns a {type(returned).__name__} and no tensor: {listed(returned)}; "
        "choose the output to quantize for: output=NAME, or --output NAME."
    )


def listed(returned: Any) -> str:
    """What there is, in words: each name with its shape, n standing for the images."""
    there = tensors(returned)
    if not there:
        return "there is no tensor in it"
    words = [f"{name!r} of shape {_shape(tensor)}" for name, tensor in there.items()]
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return f"there are {', '.join(words[:NAMED])}{more}"


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(['n', *map(str, tensor.shape[1:])])})" if tensor.dim() else "()"


def _named(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
        return
    for key, member in _members(value):
        yield from _named(member, f"{name}.{key}" if name else str(key))


def _members(value: Any) -> list[tuple[Any, Any]]:
    """Keys, fields or positions with what is there; of a named tuple its fields."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and (names := getattr(value, "_fields", ())):
        return list(zip(names, value, strict=True))
    if isinstance(value, tuple | list):
        return list(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in fields(value)]
    return []
