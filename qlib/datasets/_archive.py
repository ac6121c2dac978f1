"""Reads image files out of folders and zip archives; archives are never unpacked."""

import io
import os
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING

from qlib.core.records import InvalidSpec

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# Pillow looks at the content, not the name, and some of its formats start other programs
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
MAX_MEMBERS = 200_000
MAX_BYTES = 50 * 2**30  # unpacked, all members together
MAX_RATIO = 200  # unpacked to packed; photographs have about 1
MAX_PIXELS = 64 * 2**20  # of one image


@dataclass(frozen=True)
class Files:
    """Image files below one place: slash-separated names, sorted, and how to read one."""

    where: str
    names: list[str]
    read: Callable[[str], bytes]

    def image(self, name: str) -> "Image":
        """The decoded image.

        Raises:
            InvalidSpec: the file is damaged or no image; it is named.
        """
        return decode(self.read(name), f"{self.where}: {name}")


def open_files(path: Path) -> Files:
    """The images below a folder, in a zip, or in the zips of a folder that has nothing else.

    Raises:
        InvalidSpec: nothing is there, no image is in it, or an archive cannot be trusted.
    """
    if not path.exists():
        raise InvalidSpec(f"There is nothing at {path}; check the path to the folder or zip file.")
    files = _folder(path) if path.is_dir() else archive(path)
    if path.is_dir() and not files.names:
        files = _archives(path)
    if not files.names:
        raise InvalidSpec(
            f"No image was found in {path}; it needs sub-folders, one a class, with files that "
            f"end in {', '.join(SUFFIXES)}."
        )
    return files


def archive(path: Path) -> Files:
    """The images in a zip file, left where they are.

    Raises:
        InvalidSpec: not a zip, too large, or with members that would leave the folder.
    """
    try:
        opened = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InvalidSpec(
            f"{path} is neither a folder nor a readable zip file ({error}); give a folder of "
            "images, or a zip of one."
        ) from None
    members = opened.infolist()
    _check_size(path, members)
    members_by_name = {_safe(path, m.filename): m for m in members if not m.is_dir()}
    lock = Lock()

    def read(name: str) -> bytes:
        try:
            with lock:
                return opened.read(members_by_name[name])
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError) as error:
            raise InvalidSpec(
                f"{path}: {name} cannot be read ({error}); make the zip again."
            ) from None
        except Exception as error:  # zlib, lzma and bz2 have errors of their own
            raise InvalidSpec(f"{path}: {name} is damaged ({error}); make the zip again.") from None

    return Files(str(path), sorted(n for n in members_by_name if _is_image(n)), read)


def decode(content: bytes, name: str) -> "Image":
    """Bytes of a file -> image, wholly read.

    Raises:
        InvalidSpec: damaged, too large or no image; ``name`` is in the sentence.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which is not used
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            large = image.width * image.height > MAX_PIXELS
            if not large:
                image.load()
    except Exception as error:  # decoders raise whatever they like on damaged input
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise InvalidSpec(
            f"{name} is damaged or no image ({reason}); repair the file or take it out."
        ) from None
    if large:
        raise InvalidSpec(
            f"{name} has {image.width} x {image.height} pixels, and at most {MAX_PIXELS:,} are "
            "read; make it smaller or take it out."
        )
    return image


def _folder(path: Path) -> Files:
    names, seen = [], set()
    for base, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:  # a link back up: do not walk round for ever
            folders.clear()
            continue
        seen.add(real)
        inner = Path(base).relative_to(path)
        names += [name for f in files if _is_image(name := (inner / f).as_posix())]

    def read(name: str) -> bytes:
        try:
            return (path / name).read_bytes()
        except OSError as error:
            raise InvalidSpec(f"{path / name} cannot be read ({error.strerror}).") from None

    return Files(str(path), sorted(names), read)


def _archives(path: Path) -> Files:
    """Zips side by side, each standing for a folder of its name: ``n01440764.zip``."""
    parts = {}
    for file in sorted(path.glob("*.zip")):
        inner = archive(file)
        own = f"{file.stem}/"
        for name in inner.names:
            parts[own + name.removeprefix(own)] = (inner, name)

    def read(name: str) -> bytes:
        inner, own_name = parts[name]
        return inner.read(own_name)

    return Files(str(path), sorted(parts), read)


def _is_image(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(p.startswith(".") or p == "__MACOSX" for p in parts)
    return not hidden and PurePosixPath(name).suffix.lower() in SUFFIXES


def _check_size(path: Path, members: list[zipfile.ZipInfo]) -> None:
    total = sum(m.file_size for m in members)
    ratio = total / max(path.stat().st_size, 1)
    for value, limit, what in (
        (len(members), MAX_MEMBERS, "members"),
        (total, MAX_BYTES, "bytes when unpacked"),
        (round(ratio), MAX_RATIO, "times its size when unpacked"),
    ):
        if value > limit:
            raise InvalidSpec(
                f"{path} has {value:,} {what}, and at most {limit:,} are read from a zip; unpack "
                "it yourself and give the folder, if you trust it."
            )


def _safe(path: Path, name: str) -> str:
    """A member's name with forward slashes, if it stays inside."""
    name = name.replace("\\", "/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        raise InvalidSpec(
            f"{path} has a member {name!r} that would leave the folder; names must be relative "
            "and without '..'. Make the zip again."
        )
    return name.removeprefix("./")
