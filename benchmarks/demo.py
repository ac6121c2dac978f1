"""Makes the stored runs that fill the pages: ``python -m benchmarks.demo [--jobs 2]``.

Three embedded networks × four methods × a grid of bit-widths, into ``assets/demo``, and the
sensitivity of most of them layer by layer. Every run is an ordinary run; finished ones are kept,
so the command can be stopped and started again.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from benchmarks.accuracy import DIGITS
from qlib import profile, store
from qlib.records import Refused, RunSpec
from qlib.specs import checked

NEAREST_BITS = (8, 6, 5, 4, 3, 2)
LEARNED_BITS = (4, 3, 2)
PROFILED_BITS = (4, 3)  # of the learned methods; all of nearest
LEARNED = ("adaround", "brecq", "qdrop")
WAVES = ("runs", "profiles")  # a profile takes the quantizers of its run, so runs come first
IMAGES = 600  # all held-out digits: the whole network's row is then the run's own accuracy
LIMIT = 25e6  # bytes that all of it may take


def specs(wave: str) -> list[RunSpec]:
    """All demo runs, default settings, seed 0, or the profiles of some of them."""
    grid = [("nearest", b) for b in NEAREST_BITS]
    grid += [(method, b) for b in LEARNED_BITS for method in LEARNED]
    if wave == "runs":
        return [checked(RunSpec(m, "digits", q, b, b)) for q, b in grid for m in DIGITS]
    few = [(q, b) for q, b in grid if q == "nearest" or b in PROFILED_BITS]
    bases = [checked(RunSpec(m, "digits", q, b, b)) for q, b in few for m in DIGITS]
    return [replace(profile.spec_of(base), test=IMAGES) for base in bases]


def main() -> None:
    """Make what is missing, remove what no longer belongs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--part", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--wave", choices=WAVES, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    demo = store.demo_dir()
    if args.part is not None:
        for spec in specs(args.wave)[args.part :: args.jobs]:
            _make(spec, demo)
        return
    for wave in WAVES:
        _side_by_side(args.jobs, wave)
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
            run(spec, log, folder, known=[demo])
        store.finish(folder, demo, spec.key)


def _side_by_side(jobs: int, wave: str) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "benchmarks.demo", "--jobs", str(jobs), "--wave", wave]
    running = [subprocess.Popen([*command, "--part", str(part)], env=env) for part in range(jobs)]
    if any([process.wait() for process in running]):
        raise SystemExit("A demo run failed; its message is above. Start the command again.")


def _tidy(demo: Path) -> None:
    keys = {spec.key for wave in WAVES for spec in specs(wave)}
    for folder in demo.iterdir():
        if folder.is_dir() and folder.name not in keys:
            shutil.rmtree(folder)
    sizes: Counter[str] = Counter()
    for file in demo.rglob("*"):
        if file.is_file():
            sizes[file.name] += file.stat().st_size
    print(f"{len(keys)} runs, {sizes.total() / 1e6:.1f} MB in {demo}")
    print(", ".join(f"{name} {size / 1e6:.1f}" for name, size in sizes.most_common()))
    if sizes.total() > LIMIT:
        raise SystemExit(f"That is more than the {LIMIT / 1e6:.0f} MB that demo runs may take.")


if __name__ == "__main__":
    main()
