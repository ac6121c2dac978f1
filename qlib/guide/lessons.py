"""Lessons as data: steps that set a view, ask for a guess, and tell what the stored runs say.

One file ``assets/lessons/NAME.json`` is one lesson; NAME is its address (``lesson=NAME&step=1``)::

    {
      "title": "The outlier",                      short, for the list and the card
      "promise": "Why one rare value costs all others their precision.",
      "order": 1,                                  place in the list
      "set": {"m": "digits-vit", "q": "nearest", "b": "W4A4"},     for all steps
      "steps": [
        {
          "page": "distributions",                 address of the page
          "set": {"layer": "blocks.3.mlp.fc2"},    more of the address; wins over the lesson's
          "text": "Look at the two tails.",        Markdown; what to look at, at most 300 characters
          "question": "How much is clipped?",      optional: question, choices, right, reveal
          "choices": ["nothing", "about {input.clipped:.1%}"],
          "right": 1,
          "reveal": "{input.clipped:.1%} of the values lie outside the grid.",
          "runs": {"brecq": {"q": "brecq"}},       optional: further runs that are spoken of
          "hide": ["q", "b"],                      optional: keys of elements to hide
          "show": ["b"]                            optional: those that come back with the answer
        }
      ]
    }

**set** is what the address of the page says: ``m`` ``q`` ``b`` ``layer`` ``d`` and the page's own
keys, as texts, numbers or true/false, written as the address writes them. A step without a question
is shown and read. **right** is the place of the right choice (from 0), or a list with one
expression per choice: the choice whose expression is largest is right (a true condition is larger
than a false one). **hide** names keys of widgets and containers (``q``, ``b``, ``layer``,
``context``, ``try-this``); ``answer`` is the sentence under the page's title and ``titles`` are
those of the figures, which both tell what a question asks. **show** names those of them that are
the evidence: they appear once a guess is made. The same list can stand in an address:
``hide=q,b``. The card names the right choice before the **reveal**, which need not repeat it.

In **text**, **question**, **choices** and **reveal**, ``{expression}`` or ``{expression:format}``
is computed from the step's run; write a number as an expression wherever the data have it, so
that it stays true when the runs are made again. Expressions know numbers, texts, ``+ - * /``,
comparisons, ``and or not``, ``abs min max round``, and these names:

- ``top1 top1_low top1_high top1_float top1_nearest agreement lost gained n weight_mb gbops kl``
  as in the run's metrics, and ``drop`` (float - top1), ``won`` (top1 - nearest), ``seconds``,
  ``bits`` ("W4A4"), ``weight_bits``, ``act_bits``, ``method`` (its key), ``model``
- ``weight input left right output``: the row of ``layers.csv`` of the step's layer, for example
  ``input.clipped``, ``weight.flipped``, ``output.acc_sqnr_db``; from the stored histograms
  ``input.outlier_ratio``, ``input.low``, ``input.high``
- ``layers["NAME"].weight.sqnr_db``: the same of any layer
- ``worst.local``, ``worst.accumulated``, ``worst.profile``: names of the layers with the largest
  error (alone; in the whole network; by sensitivity), ``worst.kl`` the last one's KL
- ``profile.float``, ``profile.weights``, ``profile.inputs``, ``profile.both``: top-1 of the
  sensitivity run with nothing, weights, activations, all quantized; ``profile.kl_both`` and so on
- ``noise.b6``: what noise does to the step's layer at 6 bits, ``noise["NAME"].b6`` to another:
  ``rounding`` (in step²/12), ``closed_form`` and ``linear_search`` (reaches in steps), ``left`` and
  ``half`` (share of the output's error that is left at the first of them and at half a step),
  ``plain clip shift noise`` (% of the output's energy), each with ``_test`` for held-out rows
- ``noise.count.b6``: ``helped``, ``hurt``, ``of`` layers by noise of half a step, held-out rows;
  ``none``: layers whose search chose no noise
- of a run of one network with many bit-widths: ``stored_mb``; ``widths["W8A3"].top1``, ``.drop``,
  ``.kl``, ``.weight_mb`` and the like of each measured pair; ``units.n``, ``units.bits`` (how many
  units can be switched, the lowest width), ``units.worst``, ``units.kl``, ``units.least``,
  ``units.least_kl``, ``units.sum``: KL of units alone at that width. ``top1`` and the like are
  those of the step's ``b``
- ``NAME.top1``, ``NAME.layers[...]``...: the same of a run named in **runs**, whose entry
  gives what differs from the step's ``m q b layer``
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlib.core.paths import ASSETS
from qlib.core.records import InvalidSpec
from qlib.guide._expressions import filled, value

FOLDER = ASSETS / "lessons"
LONGEST = 300  # characters of a text on the card


@dataclass(frozen=True)
class Step:
    """One view with its text, and a question where there is one; see the module's own text."""

    page: str
    text: str
    set: dict[str, Any] = field(default_factory=dict)
    question: str = ""
    choices: tuple[str, ...] = ()
    right: int | tuple[str, ...] | None = None
    reveal: str = ""
    runs: dict[str, dict[str, str]] = field(default_factory=dict)
    hide: tuple[str, ...] = ()
    show: tuple[str, ...] = ()

    def hidden(self, *, guessed: bool) -> tuple[str, ...]:
        """What is hidden before and after the guess."""
        return tuple(k for k in self.hide if not (guessed and k in self.show))

    @property
    def params(self) -> dict[str, str]:
        """`set` as an address writes it."""
        return {key: _written(value) for key, value in self.set.items()}


@dataclass(frozen=True)
class Lesson:
    """``name`` is its file's, and its key in an address."""

    name: str
    title: str
    promise: str
    steps: tuple[Step, ...]
    order: float = 99


@dataclass(frozen=True)
class Told:
    """A step's words with the numbers filled in; ``right``: a place in ``choices``, -1 for none."""

    text: str
    question: str = ""
    choices: tuple[str, ...] = ()
    right: int = -1
    reveal: str = ""


def names(folder: Path | None = None) -> list[str]:
    """The lessons that there are, by file name; ``folder``: `FOLDER`."""
    return sorted(path.stem for path in (folder or FOLDER).glob("*.json"))


def load(name: str, folder: Path | None = None) -> Lesson:
    """Read and check one lesson.

    Raises:
        InvalidSpec: there is none of this name, or its file says something that is not allowed.
    """
    if name not in names(folder):
        raise InvalidSpec(f"There is no lesson {name!r}; choose one of {', '.join(names(folder))}.")
    try:
        body = json.loads(((folder or FOLDER) / f"{name}.json").read_text(encoding="utf-8"))
        shared = body.pop("set", {})
        steps = tuple(_step(step, shared) for step in body.pop("steps"))
        lesson = Lesson(name=name, steps=steps, **body)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidSpec(f"The lesson {name}.json cannot be used: {error}.") from None
    for number, step in enumerate(lesson.steps, 1):
        if wrong := _wrong(step):
            raise InvalidSpec(f"The lesson {name}.json, step {number}: {wrong}.")
    if not lesson.steps:
        raise InvalidSpec(f"The lesson {name}.json has no steps.")
    return lesson


def _step(body: Mapping[str, Any], shared: Mapping[str, Any]) -> Step:
    made = dict(body) | {"set": dict(shared) | body.get("set", {})}
    for key in ("choices", "hide", "show"):
        made[key] = tuple(made.get(key, ()))
    if isinstance(made.get("right"), list):
        made["right"] = tuple(made["right"])
    return Step(**made)


def _wrong(step: Step) -> str:
    """What is wrong with a step; nothing if it can be used."""
    words = [step.text, step.question, step.reveal, *step.choices]
    if not all(isinstance(word, str) for word in words) or not step.text:
        return "text, question, choices and reveal are texts, and text is not empty"
    if len(step.text) > LONGEST:
        return f"the text has {len(step.text)} characters, at most {LONGEST} fit on the card"
    asks = bool(step.question), len(step.choices) > 1, step.right is not None, bool(step.reveal)
    if any(asks) and not all(asks):
        return "a question needs two choices or more, the right one, and a reveal"
    if isinstance(step.right, int) and not 0 <= step.right < max(1, len(step.choices)):
        return f"right is {step.right}, and there are {len(step.choices)} choices (from 0)"
    if isinstance(step.right, tuple) and len(step.right) != len(step.choices):
        return "right has one expression per choice"
    if not set(step.show) <= set(step.hide):
        return "show names only what hide names"
    if {"lesson", "step"} & set(step.set):
        return "set does not name the lesson or the step"
    return ""


def tell(step: Step, facts: Mapping[str, Any]) -> Told:
    """The step's words for the runs whose numbers are ``facts`` (see `qlib.guide.facts.of`).

    Raises:
        InvalidSpec: an expression uses a number that these runs do not have, or two choices are
            right.
    """
    text, question, reveal = (filled(t, facts) for t in (step.text, step.question, step.reveal))
    choices = tuple(filled(choice, facts) for choice in step.choices)
    return Told(text, question, choices, _right(step, facts), reveal)


def _right(step: Step, facts: Mapping[str, Any]) -> int:
    if not isinstance(step.right, tuple):
        return -1 if step.right is None else step.right
    found = [value(text, facts) for text in step.right]
    if found.count(max(found)) > 1:
        raise InvalidSpec(f"More than one choice of {step.question!r} is right: {found}.")
    return found.index(max(found))


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
    """Keys to hide: of an address (``q,b``) or of a step; only what can be a key."""
    keys = text.split(",") if isinstance(text, str) else text
    kept = (key.strip() for key in keys)
    return [key for key in kept if key and key.replace("-", "").replace("_", "").isalnum()]


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
