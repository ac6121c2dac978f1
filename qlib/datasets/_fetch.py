"""Downloads a torchvision data set when it is missing, or says what to put where."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qlib.core.online import reachable
from qlib.core.records import InvalidSpec


def data_home() -> Path:
    """Where downloaded data sets live: ``$QLIB_DATA``, or ``~/.cache/qlib``."""
    return Path(os.environ.get("QLIB_DATA") or "~/.cache/qlib").expanduser()


def fetch(make: Callable[..., Any], name: str, url: str, expected: str) -> Any:
    """A data set, downloaded when it is missing.

    ``make(root=, download=)`` with the data in place.

    ``expected`` names, inside the root, what a hand-made copy must look like.

    Raises:
        InvalidSpec: missing and the server cannot be reached, or the download failed.
    """
    root = data_home() / name
    try:
        return make(root=str(root), download=False)
    except (RuntimeError, OSError):
        pass  # not there, or not whole
    place = (
        f"connect to the internet once, or put {expected} into {root} (the environment variable "
        "QLIB_DATA chooses another place)"
    )
    if not reachable(url):
        raise InvalidSpec(f"{name} is not on this machine and {url} cannot be reached; {place}.")
    fresh = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        return make(root=str(root), download=True)
    except (RuntimeError, OSError, EOFError) as error:
        if fresh:
            shutil.rmtree(root, ignore_errors=True)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InvalidSpec(f"{name} could not be downloaded ({reason}); {place}.") from error
