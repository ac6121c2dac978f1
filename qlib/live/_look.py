"""Makes one preview and ends: ``python -m qlib.live._look``, driven by `qlib.live.preview`.

A question comes in as a line of JSON, steps and the answer go out as such lines. When its input
closes, however the asking process ended, this one ends at once.
"""

import faulthandler
import json
import os
import sys
import threading
import traceback
from typing import Any, TextIO

from qlib.core.records import Event, InvalidSpec, RunSpec

STEPS = ("Loading PyTorch", "Building the network, opening the images",
         "Finding what can be quantized")  # fmt: skip


class Voice:
    """Writes messages as lines of JSON."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def say(self, **message: Any) -> None:
        """Write one message."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def stage(self, place: int) -> None:
        """Report the step that begins."""
        self.say(stage=STEPS[place], done=place, of=len(STEPS))

    def hear(self, event: Event) -> None:
        """A step of loading."""
        if event.phase == "load":
            self.stage(2 if event.note == "layers" else 1)


def answer(question: dict[str, Any], voice: Voice) -> dict[str, Any]:
    """The preview that was asked for, or why there is none."""
    try:
        voice.stage(0)
        from qlib.pipeline.preview import preview  # loads PyTorch: seconds, said before

        return {"preview": preview(RunSpec.from_json(question["spec"]), voice.hear).to_json()}
    except InvalidSpec as error:
        return {"refused": str(error)}
    except (Exception, SystemExit) as error:  # whatever another person's network raises
        traceback.print_exception(error)  # standard error is the log
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return {"refused": f"The network could not be looked at ({why}); mend it and try again."}


def main() -> None:
    """Answer one question on the standard streams; whatever else prints goes to the log."""
    voice = Voice(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    faulthandler.enable()
    question = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    voice.say(id=question["id"], **answer(question, voice))
    os._exit(0)  # threads that somebody's network left would keep it


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
