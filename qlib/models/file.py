"""A network of one's own: a function in a Python file returns it.

This runs the code in that file. The command line and the Python interface run it as it is; the
app only for whoever sits at the machine (see `qlib.ui.shared.own_code`).
"""

import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from qlib.core import own_code
from qlib.core.preprocess import Preprocess
from qlib.core.records import InvalidSpec
from qlib.models.base import Built, Model

if TYPE_CHECKING:
    from torch import nn

ALLOWED = (
    "a torch.nn.Module, or a pair of it and its preprocessing: a Preprocess or a dict such as "
    "dict(input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))"
)


class File(Model):
    """A network from a Python file of one's own.

    ``net.py:build`` calls ``build()`` of net.py: a module, or (module, preprocessing).
    """

    title: ClassVar[str] = "your own code (a Python file)"

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """The pattern of keys: a file and a function in it."""
        return (own_code.PATTERN,)

    @classmethod
    def owns(cls, name: str) -> bool:
        """Whether ``name`` is a Python file and a function, such as ``net.py:build``."""
        return own_code.is_own(name)

    def build(self, name: str, weights: str | None) -> Built:
        """See `Model.build`. Random numbers that the function draws are the same each time."""
        import torch

        path, function = own_code.parts(name)
        with torch.random.fork_rng(devices=[]), _folder_of(path):
            torch.manual_seed(0)
            build = getattr(_run(path), function, None)
            if not callable(build):
                raise InvalidSpec(
                    f"{path.name} has no function {function!r}; write one that returns the "
                    "network, or name another one after the colon."
                )
            returned = _called(build, path, f"{function}()")
        net, preprocess = _unpacked(returned, f"{path.name}:{function}")
        notes: tuple[str, ...] = ()
        if weights is not None:
            from qlib.models._weights import load_weights

            notes = load_weights(net, weights, f"{path.name}:{function}")
        return Built(net.cpu().eval(), preprocess, None, notes, label_set=_label_set(net))


def _label_set(net: "nn.Module") -> str:
    """ImageNet's list of classes that a network of timm's kind says it tells apart."""
    from timm.data.imagenet_info import infer_imagenet_subset

    classes = getattr(net, "num_classes", None)
    return infer_imagenet_subset({"num_classes": classes}) or "" if classes else ""


@contextmanager
def _folder_of(path: Path) -> Iterator[None]:
    """The file may import its neighbours, as a script does."""
    folder = str(path.absolute().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _run(path: Path) -> ModuleType:
    """The file as a module, read anew each time."""
    module = ModuleType(f"own_code_{own_code.digest(path)}")
    module.__file__ = str(path.absolute())
    sys.modules[module.__name__] = module  # dataclasses and pickles look their module up

    def run() -> None:
        exec(compile(path.read_bytes(), path, "exec"), module.__dict__)

    _called(run, path, path.name)
    return module


def _called(function: Callable[[], Any], path: Path, what: str) -> Any:
    try:
        return function()
    except (Exception, SystemExit) as error:  # whatever another person's code raises
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = frames[-1].lineno if frames else getattr(error, "lineno", None)
        where = f"line {line} of {path.name}" if line else path.name
        text = " ".join(str(error).split())[:200]
        raise InvalidSpec(
            f"{what} stopped in {where} with {type(error).__name__}{': ' * bool(text)}{text}; "
            "mend the code and try again."
        ) from None


def _unpacked(found: Any, name: str) -> "tuple[nn.Module, Preprocess | None]":
    from torch import nn

    pair = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    net, told = pair
    if isinstance(net, nn.Module) and told is None:
        return net, None
    if isinstance(net, nn.Module) and isinstance(told, Preprocess | Mapping):
        return net, _preprocess(vars(told) if isinstance(told, Preprocess) else told, name)
    raise InvalidSpec(f"{name} returned {_words(found)}; it has to return {ALLOWED}.")


def _words(found: Any) -> str:
    if isinstance(found, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in found) or 'nothing'}"
    return "nothing" if found is None else f"an object of type {type(found).__name__}"


def _preprocess(told: Mapping[str, Any], name: str) -> Preprocess:
    """From a mapping; mean and spread that are left out are 0 and 1."""
    known = [f.name for f in fields(Preprocess)]
    size = _row(told.get("input_size"))
    if set(told) - set(known) or len(size) != 3 or not all(type(n) is int and n > 0 for n in size):
        raise InvalidSpec(
            f"The preprocessing that {name} returned has {', '.join(map(str, told)) or 'nothing'}; "
            f"it needs input_size (channels, height, width) and may have {', '.join(known[1:])}."
        )
    mean = _row(told.get("mean", (0.0,) * size[0]))
    std = _row(told.get("std", (1.0,) * size[0]))
    numbers = all(isinstance(n, int | float) and math.isfinite(n) for n in (*mean, *std))
    if not numbers or not len(mean) == len(std) == size[0] or min(std) <= 0:
        raise InvalidSpec(
            f"The preprocessing that {name} returned has the mean {told.get('mean')} and the std "
            f"{told.get('std')}; each needs {size[0]} numbers, one for each channel of input_size, "
            "and those of std above 0."
        )
    return Preprocess(**{**told, "input_size": size, "mean": mean, "std": std})


def _row(found: Any) -> tuple:
    return tuple(found) if isinstance(found, list | tuple) else ()
