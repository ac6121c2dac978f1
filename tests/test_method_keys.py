"""No page, figure or text asks for a method by its key: each method's file says what they need."""

import ast
from pathlib import Path

import pytest

from qlib.core import catalogue
from qlib.core.records import BASELINE, RunSpec
from qlib.core.registry import discover, names
from qlib.plots.shared import theme

ROOT = Path(__file__).resolve().parents[1]
# file → the keys that it may name, and why
ALLOWED = {
    "qlib/core/records.py": {"nearest"},  # the baseline, whose numbers are in every record
    "qlib/quantizers/uniform.py": {"nearest"},  # the title of a way of rounding
    "qlib/pipeline/door.py": {"brecq"},  # what `qlib.quantize` does when no method is named
    "qlib/ui/shared/pickers.py": {"brecq"},  # what the form of a new run begins with
    "qlib/guide/findings.py": {"noisyquant"},  # the address of a page
}
CONTENT = ("qlib/methods", "qlib/guide/lessons")  # lessons tell of stored runs by name


def keys_in(source: str) -> set[str]:
    """Method keys that stand in a source as texts of their own."""
    texts = (n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant))
    return {text for text in texts if isinstance(text, str)} & set(names("methods"))


def sources() -> list[str]:
    found = [*(ROOT / "qlib").rglob("*.py"), *(ROOT / "pages").glob("*.py"), ROOT / "app.py"]
    named = sorted(path.relative_to(ROOT).as_posix() for path in found)
    return [name for name in named if not name.startswith(tuple(f"{c}/" for c in CONTENT))]


def test_method_keys_stand_in_the_methods_folder_alone():
    found = {name: keys_in((ROOT / name).read_text()) for name in sources()}
    assert {name: keys for name, keys in found.items() if keys} == ALLOWED


def test_a_planted_key_is_found():
    assert keys_in('"""Of brecq."""\nif spec.method == "ptmq":\n    x = {"qdrop": 1}') == {
        "ptmq",
        "qdrop",
    }


def test_lines_of_variants():
    def line(**settings) -> tuple[str, str, bool]:
        spec = RunSpec("digits-vit", "digits", "ptmq", weight_bits=5, settings=settings)
        return catalogue.line(spec), catalogue.line_title(spec, "T"), catalogue.is_contrast(spec)

    assert line() == ("ptmq", "T", False)
    assert line(learned_at="every width", weight_set="per width") == ("ptmq", "T", False)
    assert line(learned_at="highest") == ("ptmq_naive", "Naive switch", True)
    assert line(weight_set="fixed") == ("ptmq_w5", "T, weights 5 bits", False)
    both = line(learned_at="highest", weight_set="fixed")
    assert both == ("ptmq_naive_w5", "Naive switch, weights 5 bits", True)
    gone = RunSpec("digits-vit", "digits", "a_method_of_yesterday", settings={"x": 1})
    assert catalogue.line(gone) == "a_method_of_yesterday" and not catalogue.is_contrast(gone)
    assert theme.style("a_method_of_yesterday") and not catalogue.learns("a_method_of_yesterday")


@pytest.mark.parametrize("key", names("methods"))
def test_variants_name_settings_that_there_are(key):
    owner = discover("methods")[key]
    for variant in owner.variants:
        made = owner(**{variant.setting: variant.value})  # refused if there is none, or no value
        assert getattr(made, variant.setting) == variant.value
        assert getattr(owner(), variant.setting) != variant.value, "a variant is not the default"
        assert "{" not in variant.title.format(title="T", bits=4) + variant.suffix.format(bits=4)


def test_the_way_of_learned_rounding_begins_at_the_baseline():
    way = list(catalogue.ingredients())
    assert way[0] == BASELINE and len(way) == 4
    learned = [catalogue.learns(key) for key in way]
    assert learned == [False, True, True, True]
