"""Names such as ``net.py:build``: a network that comes from a function of one's own. No torch."""

import hashlib
from pathlib import Path

from qlib.core.records import InvalidSpec

PATTERN = "FILE.py:BUILD"


def is_own(name: str) -> bool:
    """Whether ``name`` means a file of code such as ``net.py:build``; it need not exist."""
    if name == PATTERN:
        return False
    path, colon, _ = name.rpartition(":")
    return ".py" in Path(name).name or (bool(colon) and ("/" in path or "." in path))


def parts(name: str) -> tuple[Path, str]:
    """The file and the name of the function.

    Raises:
        InvalidSpec: no function is named, the file is not there, or is no Python file.
    """
    text, colon, function = name.rpartition(":")
    if not colon or not function.isidentifier():
        raise InvalidSpec(
            f"{name} names no function; write the file and, after a colon, the function that "
            "returns the network, such as net.py:build."
        )
    path = Path(text).expanduser()
    if path.suffix != ".py":
        raise InvalidSpec(
            f"{text} is no Python file by its name; the file of a network of your own has to end "
            "in .py, such as net.py:build."
        )
    if not path.is_file():
        raise InvalidSpec(f"There is no file {text}; check the path, or put the file there.")
    return path, function


def digest(path: Path) -> str:
    """Hash of a file's content, ten characters, so that changed code makes another run."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10]
