"""One file = one lesson; the file's name is its key in an address (``lesson=NAME&step=1``).

To add a lesson, write ``qlib/guide/lessons/NAME.py`` with a `Lesson` called ``LESSON``; nothing
else is edited. Words are texts, or functions of the numbers of the step's run::

    LESSON = Lesson(
        title="The outlier",
        promise="Why one rare value costs all others their precision.",
        order=2,
        set={"m": "digits-vit", "q": "nearest", "b": "W4A4", "layer": "blocks.3.mlp.fc2"},
        steps=(
            Step(
                page="distributions",
                text="Look at the two tails.",
                question="How much is clipped?",
                choices=("nothing", lambda f: f"about {f.input.clipped:.1%}"),
                right=1,
                reveal=lambda f: f"{f.input.clipped:.1%} of the values lie outside the grid.",
            ),
        ),
    )

`Step` says what each field means, `qlib.guide.facts.Facts` which numbers there are.
"""

import runpy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from qlib.core.records import InvalidSpec
from qlib.guide.lessons.base import Lesson, Step, Told, tell

__all__ = ["FOLDER", "Lesson", "Step", "Told", "every", "files", "hidden", "load", "names", "tell"]

FOLDER = Path(__file__).parent


def files(folder: Path | None = None) -> list[Path]:
    """Lesson files by name, in ``folder`` (`FOLDER` by default)."""
    found = (folder or FOLDER).glob("*.py")
    return sorted(p for p in found if p.stem != "base" and not p.stem.startswith("_"))


def names(folder: Path | None = None) -> list[str]:
    """The names of all lessons, as their files are called."""
    return [path.stem for path in files(folder)]


def load(name: str, folder: Path | None = None) -> Lesson:
    """The lesson of one file.

    Run one lesson's file and return its lesson, the steps with the address of them all.

    Raises:
        InvalidSpec: there is none of this name, or its file cannot be run or makes no lesson.
    """
    path = {path.stem: path for path in files(folder)}.get(name)
    if path is None:
        raise InvalidSpec(f"There is no lesson {name!r}; choose one of {', '.join(names(folder))}.")
    try:
        lesson = runpy.run_path(str(path))["LESSON"]
        steps = tuple(replace(step, set={**lesson.set, **step.set}) for step in lesson.steps)
        return replace(lesson, name=name, steps=steps)
    except Exception as error:  # whatever is wrong in it, the other lessons are shown
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise InvalidSpec(f"The lesson {name}.py cannot be used: {reason}.") from None


def every(folder: Path | None = None) -> tuple[list[Lesson], list[str]]:
    """All lessons in their order, and one sentence for each file that cannot be used."""
    good, problems = [], []
    for name in names(folder):
        try:
            good.append(load(name, folder))
        except InvalidSpec as error:
            problems.append(str(error))
    return sorted(good, key=lambda lesson: (lesson.order, lesson.title)), problems


def hidden(text: str | Iterable[str]) -> list[str]:
    """The keys to hide that a text names, of an address (``q,b``) or a step; others are dropped."""
    keys = text.split(",") if isinstance(text, str) else text
    kept = (key.strip() for key in keys)
    return [key for key in kept if key and key.replace("-", "").replace("_", "").isalnum()]
