"""How fast calibration and reconstruction are, and what memory they take.

``python -m benchmarks.reconstruction [--threads 1]`` measures, for networks with random weights and
random images (neither speed nor memory depends on them), ratios measured in turns in one process:

steps
    one step of each method against a plain pass through the same float unit: forward, and backward
    to weights and input as in any training step, same batch, threads and memory format;
depth
    seconds to calibrate ``cifar10-resnet20`` with 1,024 images, and seconds per block of whole
    QDrop runs on networks of 9, 15 and 27 blocks (printed alone);
memory
    the most that a process takes, against what has to be kept;
goals
    with ``--shared DIR`` (see the README): seconds until ``cifar10-resnet20`` at W3A3 is learned,
    and the accuracy that this gives on 10,000 images.

``--only`` measures some of these. Rows replace those in ``benchmarks/results/NAME.csv``.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks import _memory, _steps
from benchmarks._steps import Kind, deit, resnet, step_rows
from benchmarks._table import Table, machine, markdown
from qlib.core.records import ignore
from qlib.core.registry import discover

WRITES = ("steps", "memory", "goals")  # files of benchmarks/results
KINDS = {
    "AdaRound": Kind("adaround", unit="layer"),
    "BRECQ, weights": Kind("brecq", {"acts": "after", "act_steps": 0}),
    "QDrop, quant_prob 1": Kind("qdrop", {"quant_prob": 1.0}),
    "QDrop": Kind("qdrop"),
    "QDrop, bfloat16": Kind("qdrop", arithmetic=torch.bfloat16),
    "FlexRound": Kind("flexround"),
    "FlexRound, bfloat16": Kind("flexround", arithmetic=torch.bfloat16),
    "AdaQuant": Kind("adaquant", unit="layer"),
    "AdaQuant, bfloat16": Kind("adaquant", arithmetic=torch.bfloat16, unit="layer"),
    "NUPES": Kind("nupes"),
    "NUPES, bfloat16": Kind("nupes", arithmetic=torch.bfloat16),
}
GOAL = {"flexround": 150, "qdrop": 300, "nupes": 100}  # steps


def main() -> None:
    """Measure, store, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reconstruction")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shared", type=Path, help="folder of real images and trained weights")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{machine()}\n")
    if "depth" in args.only:
        print(f"Calibration of resnet20, 1,024 images: {calibration_seconds():.2f} s\n")
        print(f"{markdown(depth_rows())}\n")
    measure = {
        "steps": lambda: (row for net in (resnet(2), deit()) for row in step_rows(net, KINDS)),
        "memory": lambda: memory_rows(args.threads),
        "goals": lambda: goal_rows(args.shared) if args.shared else (),
    }
    for name, rows in measure.items():
        if name in args.only and (name != "goals" or args.shared):
            print(f"{markdown(_stored(name, rows()))}\n")


def _stored(name: str, rows: Iterable[dict[str, object]]) -> list[dict[str, object]]:
    """Rows as they come into their file. Returns its summary."""
    columns, summary = TABLES[name]
    table = Table(name, columns, fresh=True)
    for row in rows:
        sys.stderr.write(f"{row}\n")
        table.add(row)
    return summary(table.rows())


def calibration_seconds() -> float:
    """Seconds to find all ranges of weights and activations: MSE observer, W4A4."""
    subject = resnet(images=1024)
    data, plan = subject.calibration(), subject.plan()
    start = time.perf_counter()
    data.attach(subject.model, plan)
    return time.perf_counter() - start


def depth_rows() -> list[dict[str, object]]:
    """QDrop with few steps on deeper and deeper networks: the time per block should stay."""
    best: dict[int, float] = {}
    for per_stage in (3, 5, 9, 3, 5, 9):  # twice, so that a busy moment does not count
        subject = resnet(per_stage)
        data, plan = subject.calibration(), subject.plan()
        method = discover("methods")["qdrop"](steps=20)
        start = time.perf_counter()
        method.apply(subject.model, plan, data, ignore)
        spent = time.perf_counter() - start
        blocks = len(subject.model.blocks)
        best[blocks] = min(spent, best.get(blocks, spent))
    return [
        {"blocks": n, "seconds": f"{s:.1f}", "seconds per block": f"{s / n:.3f}"}
        for n, s in best.items()
    ]


def memory_rows(threads: int) -> Iterator[dict[str, object]]:
    """Rows of peak memory, each measured in a process of its own."""
    for name in _memory.SUBJECTS:
        for method in ("qdrop", "flexround", "adaquant", "nupes"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                yield pool.submit(_memory.row, name, method, threads).result()


def goal_rows(shared: Path) -> Iterator[dict[str, object]]:
    """Rows for W3A3 on real images: seconds of calibration and learning, and accuracy."""
    from benchmarks._bench import Bench
    from benchmarks.accuracy import cifar

    bench = None
    for method, steps in GOAL.items():
        spec = next(s for s in cifar([0], [method], steps, shared) if s.weight_bits == 3)
        bench = bench or Bench(spec)
        spent = sum(bench.quantize(spec).values())
        found = bench.accuracy()
        yield {
            "method": method,
            "steps": steps,
            "seconds": round(spent, 1),
            **{c: round(found[c], 2) for c in ("top1", "top1_low", "top1_high")},
            "n": int(found["n"]),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__.partition("+")[0],
        }


def goal_summary(rows: Sequence[Mapping[str, str]]) -> list[dict[str, object]]:
    """One line for each method."""
    return [
        {
            "W3A3, one seed": row["method"],
            "steps": row["steps"],
            "threads": row["threads"],
            "seconds": row["seconds"],
            "top-1 (95 %)": f"{row['top1']} ({row['top1_low']}–{row['top1_high']})",
            "n": row["n"],
        }
        for row in rows
    ]


# what is stored: by the name of its file, the columns and what becomes a table of
TABLES = {
    "steps": (_steps.COLUMNS, _steps.summary),
    "memory": (_memory.COLUMNS, _memory.summary),
    "goals": (
        ("method", "steps", "seconds", "top1", "top1_low", "top1_high", "n", "threads", "torch"),
        goal_summary,
    ),
}
PARTS = ("depth", *TABLES)


if __name__ == "__main__":
    main()
