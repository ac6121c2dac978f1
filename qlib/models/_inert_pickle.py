"""A pickle reader that imports nothing and calls nothing of what a file names.

``torch.load`` takes this module in the place of ``pickle``. What a pickle names is looked up in
one short table (what a tensor is put together from); everything else, functions and classes alike,
becomes a class of `Inert`: it takes any call and any state and does nothing with either.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch._utils import _rebuild_tensor


class Inert:
    """Stands for an object of a pickle that was not made; ``pickled_name`` says of which class."""

    pickled_name = ""

    def __new__(cls, *_args: Any, **_settings: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_settings: Any) -> None:
        pass

    def __call__(self, *_args: Any) -> "Inert":
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Do nothing, as for every part of a list that the object may have been."""

    def extend(self, items: Any) -> None:
        """Do nothing."""

    def add(self, item: Any) -> None:
        """Do nothing."""


class Rebuild:
    """One of the calls that are made; a pickle cannot change it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a pickle tries to change what reads it")


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_hooks: Any) -> torch.Tensor:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a tensor without its values")
    return _rebuild_tensor(storage, offset, size, stride)


def _parameter(data: Any, *_rest: Any) -> Any:
    return data


DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
MADE: dict[str, Any] = {
    "torch._utils._rebuild_tensor": Rebuild(_tensor),
    "torch._utils._rebuild_tensor_v2": Rebuild(_tensor),
    "torch._utils._rebuild_parameter": Rebuild(_parameter),
    "torch._utils._rebuild_parameter_with_state": Rebuild(_parameter),
    "collections.OrderedDict": Rebuild(OrderedDict),
    **DTYPES,
}


class Unpickler(pickle.Unpickler):
    """Reads a pickle into dictionaries, lists, numbers, tensors and `Inert` objects."""

    def find_class(self, module: str, name: str) -> Any:
        """What ``module.name`` of a pickle becomes: of the table, or inert; never imported."""
        full = f"{module}.{name}"
        if full in MADE:
            return MADE[full]
        return type("Inert", (Inert,), {"pickled_name": full})


def load(file: Any, **settings: Any) -> Any:
    """Read one pickle; ``torch.load`` asks for a module that has this, as ``pickle`` does."""
    return Unpickler(file, **settings).load()
