"""How pages and figures show each method, as its own file says it; never torch.

A page that asked for a method by its key would have to be edited for the next one. It asks here
instead: how a method is drawn, which of its settings make a line of its own, what it adds.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

from qlib.core.records import BASELINE, RunSpec
from qlib.core.registry import discover

Color = Literal["grey", "ochre", "magenta", "green", "violet", "olive", "blue"]


@dataclass(frozen=True)
class Look:
    """How a method's lines and marks are drawn in every figure.

    ``color`` names one of the theme's checked colours; ``dash`` and ``symbol`` are Plotly's words
    and tell methods of one colour apart.

    Raises:
        ValueError: there is no such colour.
    """

    color: Color
    dash: str
    symbol: str

    def __post_init__(self) -> None:
        if self.color not in get_args(Color):
            known = ", ".join(get_args(Color))
            raise ValueError(
                f"There is no colour {self.color!r} for a method; take one of {known}."
            )


@dataclass(frozen=True)
class Variant:
    """A setting whose ``value`` makes another kind of network: a line of its own in figures.

    ``suffix`` is added to the method's key to name the line, ``title`` is what people call it;
    both may name ``{bits}``, the bits of the run's weights, and ``title`` also ``{title}``.
    ``contrast``: it shows what goes wrong otherwise, so it is never shown unless asked for.
    """

    setting: str
    value: Any
    suffix: str
    title: str
    look: Look | None = None
    contrast: bool = False


@dataclass(frozen=True)
class Ingredient:
    """What a method adds to the one before it on the way of learned rounding.

    ``rank`` is its place on that way; ``text`` may break its line with ``<br>``.
    """

    rank: int
    text: str


def baseline_first(key: str) -> tuple[bool, str]:
    """Sorts keys of methods or of lines: the baseline, then by name."""
    return key != BASELINE, key


@cache
def looks() -> dict[str, Look]:
    """Key of a method, or of a line made by one of its variants → how it is drawn."""
    by_key: dict[str, Look] = {}
    for key, owner in discover("methods").items():
        named = {key: owner.look} | {f"{key}_{v.suffix}": v.look for v in owner.variants}
        by_key |= {name: look for name, look in named.items() if look}
    return by_key


def ingredients() -> dict[str, str]:
    """Method key → what it adds, along the way from the baseline; others are left out."""
    by_key = {key: owner.ingredient for key, owner in discover("methods").items()}
    steps = sorted((step.rank, key, step.text) for key, step in by_key.items() if step)
    return {key: text for _, key, text in steps}


def many_widths() -> str | None:
    """Key of the first method whose network can be switched between bit-widths."""
    return next((key for key, owner in discover("methods").items() if owner.switchable), None)


def noisy() -> str | None:
    """Key of the first method that adds noise before rounding."""
    return next((key for key, owner in discover("methods").items() if owner.noisy), None)


def learns(method: str) -> bool:
    """Whether a method fits units step by step; False for an unknown key."""
    owner = discover("methods").get(method)
    return owner is not None and owner.learns


def line(spec: RunSpec) -> str:
    """The line in figures that a run belongs to: its method, or a variant of it."""
    parts = [v.suffix.format(bits=spec.weight_bits) for v in _variants(spec)]
    return "_".join([spec.method, *parts])


def line_title(spec: RunSpec, title: str) -> str:
    """The title of a run's line; ``title``: what people call the method."""
    for variant in _variants(spec):
        title = variant.title.format(title=title, bits=spec.weight_bits)
    return title


def is_contrast(spec: RunSpec) -> bool:
    """Whether a run is a counterexample: it shows what goes wrong without a method's idea."""
    return any(variant.contrast for variant in _variants(spec))


def _variants(spec: RunSpec) -> list[Variant]:
    owner = discover("methods").get(spec.method)
    known = owner.variants if owner else ()
    return [v for v in known if spec.settings.get(v.setting) == v.value]
