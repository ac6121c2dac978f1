"""Reads what a weights file holds, whole and safely: tensors by name, and the rest by its type."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlib.core.records import InvalidSpec
from qlib.models._file_kinds import (
    SAVE,
    SUFFIXES,
    WAYS,
    is_zip,
    other_kind,
    starts_like_a_pickle,
)

if TYPE_CHECKING:
    pass

DEEPEST = 16  # dictionaries in each other that are looked into
MOST = 1_000_000  # entries of one file


@dataclass(frozen=True)
class Entry:
    """One value of a file: the keys of the dictionaries on the way to it, and itself."""

    path: tuple[str, ...]
    value: Any

    @property
    def name(self) -> str:
        """The keys in one word: ``state_dict.conv1.weight``."""
        return ".".join(self.path)


@dataclass(frozen=True)
class Checkpoint:
    """All that a weights file holds.

    ``tensors``: by name (see `Entry.name`); ``others``: everything else.
    ``numbered``: whether some dictionary has tensors under numbers in place of names.
    """

    file: Path
    tensors: "dict[str, Entry]"
    others: list[Entry]
    numbered: bool = False


def read(path: Path) -> Checkpoint:
    """What a weights file holds. Never runs code from the file.

    Raises:
        InvalidSpec: not there, no weights file, damaged, or nothing in it that could be weights.
    """
    if kind := other_kind(path):
        raise InvalidSpec(f"{path} is {kind}.")
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidSpec(
            f"{path} is not a weights file by its name; allowed are {', '.join(SUFFIXES)}. "
            "Save the network's state_dict under such a name."
        )
    if not path.is_file():
        raise InvalidSpec(
            f"There is no weights file {path}; check the path, or put the file there."
        )
    safe = path.suffix.lower() == ".safetensors"
    content = _read_safetensors(path) if safe else _read_pickle(path)
    return _sorted_out(path, content)


def type_name(value: Any) -> str:
    """The type of an entry in words: of an object that was not made, the one that it would have."""
    from qlib.models._inert_pickle import Inert

    if isinstance(value, Inert):
        return value.pickled_name
    if value is None:
        return "nothing"
    return getattr(value, "pickled_name", type(value).__name__)


# ---- reading ------------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or "it ends too early").splitlines()[0][:120]
        raise InvalidSpec(_damaged(path, reason)) from None


def _read_pickle(path: Path) -> Any:
    """By PyTorch's own safe reader; where that meets objects, by one that leaves them out."""
    import pickle
    import warnings

    import torch

    from qlib.models import _inert_pickle

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle versions; what cannot be read is refused
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except pickle.UnpicklingError:
            pass
        except Exception:  # whatever a damaged file makes of PyTorch
            raise InvalidSpec(_unreadable(path)) from None
        try:
            # not weights_only, and safe: this module makes nothing but tensors and plain values
            return torch.load(
                path, map_location="cpu", weights_only=False, pickle_module=_inert_pickle
            )
        except MemoryError:
            raise
        except Exception:  # as above
            raise InvalidSpec(_unreadable(path)) from None


def _unreadable(path: Path) -> str:
    if path.stat().st_size and not is_zip(path) and _whole_pickle(path):
        return f"{path} is {WAYS['pickle']}."
    return _damaged(path, "cut off, or not written by torch.save")


def _whole_pickle(path: Path) -> bool:
    """Whether one pickle reaches from the file's begin to its end."""
    import pickletools

    if not starts_like_a_pickle(path):
        return False
    try:
        with path.open("rb") as file:
            for _ in pickletools.genops(file):
                pass
            return not file.read(1)
    except Exception:  # of bytes that are no pickle
        return False


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is damaged or no weights file ({reason}); fetch or save it again."


# ---- sorting out --------------------------------------------------------------------------------


def _sorted_out(path: Path, content: Any) -> Checkpoint:
    import torch

    if not isinstance(content, dict):
        raise InvalidSpec(f"{path} holds {_whole(content)}, no state_dict; save one: {SAVE}.")
    tensors: dict[str, Entry] = {}
    others: list[Entry] = []
    numbered = False
    for entry, named in _entries(path, content):
        if not isinstance(entry.value, torch.Tensor):
            others.append(entry)
        elif named:
            tensors.setdefault(entry.name, entry)
        else:
            numbered = True
            others.append(entry)
    return Checkpoint(path, tensors, others, numbered)


def _whole(content: Any) -> str:
    name = type_name(content)
    return f"a whole object ({name})" if "." in name else f"something of type {name}"


def _entries(path: Path, content: dict) -> Iterator[tuple[Entry, bool]]:
    """Every value that is no dictionary, and whether all keys on the way to it are words.

    Raises:
        InvalidSpec: a dictionary that holds itself, or more values than a network can have.
    """
    count = 0
    stack: list[Any] = [iter([((), True, content)])]
    on_the_way: list[int] = []
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
            if on_the_way:
                on_the_way.pop()
            continue
        keys, named, value = step
        count += 1
        if count > MOST:
            raise InvalidSpec(
                f"{path} holds more than {MOST:,} values; save the network's weights alone: {SAVE}."
            )
        if not isinstance(value, dict):
            yield Entry(keys, value), named
            continue
        if id(value) in on_the_way:
            raise InvalidSpec(
                f"{path} has a dictionary that holds itself ({'.'.join(keys)[:80]!r}); save the "
                f"network's weights alone: {SAVE}."
            )
        if len(keys) >= DEEPEST:
            yield Entry(keys, "a deeper dictionary"), named
            continue
        on_the_way.append(id(value))
        stack.append(
            iter([((*keys, _word(k)), named and isinstance(k, str), v) for k, v in value.items()])
        )


def _word(key: Any) -> str:
    """A dictionary's key as a word; of what is neither text nor a small number, its type."""
    if isinstance(key, str):
        return key
    return str(key) if type(key) is int and abs(key) < 10**9 else type_name(key)
