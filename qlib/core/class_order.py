"""Which folder has which class index: a file that says so, read and checked. No torch.

Two ways to write it, as text (UTF-8), one folder a line:

- the folder's name alone: the line's number, counted from 0, is the class index; an empty line is
  an index that has no folder;
- ``folder,index`` or ``folder<TAB>index``, in any order; several folders may share an index.
"""

import hashlib
import re
from pathlib import Path

from qlib.core.records import InvalidSpec

LARGEST = 5 * 2**20  # bytes
MOST = 1_000_000  # classes
INDEXED = re.compile(r"(.*\S)\s*[,\t]\s*(\d{1,9})")
LATER = "write one folder name a line, or folder,index"


def read(path: str | Path) -> dict[str, int]:
    """Folder name -> class index.

    Raises:
        InvalidSpec: no readable text file, or a line that says nothing clear.
    """
    lines = [line.strip() for line in _text(Path(path)).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InvalidSpec(f"The file of classes {path} is empty; {LATER}.")
    indexed = [INDEXED.fullmatch(line) for line in lines]
    if not any(indexed):
        pairs = [(line, at) for at, line in enumerate(lines)]
    else:
        pairs = [
            (match[1], int(match[2])) if match else _unclear(path, at, line)
            for at, (line, match) in enumerate(zip(lines, indexed, strict=True), 1)
            if line
        ]
    return _checked(path, [(name, index) for name, index in pairs if name])


def digest(path: str | Path) -> str:
    """Hash of the file's content, ten characters: another order of classes is another run."""
    return hashlib.sha256(_content(Path(path))).hexdigest()[:10]


def _unclear(path: str | Path, at: int, line: str) -> tuple[str, int]:
    raise InvalidSpec(
        f"Line {at} of the file of classes {path} has no index ({line[:60]!r}), while other lines "
        f"have; {LATER} in every line."
    )


def _checked(path: str | Path, pairs: list[tuple[str, int]]) -> dict[str, int]:
    index_of: dict[str, int] = {}
    for name, index in pairs:
        if name in index_of:
            raise InvalidSpec(
                f"The file of classes {path} names the folder {name[:60]!r} twice; name it once."
            )
        if index >= MOST:
            raise InvalidSpec(
                f"The file of classes {path} gives {name[:60]!r} the index {index:,}, and at most "
                f"{MOST - 1:,} is allowed; class indices count from 0."
            )
        index_of[name] = index
    return index_of


def _text(path: Path) -> str:
    try:
        text = _content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidSpec(
            f"The file of classes {path} is no UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _content(path: Path) -> bytes:
    if not path.is_file():
        what = "is no regular file" if path.exists() else "is not there"
        raise InvalidSpec(f"The file of classes {path} {what}; {LATER}.")
    try:
        if path.stat().st_size > LARGEST:
            raise InvalidSpec(
                f"The file of classes {path} has {path.stat().st_size:,} bytes, and at most "
                f"{LARGEST:,} are read; {LATER}."
            )
        return path.read_bytes()
    except OSError as error:
        raise InvalidSpec(
            f"The file of classes {path} cannot be read ({error.strerror}); check who may read it."
        ) from None
