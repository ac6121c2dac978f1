"""One process that answers questions about networks, from its start to its end; see `qlib.live`."""

import json
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlib.core import deaths, process
from qlib.core.records import InvalidSpec

AGAIN = "Start it again, or go on with stored results."


@dataclass(frozen=True)
class Stage:
    """What the process does before it can answer: step ``done`` + 1 of ``of``."""

    text: str
    done: int
    of: int


class Superseded(InvalidSpec):
    """Raised for a question when the same person has asked something newer."""


@dataclass
class Slot:
    """A question under way, and the place for its answer."""

    group: tuple[str, bool] | None
    there: threading.Event = field(default_factory=threading.Event)
    answer: dict[str, Any] = field(default_factory=dict)  # empty until it is `there`
    error: InvalidSpec | None = None

    def fill(self, answer: dict[str, Any]) -> None:
        """Set the answer (or refusal) and wake who waits."""
        if "refused" in answer:
            self.error = InvalidSpec(answer["refused"])
        self.answer = answer
        self.there.set()

    def fail(self, error: InvalidSpec) -> None:
        """Set an error and wake who waits."""
        self.error = error
        self.there.set()


class Child:
    """One process from its start to its end; a thread reads what it says.

    ``name`` and ``again`` begin and end the sentences on how it ended.
    """

    def __init__(
        self, command: Sequence[str], name: str = "The live network", again: str = AGAIN
    ) -> None:
        self._name, self._again = name, again
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the process has ended)
        try:
            self.process, self._questions, self._answers = process.converse(command, self._log)
        except OSError as error:
            self._log.close()
            reason = error.strerror or type(error).__name__
            raise InvalidSpec(f"{name} cannot be started ({reason}). {again}") from None
        self.stage = Stage("Starting Python", 0, 4)
        self.ended: str | None = None
        self.opening: dict[str, Slot] = {}
        self._bye = ""
        self._slots: dict[int, Slot] = {}
        self._next = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._read, daemon=True, name="live-network").start()

    def open(self, folder: Path) -> None:
        """Let it load a run, unless it has or does; one that failed is tried again."""
        before = self.opening.get(str(folder))
        if before is None or before.error:
            question = {"run": str(folder), "images": None, "bits": None, "weights": None}
            self.opening[str(folder)] = self.put(question, None)

    def put(self, question: dict[str, Any], group: tuple[str, bool] | None) -> Slot:
        """Send a question; an older one of the same group is taken back.

        Raises:
            InvalidSpec: the process has ended.
        """
        slot = Slot(group)
        with self._lock:
            older = [k for k, s in self._slots.items() if group and s.group == group]
            for key in older:
                self._slots.pop(key).fail(Superseded("A newer question took its place."))
                self._send({"drop": key})
            self._next += 1
            self._slots[self._next] = slot
            self._send({"id": self._next} | question)
        if self.ended:  # it may have ended before the question was in the list
            slot.fail(InvalidSpec(f"{self.ended} {self._again}"))
        return slot

    def _send(self, message: dict[str, Any]) -> None:
        with suppress(OSError, ValueError):  # a dead process is noticed by the reading thread
            self._questions.write(json.dumps(message).encode() + b"\n")
            self._questions.flush()

    def close(self) -> None:
        """End the process."""
        self._bye = self._bye or f"{self._name} was stopped."
        with suppress(OSError):
            self._questions.close()
        try:
            self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _read(self) -> None:
        for line in self._answers:
            self._hear(json.loads(line))
        code = self.process.wait()
        for pipe in (self._questions, self._answers):
            with suppress(OSError):
                pipe.close()
        self.ended = self._bye or self._why(code)
        self._log.close()
        with self._lock:
            waiting, self._slots = [*self._slots.values()], {}
        for slot in waiting:
            slot.fail(InvalidSpec(f"{self.ended} {self._again}"))

    def _hear(self, message: dict[str, Any]) -> None:
        if "stage" in message:
            self.stage = Stage(message["stage"], message["done"], message["of"])
        elif "bye" in message:
            self._bye = message["bye"]
        else:
            with self._lock:
                slot = self._slots.pop(message["id"], None)
            if slot:
                slot.fill(message)

    def _why(self, code: int) -> str:
        """A sentence about a process that said nothing before it ended."""
        if signal := deaths.cause(code):
            return f"{self._name} {signal}."
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "")
        return f"{self._name} ended by a fault of its own ({(last or f'code {code}')[:200]})."
