"""One word for one thing: the old names live on in the change log and where they are answered."""

import re
from pathlib import Path

import pytest

from qlib.core import params, renamed
from qlib.core.registry import discover

ROOT = Path(__file__).resolve().parents[1]
# where old names may stand: the reader of old settings, what tests it, and this list
ALLOWED = {"qlib/core/renamed.py", "tests/test_cli.py", "tests/test_words.py"}
PLACES = ("qlib", "pages", "tests", "benchmarks", ".ci")
OLD = (
    r"\b(Refused|Stairs|Onward|Softened|Setup|Given|stand_on|class Decay)\b",
    r"\b(act|step|bias|zero|exponent)_rate\b", r"--set keep", r"\b(settled|hardening|keep)=[\d\"']",
    r"[\"'](settled|hardening)[\"']", r"\b_(about|reading|measures|mixing) import\b",
    r"\bdef (around|push|hop|arrive)\b", r"\.(around|hop|arrive)\(",
    r"\bfused\.(Chosen|Bent|Placed|Distilled)\b",
    r"\bqlib\.(scheme|functional|model|run|calibration|reconstruct|records|allocators)\b",
)  # fmt: skip


def sources() -> list[Path]:
    """Every text of the project but the change log."""
    found = [path for place in PLACES for path in (ROOT / place).rglob("*")]
    found += [*ROOT.glob("*.md"), *ROOT.glob("*.py"), *ROOT.glob("*.toml")]
    return [
        path
        for path in found
        if path.is_file()
        and path.suffix in (".py", ".md", ".toml", ".csv", "")
        and path.name != "CHANGELOG.md"
        and str(path.relative_to(ROOT)) not in ALLOWED
    ]


def test_nobody_needs_the_old_words() -> None:
    old = re.compile("|".join(OLD))
    left = [
        f"{path.relative_to(ROOT)}:{i}: {found[0]}"
        for path in sources()
        for i, line in enumerate(path.read_text().splitlines(), 1)
        if (found := old.search(line))
    ]
    assert len(sources()) > 300 and left == []


def every_setting() -> set[str]:
    return {name for method in discover("methods").values() for name in params.params(method)}


def test_old_settings_are_gone_and_new_ones_there() -> None:
    assert not set(renamed.SETTINGS) & every_setting()
    assert set(renamed.SETTINGS.values()) <= every_setting()


@pytest.mark.parametrize(("old", "new"), renamed.SETTINGS.items())
def test_an_old_setting_is_answered_by_the_new_one(old: str, new: str) -> None:
    method = next(m for m in discover("methods").values() if new in params.params(m))
    sentence = rf"^{method.__name__} has no setting '{old}'; it is called {new} now\.$"
    with pytest.raises(ValueError, match=sentence):
        params.parse(method, {old: "0.5"})


def test_a_name_that_never_was_is_answered_by_all_there_are() -> None:
    with pytest.raises(ValueError, match="has no setting 'kept'; it has steps, quant_prob, lr"):
        params.parse(discover("methods")["qdrop"], {"kept": "0.5"})


def test_the_change_log_tells_every_renamed_setting() -> None:
    told = (ROOT / "CHANGELOG.md").read_text()
    for old, new in renamed.SETTINGS.items():
        assert f"`{old}`" in told and f"`{new}`" in told
