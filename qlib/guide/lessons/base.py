"""The contract of a lesson: steps that set a view, ask for a guess, and explain runs' numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlib.core.records import InvalidSpec
from qlib.guide.facts import Facts

LONGEST = 300  # characters of a text on the card

Words = str | Callable[[Facts], str]
Right = int | Callable[[Facts], Sequence[float]]


@dataclass(frozen=True)
class Step:
    """One step of a lesson: a view with its text, and a question where there is one.

    ``page`` is the page's address, ``set`` the rest of it: ``m`` ``q`` ``b`` ``layer`` ``d`` and
    the page's own keys, written as the address writes them; it wins over the lesson's ``set``.
    ``text`` (Markdown) says what to look at. ``question``, ``choices`` and ``reveal`` go together
    with ``right``: the place of the right choice (from 0), or a function that gives a value for
    each choice, of which the largest is right (a true condition is larger than a false one). The
    card names the right choice before the reveal, which need not repeat it.

    Where the data have a number, the words are functions of `Facts`, so that they stay true when
    the runs are made again. ``runs`` names further runs that are spoken of, by what differs from
    the step's ``m q b layer``: ``f.runs["near"].kl``.

    ``hide`` names keys of widgets and containers (``q``, ``context``, ``try-this``); ``answer`` is
    the sentence under the page's title and ``titles`` are those of the figures, which both tell
    what a question asks. ``show`` names those of them that are the evidence and come back with the
    answer.

    Raises:
        ValueError: something of this is missing or does not fit together.
    """

    page: str
    text: Words
    set: Mapping[str, Any] = field(default_factory=dict)
    question: Words = ""
    choices: tuple[Words, ...] = ()
    right: Right | None = None
    reveal: Words = ""
    runs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    hide: tuple[str, ...] = ()
    show: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if wrong := _wrong(self):
            raise ValueError(wrong)

    def hidden(self, *, guessed: bool) -> tuple[str, ...]:
        """What the page hides before and after the guess."""
        return tuple(k for k in self.hide if not (guessed and k in self.show))

    @property
    def params(self) -> dict[str, str]:
        """The step's settings as address parameters."""
        return {key: _written(value) for key, value in self.set.items()}


@dataclass(frozen=True)
class Lesson:
    """A lesson: a guided tour of several steps.

    A short ``title`` for the list and the card, one sentence that promises, and the steps.

    ``order`` is its place in the list; ``set`` is the address of all steps; ``name``, its key in an
    address, is that of its file.

    Raises:
        ValueError: it has no steps.
    """

    title: str
    promise: str
    steps: tuple[Step, ...]
    order: float = 99
    set: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("it has no steps")


@dataclass(frozen=True)
class Told:
    """A step's texts with the numbers of runs filled in.

    A step's words with the numbers filled in; ``right``: a place in ``choices``, -1 for none.
    """

    text: str
    question: str = ""
    choices: tuple[str, ...] = ()
    right: int = -1
    reveal: str = ""


def _wrong(step: Step) -> str:
    """What is wrong with a step; nothing if it can be used."""
    if not step.text:
        return "text is empty"
    if isinstance(step.text, str) and len(step.text) > LONGEST:
        return f"the text has {len(step.text)} characters, at most {LONGEST} fit on the card"
    asks = bool(step.question), len(step.choices) > 1, step.right is not None, bool(step.reveal)
    if any(asks) and not all(asks):
        return "a question needs two choices or more, the right one, and a reveal"
    if isinstance(step.right, int) and not 0 <= step.right < max(1, len(step.choices)):
        return f"right is {step.right}, and there are {len(step.choices)} choices (from 0)"
    if not {*step.show} <= {*step.hide}:
        return "show names only what hide names"
    if not {"lesson", "step"}.isdisjoint(step.set):
        return "set does not name the lesson or the step"
    return ""


def tell(step: Step, facts: Facts) -> Told:
    """Fill the numbers of runs into a step's texts.

    The step's words for the runs whose numbers are ``facts`` (see `qlib.guide.facts.of`).

    Raises:
        InvalidSpec: the words use a number that these runs do not have or that cannot be computed,
            or two choices are right.
    """
    try:
        text, question, reveal = (_said(w, facts) for w in (step.text, step.question, step.reveal))
        choices = tuple(_said(choice, facts) for choice in step.choices)
        return Told(text, question, choices, _right(step, facts), reveal)
    except InvalidSpec:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InvalidSpec(f"A number of this step cannot be computed: {error}.") from None


def _said(words: Words, facts: Facts) -> str:
    return words if isinstance(words, str) else words(facts)


def _right(step: Step, facts: Facts) -> int:
    if step.right is None:
        return -1
    if isinstance(step.right, int):
        return step.right
    found = list(step.right(facts))
    if len(found) != len(step.choices):
        raise InvalidSpec(
            f"There are {len(step.choices)} choices, and {len(found)} values of them."
        )
    if found.count(max(found)) > 1:
        raise InvalidSpec(f"More than one choice of this step is right: {found}.")
    return found.index(max(found))


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
