"""What each method wins back of what rounding to nearest loses.

``python -m benchmarks.accuracy`` measures the embedded digits networks. With ``--shared DIR``
(real images and trained weights, see the README) also ``cifar10-resnet20`` and DeiT-tiny.
Three seeds; every seed draws other calibration images. Rows go to
``benchmarks/results/accuracy.csv`` as they are measured; ``--resume`` goes on after a stop.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks._table import Table, machine, markdown
from qlib.metrics import wilson
from qlib.records import RunSpec

IDENTITY = ("model", "weight_bits", "act_bits", "method", "settings", "observer", "placement")
NUMBERS = ("top1", "low", "high", "top1_float", "top1_nearest", "agreement")
SECONDS = ("calibrate", "reconstruct", "total")
COLUMNS = (*IDENTITY, "seed", "n", *NUMBERS, *SECONDS, "threads", "torch")
DIGITS = ("digits-vit", "digits-resnet", "digits-mobilenet")


def digits(seeds: range) -> Iterator[RunSpec]:
    """The embedded networks, 600 held-out images, all settings at their defaults."""
    for model in DIGITS:
        for bits in ((8, 8), (4, 4)):
            yield _spec(model, "digits", "nearest", bits, 0, observer="minmax")
        for seed in seeds:
            for method, bits in (
                *(("nearest", b) for b in ((4, 4), (2, 8), (3, 3), (2, 4))),
                ("adaround", (2, 8)),
                *((m, b) for m in ("brecq", "qdrop") for b in ((3, 3), (2, 4))),
            ):
                yield _spec(model, "digits", method, bits, seed)


def cifar(seeds: range, shared: Path) -> Iterator[RunSpec]:
    """10,000 photographs; the settings of BRECQ and QDrop: 1,024 images, boundary placement."""
    common = {
        "weights": str(shared / "cifar10-resnet20.safetensors"),
        "calib": 1024,
        "calib_data": f"folder:{shared / 'cifar10-calib-5000.zip'}",
        "placement": "boundary",
    }
    data = f"folder:{shared / 'cifar10-test.zip'}"
    for seed in seeds:
        for bits, keep in (((4, 4), 0.5), ((3, 3), 0.5), ((2, 4), 0.5), ((2, 4), 1.0)):
            settings = {"steps": 1000, "keep": keep}
            yield _spec("cifar10-resnet20", data, "qdrop", bits, seed, settings=settings, **common)


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
    seeds = range(args.seeds)
    specs = [*digits(seeds)] if "digits" in args.only else []
    if args.shared and "cifar" in args.only:
        specs += cifar(seeds, args.shared)
    if args.shared and "deit" in args.only:
        specs += deit(args.shared)
    table = Table("accuracy", COLUMNS, fresh=not args.resume)
    done = {_identity(row) for row in table.rows()}
    for at, spec in enumerate(specs):
        if _identity(_described(spec)) in done:
            continue
        sys.stderr.write(f"{at + 1}/{len(specs)} {spec.key} seed {spec.seed}\n")
        table.add(_measured(spec))
    print(f"{machine()}\n")
    print(markdown(summary(table.rows())))


def _spec(model, data, method, bits, seed, *, observer="mse", **more) -> RunSpec:
    return RunSpec(model, data, method, *bits, weight_observer=observer, act_observer=observer,
                   seed=seed, **more)  # fmt: skip


def _described(spec: RunSpec) -> dict[str, object]:
    settings = " ".join(f"{k}={v}" for k, v in spec.settings.items())
    return {
        "model": spec.model,
        "weight_bits": spec.weight_bits,
        "act_bits": spec.act_bits,
        "method": spec.method,
        "settings": settings,
        "observer": spec.act_observer,
        "placement": spec.placement,
        "seed": spec.seed,
    }


def _identity(row: dict) -> tuple[str, ...]:
    return tuple(str(row[c]) for c in (*IDENTITY, "seed"))


def _measured(spec: RunSpec) -> dict[str, object]:
    from qlib.run import run

    record = run(spec)
    m = record.metrics
    found = {
        "n": int(m["n"]),
        "top1": m["top1"],
        "low": m["top1_low"],
        "high": m["top1_high"],
        "top1_float": m["top1_float"],
        "top1_nearest": m["top1_nearest"],
        "agreement": m["agreement"],
        **{k: round(record.seconds[k], 2) for k in SECONDS},
        "threads": record.versions["threads"],
        "torch": record.versions["torch"],
    }
    return _described(spec) | {
        k: round(v, 2) if isinstance(v, float) else v for k, v in found.items()
    }


def summary(rows: list[dict[str, str]]) -> list[dict[str, object]]:
    """One line for each setting: mean over seeds, interval of one seed's images, share won back."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[c] for c in IDENTITY), []).append(row)
    lines = []
    for (model, w, a, method, settings, observer, _), found in groups.items():
        mean = {c: statistics.fmean(float(r[c]) for r in found) for c in NUMBERS + SECONDS}
        n = int(found[0]["n"])
        low, high = wilson(round(mean["top1"] / 100 * n), n)
        lost = mean["top1_float"] - mean["top1_nearest"]
        won = (mean["top1"] - mean["top1_nearest"]) / lost if lost > 0.05 else float("nan")
        lines.append(
            {
                "network": model,
                "bits": f"W{w}A{a}",
                "method": f"{method} {settings}".strip(),
                "ranges": observer,
                "seeds": len(found),
                "n": n,
                "float": f"{mean['top1_float']:.2f}",
                "nearest": f"{mean['top1_nearest']:.2f}",
                "top-1": f"{mean['top1']:.2f}",
                "95 % of n": f"{100 * low:.1f}–{100 * high:.1f}",
                "won back": "" if method == "nearest" or won != won else f"{100 * won:.0f} %",
                "seconds": f"{mean['total']:.0f}",
            }
        )
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--shared", type=Path, help="folder with the real images and weights")
    parser.add_argument("--only", nargs="+", default=["digits", "cifar", "deit"])
    parser.add_argument("--resume", action="store_true", help="keep the rows measured so far")
    return parser.parse_args()


if __name__ == "__main__":
    main()
