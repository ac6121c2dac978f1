"""The README tells of everything that is there: methods, files, commands."""

import re
from pathlib import Path

import pytest

from qlib.core import params
from qlib.core.registry import discover

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
METHODS = discover("methods")


def row(name: str) -> str:
    """The README's line of a method, as it should be."""
    method = METHODS[name]
    return f"| **{method.title}** | {method.promise} | {method.paper} | `qlib/methods/{name}.py` |"


@pytest.mark.parametrize("name", METHODS)
def test_method_has_its_row(name: str) -> None:
    assert row(name) in README, f"Put this line into the README's method table:\n{row(name)}"


@pytest.mark.parametrize("name", METHODS)
def test_every_field_has_a_help_text(name: str) -> None:
    for field in params.params(METHODS[name]).values():
        assert field.help.endswith("."), f"{name}.{field.name} needs a sentence"
    settings = METHODS[name].paper_settings
    METHODS[name](**settings)  # the paper's settings lie within the limits


@pytest.mark.parametrize("folder", ["observers", "quantizers", "allocators", "models", "datasets"])
def test_every_recipe_has_a_title(folder: str) -> None:
    for name, recipe in discover(folder).items():
        assert recipe.title, f"qlib/{folder}/{name}.py needs a title"


def test_paths_in_the_readme_exist() -> None:
    named = re.findall(r"`((?:qlib|pages|assets|tests|benchmarks)/[\w/.*]*)`", README)
    named = [path for path in named if "NAME" not in path]
    assert len(named) > 10
    for path in named:
        found = list(ROOT.glob(path)) if "*" in path else [ROOT / path]
        assert found and found[0].exists(), f"The README names {path}, which is not there"


def test_pictures_in_the_readme_exist() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < 1_500_000


def test_every_command_of_the_readme_is_there() -> None:
    for module in re.findall(r"python -m ((?:benchmarks|qlib)[\w.]*)", README):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_changelog_has_the_three_headings_or_fewer() -> None:
    headings = re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings and set(headings) <= {"Added", "Changed", "Fixed"}


def test_the_measured_tables_of_the_readme_are_those_of_the_results_file():
    from benchmarks.readme import filled, measured

    text = (ROOT / "README.md").read_text()
    assert filled(text, *measured()) == text
