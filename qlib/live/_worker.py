"""Answers questions about finished runs: ``python -m qlib.live._worker``, driven by `qlib.live`.

Lines of JSON come in and go out. Its life hangs on its standard input: when that closes, however
the asking process ended, this one ends at once, in the middle of a computation too.
"""

import faulthandler
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections import OrderedDict, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from qlib.core.process import peak_mb
from qlib.core.records import Cancelled, Event, InvalidSpec

if TYPE_CHECKING:
    from qlib.live._net import Network

IDLE = 600.0  # seconds without a question after which it ends
HELD = 3  # networks in memory; the one that was asked longest ago goes first
STEPS = ("Starting Python", "Loading PyTorch", "Loading the network and its images",
         "Bringing its quantizers back")  # fmt: skip

Message = dict[str, Any]


class Desk:
    """Takes questions in and answers them: short ones first, also in between a long one's batches.

    A question: ``id``, ``run`` (a run folder), ``images`` ("shown", "test", positions, or None to
    only load the network), ``bits``, ``weights``. ``{"drop": id}`` takes one back.
    """

    def __init__(self, out: TextIO, idle: float = IDLE) -> None:
        self._out, self._idle = out, idle
        self._lines: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._short: deque[Message] = deque()
        self._long: deque[Message] = deque()
        self._dropped: set[int] = set()
        self._held: OrderedDict[str, Network] = OrderedDict()
        self._now: tuple[Message, Network] | None = None  # the long one whose batches are under way

    def listen(self, lines: TextIO) -> None:
        """Read questions in a thread of its own: the end of the input ends the process."""
        for line in lines:
            self._lines.put(json.loads(line))
        os._exit(0)

    def say(self, **message: Any) -> None:
        """Write one message as a line of JSON."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def stage(self, place: int) -> None:
        """Report the loading step that begins."""
        self.say(stage=STEPS[place], done=place, of=len(STEPS))

    def serve(self) -> None:
        """Answer questions until nobody has asked for a while."""
        try:
            while True:
                waiting = self._short or self._long
                self._take_in(block=not waiting)
                if self._short:
                    self._answer(self._short.popleft())
                elif self._long:
                    self._answer(self._long.popleft())
        except queue.Empty:
            self.say(bye=f"It ended after {self._idle / 60:g} minutes without a question.")

    def _take_in(self, *, block: bool) -> None:
        """Raises:
        queue.Empty: there was nothing to wait for any longer.
        """
        if block:
            self._sort(self._lines.get(timeout=self._idle))
        while not self._lines.empty():
            self._sort(self._lines.get())

    def _sort(self, message: Message) -> None:
        if "drop" in message:
            asked = [*self._short, *self._long, *(self._now or ())[:1]]
            if any(m["id"] == message["drop"] for m in asked):
                self._dropped.add(message["drop"])
            return
        (self._long if message["images"] == "test" else self._short).append(message)

    def _answer(self, question: Message) -> None:
        began = time.perf_counter()
        try:
            self._keep_on(question)
            found = self._found(question)
        except Cancelled:
            self._dropped.discard(question["id"])
            return
        except InvalidSpec as error:
            self.say(id=question["id"], refused=str(error))
        except Exception as error:
            traceback.print_exception(error)  # standard error is the log
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.say(id=question["id"], refused=f"The network could not be asked: {why}")
        else:
            seconds = time.perf_counter() - began
            self.say(id=question["id"], seconds=seconds, peak_mb=peak_mb(), **found)

    def _keep_on(self, question: Message) -> None:
        if question["id"] in self._dropped:
            raise Cancelled

    def _found(self, question: Message) -> Message:
        network, images = self._network(question["run"]), question["images"]
        about = {"bit_widths": network.bit_widths, "units": [*network.units]}
        if images is None:
            return about
        network.set_bits(question["bits"], question["weights"])
        more: Message = {}
        if images == "test":
            self._now = question, network
            try:
                (classes, probs), more = network.measure()
            finally:
                self._now = None
            positions = range(len(classes))
        else:
            positions = network.shown if images == "shown" else images
            classes, probs = network.guess(positions)
        return {
            "images": [*positions],
            "top5": classes.tolist(),
            "prob": probs.tolist(),
            **more,
        }

    def _network(self, folder: str) -> "Network":
        if folder not in self._held:
            from qlib.live._net import Network  # loads PyTorch: seconds, said before

            while len(self._held) >= HELD:
                self._held.popitem(last=False)
            self._held[folder] = Network(Path(folder), self._hear)
        self._held.move_to_end(folder)
        return self._held[folder]

    def _hear(self, event: Event) -> None:
        """A step of loading; or a batch of a long question, between which short ones are answered.

        Raises:
            Cancelled: the long question was taken back.
        """
        if event.phase == "load":
            self.stage(3 if event.note == "quantizers" else 2)
        if event.phase != "evaluate" or self._now is None:
            return
        long, network = self._now
        self._take_in(block=False)
        self._keep_on(long)
        if self._short:
            while self._short:
                self._answer(self._short.popleft())
            network.set_bits(long["bits"], long["weights"])


def main() -> None:
    """Serve on the standard streams; whatever else prints goes to the log."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    faulthandler.enable()
    desk = Desk(out, float(sys.argv[1]) if len(sys.argv) > 1 else IDLE)
    threading.Thread(target=desk.listen, args=(sys.stdin,), daemon=True).start()
    desk.stage(1)
    try:
        import qlib.live._net  # noqa: F401 (loaded while nobody waits for an answer yet)
    except ImportError as error:
        desk.say(bye=f"It cannot load what it needs ({error}); stored results are shown.")
        return
    desk.serve()


if __name__ == "__main__":
    main()
