"""Names such as ``timm:NAME.TAG?img_size=96&in_chans=1``, read strictly. No torch."""

import re
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

from qlib.core.records import InvalidSpec

PREFIX = "timm:"
LIMITS = {  # of the numbers; images have one channel or three
    "img_size": (8, 4096),
    "in_chans": (1, 3),
    "num_classes": (0, 100_000),
    "patch_size": (1, 256),
    "window_size": (1, 256),
}
CHOICES = {
    "global_pool": ("avg", "max", "avgmax", "catavgmax", "token", "map"),
    "preprocess": ("train", "test"),
}


@dataclass(frozen=True)
class Options:
    """How a network of timm is made and fed, away from its defaults.

    ``preprocess``: "test" takes the input size and crop that timm tests with, where a tag has
    such; "train", the default, those that it lists first.
    """

    global_pool: str | None = None
    img_size: int | None = None
    in_chans: int | None = None
    num_classes: int | None = None
    patch_size: int | None = None
    preprocess: str = "train"
    window_size: int | None = None

    @property
    def given(self) -> dict[str, Any]:
        """Those away from their default, by name."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default}

    def __str__(self) -> str:
        return "&".join(f"{name}={value}" for name, value in self.given.items())


def parts(name: str) -> tuple[str, Options]:
    """The network's name (with its tag) and its options.

    Raises:
        InvalidSpec: an option that there is not, or a value outside its limits.
    """
    arch, mark, text = name.removeprefix(PREFIX).partition("?")
    if not mark:
        return arch.strip(), Options()
    values: dict[str, Any] = {}
    for pair in text.split("&"):
        option, equals, value = pair.partition("=")
        if option not in _types() or not equals:
            raise InvalidSpec(
                f"{name}: after the ? come options such as img_size=96&in_chans=1, out of "
                f"{', '.join(_types())}; got {pair!r}."
            )
        if option in values:
            raise InvalidSpec(f"{name} says {option} twice; leave one of them out.")
        values[option] = _value(name, option, value)
    return arch.strip(), Options(**values)


def proper(name: str) -> str:
    """The same name in one spelling: options in one order, without those that say the default.

    Raises:
        InvalidSpec: as `parts`.
    """
    arch, options = parts(name)
    return f"{PREFIX}{arch}{'?' if options.given else ''}{options}"


def _types() -> dict[str, Any]:
    return get_type_hints(Options)


def _value(name: str, option: str, text: str) -> Any:
    if option in CHOICES:
        if text not in CHOICES[option]:
            raise InvalidSpec(
                f"{name}: {option} is one of {', '.join(CHOICES[option])}; got {text!r}."
            )
        return text
    assert int in get_args(_types()[option])
    low, high = LIMITS[option]
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1
    if not low <= number <= high or (option == "in_chans" and number == 2):
        allowed = "1 or 3" if option == "in_chans" else f"a whole number from {low} to {high:,}"
        raise InvalidSpec(f"{name}: {option} is {allowed}; got {text[:40]!r}.")
    return number
