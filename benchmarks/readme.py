"""Puts the measured tables into the README: ``python -m benchmarks.readme``.

Each table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; what is between is replaced
by the rows of ``benchmarks/results/accuracy.csv`` whose network begins with NAME; the tables
``noise``, ``multibit``, ``multibit_ablations``, ``design_space``, ``steps``, ``memory`` and
``goals`` are those of the files with these names.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks import design_space, multibit, noise, reconstruction
from benchmarks._table import Table, markdown
from benchmarks.accuracy import COLUMNS, summary

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK = re.compile(r"<!-- table (\S+) -->\n.*?<!-- end -->", re.DOTALL)


Lines = list[dict[str, object]]


def measured() -> tuple[Lines, dict[str, Lines]]:
    """What `filled` takes, from the stored rows."""
    whole = {"noise": noise, "multibit": multibit, "multibit_ablations": multibit}
    whole["design_space"] = design_space
    others = {name: (of.COLUMNS, of.summary) for name, of in whole.items()} | reconstruction.TABLES
    return summary(Table("accuracy", COLUMNS, fresh=False).rows()), {
        name: told(Table(name, columns, fresh=False).rows())
        for name, (columns, told) in others.items()
    }


def filled(text: str, lines: Lines, others: Mapping[str, Lines] | None = None) -> str:
    """The text with every table replaced by the lines that belong to it.

    Args:
        others: tables with columns of their own, by name.

    Raises:
        ValueError: no line belongs to a table: measure first, or mend the table's name.
    """

    def block(found: re.Match) -> str:
        name = found[1]
        rows = (others or {}).get(name)
        if rows is None:
            rows = [line for line in lines if str(line["network"]).startswith(name)]
        if not rows:
            raise ValueError(f"No measured row has a network that begins with {name!r}.")
        return f"<!-- table {name} -->\n{markdown(_said(rows))}\n<!-- end -->"

    return BLOCK.sub(block, text)


def _said(rows: Lines) -> Lines:
    """Without the columns in which no row says anything."""
    return [{c: v for c, v in row.items() if any(str(r[c]) for r in rows)} for row in rows]


def main() -> None:
    """Rewrite the README in place."""
    README.write_text(filled(README.read_text(), *measured()))


if __name__ == "__main__":
    main()
