"""Rows of results: a CSV that grows as rows are measured, and a Markdown table for the eye."""

import csv
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


class Table:
    """Appends rows to ``NAME.csv`` in ``folder`` at once: a long run can be stopped.

    A last column, ``machine``, says on what hardware a row was measured; "unknown": it was
    measured before that was written down.
    """

    def __init__(
        self, name: str, columns: Iterable[str], *, fresh: bool, folder: Path = RESULTS
    ) -> None:
        self.file, self.columns = folder / f"{name}.csv", [*columns, "machine"]
        folder.mkdir(exist_ok=True)
        if fresh or not self.file.exists():
            with self.file.open("w", newline="") as out:
                csv.writer(out).writerow(self.columns)

    def rows(self) -> list[dict[str, str]]:
        """The rows stored so far, as texts."""
        with self.file.open(newline="") as text:
            return list(csv.DictReader(text))

    def add(self, row: Mapping[str, object]) -> None:
        """Append a row to the file."""
        with self.file.open("a", newline="") as out:
            csv.DictWriter(out, self.columns).writerow({**row, "machine": hardware()})


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as a Markdown table; columns as in the first row."""
    if not rows:
        return "(no rows)"
    head = list(rows[0])
    lines = [head, ["---"] * len(head)] + [[str(row[c]) for c in head] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def hardware() -> str:
    """The processor's model and its number of cores: ``"AMD EPYC, 2 cores"``."""
    listing = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows
    text = listing.read_text() if listing.exists() else ""
    named = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    model = named[1] if named else platform.processor() or platform.machine()
    return f"{' '.join(model.split())}, {os.cpu_count()} cores"


def machine() -> str:
    """A line about the machine: hardware, threads, versions."""
    import torch

    return (
        f"{hardware()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
