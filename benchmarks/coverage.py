"""Which networks of timm can be quantized, and how much of them: one of every family.

``python -m benchmarks.coverage`` takes the smallest network of every family (see
`benchmarks/_families.py`) with random weights and four random images of the smallest size that it
runs with, and in a process of its own

- rounds to nearest (W8A8), and asks for the share of multiplications that is quantized,
- plants a product into a block: the count of multiplications has to tell of it,
- learns the rounding block by block (BRECQ, two steps a unit),
- counts once more on images of the size that the network is made for.

Rows go to ``benchmarks/results/coverage.csv`` as they are measured, and what is there is not
measured again: a stopped run goes on. ``--again`` measures what did not work, ``--only NAME …``
some networks, any of timm's.
"""

import argparse
import csv
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks._coverage import NOT_TRIED, RUNS, STAGES, good, measured
from benchmarks._table import RESULTS, Table, markdown

WRITES = ("coverage",)  # files of benchmarks/results
COLUMNS: tuple[str, ...] = (
    "network", "brings", "mparams", "options", "input", "share", "in_float", "own_input",
    "own_share", "nearest", "planted", "brecq", "own_size", "units", "blocks", "cut", "joined",
    "notes", "seconds", "timm", "torch",
)  # fmt: skip
WHOLE = 0.99  # share of multiplications from which on a network counts as quantized
PARTS, LONGEST = 2, 160  # parts in float and characters that a cell of the table shows
GOALS = {"nearest": 95, "planted": 100, "brecq": 85}  # percent of the families

Rows = Sequence[Mapping[str, str]]


def main() -> None:
    """Measure, store, print."""
    args = _arguments()
    table = Table("coverage", COLUMNS, fresh=False, folder=args.results)
    stored = _tidied(table)
    brought = {row["network"]: row["brings"] for row in stored}
    if args.again:
        todo = [row["network"] for row in stored if not good(row)]
    elif args.only:
        todo = args.only
    else:
        from benchmarks._families import families

        listed = families(report=lambda text: sys.stderr.write(f"{text}\n"))
        brought |= {name: " ".join(classes) for name, classes in listed.items()}
        tried = {row["network"] for row in stored if row["nearest"] != NOT_TRIED}
        todo = [name for name in listed if name not in tried]
    about = _versions()

    def one(name: str) -> None:
        row = measured(name, args.seconds, args.gigabytes)
        table.add({"brings": brought.get(name, "")} | row | about)
        sys.stderr.write(f"{name}: {', '.join(f'{s}: {row[s]}' for s in STAGES)}\n")

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, todo))
    rows = _tidied(table)
    print(f"{markdown(summary(rows))}\n\n{markdown(goals(rows))}")


def _tidied(table: Table) -> Rows:
    """The last row of each network, by name; the file then has no others."""
    latest = {row["network"]: row for row in table.rows()}
    rows = [latest[name] for name in sorted(latest)]
    new = table.file.with_suffix(".tmp")
    with new.open("w", newline="") as out:
        writer = csv.DictWriter(out, table.columns)
        writer.writeheader()
        writer.writerows(rows)
    new.replace(table.file)
    return rows


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name).partition("+")[0] for name in ("timm", "torch")}


def summary(rows: Rows) -> list[dict[str, object]]:
    """One line for each family."""
    return [
        {
            "network": f"{row['network']} {row['options']}".strip(),
            "million weights": row["mparams"],
            "nearest": _cell(row["nearest"]),
            "images": row["input"],
            "quantized %": _percent(row["share"]),
            "own images": row["own_input"] if row["own_size"] == RUNS else _cell(row["own_size"]),
            "quantized % there": _percent(row["own_share"]),
            "in float": _parts(row["in_float"]),
            "planted product": _cell(row["planted"]),
            "BRECQ": _cell(row["brecq"]),
            "units": _units(row),
        }
        for row in rows
    ]


def _cell(text: str) -> str:
    """A text as it can stand in a cell, shortened."""
    return textwrap.shorten(text.replace("|", "\\|"), LONGEST, placeholder=" …")


def _percent(share: str) -> str:
    return f"{math.floor(1000 * float(share)) / 10:.1f}" if share else ""


def _parts(text: str) -> str:
    """The first parts of a list, and how many more there are."""
    parts = text.split(", ")
    more = f" and {len(parts) - PARTS} more" if len(parts) > PARTS else ""
    return _cell(", ".join(parts[:PARTS])) + more


def _units(row: Mapping[str, str]) -> str:
    if not row["units"]:
        return ""
    joined = int(row["joined"] or 0)
    return f"{row['units']}, {row['cut']}" + (f", {joined} joined to others" if joined else "")


def goals(rows: Rows) -> list[dict[str, object]]:
    """What was reached of what was asked for, of the families that were tried."""
    tried = [row for row in rows if row["nearest"] != NOT_TRIED]
    reached = {
        f"nearest, at least {100 * WHOLE:.0f} % of multiplications quantized": (
            _whole, f"≥ {GOALS['nearest']} %"
        ),
        "planted product counted": (_counted, f"≥ {GOALS['planted']} %"),
        "BRECQ": (lambda row: row["brecq"] == RUNS, f"≥ {GOALS['brecq']} %"),
        "fault, death, or over time": (_broken, "0"),
    }  # fmt: skip
    told: list[dict[str, object]] = [
        _goal(what, sum(map(of, tried)), f"{len(tried)} tried", len(tried), goal)
        for what, (of, goal) in reached.items()
    ]
    untried = len(rows) - len(tried)
    return [*told, _goal("not tried", untried, str(len(rows)), len(rows), "0")]


def _goal(what: str, n: int, of: str, count: int, goal: str) -> dict[str, object]:
    percent = f"{100 * n / max(1, count):.1f}"
    return {"families": what, "number": f"{n} of {of}", "%": percent, "goal": goal}


def _whole(row: Mapping[str, str]) -> bool:
    """Whether enough is quantized at the network's own image size, or where that was too large to
    count, at the small one."""
    return row["nearest"] == RUNS and float(row["own_share"] or row["share"]) >= WHOLE


def _counted(row: Mapping[str, str]) -> bool:
    return row["planted"] in ("quantized", "in float")


def _broken(row: Mapping[str, str]) -> bool:
    """Whether some stage ended in anything but a result or a refusal.

    An image size that takes too long to count is none: the share of small images then stands.
    """
    fine = (RUNS, NOT_TRIED, "quantized", "in float")
    slow = row["own_size"].startswith("over time")
    stages = STAGES[:-1] if slow else STAGES
    return any(row[s] not in fine and not row[s].startswith("refused") for s in stages)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", nargs="+", metavar="NAME", help="these architectures")
    which.add_argument("--again", action="store_true", help="the stored ones that did not work")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--seconds", type=float, default=240, help="most for a network")
    parser.add_argument("--gigabytes", type=float, default=12, help="most memory for a network")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of coverage.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
