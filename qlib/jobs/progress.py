"""A run's progress as text: a line that renews itself on a terminal, a few plain ones elsewhere."""

import time
from collections.abc import Callable
from typing import TextIO

from qlib.core.records import Event

RENEW = 0.1  # seconds between looks of the line on a terminal
SPEAK = 10.0  # seconds between plain lines
WIDTH = 24  # characters of the bar
WORDS = {
    "load": "loading",
    "calibrate": "calibrating",
    "reconstruct": "reconstructing",
    "evaluate": "measuring",
    "profile": "layer by layer",
    "save": "saving",
}


class Progress:
    """Prints a run's progress as text.

    A report for people at a command line. Writes to ``out`` (standard error) only.
    """

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock, self._start = out, clock, clock()
        self._live = out.isatty()
        self._phase, self._spoke = "load", clock()

    def __call__(self, event: Event) -> None:
        now, turned = self._clock(), event.phase != self._phase
        if not turned and now - self._spoke < (RENEW if self._live else SPEAK):
            return
        self._phase, self._spoke = event.phase, now
        if self._live:
            self._out.write(
                f"\r{_bar(_share(event))} {now - self._start:4.0f} s  {_line(event)}\x1b[K"
            )
        else:
            self._out.write(f"{now - self._start:6.1f} s  {_line(event)}\n")
        self._out.flush()

    def close(self) -> None:
        """Clear the terminal's line for what comes next."""
        if self._live:
            self._out.write("\r\x1b[K")
            self._out.flush()


def _line(event: Event) -> str:
    parts = [WORDS.get(event.phase, event.phase)]
    if event.of:
        parts.append(f"{event.index}/{event.of}")
    parts += [text for text in (event.unit, event.note) if text]
    if event.steps:
        parts.append(f"{event.step}/{event.steps}")
    if event.loss is not None:
        parts.append(f"loss {float(event.loss):.3g}")
    return " ".join(parts)


def _share(event: Event) -> float:
    """How far the phase is, from 0 to 1, as one event tells it."""
    inside = event.step / event.steps if event.steps else 0.0
    if event.of:
        inside = (max(event.index - 1, 0) + inside) / event.of
    return min(1.0, inside)


def _bar(share: float) -> str:
    done = round(share * WIDTH)
    return f"[{'#' * done}{'.' * (WIDTH - done)}] {share:4.0%}"
