"""What each method wins back of what rounding to nearest loses.

``python -m benchmarks.accuracy`` measures the embedded digits networks. With ``--shared DIR``
(real images and trained weights, see the README) also ``cifar10-resnet20`` and DeiT-tiny.
Every seed draws other calibration images; for each the network is loaded once, the float network
and rounding to nearest are looked at once, and a row costs what its method learns. Rows go to
``benchmarks/results/accuracy.csv`` as they are measured; ``--resume`` goes on after a stop.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks._bench import Bench
from benchmarks._table import RESULTS, Table, machine, markdown
from qlib.core.records import RunSpec
from qlib.measure.metrics import wilson
from qlib.pipeline.provenance import versions

WRITES = ("accuracy",)  # files of benchmarks/results
IDENTITY = ("model", "weight_bits", "act_bits", "method", "settings", "steps", "observer",
            "placement")  # fmt: skip
NUMBERS = ("top1", "low", "high", "top1_float", "top1_nearest", "agreement")
SECONDS = ("calibrate", "reconstruct")
COLUMNS = (*IDENTITY, "seed", "n", *NUMBERS, *SECONDS, "threads", "torch")
DIGITS = ("digits-vit", "digits-resnet", "digits-mobilenet")
METHODS = ("nearest", "adaround", "brecq", "qdrop", "flexround", "adaquant", "gptq", "powerquant",
           "nupes")  # fmt: skip
WIDTHS = ((4, 4), (3, 3), (2, 4))
CIFAR_STEPS = 1000


def digits(seeds: Sequence[int], methods: Sequence[str], steps: int | None) -> Iterator[RunSpec]:
    """Specifications for the embedded networks: 600 held-out images, all settings at defaults."""
    for model in DIGITS:
        for seed in seeds:
            for bits in ((8, 8), (4, 4)) if seed == 0 and "nearest" in methods else ():
                yield _spec(model, "digits", "nearest", bits, 0, observer="minmax")
            for bits in WIDTHS:
                for method in methods:
                    yield _spec(model, "digits", method, bits, seed, steps=steps)
            for method in (m for m in ("nearest", "adaround") if m in methods):  # weights alone
                yield _spec(model, "digits", method, (2, 8), seed, steps=steps)


def cifar(
    seeds: Sequence[int], methods: Sequence[str], steps: int | None, shared: Path
) -> Iterator[RunSpec]:
    """10,000 photographs; the settings of BRECQ and QDrop: 1,024 images, boundary placement."""
    common = {
        "steps": steps or CIFAR_STEPS,
        "weights": str(shared / "cifar10-resnet20.safetensors"),
        "calib": 1024,
        "calib_data": f"folder:{shared / 'cifar10-calib-5000.zip'}",
        "placement": "boundary",
    }
    model, data = "cifar10-resnet20", f"folder:{shared / 'cifar10-test.zip'}"
    for seed in seeds:
        for bits in WIDTHS:
            for method in methods:
                yield _spec(model, data, method, bits, seed, **common)
        if "qdrop" in methods:  # without dropping
            yield _spec(model, data, "qdrop", (2, 4), seed, settings={"quant_prob": 1.0}, **common)


def deit(shared: Path) -> Iterator[RunSpec]:
    """650 ImageNet photographs: differences count, the level does not stand for ImageNet."""
    for bits in ((8, 8), (6, 6), (4, 4)):
        yield _spec(
            "timm:deit_tiny_patch16_224",
            f"imagenet:{shared / 'imagenet-val-650.zip'}",
            "nearest",
            bits,
            0,
            weights=str(shared / "deit_tiny_patch16_224.safetensors"),
            calib=128,
            calib_data=f"imagenet:{shared / 'imagenet-calib-250.zip'}",
        )


def main() -> None:
    """Measure, store, print."""
    args = _arguments()
    what = (args.seeds, args.methods, args.steps)
    specs = [*digits(*what)] if "digits" in args.only else []
    if args.shared and "cifar" in args.only:
        specs += cifar(*what, args.shared)
    if args.shared and "deit" in args.only and "nearest" in args.methods:
        specs += deit(args.shared)
    table = Table("accuracy", COLUMNS, fresh=not args.resume, folder=args.results)
    done = {_identity(row) for row in table.rows()}
    todo = [spec for spec in specs if _identity(_described(spec)) not in done]
    bench = None
    for at, spec in enumerate(todo):
        sys.stderr.write(f"{at + 1}/{len(todo)} {spec.key} seed {spec.seed}\n")
        if bench is None or not bench.fits(spec):
            bench = None  # before the next one takes its room
            bench = Bench(spec)
        table.add(_measured(bench, spec))
    print(f"{machine()}\n")
    print(markdown(summary(table.rows())))


def _spec(model, data, method, bits, seed, *, observer="mse", steps=None, settings=None, **more):
    """``steps``: where a method has such a field; None: its default."""
    said = {} if steps is None or not _steps_of(method) else {"steps": steps}
    return RunSpec(model, data, method, *bits, weight_observer=observer, act_observer=observer,
                   seed=seed, settings=said | (settings or {}), **more)  # fmt: skip


def _steps_of(method: str) -> int:
    """A method's default number of steps; 0: it does not learn."""
    from qlib.core.params import params
    from qlib.core.registry import discover

    known = params(discover("methods")[method])
    return known["steps"].default if "steps" in known else 0


def _described(spec: RunSpec) -> dict[str, object]:
    settings = " ".join(f"{k}={v}" for k, v in spec.settings.items() if k != "steps")
    return {
        "model": spec.model,
        "weight_bits": spec.weight_bits,
        "act_bits": spec.act_bits,
        "method": spec.method,
        "settings": settings,
        "steps": spec.settings.get("steps", _steps_of(spec.method)),
        "observer": spec.act_observer,
        "placement": spec.placement,
        "seed": spec.seed,
    }


def _identity(row: dict) -> tuple[str, ...]:
    return tuple(str(row[c]) for c in (*IDENTITY, "seed"))


def _measured(bench: Bench, spec: RunSpec) -> dict[str, object]:
    found, seconds = bench.measured(spec)
    names = {"low": "top1_low", "high": "top1_high"}
    numbers = {name: found[names.get(name, name)] for name in NUMBERS} | dict(seconds)
    made = versions()
    rounded = {name: round(value, 2) for name, value in numbers.items()}
    about = {"n": int(found["n"]), "threads": made["threads"], "torch": made["torch"]}
    return _described(spec) | rounded | about


def summary(rows: list[dict[str, str]]) -> list[dict[str, object]]:
    """One line for each network, method and setting: top-1 at each width, mean over seeds.

    In brackets the 95 % interval for one seed's images; ↓: below rounding to nearest on the same
    calibration images.
    """
    widths = sorted({_bits(row) for row in rows}, reverse=True)
    lines: dict[tuple[str, ...], dict[tuple[int, int], list[dict[str, str]]]] = {}
    for row in sorted(rows, key=lambda row: _place(row, rows)):
        key = tuple(row[c] for c in IDENTITY if c not in ("weight_bits", "act_bits"))
        lines.setdefault(key, {}).setdefault(_bits(row), []).append(row)
    told = []
    for (model, method, settings, steps, observer, _), found in lines.items():
        every = [row for at_width in found.values() for row in at_width]
        seconds = statistics.fmean(sum(float(row[c]) for c in SECONDS) for row in every)
        told.append(
            {
                "network": model,
                "method": f"{method} {settings}".strip(),
                "steps": "" if steps == "0" else steps,
                "ranges": observer,
                "seeds": max(map(len, found.values())),
                "n": every[0]["n"],
                "float": f"{mean(every, 'top1_float'):.2f}",
                **{f"W{w}A{a}": cell(found.get((w, a), [])) for w, a in widths},
                "seconds": f"{seconds:.0f}",
            }
        )
    return told


def _bits(row: dict[str, str]) -> tuple[int, int]:
    return int(row["weight_bits"]), int(row["act_bits"])


def _place(row: dict[str, str], rows: list[dict[str, str]]) -> tuple[int, int, int, str]:
    """Where a row's line stands: networks as they were measured, methods as in `METHODS`."""
    network = next(i for i, other in enumerate(rows) if other["model"] == row["model"])
    return network, METHODS.index(row["method"]), int(row["steps"]), row["settings"]


def mean(rows: list[dict[str, str]], column: str) -> float:
    """Mean of a column of numbers."""
    return statistics.fmean(float(row[column]) for row in rows)


def cell(rows: list[dict[str, str]]) -> str:
    """Text of one line of the table at one width; empty where nothing was measured."""
    if not rows:
        return ""
    top1, n = mean(rows, "top1"), int(rows[0]["n"])
    low, high = wilson(round(top1 / 100 * n), n)
    below = " ↓" if round(top1, 2) < round(mean(rows, "top1_nearest"), 2) else ""
    return f"{top1:.2f}{below} ({100 * low:.1f}–{100 * high:.1f})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--steps", type=int, help="for each unit (default: the methods' own; "
                        f"cifar: {CIFAR_STEPS})")  # fmt: skip
    parser.add_argument("--shared", type=Path, help="folder with the real images and weights")
    parser.add_argument("--only", nargs="+", default=["digits", "cifar", "deit"],
                        choices=["digits", "cifar", "deit"])  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="keep the rows measured so far")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of accuracy.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
