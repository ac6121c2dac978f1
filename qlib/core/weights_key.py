"""Texts such as ``last.ckpt#state_dict_ema``: a file, and the weights inside of it. No torch."""

from pathlib import Path

MARK = "#"


def parts(text: str) -> tuple[Path, str]:
    """The file, and the key of the weights inside of it ("": whichever fit).

    A file whose own name has a ``#`` is taken by its whole name where there is such a file.
    """
    whole = Path(text).expanduser()
    name, mark, key = text.rpartition(MARK)
    if not mark or whole.is_file():
        return whole, ""
    return Path(name).expanduser(), key.strip()


def joined(path: Path, key: str) -> str:
    """The reverse of `parts`."""
    return f"{path}{MARK}{key}" if key else str(path)
