"""Finds the one class that each public file of a folder defines: the folder is the catalogue."""

import difflib
import importlib
import inspect
from collections.abc import Iterable
from functools import cache
from pathlib import Path


@cache
def names(package: str) -> tuple[str, ...]:
    """Public file names of ``qlib/<package>/``, sorted; imports nothing.

    A leading underscore marks plumbing.
    """
    folder = Path(__file__).parent / package
    return tuple(sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")))


@cache
def discover(package: str) -> dict[str, type]:
    """``file name -> class`` for one folder of recipes.

    Every public file must define exactly one subclass of the class named ``Base`` in the
    folder's ``_base.py``.

    Raises:
        TypeError: a public file defines none or several.
    """
    base = importlib.import_module(f"qlib.{package}._base").Base
    found = {}
    for name in names(package):
        module = importlib.import_module(f"qlib.{package}.{name}")
        own = [
            c
            for _, c in inspect.getmembers(module, inspect.isclass)
            if issubclass(c, base) and c.__module__ == module.__name__ and not inspect.isabstract(c)
        ]
        if len(own) != 1:
            raise TypeError(
                f"qlib/{package}/{name}.py must define exactly one public {base.__name__}; "
                f"it defines {len(own)}. Plumbing belongs in a file with a leading underscore."
            )
        found[name] = own[0]
    return found


def lookup(kind: str, name: str, known: Iterable[str]) -> str:
    """``name`` if it is known.

    Raises:
        ValueError: it is not; the nearest known names are given.
    """
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
    raise ValueError(f"There is no {kind} {name!r}; the nearest are {', '.join(near)}.")
