"""Finds the one class that each public file of a folder defines: the folder is the catalogue."""

import difflib
import importlib
import inspect
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
FOLDERS = {"allocators": "allocation"}  # where the folder is not called after what lies in it


@cache
def names(package: str) -> tuple[str, ...]:
    """Keys of a catalogue: the public file names of its folder, sorted; imports nothing.

    ``base.py`` holds the contract; a leading underscore marks what is private to the folder.
    """
    folder = PACKAGE / FOLDERS.get(package, package)
    stems = {path.stem for path in folder.glob("*.py")} - {"base"}
    return tuple(sorted(stem for stem in stems if not stem.startswith("_")))


@cache
def discover(package: str) -> dict[str, type[Any]]:
    """Import a folder and return its classes: ``file name -> class``.

    Every public file must define exactly one subclass of the class named ``Base`` in the
    folder's ``base.py``.

    Raises:
        TypeError: a public file defines none or several.
    """
    folder = FOLDERS.get(package, package)
    base = importlib.import_module(f"qlib.{folder}.base").Base
    classes = {}
    for name in names(package):
        module = importlib.import_module(f"qlib.{folder}.{name}")
        own = [
            c
            for _, c in inspect.getmembers(module, inspect.isclass)
            if issubclass(c, base) and c.__module__ == module.__name__ and not inspect.isabstract(c)
        ]
        if len(own) != 1:
            raise TypeError(
                f"qlib/{folder}/{name}.py must define exactly one public {base.__name__}; "
                f"it defines {len(own)}. Plumbing belongs in a file with a leading underscore."
            )
        classes[name] = own[0]
    return classes


def lookup(kind: str, name: str, known: Iterable[str]) -> str:
    """Check that ``name`` is one of the known names, and return it.

    Raises:
        ValueError: it is not; the nearest known names are given.
    """
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4) or known
    raise ValueError(f"There is no {kind} {name!r}; the nearest are {', '.join(near)}.")
