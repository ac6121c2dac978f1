"""The files of one run folder: written into a private one, read back with their types. No torch."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlib.core import rows, specs
from qlib.core.checks import Damaged, Scalar, base, check, hints
from qlib.core.records import InvalidSpec, RunRecord
from qlib.store.disk import read_bytes, read_json, write_json, writing

RECORD, LAYERS = "run.json", "layers.csv"
PROFILE, NOISES = "profile.csv", "noise.csv"  # in place of layers.csv where a run is an analysis
TABLES = {"": LAYERS, "sensitivity": PROFILE, "noise": NOISES}


def load(folder: Path) -> RunRecord:
    """The whole record of a run folder, one dict a row of its table (empty cells are None).

    Raises:
        InvalidSpec: missing, empty, truncated, of another format version, or with a value of a
            wrong type or outside its limits.
    """
    record = load_head(folder)
    file = folder / table(record)
    try:
        found = _read_table(file, rows.TABLES[record.spec.analysis])
        if len(found) != record.data.get("profile_rows", len(found)):
            raise Damaged("it has other rows than were written")
    except (OSError, ValueError, csv.Error) as error:
        raise InvalidSpec(broken(file, error)) from None
    return replace(record, layers=found)


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
        body = read_json(file)
    except (OSError, ValueError) as error:
        raise InvalidSpec(broken(file, error)) from None
    try:
        record = RunRecord.from_json(body)
        specs.check_settings(record.spec)
    except InvalidSpec as error:
        raise InvalidSpec(f"{folder.name}: {error}") from None
    return record


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
    what = f"damaged ({error})" if isinstance(error, Damaged) else "damaged or cut off"
    return f"{name} is {what}; delete the folder or run again."


def _read_table(file: Path, kind: type) -> list[Any]:
    """The rows of a CSV file as ``kind`` types them, checked; empty cells are None."""
    text = read_bytes(file)
    if not text.endswith(b"\n"):
        raise ValueError("cut off")
    found = list(csv.DictReader(io.StringIO(text.decode(), newline=""), strict=True))
    if any(None in row or None in row.values() for row in found):
        raise ValueError("a row of another length")
    kinds = hints(kind)
    made = [{k: _cell(kinds.get(k, Scalar), v) for k, v in row.items()} for row in found]
    for at, row in enumerate(made, 1):
        check(kind, row, f"row {at}")
        if kind is rows.LayerRow and row["tensor"] != "output":
            _check_grid(row, f"row {at}")
    return made


def _check_grid(row: dict[str, Any], name: str) -> None:
    for column in rows.GRID:
        if row.get(column) is None:
            raise Damaged(f"{name}.{column} is missing")


def _cell(kind: Any, text: str) -> Any:
    """What a cell says, as its column's type reads it; text where it says something else."""
    inner = base(kind)
    if inner is str:
        return text
    if text == "":
        return None
    if text in ("True", "False"):
        return text == "True"
    try:
        return int(float(text)) if inner is int else float(text)
    except (ValueError, OverflowError):
        return text
