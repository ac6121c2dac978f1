"""Opens folders and zip archives of images; archives are never unpacked."""

import re
import zipfile
from pathlib import Path
from threading import Lock

from qlib.core.records import InvalidSpec
from qlib.datasets._decode import Unreadable
from qlib.datasets._files import MAX_FILE, Files, LeftOut, suffixes, too_large
from qlib.datasets._walk import folder, kind_of

MAX_MEMBERS = 200_000
MAX_BYTES = 50 * 2**30  # unpacked, all members together
MAX_RATIO = 200  # unpacked to packed; photographs have about 1


def open_files(path: Path) -> Files:
    """The images below a folder, in a zip, or in the zips of a folder that has nothing else.

    Raises:
        InvalidSpec: nothing is there, no image is in it, or an archive cannot be trusted.
    """
    if not path.exists():
        raise InvalidSpec(f"There is nothing at {path}; check the path to the folder or zip file.")
    files = folder(path) if path.is_dir() else archive(path)
    if path.is_dir() and not files.names and any(path.glob("*.zip")):
        files = _archives(path)
    if not files.names:
        raise InvalidSpec(
            f"No image was found in {path}{_others(files.left_out)}; it needs sub-folders, one a "
            f"class, with files that end in {', '.join(suffixes())}."
        )
    return files


def _others(left_out: LeftOut) -> str:
    endings = ", ".join(f"{n} {end or 'without'}" for end, n in left_out.endings.most_common(5))
    return f" (files by their endings: {endings})" if endings else ""


def archive(path: Path) -> Files:
    """The images in a zip file, left where they are.

    Raises:
        InvalidSpec: not a zip, too large, or with members that would leave the folder.
    """
    if not path.is_file():
        raise InvalidSpec(
            f"{path} is {kind_of(str(path))} and no regular file; give a folder of images, or a "
            "zip of one."
        )
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
    left_out, lock = LeftOut(), Lock()
    names = sorted(name for name in members_by_name if left_out.takes(name))
    for name in names:
        if members_by_name[name].file_size > MAX_FILE:
            raise too_large(f"{path}: {name}", members_by_name[name].file_size)

    def read(name: str) -> bytes:
        try:
            with lock, opened.open(members_by_name[name]) as member:
                content = member.read(members_by_name[name].file_size + 1)
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError) as error:
            raise damaged(name, f"not readable ({error})") from None
        except Exception as error:  # zlib, lzma and bz2 have errors of their own
            raise damaged(name, f"damaged ({error})") from None
        return content

    def damaged(name: str, reason: str) -> Unreadable:
        return Unreadable(f"{path}: {name}", reason, "make the zip again")

    def size(name: str) -> int:
        return members_by_name[name].file_size

    return Files(str(path), names, read, size, left_out)


def _archives(path: Path) -> Files:
    """Zips side by side, each standing for a folder of its name: ``n01440764.zip``."""
    parts, left_out = {}, LeftOut()
    for file in sorted(path.glob("*.zip")):
        inner = archive(file)
        own = f"{file.stem}/"
        for name in inner.names:
            parts[own + name.removeprefix(own)] = (inner, name)
        left_out.endings += inner.left_out.endings
        left_out.folders |= inner.left_out.folders
        left_out.hidden += inner.left_out.hidden

    def read(name: str) -> bytes:
        inner, own_name = parts[name]
        return inner.read(own_name)

    def size(name: str) -> int:
        inner, own_name = parts[name]
        return inner.size(own_name)

    return Files(str(path), sorted(parts), read, size, left_out)


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
