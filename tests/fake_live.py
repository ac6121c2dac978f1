"""A process that answers like `qlib.live._worker`, about a network that is made up: no torch.

As a script it takes the place of ``python -m qlib.live._worker``; the first argument is how long
it stays without a question (seconds).
"""

import os
import sys
import time
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qlib.core.records import Event, InvalidSpec
from qlib.live import _worker as _live_worker
from qlib.live._worker import Desk

COMMAND = (sys.executable, __file__)
WIDTHS, BATCHES = (2, 3, 4), 4


class Network:
    """Class = position + bits; the whole test set are ``BATCHES`` images, one a batch."""

    bit_widths, units, shown = WIDTHS, {"one": 4, "two": 4}, (0, 1)

    def __init__(self, desk: Desk, held: Path | None = None) -> None:
        self.desk, self.held, self.bits = desk, held, 4

    def set_bits(self, bits: object, weights: object) -> None:
        if isinstance(bits, int) and bits not in WIDTHS:
            raise InvalidSpec(f"There are no {bits} bits.")
        self.bits = sum(bits.values()) if isinstance(bits, dict) else bits

    def guess(self, positions):
        classes = np.array([[i + self.bits] for i in positions])
        return classes, np.full(classes.shape, 1 / 3, dtype=np.float32)

    def measure(self):
        self._hold()
        rows = []
        for i in range(BATCHES):
            rows.append(i + self.bits)
            self.desk._hear(Event("evaluate", "live", step=i + 1, steps=BATCHES))
        classes = np.array(rows)[:, None]
        return (classes, np.ones(classes.shape)), {"top1": 50.0, "top1_low": 1.0, "top1_high": 99.0}

    def _hold(self) -> None:
        """Of a network called "slow" the first long question never ends by itself.

        That it was begun is told by a file ``asked`` in its folder, if there is that folder.
        """
        held, self.held = self.held, None
        if held is not None and held.is_dir():
            (held / "asked").touch()
        while held is not None:
            time.sleep(0.01)
            self.desk._hear(Event("evaluate", "live", step=0, steps=BATCHES))


class FakeDesk(Desk):
    """Any folder is a network; its name may say what goes wrong."""

    def _network(self, folder: str) -> Network:
        name = Path(folder).name
        if folder not in self._held:
            self.stage(2)
            if name == "gone":
                raise InvalidSpec("The run is gone.")
            if name == "crash":
                os.abort()
            self._held[folder] = Network(self, Path(folder) if name == "slow" else None)
        return self._held[folder]


if __name__ == "__main__":
    _live_worker.Desk = FakeDesk
    sys.modules["qlib.live._net"] = sys.modules[__name__]  # what would load torch
    _live_worker.main()
