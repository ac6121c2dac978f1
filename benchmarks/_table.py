"""Rows of results: a CSV that grows as rows are measured, and a Markdown table for the eye."""

import csv
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


class Table:
    """Appends rows to ``NAME.csv`` in ``folder`` at once: a long run can be stopped."""

    def __init__(
        self, name: str, columns: Iterable[str], *, fresh: bool, folder: Path = RESULTS
    ) -> None:
        self.file, self.columns = folder / f"{name}.csv", list(columns)
        folder.mkdir(exist_ok=True)
        if fresh or not self.file.exists():
            with self.file.open("w", newline="") as out:
                csv.writer(out).writerow(self.columns)

    def rows(self) -> list[dict[str, str]]:
        """What is stored so far, as texts."""
        with self.file.open(newline="") as text:
            return list(csv.DictReader(text))

    def add(self, row: Mapping[str, object]) -> None:
        with self.file.open("a", newline="") as out:
            csv.DictWriter(out, self.columns).writerow(row)


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as a Markdown table; columns as in the first row."""
    if not rows:
        return "(no rows)"
    head = list(rows[0])
    lines = [head, ["---"] * len(head)] + [[str(row[c]) for c in head] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """One line: processor, threads, versions."""
    import torch

    return (
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
