"""Previews: one short process each, as code of one's own may crash, hang or eat memory.

The app has no PyTorch; the process builds the network, looks at it and its images, and ends.
"""

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from qlib.core.preview import Preview
from qlib.core.records import InvalidSpec, RunSpec
from qlib.live._child import Child, Slot, Stage

__all__ = ["Look", "Previews", "Stage"]

WORKER = (sys.executable, "-m", "qlib.live._look")
NAME = "The preview"
AGAIN = "Try it again, or with a smaller network."
PATIENCE = 180.0  # seconds after which a preview is given up
KEPT = 24  # finished previews
AT_ONCE = 2  # processes side by side, all visitors together


@dataclass
class Look:
    """One preview, under way or there. ``stage``: what its process does now."""

    _child: Child
    _slot: Slot
    _began: float = field(default_factory=time.monotonic)
    _preview: Preview | None = None

    @property
    def stage(self) -> Stage:
        """The step under way."""
        return self._child.stage

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not; one that takes too long is ended here."""
        if not self._slot.there.is_set() and time.monotonic() - self._began > PATIENCE:
            self._slot.fail(
                InvalidSpec(
                    f"{NAME} did not come within {PATIENCE:g} s; choose a smaller network, or try "
                    "again when the machine is less busy."
                )
            )
            self.close()
        return self._slot.there.is_set()

    @property
    def preview(self) -> Preview:
        """What was seen. Waits for it.

        Raises:
            InvalidSpec: in one sentence, why there is none.
        """
        while not self.over:
            self._slot.there.wait(0.1)
        if self._slot.error:
            raise self._slot.error
        if self._preview is None:
            self._preview = Preview.from_json(self._slot.answer["preview"])
        return self._preview

    def close(self) -> None:
        """End the process, if it still runs."""
        if self._child.ended is None:
            threading.Thread(target=self._child.close, daemon=True).start()  # may take a moment


class Previews:
    """The previews of all visitors by key; may be asked from many threads."""

    def __init__(self, command: Sequence[str] = WORKER) -> None:
        self._command = tuple(command)
        self._lock = threading.Lock()
        self._looks: dict[str, Look] = {}

    def get(self, key: str) -> Look | None:
        """The preview called ``key``, if it was asked for."""
        return self._looks.get(key)

    def ask(self, key: str, spec: RunSpec) -> None:
        """Begin a preview, unless it is there or under way; one that failed is tried again.

        Raises:
            InvalidSpec: too many are under way, or the process cannot be started.
        """
        with self._lock:
            before = self._looks.get(key)
            if before is not None and not (before.over and before._slot.error):
                return
            if sum(not look.over for look in self._looks.values()) >= AT_ONCE:
                raise InvalidSpec(
                    f"{AT_ONCE} previews are being made just now; try again in a moment."
                )
            child = Child(self._command, NAME, AGAIN)
            self._looks.pop(key, None)
            self._looks[key] = Look(child, child.put({"spec": spec.to_json()}, None))
            for old in [k for k, look in self._looks.items() if look.over][:-KEPT]:
                del self._looks[old]

    def drop(self, key: str) -> None:
        """Give up a preview that is under way; one that is there stays."""
        with self._lock:
            look = self._looks.get(key)
            if look is not None and not look.over:
                del self._looks[key]
                look.close()
