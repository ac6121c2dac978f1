"""How fast calibration and reconstruction are, and what memory they take.

``python -m benchmarks.reconstruction [--threads 1]`` prints, for networks with random weights and
random images (neither speed nor memory depends on them), ratios measured in turns in one process:

1. seconds to calibrate ``cifar10-resnet20`` with 1,024 images;
2. one step of each method against a plain pass through the same float unit: forward, and backward
   to weights and input as in any training step, same batch, threads and memory format;
3. seconds per block of whole QDrop runs on networks of 9, 15 and 27 blocks;
4. the most memory that a process takes, against what has to be kept.

With ``--shared DIR`` (see the README) also: seconds until ``cifar10-resnet20`` at W3A3 is learned,
and the accuracy that this gives on 10,000 images.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks import _memory
from benchmarks._steps import Kind, deit, resnet, step_rows
from benchmarks._table import machine, markdown
from qlib._registry import discover
from qlib.records import ignore

KINDS = {
    "AdaRound": Kind("adaround"),
    "BRECQ, weights": Kind("brecq", {"acts": "after", "act_steps": 0}),
    "QDrop, keep 1": Kind("qdrop", {"keep": 1.0}),
    "QDrop": Kind("qdrop"),
    "QDrop, bfloat16": Kind("qdrop", arithmetic=torch.bfloat16),
    "FlexRound": Kind("flexround"),
    "AdaQuant": Kind("adaquant"),
    "NUPES": Kind("nupes"),
}
GOAL = {"flexround": 150, "qdrop": 300, "nupes": 100}  # steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reconstruction")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shared", type=Path, help="folder of real images and trained weights")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{machine()}\n")
    print(f"Calibration of resnet20, 1,024 images: {calibration_seconds():.2f} s\n")
    print(markdown([row for subject in (resnet(2), deit()) for row in step_rows(subject, KINDS)]))
    print(f"\n{markdown(depth_rows())}\n")
    print(markdown(memory_rows(args.threads)))
    if args.shared:
        print(f"\n{markdown(goal_rows(args.shared))}")


def calibration_seconds() -> float:
    """All ranges of weights and activations, the MSE observer, W4A4."""
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


def memory_rows(threads: int) -> list[dict[str, object]]:
    """Each in a process of its own, whose peak is its own."""
    rows = []
    for name in _memory.SUBJECTS:
        for method in ("qdrop", "flexround"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                rows.append(pool.submit(_memory.row, name, method, threads).result())
    return rows


def goal_rows(shared: Path) -> list[dict[str, object]]:
    """W3A3 on real images: calibration and learning by the clock, and what they give."""
    from benchmarks._bench import Bench
    from benchmarks.accuracy import cifar

    rows, bench = [], None
    for method, steps in GOAL.items():
        spec = next(s for s in cifar([0], [method], steps, shared) if s.weight_bits == 3)
        bench = bench or Bench(spec)
        spent = sum(bench.quantize(spec).values())
        found = bench.accuracy()
        rows.append(
            {
                "W3A3 on cifar10-resnet20": method,
                "steps": steps,
                "threads": torch.get_num_threads(),
                "seconds": f"{spent:.1f}",
                "top-1": f"{found['top1']:.2f}",
                "95 %": f"{found['top1_low']:.1f}–{found['top1_high']:.1f}",
                "n": int(found["n"]),
            }
        )
    return rows


if __name__ == "__main__":
    main()
