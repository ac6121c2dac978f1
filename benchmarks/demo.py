"""Makes the stored runs that fill the pages: ``python -m benchmarks.demo [--jobs 2]``.

Three embedded networks × four methods × a grid of bit-widths, into ``assets/demo``. Every run is
an ordinary run; finished ones are kept, so the command can be stopped and started again.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.accuracy import DIGITS
from qlib import store
from qlib.records import Refused, RunSpec
from qlib.specs import checked

NEAREST_BITS = (8, 6, 5, 4, 3, 2)
LEARNED_BITS = (4, 3, 2)
LEARNED = ("adaround", "brecq", "qdrop")


def specs() -> list[RunSpec]:
    """All demo runs, default settings, seed 0."""
    grid = [("nearest", b) for b in NEAREST_BITS]
    grid += [(method, b) for b in LEARNED_BITS for method in LEARNED]
    return [checked(RunSpec(m, "digits", q, b, b)) for q, b in grid for m in DIGITS]


def main() -> None:
    """Make what is missing, remove what no longer belongs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--part", type=int, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    demo = store.demo_dir()
    if args.part is None and args.jobs > 1:
        _side_by_side(args.jobs)
    else:
        wanted = specs() if args.part is None else specs()[args.part :: args.jobs]
        for spec in wanted:
            _make(spec, demo)
    if args.part is None:
        _tidy(demo)


def _make(spec: RunSpec, demo: Path) -> None:
    from qlib.eventlog import EventLog
    from qlib.run import run

    try:
        if store.load(demo / spec.key).spec == spec:
            return
    except Refused:
        pass
    sys.stderr.write(f"{spec.key}\n")
    with store.private(demo, spec.key) as folder:
        with EventLog(folder) as log:
            run(spec, log, folder)
        (folder / "quantizers.safetensors").unlink()  # demo runs are for looking
        store.finish(folder, demo, spec.key)


def _side_by_side(jobs: int) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "benchmarks.demo", "--jobs", str(jobs), "--part"]
    running = [subprocess.Popen([*command, str(part)], env=env) for part in range(jobs)]
    if any([process.wait() for process in running]):
        raise SystemExit("A demo run failed; its message is above. Start the command again.")


def _tidy(demo: Path) -> None:
    keys = {spec.key for spec in specs()}
    for folder in demo.iterdir():
        if folder.is_dir() and folder.name not in keys:
            shutil.rmtree(folder)
    size = sum(f.stat().st_size for f in demo.rglob("*") if f.is_file())
    print(f"{len(keys)} runs, {size / 1e6:.1f} MB in {demo}")


if __name__ == "__main__":
    main()
