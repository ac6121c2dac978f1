"""Puts the measured tables into README.md and benchmarks/README.md.

``python -m benchmarks.readme``. Each table stands between ``<!-- table NAME -->`` and
``<!-- end -->``; what is between is replaced by the rows of ``benchmarks/results/accuracy.csv``
whose network begins with NAME; the table ``chosen`` holds the rows `CHOSEN` of it, and ``noise``,
``multibit``, ``multibit_ablations``, ``design_space``, ``coverage``, ``steps``, ``memory`` and
``goals`` are those of the files with these names; ``coverage_goals`` counts the rows of
``coverage``.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks import coverage, design_space, multibit, noise, reconstruction
from benchmarks._table import Table, markdown
from benchmarks.accuracy import COLUMNS, cell, mean, summary
from qlib.core.registry import discover

FOLDER = Path(__file__).resolve().parent
FILES = (FOLDER.parent / "README.md", FOLDER / "README.md")
BLOCK = re.compile(r"<!-- table (\S+) -->\n.*?<!-- end -->", re.DOTALL)
DIGITS = "python -m benchmarks.accuracy --only digits"
CIFAR = "python -m benchmarks.accuracy --only cifar --steps 300 --shared DIR"
# the front page's: network, method, its steps, bits of weights and activations, what measures it
CHOSEN = (
    ("cifar10-resnet20", "gptq", 0, 3, 3, CIFAR),
    ("cifar10-resnet20", "qdrop", 300, 3, 3, CIFAR),
    ("cifar10-resnet20", "nupes", 300, 3, 3, CIFAR),
    ("cifar10-resnet20", "flexround", 300, 2, 4, CIFAR),
    ("digits-vit", "qdrop", 500, 3, 3, DIGITS),
    ("digits-mobilenet", "brecq", 500, 2, 4, DIGITS),
)

Row = dict[str, str]
Lines = list[dict[str, object]]


def measured() -> tuple[Lines, dict[str, Lines]]:
    """The tables that `filled` takes, from the stored rows."""
    whole = {"noise": noise, "multibit": multibit, "multibit_ablations": multibit}
    whole |= {"design_space": design_space, "coverage": coverage}
    others = {name: (of.COLUMNS, of.summary) for name, of in whole.items()} | reconstruction.TABLES
    rows = Table("accuracy", COLUMNS, fresh=False).rows()
    families = Table("coverage", coverage.COLUMNS, fresh=False).rows()
    counted = {"coverage_goals": coverage.goals(families)}
    return summary(rows), counted | {"chosen": [_chosen(rows, *which) for which in CHOSEN]} | {
        name: told(Table(name, columns, fresh=False).rows())
        for name, (columns, told) in others.items()
    }


def _chosen(rows: list[Row], network: str, method: str, steps: int, weights: int, acts: int,
            command: str) -> dict[str, object]:  # fmt: skip
    """One line of the table ``chosen``: a method at one width, beside rounding to nearest."""
    want = (network, method, str(steps), str(weights), str(acts), "")
    keys = ("model", "method", "steps", "weight_bits", "act_bits", "settings")
    found = [row for row in rows if tuple(row[key] for key in keys) == want]
    n, seeds = found[0]["n"], ", ".join(sorted(row["seed"] for row in found))
    float_top1, nearest = (f"{mean(found, c):.2f}" for c in ("top1_float", "top1_nearest"))
    return {
        "network": network,
        "bits": f"W{weights}A{acts}",
        "float": float_top1,
        "nearest": nearest,
        "method": discover("methods")[method].title,
        "top-1 (95 %)": cell(found),
        "n": n,
        "seeds": seeds,
        "measured by": f"`{command}`",
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
    """Rewrite both files in place."""
    tables = measured()
    for file in FILES:
        file.write_text(filled(file.read_text(), *tables))


if __name__ == "__main__":
    main()
