"""The files of one run folder: written into a private one, read back with their types. No torch."""

import csv
import io
import json
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlib.core.records import InvalidSpec, RunRecord
from qlib.store.disk import write_json, writing

if TYPE_CHECKING:  # loaded late: the first page needs no arrays
    import numpy as np

RECORD, LAYERS, PREDS = "run.json", "layers.csv", "preds.npz"
PROFILE, NOISES = "profile.csv", "noise.csv"  # in place of layers.csv where a run is an analysis
TABLES = {"": LAYERS, "sensitivity": PROFILE, "noise": NOISES}
TEXT = {"point", "layer", "unit", "kind", "tensor", "mode", "split", "data"}  # columns of text
WHOLE = {"bits", "channels", "macs", "params", "n"}


def load(folder: Path) -> RunRecord:
    """The whole record of a run folder, one dict a row of its table (empty cells are None).

    Raises:
        InvalidSpec: missing, empty, truncated, or of another format version.
    """
    record = load_head(folder)
    file = folder / table(record)
    try:
        text = file.read_bytes()
        if not text.endswith(b"\n"):
            raise ValueError("cut off")
        rows = list(csv.DictReader(io.StringIO(text.decode(), newline=""), strict=True))
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a row of another length")
        if len(rows) != record.data.get("profile_rows", len(rows)):
            raise ValueError("fewer rows than were written")
        return replace(record, layers=[{k: _cell(k, v) for k, v in row.items()} for row in rows])
    except (OSError, ValueError, csv.Error) as error:
        raise InvalidSpec(broken(file, error)) from None


def table(record: RunRecord) -> str:
    """The file that holds ``record.layers``; without it a folder is no finished run."""
    return TABLES.get(record.spec.analysis, LAYERS)


def load_head(folder: Path) -> RunRecord:
    """The record without its layers: ``run.json`` alone.

    Raises:
        InvalidSpec: as `load`.
    """
    file = folder / RECORD
    try:
        body = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidSpec(broken(file, error)) from None
    try:
        return RunRecord.from_json(body)
    except InvalidSpec as error:
        raise InvalidSpec(f"{folder.name}: {error}") from None


def load_preds(folder: Path) -> "dict[str, np.ndarray]":
    """The arrays of ``preds.npz`` by name: ids, labels, float_top5, quant_prob, thumbs, ...

    Raises:
        InvalidSpec: missing, truncated, or not plain arrays.
    """
    return load_arrays(folder / PREDS)


def load_arrays(file: Path) -> "dict[str, np.ndarray]":
    """All arrays of an ``.npz`` file of a run folder.

    Raises:
        InvalidSpec: missing, truncated, or not plain arrays.
    """
    import numpy as np

    try:
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a member that is no array")
        return arrays
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidSpec(broken(file, error)) from None


def write_record(record: RunRecord, folder: Path) -> None:
    """``run.json`` and the table of a private folder; `qlib.store.finish` publishes it.

    Raises:
        InvalidSpec: the folder cannot be written, or the disk is full.
    """
    columns = list(dict.fromkeys(name for row in record.layers for name in row))
    with writing(folder):
        with (folder / table(record)).open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(record.layers)
        write_json(folder / RECORD, record.to_json())


def broken(file: Path, error: Exception) -> str:
    """Why a file of a run folder cannot be used, and what to do: one sentence."""
    name = f"{file.parent.name}/{file.name}"
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return f"{name} is missing, so this is no finished run; delete the folder or run again."
    if isinstance(error, OSError) and error.strerror:
        return f"{name} cannot be read ({error.strerror.lower()}); check who may read the folder."
    return f"{name} is damaged or cut off; delete the folder or run again."


def _cell(column: str, text: str) -> Any:
    if column in TEXT:
        return text
    if text == "":
        return None
    if text in ("True", "False"):
        return text == "True"
    return int(float(text)) if column in WHOLE else float(text)
