"""A network that answers while you watch: a process with PyTorch beside the app, which has none.

One process for all visitors, started when the first of them asks. It loads finished runs, brings
their quantizers back and switches bit-widths; it ends with this process, or when nobody asks.
"""

import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from qlib.core.records import InvalidSpec
from qlib.live._child import AGAIN, Child, Slot, Stage, Superseded

__all__ = ["Answer", "Bits", "Live", "Opened", "Stage", "Superseded", "missing"]

WORKER = (sys.executable, "-m", "qlib.live._worker")
PATIENCE = {"shown": 180.0, "test": 900.0}  # seconds that an answer may take, loading included

Bits = int | Mapping[str, int] | None


@dataclass(frozen=True)
class Answer:
    """The live network's guesses.

    ``top5``: (n, up to 5) classes, best first; ``prob``: their probabilities, 0 to 1, float32;
    ``images``: (n,) positions among the held-out images. ``top1`` and its Wilson 95 % ends, in
    percent, where these are all held-out images. ``seconds``: the time the answer took in the
    process; ``peak_mb``: the most memory that process had, 10⁶ bytes.
    """

    bits: Bits
    images: tuple[int, ...]
    top5: np.ndarray
    prob: np.ndarray
    seconds: float
    peak_mb: float
    weights: int | None = None
    top1: float | None = None
    top1_low: float | None = None
    top1_high: float | None = None


@dataclass(frozen=True)
class Opened:
    """A loaded network: the widths and the units it can be switched by, none where it cannot."""

    bit_widths: tuple[int, ...]
    units: tuple[str, ...]


class Live:
    """The process with the loaded network; may be asked from many threads.

    Example::

        live = Live()
        live.start(folder)                    # returns at once; see `stage`
        live.ask(folder, 3, "shown").top5     # waits until the network is loaded
    """

    def __init__(self, command: Sequence[str] = WORKER) -> None:
        self._command = tuple(command)
        self._lock = threading.Lock()
        self._child: Child | None = None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._running is not None

    @property
    def _running(self) -> Child | None:
        return self._child if self._child and self._child.ended is None else None

    @property
    def pid(self) -> int | None:
        """The process id; None before the first start."""
        return self._child.process.pid if self._child else None

    @property
    def warm(self) -> bool:
        """Whether the process has loaded some run: another one then takes a moment, not seconds."""
        running = self._running
        opened = running.opening.values() if running else ()
        return any(slot.there.is_set() for slot in [*opened])

    @property
    def stage(self) -> Stage | None:
        """The loading step under way; None while the process does not run."""
        running = self._running
        return running.stage if running else None

    @property
    def ended(self) -> str:
        """Why the process ended, in one sentence; "" while it runs or before its start."""
        return (self._child.ended or "") if self._child else ""

    def start(self, folder: Path) -> None:
        """Start the process if it does not run, and let it load a run folder. Returns at once.

        Raises:
            InvalidSpec: PyTorch is not installed here, or the process cannot be started.
        """
        with self._lock:
            running = self._running
            if running is None:
                if why := missing():
                    raise InvalidSpec(why)
                self._child = running = Child(self._command)
            running.open(folder)

    def opened(self, folder: Path, wait: float = 0.0) -> Opened | None:
        """The loaded network of a run folder.

        The loaded network; None while it loads or was not asked to. Waits ``wait`` seconds.

        Raises:
            InvalidSpec: it cannot be loaded, or the process has ended.
        """
        if self._child is None:
            return None
        if self._child.ended:
            raise InvalidSpec(f"{self._child.ended} {AGAIN}")
        slot = self._child.opening.get(str(folder))
        if slot is None or not slot.there.wait(wait):
            return None
        if slot.error:
            raise slot.error
        return Opened(tuple(slot.answer["bit_widths"]), tuple(slot.answer["units"]))

    def ask(
        self,
        folder: Path,
        bits: Bits,
        images: str | Sequence[int] = "shown",
        weights: int | None = None,
        *,
        asker: str = "",
    ) -> Answer:
        """The network's answers at these widths. Waits for them.

        Args:
            folder: of the finished run; loaded first, where it is not.
            bits: one width, a width for each unit named (others: the run's own), or None: its own.
            images: "shown" (the first 12 held-out ones), "test" (all of them), or positions.
            weights: another width for the weights.
            asker: who asks; an older question of the same one, as large, is given up.

        Raises:
            InvalidSpec: a width, unit or image that is not there; the run cannot be loaded; the
                process does not run (any more).
            Superseded: the same asker has asked again.
        """
        child = self._child
        if child is None or child.ended:
            why = child.ended if child else "No network is loaded."
            raise InvalidSpec(f"{why} {AGAIN}")
        whole = images == "test"
        question = {
            "run": str(folder),
            "bits": dict(bits) if isinstance(bits, Mapping) else bits,
            "images": images if isinstance(images, str) else [int(i) for i in images],
            "weights": weights,
        }
        slot = child.put(question, (asker, whole) if asker else None)
        answer = _waited(slot, PATIENCE["test" if whole else "shown"])
        return Answer(
            bits=bits,
            images=tuple(answer["images"]),
            top5=np.array(answer["top5"], dtype=np.int32),
            prob=np.array(answer["prob"], dtype=np.float32),
            seconds=answer["seconds"],
            peak_mb=answer["peak_mb"],
            weights=weights,
            **{k: answer[k] for k in ("top1", "top1_low", "top1_high") if k in answer},
        )

    def close(self) -> None:
        """End the process; whoever still waits is told."""
        with self._lock:
            if self._child is not None:
                self._child.close()


def missing() -> str:
    """Why live answers are impossible here, in one sentence; "" where possible. Loads nothing."""
    if find_spec("torch") is None:
        return "PyTorch is not installed here, so only stored results can be shown."
    return ""


def _waited(slot: Slot, patience: float) -> dict[str, Any]:
    if not slot.there.wait(patience):
        raise InvalidSpec(
            f"The network did not answer within {patience:g} s; ask for fewer images, or try again "
            "when the machine is less busy."
        )
    if slot.error:
        raise slot.error
    return slot.answer
