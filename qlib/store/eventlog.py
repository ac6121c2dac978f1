"""The events of a run as lines of a file: written while it runs, read while it is written."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import psutil

from qlib.core.checks import check
from qlib.core.records import Event
from qlib.core.rows import EventRow
from qlib.store.disk import read_bytes, read_tail, writing

FILE = "events.jsonl"
KEPT = 200  # steps of one unit that are kept, the first and the last always …
TOGETHER, FEWEST = 700, 25  # … fewer where there are many units: about so many in all
EMPTY = {f.name: f.default for f in fields(Event) if f.name != "phase"} | {"t": 0.0, "mb": 0.0}
LARGEST = 512_000_000  # bytes of a log that are read
TAIL = 4096  # bytes that surely hold the last line


class EventLog:
    """Appends events to ``folder/events.jsonl``, each flushed at once; call it with an `Event`.

    Of a unit's reconstruction steps at most about `KEPT` are kept, and all that tell of its
    rounding; of a profile its rows; every other event is. To the fields that are not empty come
    ``t``, seconds since the log was opened, and ``mb``, resident memory in 10⁶ bytes. Losses are
    written with four digits; one that is not finite is left out: JSON has no word for it.

    Raises:
        InvalidSpec: the file cannot be written, or the disk is full.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start, self._process = clock, clock(), psutil.Process()
        self._folder, self._unit = folder, ("", "", 0)
        with writing(folder):
            # unbuffered: one line is one write, so a killed process tears at most the last one
            self._out = (folder / FILE).open("wb", buffering=0)

    def __call__(self, event: Event) -> None:
        if not self._keeps(event):
            return
        values = {
            "loss": _number(event.loss),
            "penalty": _number(event.penalty),
            "flipped": _number(event.flipped),
            "t": round(self._clock() - self._start, 2),
            "mb": round(self._process.memory_info().rss / 1e6),
        }
        line = _shallow(event) | values
        full = {k: v for k, v in line.items() if k in ("t", "mb") or v != EMPTY.get(k)}
        with writing(self._folder):
            self._out.write(json.dumps(full, separators=(",", ":")).encode() + b"\n")

    def _keeps(self, event: Event) -> bool:
        unit = (event.phase, event.unit, event.index)
        first, self._unit = unit != self._unit, unit
        if event.phase == "profile":
            return not event.steps  # finished rows; the steps between are for who listens now
        if event.phase != "reconstruct" or first or event.step >= event.steps:
            return True
        if event.soft is not None or event.flipped is not None:
            return True
        kept = min(KEPT, max(FEWEST, TOGETHER // max(1, event.of)))
        return event.step % math.ceil(event.steps / kept) == 0

    def close(self) -> None:
        """Close the file."""
        self._out.close()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def events(folder: Path, start: int = 0) -> list[dict[str, Any]]:
    """The events of a folder from number ``start`` on; none when there is no file to read.

    Every dict has all fields of `Event` (empty ones too), ``t`` and ``mb``. A last line that is
    still being written is left for the next call: ask again with ``start`` grown by what came.
    A damaged line is passed over.
    """
    try:
        lines = read_bytes(folder / FILE, LARGEST).split(b"\n")[:-1]
    except (OSError, ValueError):
        return []
    return [event for line in lines[start:] if (event := _parse(line))]


def last_event(folder: Path) -> dict[str, Any] | None:
    """The newest whole event, found by reading the end of the file only."""
    try:
        lines = read_tail(folder / FILE, TAIL).split(b"\n")[:-1]
    except OSError:
        return None
    return next((event for line in reversed(lines) if (event := _parse(line))), None)


def _parse(line: bytes) -> dict[str, Any] | None:
    """An event with all its fields; None of a line that is torn or damaged."""
    try:
        found = json.loads(line)
        check(EventRow, found, "event")
    except (ValueError, RecursionError):
        return None
    return EMPTY | found


def _shallow(event: Event) -> dict[str, Any]:
    return {f.name: getattr(event, f.name) for f in fields(event)}


def _number(value: Any) -> float | None:
    """A float of a number or a 0-d tensor; reading a tensor waits for its device."""
    if value is None:
        return None
    number = float(value.detach() if hasattr(value, "detach") else value)
    return float(f"{number:.4g}") if math.isfinite(number) else None
