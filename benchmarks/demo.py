"""Makes the stored runs that fill the pages.

``python -m benchmarks.demo [--jobs 2]``: three embedded networks × four methods × a grid of
bit-widths, into ``assets/demo``, and the sensitivity of most of them layer by layer, and what noise
does to each layer. Every run is an ordinary run; finished ones are kept, so the command can be
stopped and started again. With ``--shared DIR`` (see the README) also the noise analysis of
DeiT-tiny; it is kept without.
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
from qlib import store
from qlib.core.records import InvalidSpec, RunSpec
from qlib.core.specs import checked
from qlib.noise import profile as noise_profile
from qlib.sensitivity import profile

NEAREST_BITS = (8, 6, 5, 4, 3, 2)
LEARNED_BITS = (4, 3, 2)
PROFILED_BITS = (4, 3)  # of the learned methods; all of nearest
LEARNED = ("adaround", "brecq", "qdrop")
# a profile takes the quantizers of its run, so runs come first
WAVES = ("runs", "widths", "profiles", "noise", "shared")
IMAGES = 600  # all held-out digits: the whole network's row is then the run's own accuracy
LIMIT = 30e6  # bytes that all of it may take


def specs(wave: str) -> list[RunSpec]:
    """All demo runs, default settings, seed 0, or the analyses of some of them."""
    if wave == "shared":
        return [_deit()]
    if wave == "widths":  # one network for many widths, the naive switch, and one for each
        rest = [("qdrop", b, {}) for b in (8, 6)]
        rest += [("ptmq", 4, {}), ("ptmq", 8, {"learned_at": "highest"})]
        return [checked(RunSpec(m, "digits", q, b, b, settings=said))
                for q, b, said in rest for m in DIGITS]  # fmt: skip
    if wave == "noise":
        return [noise_profile.spec_of(RunSpec(m, "digits", "nearest")) for m in DIGITS]
    grid = [("nearest", b) for b in NEAREST_BITS]
    grid += [(method, b) for b in LEARNED_BITS for method in LEARNED]
    if wave == "runs":
        return [checked(RunSpec(m, "digits", q, b, b)) for q, b in grid for m in DIGITS]
    few = [(q, b) for q, b in grid if q == "nearest" or b in PROFILED_BITS]
    bases = [checked(RunSpec(m, "digits", q, b, b)) for q, b in few for m in DIGITS]
    return [replace(profile.spec_of(base), test=IMAGES) for base in bases]


def _deit() -> RunSpec:
    """Numbers of a network for photographs; files are named as seen from the shared folder."""
    run = RunSpec(
        "timm:deit_tiny_patch16_224",
        "imagenet:imagenet-val-650.zip",
        "nearest",
        weights="deit_tiny_patch16_224.safetensors",
        calib=32,
        calib_data="imagenet:imagenet-calib-250.zip",
        test=32,
    )
    return noise_profile.spec_of(run)


def main() -> None:
    """Make what is missing, remove what no longer belongs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--shared", type=Path, help="folder with real images and trained weights")
    parser.add_argument("--part", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--wave", choices=WAVES, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    demo = store.demo_dir()
    if args.part is not None:
        if args.shared:
            os.chdir(args.shared)
        for spec in specs(args.wave)[args.part :: args.jobs]:
            _make(spec, demo)
        return
    for wave in WAVES:
        if wave != "shared":
            _side_by_side(args.jobs, wave)
        elif args.shared:
            _side_by_side(1, wave, "--shared", str(args.shared))
    _tidy(demo)


def _make(spec: RunSpec, demo: Path) -> None:
    from qlib.pipeline.run import run
    from qlib.store.eventlog import EventLog

    try:
        if store.load(demo / spec.key).spec == spec:
            return
    except InvalidSpec:
        pass
    sys.stderr.write(f"{spec.key}\n")
    with store.private(demo, spec.key) as folder:
        with EventLog(folder) as log:
            run(spec, log, folder, known=[demo])
        store.finish(folder, demo, spec.key)


def _side_by_side(jobs: int, wave: str, *more: str) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "benchmarks.demo", "--jobs", str(jobs), "--wave", wave]
    command += more
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
