"""Checks values that came out of a file against the types that say what should be there. No torch.

The types are the contract: a `TypedDict`, a dataclass, ``Annotated[float, Between(0, 100)]``,
``list[str]``, ``int | None``. What is read through `check` needs no guards further up.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

LONGEST = 10_000  # characters of one text
MOST = 1_000_000  # members of one list
PLAIN = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
Scalar = str | int | float | bool | None


class Damaged(ValueError):
    """A value that is not what its type says: names the field, what is allowed and what it is."""


@dataclass(frozen=True)
class Between:
    """Limits of a number, both ends allowed. ``gaps``: it may also be NaN, where there is none."""

    low: float
    high: float
    gaps: bool = False

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies within the limits."""
        return self.low <= value <= self.high or (self.gaps and value != value)

    def __str__(self) -> str:
        return f"from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Among:
    """A value that is one of a few."""

    allowed: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is one of the allowed ones."""
        return value in self.allowed

    def __str__(self) -> str:
        return "among " + ", ".join(map(str, self.allowed))


def check(kind: Any, value: Any, name: str) -> None:
    """Check that ``value`` has the type ``kind``. Whole numbers are numbers; booleans are none.

    A field that ``kind`` does not know may hold text, a number, true, false or null.

    Args:
        kind: a type as in a field's annotation.
        value: as JSON or a table gives it.
        name: what to call it: ``metrics.top1``.

    Raises:
        Damaged: it does not.
    """
    if isinstance(kind, type) and (is_typeddict(kind) or is_dataclass(kind)):
        _object(value, name)
        check_fields(kind, value, f"{name}.")
    else:
        CHECKS.get(get_origin(kind), _plain)(kind, value, name)


def check_fields(owner: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Check every field of a dataclass or a `TypedDict`; those without a default must be there.

    Raises:
        Damaged: a field that is missing, or does not fit.
    """
    for name in _required(owner):
        if name not in values:
            raise Damaged(f"{prefix}{name} is missing")
    types = hints(owner)
    for name, value in values.items():
        check(types.get(name, Scalar), value, f"{prefix}{name}")


@cache
def hints(owner: type) -> dict[str, Any]:
    """The types of an owner's fields, limits included."""
    types = get_type_hints(owner, include_extras=True)
    return {n: get_args(k)[0] if get_origin(k) is NotRequired else k for n, k in types.items()}


@cache
def base(kind: Any) -> type | None:
    """The plain type without limits and ``| None``: ``int`` of ``Bits | None``; None of a union."""
    if get_origin(kind) is Annotated:
        return base(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        inner = [arg for arg in get_args(kind) if arg is not NoneType]
        return base(inner[0]) if len(inner) == 1 else None
    return kind


@cache
def _required(owner: type) -> tuple[str, ...]:
    if is_typeddict(owner):
        return tuple(sorted(owner.__required_keys__))
    without = (f for f in fields(owner) if f.default is f.default_factory is MISSING)
    return tuple(f.name for f in without)


def plain(text: str) -> str:
    """Text out of a file made harmless: no page makes a link, a picture or code of it."""
    for mark, harmless in (("](", "] ("), ("://", ": //"), ("<", "‹"), ("`", "'"), ("\n", " ")):
        text = text.replace(mark, harmless)
    return text


def _wrong(name: str, what: str, value: Any) -> Damaged:
    try:
        said = repr(value)
    except (ValueError, RecursionError):  # numbers of thousands of digits, lists in lists in lists
        said = f"one of type {type(value).__name__}"
    said = said if len(said) <= 60 else f"{said[:60]}…"
    return Damaged(plain(f"{name[:200]} must be {what}; got {said}"))


def _plain(kind: Any, value: Any, name: str) -> None:
    """The leaves: text, a number, true or false; `Any` takes all."""
    if kind is Any:
        return
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool):
        raise _wrong(name, PLAIN[kind], value)
    if isinstance(value, str) and len(value) > LONGEST:
        raise _wrong(name, f"text of at most {LONGEST:,} characters", value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(name, "a finite number", value)


def _limited(kind: Any, value: Any, name: str) -> None:
    """``Annotated[X, limit]``; whether a number may be infinite, the limit says."""
    inner, limit = get_args(kind)
    if inner is not float or not isinstance(value, float):
        check(inner, value, name)
    if not limit.holds(value):
        raise _wrong(name, f"{PLAIN[inner]} {limit}", value)


def _either(kind: Any, value: Any, name: str) -> None:
    """``X | None``, or several plain types, as in `Scalar`."""
    inner = [arg for arg in get_args(kind) if arg is not NoneType]
    if value is None and len(inner) < len(get_args(kind)):
        return
    if len(inner) > 1 and type(value) not in inner:
        raise _wrong(name, ", ".join(PLAIN[arg] for arg in inner), value)
    check(inner[0] if len(inner) == 1 else type(value), value, name)


def _each(kind: Any, value: Any, name: str) -> None:
    if not isinstance(value, (list, tuple)):
        raise _wrong(name, "a list", value)
    if len(value) > MOST:
        raise _wrong(name, f"a list of at most {MOST:,} members", value[:1])
    for at, member in enumerate(value, 1):
        check(get_args(kind)[0], member, f"{name}[{at}]")


def _values(kind: Any, value: Any, name: str) -> None:
    _object(value, name)
    for key, member in value.items():
        check(get_args(kind)[1], member, f"{name}.{key}")


def _object(value: Any, name: str) -> None:
    if not isinstance(value, dict):
        raise _wrong(name, "an object with named values", value)


CHECKS = {
    Annotated: _limited,
    Union: _either,
    UnionType: _either,
    list: _each,
    tuple: _each,
    dict: _values,
}
