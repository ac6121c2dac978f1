"""Fields that describe themselves: default, limits and help on a dataclass field."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qlib.core import renamed


@dataclass(frozen=True)
class Param:
    """What a form, a check and a help text need to know of one field."""

    name: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    group: str = ""
    when: tuple[str, tuple[str, ...]] | None = None

    @property
    def type(self) -> type:
        """The type of the field's default."""
        return type(self.default)

    @property
    def allowed(self) -> str:
        """The allowed values in words: ``"in [0, 1]"``, ``"one of mse, fisher"``."""
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        if self.low is not None and self.high is not None:
            return f"in [{self.low:g}, {self.high:g}]"
        if self.low is not None:
            return f"at least {self.low:g}"
        if self.high is not None:
            return f"at most {self.high:g}"
        return f"of type {self.type.__name__}"


def param(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    group: str = "",
    when: tuple[str, tuple[str, ...]] | None = None,
) -> Any:
    """A dataclass field with its limits (both ends allowed) and its help text.

    ``group``: the heading under which a form shows it. ``when``: another field, and the values of
    it with which this one has a say.
    """
    meta = {"help": help, "low": low, "high": high, "choices": choices}
    meta |= {"group": group, "when": when}
    return dataclasses.field(default=default, metadata=meta)


def params(owner: Any) -> dict[str, Param]:
    """The self-describing fields of a dataclass (or an instance of one), in order."""
    fields = (f for f in dataclasses.fields(owner) if "help" in f.metadata)
    return {f.name: Param(f.name, f.default, **f.metadata) for f in fields}


def check(owner: Any) -> None:
    """Refuse values outside the declared limits; call it from ``__post_init__``.

    Raises:
        ValueError: names the class, the field, what is allowed and what was given.
    """
    for name, p in params(owner).items():
        value = getattr(owner, name)
        if not _fits(p, value):
            raise ValueError(
                f"{type(owner).__name__}.{name} must be {p.allowed}; got {value!r}. {p.help}"
            )


def parse(owner: type, texts: dict[str, Any]) -> dict[str, Any]:
    """Turn texts such as ``{"steps": "500"}`` into values of the fields' types.

    Raises:
        ValueError: an unknown name (its new one or the known ones are told), or a text of the
            wrong type.
    """
    declared = params(owner)
    values = {}
    for name, text in texts.items():
        if name not in declared:
            raise ValueError(
                f"{owner.__name__} has no setting {name!r}; {_instead(name, declared)}."
            )
        values[name] = _read(owner, declared[name], text)
    return values


def _instead(name: str, known: Iterable[str]) -> str:
    """What to write in place of an unknown name."""
    if (now := renamed.SETTINGS.get(name, "")) in known:
        return f"it is called {now} now"
    return f"it has {', '.join(known) or 'none'}"


def _read(owner: type, p: Param, text: Any) -> Any:
    if not isinstance(text, str) or p.type is str:
        return p.type(text) if p.type is float and not isinstance(text, bool) else text
    if p.type is bool and text.lower() in ("true", "false", "1", "0", "yes", "no"):
        return text.lower() in ("true", "1", "yes")
    try:
        return {int: int, float: float}[p.type](text)
    except (KeyError, ValueError):
        raise ValueError(
            f"{owner.__name__}.{p.name} must be of type {p.type.__name__}; got {text!r}. {p.help}"
        ) from None


def _fits(p: Param, value: Any) -> bool:
    if isinstance(value, bool) != (p.type is bool):
        return False
    if not isinstance(value, (int, float) if p.type is float else p.type):
        return False
    if p.choices is not None:
        return value in p.choices
    if p.type in (int, float):
        above = p.low is None or value >= p.low  # also false for NaN
        return above and (p.high is None or value <= p.high) and value == value
    return True
