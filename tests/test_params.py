"""Fields that describe themselves: limits, help and reading a text are said once and kept."""

import math
from dataclasses import dataclass, field

import pytest

from qlib.core import params
from qlib.core.params import param
from qlib.core.records import RunSpec
from qlib.core.registry import discover, lookup, names


@dataclass(frozen=True)
class Recipe:
    """One field of each kind."""

    steps: int = param(20, "Optimisation steps.", low=1, high=100)
    rate: float = param(0.5, "Learning rate.", low=0.0)
    mode: str = param("mse", "How an error is weighed.", choices=("mse", "fisher"))
    soft: bool = param(False, "Whether rounding is soft.")
    hidden: list = field(default_factory=list)


def test_fields_tell_default_limits_and_help() -> None:
    found = params.params(Recipe)
    assert list(found) == ["steps", "rate", "mode", "soft"]
    assert (found["steps"].default, found["steps"].type, found["steps"].high) == (20, int, 100)
    assert found["soft"].type is bool
    assert params.params(Recipe()) == found


ALLOWED = [
    (param(1, "h", low=0, high=9), "in [0, 9]"),
    (param(1, "h", low=0), "at least 0"),
    (param(1.0, "h", high=2.5), "at most 2.5"),
    (param("a", "h", choices=("a", "b")), "one of a, b"),
    (param(True, "h"), "of type bool"),
]


@pytest.mark.parametrize(("made", "words"), ALLOWED, ids=[words for _, words in ALLOWED])
def test_allowed_is_said_in_words(made: object, words: str) -> None:
    assert params.Param("x", made.default, **made.metadata).allowed == words


GOOD = [
    {"steps": 1}, {"steps": 100}, {"rate": 0.0}, {"rate": 3}, {"mode": "fisher"}, {"soft": True},
]  # fmt: skip
BAD = [
    ({"steps": 0}, r"Recipe.steps must be in \[1, 100\]; got 0. Optimisation steps."),
    ({"steps": 101}, r"Recipe.steps must be in \[1, 100\]; got 101"),
    ({"steps": 2.0}, r"Recipe.steps must be in \[1, 100\]; got 2.0"),
    ({"steps": True}, r"Recipe.steps must be in \[1, 100\]; got True"),
    ({"steps": "7"}, r"Recipe.steps must be in \[1, 100\]; got '7'"),
    ({"rate": -0.1}, r"Recipe.rate must be at least 0; got -0.1. Learning rate."),
    ({"rate": math.nan}, r"Recipe.rate must be at least 0; got nan"),
    ({"rate": None}, r"Recipe.rate must be at least 0; got None"),
    ({"mode": "hessian"}, r"Recipe.mode must be one of mse, fisher; got 'hessian'"),
    ({"soft": 1}, r"Recipe.soft must be of type bool; got 1. Whether rounding is soft."),
]


@pytest.mark.parametrize("values", GOOD, ids=str)
def test_limits_are_allowed_themselves(values: dict) -> None:
    params.check(Recipe(**values))


@pytest.mark.parametrize(("values", "words"), BAD, ids=lambda value: str(value)[:20])
def test_outside_the_limits_is_refused(values: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        params.check(Recipe(**values))


READ = [
    ("steps", "7", 7), ("rate", "1e-3", 1e-3), ("rate", 2, 2.0), ("mode", "mse", "mse"),
    ("soft", "Yes", True), ("soft", "0", False), ("soft", "false", False), ("steps", 3, 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "value"), READ)
def test_texts_become_values_of_the_field(name: str, text: object, value: object) -> None:
    read = params.parse(Recipe, {name: text})[name]
    assert (read, type(read)) == (value, type(value))


UNREAD = [
    ({"stepz": "1"}, "Recipe has no setting 'stepz'; it has steps, rate, mode, soft."),
    ({"steps": "1.5"}, "Recipe.steps must be of type int; got '1.5'. Optimisation steps."),
    ({"rate": "fast"}, "Recipe.rate must be of type float; got 'fast'"),
    ({"soft": "maybe"}, "Recipe.soft must be of type bool; got 'maybe'"),
]


@pytest.mark.parametrize(("texts", "words"), UNREAD, ids=lambda value: str(value)[:20])
def test_unreadable_texts_are_refused(texts: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        params.parse(Recipe, texts)


def test_a_whole_number_will_do_for_a_float_and_makes_the_same_run() -> None:
    made = Recipe(**params.parse(Recipe, {"rate": 1}))
    assert made == Recipe(**params.parse(Recipe, {"rate": "1.0"}))
    assert type(made.rate) is float


@pytest.mark.parametrize("package", ["methods", "observers", "allocators", "quantizers"])
def test_every_field_of_every_recipe_has_a_help_text_and_a_good_default(package: str) -> None:
    if package in ("observers", "quantizers", "allocators"):
        pytest.importorskip("torch")
    for name, owner in discover(package).items():
        for p in params.params(owner).values() if hasattr(owner, "__dataclass_fields__") else ():
            assert p.help.endswith("."), f"{name}.{p.name}"
            assert p.help[0].isupper(), f"{name}.{p.name}"
            assert params._fits(p, p.default), f"{name}.{p.name}"


def test_the_specification_keeps_its_own_limits() -> None:
    params.check(RunSpec("m", "d", "nearest"))
    with pytest.raises(ValueError, match=r"RunSpec.weight_bits must be in \[2, 8\]; got 16"):
        params.check(RunSpec("m", "d", "nearest", weight_bits=16))


def test_names_are_the_public_files() -> None:
    assert "nearest" in names("methods")
    assert not any(name.startswith("_") for name in names("methods"))
    assert set(discover("methods")) == set(names("methods"))


def test_lookup_gives_the_nearest_names() -> None:
    assert lookup("colour", "red", ["red", "blue"]) == "red"
    with pytest.raises(ValueError, match=r"There is no colour 'rad'; the nearest are red\."):
        lookup("colour", "rad", ["red", "blue"])
    with pytest.raises(ValueError, match=r"no colour 'x'; the nearest are red, blue\."):
        lookup("colour", "x", ["red", "blue"])
