"""The arrays of a run folder, read back and checked: ``.npz`` files. No torch."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qlib.core.checks import Damaged
from qlib.core.records import InvalidSpec
from qlib.store.disk import check_file
from qlib.store.runfolder import broken

if TYPE_CHECKING:  # loaded late: the first page needs no arrays
    import numpy as np

PREDS = "preds.npz"
LARGEST = 1_000_000_000  # bytes of one file, packed or unpacked
TEXT, WHOLE, NUMBERS = "U", "iu", "iuf"  # kinds of arrays, by NumPy's letters
# what is raised of a file that is no archive, or one that was tampered with
UNREADABLE = (OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, RuntimeError,
              zipfile.BadZipFile, zlib.error)  # fmt: skip
NEEDED = ("ids", "labels", "class_names", "thumbs", "thumb_index")
ANSWERS = ("float_top5", "float_prob", "quant_top5", "quant_prob")
NO_LABEL = -1
LIKENESS = "quant_cosine"  # of features, which need no answers


def load_arrays(file: Path) -> "dict[str, np.ndarray]":
    """All arrays of an ``.npz`` file.

    Raises:
        InvalidSpec: missing, truncated, too large, or not plain arrays.
    """
    import numpy as np

    try:
        check_file(file, LARGEST)
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            if sum(member.file_size for member in archive.zip.infolist()) > LARGEST:
                raise Damaged(f"its arrays take more than the {LARGEST:,} bytes that are read")
            arrays = {name: archive[name] for name in archive.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a member that is no array")
        return arrays
    except UNREADABLE as error:
        raise InvalidSpec(broken(file, error)) from None


def check_array(
    arrays: "Mapping[str, np.ndarray]", name: str, shape: tuple[int, ...], kinds: str = NUMBERS,
    *, gaps: bool = False,
) -> "np.ndarray":  # fmt: skip
    """The array, if it has this shape and kind.

    Args:
        shape: -1 stands for any length of at least 1.
        gaps: numbers may be missing (NaN).

    Raises:
        Damaged: it is missing or has another shape or kind, or holds infinite numbers.
    """
    import numpy as np

    if name not in arrays:
        raise Damaged(f"{name} is missing")
    array = arrays[name]
    if not _fits(array.shape, shape):
        raise Damaged(f"{name} must have the shape {shape}; got {array.shape}")
    if array.dtype.kind not in kinds:
        raise Damaged(f"{name} must hold {'text' if kinds == TEXT else 'numbers'}")
    if array.dtype.kind == "f" and not (np.isfinite(array) | (gaps & np.isnan(array))).all():
        raise Damaged(f"{name} must hold finite numbers")
    return array


def _fits(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    sizes = zip(found, shape, strict=False)
    same = all(size == want or (want == -1 and size > 0) for size, want in sizes)
    return len(found) == len(shape) and same


def check_index(found: "np.ndarray", size: int, name: str, lowest: int = 0) -> None:
    """Check that all whole numbers lie from ``lowest`` to ``size`` - 1; raises `Damaged`."""
    if len(found) and not (int(found.min()) >= lowest and int(found.max()) < size):
        raise Damaged(f"{name} must lie from {lowest} to {size - 1}")


def load_preds(folder: Path) -> "dict[str, np.ndarray]":
    """The arrays of ``preds.npz``, one row an image: ids, labels, float_top5, quant_prob, ...

    Raises:
        InvalidSpec: missing, truncated, not plain arrays, or arrays that do not belong together.
    """
    file = folder / PREDS
    arrays = load_arrays(file)
    try:
        _check_preds(arrays)
    except Damaged as error:
        raise InvalidSpec(broken(file, error)) from None
    return arrays


def _check_preds(arrays: "Mapping[str, np.ndarray]") -> None:
    needed = NEEDED if LIKENESS in arrays else (*NEEDED, *ANSWERS)
    if missing := [name for name in needed if name not in arrays]:
        raise Damaged(f"{missing[0]} is missing")
    n = len(check_array(arrays, "ids", (-1,), TEXT))
    classes = len(check_array(arrays, "class_names", (-1,), TEXT))
    check_index(check_array(arrays, "labels", (n,), WHOLE), classes, "labels", NO_LABEL)
    if LIKENESS in arrays:
        check_array(arrays, LIKENESS, (n,))
    for side in [name.removesuffix("_top5") for name in arrays if name.endswith("_top5")]:
        best = check_array(arrays, f"{side}_top5", (n, -1), WHOLE)
        check_array(arrays, f"{side}_prob", best.shape)
    pictures = len(check_array(arrays, "thumbs", (-1, -1, -1, 3), WHOLE))
    check_index(check_array(arrays, "thumb_index", (pictures,), WHOLE), n, "thumb_index")
