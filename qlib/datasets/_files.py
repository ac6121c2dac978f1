"""Image files below one place: their names, what was left out, and how one is read."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from qlib.datasets._decode import Picture, Unreadable, decode

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm",
)  # fmt: skip
OPTIONAL = {"avif": (".avif",)}  # Pillow's feature -> endings; not every Pillow has it
MAX_FILE = 512 * 2**20  # bytes of one picture: 64 Mi pixels of three colours fit, uncompressed


@dataclass
class LeftOut:
    """What lies in the place and is not read.

    ``endings``: how many files have each ending that is no picture's; ``folders``: hidden ones, as
    their names say; ``hidden``: picture files whose own name begins with a dot; ``irregular``:
    pictures by their name that are no regular files, and what they are.
    """

    endings: Counter[str] = field(default_factory=Counter)
    folders: dict[str, None] = field(default_factory=dict)
    hidden: int = 0
    irregular: dict[str, str] = field(default_factory=dict)

    def takes(self, name: str) -> bool:
        """Whether this slash-separated name is a picture's; else it is counted here."""
        *folders, file = PurePosixPath(name).parts
        ending = PurePosixPath(file).suffix.lower()
        if away := next((f for f in folders if is_hidden(f)), None):
            self.folders[away] = None
        elif ending not in suffixes():
            self.endings[ending] += not is_hidden(file)
        elif is_hidden(file):
            self.hidden += 1
        else:
            return True
        return False


@dataclass(frozen=True)
class Files:
    """Image files below one place: slash-separated names, sorted, and how to read one.

    ``size(name)`` in bytes, without opening the file.
    """

    where: str
    names: list[str]
    read: Callable[[str], bytes]
    size: Callable[[str], int]
    left_out: LeftOut

    def picture(self, name: str) -> Picture:
        """The decoded image, upright and with 8 bits, and what was done to it.

        Raises:
            Unreadable: the file is damaged, empty or no image; it is named.
        """
        if name in self.left_out.irregular:
            raise irregular(f"{self.where}: {name}", self.left_out.irregular[name])
        return decode(self.read(name), f"{self.where}: {name}")

    def image(self, name: str) -> "Image":
        """The decoded image alone, see `picture`."""
        return self.picture(name).image


@cache
def suffixes() -> tuple[str, ...]:
    """The endings of the files that are read: what Pillow can decode here."""
    from PIL import features

    more = (ends for feature, ends in OPTIONAL.items() if features.check(feature))
    return (*SUFFIXES, *(end for ends in more for end in ends))


def is_hidden(part: str) -> bool:
    """Whether a file or folder of this name is the system's own, or meant not to be seen."""
    return part.startswith(".") or part == "__MACOSX"


def irregular(name: str, what: str) -> Unreadable:
    """The refusal of what is no regular file."""
    return Unreadable(name, f"no regular file but {what}")


def too_large(name: str, size: int) -> Unreadable:
    """The refusal of a file before it is read."""
    return Unreadable(name, f"too large: {size:,} bytes, and at most {MAX_FILE:,} are read")


def natural(name: str) -> tuple[int, str] | None:
    """A key that sorts names such as ``2`` and ``10`` as numbers; None for other names."""
    return (int(name), name) if re.fullmatch(r"[0-9]{1,18}", name) else None
