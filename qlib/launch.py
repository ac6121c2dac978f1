"""The command ``quant-explorer``: alone it opens the app, with a verb it is the command line."""

import os
import sys
from collections.abc import Sequence

from qlib.core.paths import APP

COMMAND = "quant-explorer"


def main() -> int:
    """The entry point of ``quant-explorer``.

    ``quant-explorer [app [OPTIONS OF STREAMLIT]]`` or ``quant-explorer VERB …``.

    Returns:
        the exit code of ``python -m qlib``; the app takes this process over.
    """
    words = sys.argv[1:]
    if words[:1] in ([], ["app"]):
        command = app_command(words[1:])
        os.execv(command[0], command)
    from qlib import __main__ as command_line

    return command_line.start(prog=COMMAND)


def app_command(options: Sequence[str] = ()) -> list[str]:
    """The command that starts the app from any folder; its settings lie beside it."""
    return [sys.executable, "-m", "streamlit", "run", str(APP), *options]
