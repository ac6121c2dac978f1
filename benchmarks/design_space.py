"""One choice at a time of a gradient-based method: what each axis of the design is worth.

``python -m benchmarks.design_space`` starts from one design (a block, up or down, float and
quantized inputs mixed, squared error, Adam: QDrop's) and changes one choice, on the embedded digits
networks. What needs a rate or a schedule of its own is told in the line's name. Every seed draws
other calibration images. Rows go to ``benchmarks/results/design_space.csv`` as they are measured;
``--resume`` goes on after a stop.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks._table import Table, machine, markdown
from benchmarks.accuracy import DIGITS
from benchmarks.multibit import Line, Lines, Network
from qlib.measure.statistics import paired_difference

WRITES = ("design_space",)  # files of benchmarks/results
BASE = "base"
LONG = 1200  # steps of a whole network, which is one unit where others have six or more
IDENTITY = ("model", "weight_bits", "act_bits", "steps", "axis", "choice", "seed")
SETTING = IDENTITY[1:-1]
COLUMNS = (*IDENTITY, "n", "top1", "gained", "lost", "agreement", "kl", "seconds", "threads",
           "torch")  # fmt: skip

Change = tuple[str, str, dict[str, Any], dict[str, Any]]  # axis, name, settings, specification


def changes() -> Iterator[Change]:
    """The variants to measure: the base first, then one change each.

    Rates other than the base's are those of the method that a choice comes from. Those of ``sgd``
    and ``sign-sgd`` are the best of three on ``digits-mobilenet`` (seed 7, 200 steps, its held-out
    images), so that network's two rows flatter them a little.
    """
    yield "base", BASE, {}, {}
    cooled: dict[str, Any] = {"schedule": "cosine"}
    yield "how", "schedule cosine", cooled, {}
    yield from _learned(cooled)
    for select in ("random", "important"):
        for share in (0.5, 0.1):
            more = {"select": select, "share": share}
            yield "selection", _named(more), more, {}
    for delta in (0.25, 0.1):
        more = {"select": "undecided", "delta": delta}
        yield "selection", _named(more), more, {}
    longer = {"unit": "network", "steps": LONG}
    for more in ({"unit": "layer"}, {"unit": "stage"}, {"unit": "network"}, longer):
        yield "unit", _named(more), more, {}
    for more in ({"inputs": "float"}, {"inputs": "quantized"}, {"quantize_acts": False}):
        yield "inputs", _named(more), more, {}
    for error in ("l1", "lp", "fisher", "cosine"):
        yield "error", f"error {error}", {"error": error}, {}
    yield "error", _named(longer | {"error": "kl"}), longer | {"error": "kl"}, {}
    for optimizer, rate in (("adamw", 1e-2), ("adamax", 1e-2), ("sgd", 10.0), ("sign-sgd", 3e-3)):
        more = {"optimizer": optimizer} | ({"lr": rate} if rate != 1e-2 else {})
        yield "how", _named(more), more, {}
    yield "how", "bias_lr 0.001", {"bias_lr": 1e-3}, {}
    yield "how", "early_stop_undecided 0.05", {"early_stop_undecided": 0.05}, {}
    for choice in ("balanced", "shifted", "noise"):
        yield "calibration", choice, {}, {"calib_choice": choice}
    for n in (64, 1024):
        yield "calibration", f"{n} images", {}, {"calib": n}


def _learned(cooled: dict[str, Any]) -> Iterator[Change]:
    """What is learned. All but up or down are hard from the first step, so their rates fall."""
    step = {"weight_scale_lr": 1e-4}
    for name, more in (
        ("window 1", {"learn": "window", "window": 1}),
        ("window 3", {"learn": "window", "window": 3}),
        ("free", {"learn": "free"}),
        ("free, step learned", {"learn": "free"} | step),
        ("shift", {"learn": "shift", "lr": 3e-3, "act_scale_lr": 1e-3}),
        ("divisors", {"learn": "divisors", "lr": 3e-3} | step),
        ("power", {"learn": "power", "exponent_lr": 1e-4, "act_scale_lr": 1e-3}),
    ):
        yield "learned", f"{name}; cosine", more | cooled, {}


def _named(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def main() -> None:
    """Measure, store, print."""
    args = _arguments()
    table = Table("design_space", COLUMNS, fresh=not args.resume)
    for seed in args.seeds:
        for model in (model for model in DIGITS if model in args.only):
            _measure(Network(model, "digits", args.steps), tuple(args.bits), seed, table)
    print(f"{machine()}\n")
    print(markdown(summary(table.rows())))


def _measure(network: Network, bits: tuple[int, int], seed: int, table: Table) -> None:
    """All changes for one network and one draw of calibration images that are not stored yet."""
    done = {tuple(row[c] for c in IDENTITY) for row in table.rows()}
    benches: dict[str, Lines] = {}
    base = None  # what the base gets right: `changes` names it first
    for axis, choice, settings, spec in changes():
        row = dict(zip(IDENTITY, (network.model, *bits, network.steps, axis, choice, seed),
                       strict=True))  # fmt: skip
        stored = tuple(map(str, row.values())) in done
        if stored and choice != BASE:
            continue
        key = str(spec)  # one network and its images at a time, loaded once
        if key not in benches:
            benches = {k: b for k, b in benches.items() if k == "{}"}
            benches[key] = Lines(replace(network, more={**network.more, **spec}), seed)
        sys.stderr.write(f"{network.model} seed {seed}: {choice}\n")
        line = Line(choice, "custom", bits, (bits,), settings)
        found, right = _result(benches[key], line)
        base = right if base is None or choice == BASE else base
        if not stored:
            gained, lost = int((right & ~base).sum()), int((base & ~right).sum())
            table.add(row | found | {"gained": gained, "lost": lost})


def _result(lines: Lines, line: Line) -> tuple[dict[str, object], Any]:
    """The numbers of one line, and which held-out images it gets right, (n,)."""
    import torch

    from qlib.measure import metrics

    seconds, bench = lines.quantize(line), lines.bench
    logits = bench.answers()
    found = metrics.accuracy(bench.experiment.labelled(), logits, bench.reference)
    return {
        "n": int(found["n"]),
        "top1": round(found["top1"], 2),
        "agreement": round(found["agreement"], 2),
        "kl": round(found["kl"], 4),
        "seconds": round(seconds, 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
    }, logits.argmax(1) == bench.experiment.labelled()


def summary(rows: Sequence[Mapping[str, str]]) -> list[dict[str, object]]:
    """One line for each choice: top-1 of each network, and the difference to the base over all.

    Only networks and seeds that every choice was measured with count. The interval is that of one
    seed's images, every network's together: the same images under another seed are not new ones.
    "KL": the divergence from the float network's answers as a multiple of the base's (geometric
    mean over networks and seeds), which tells more than the few images whose answer changes.
    """
    rows = _complete(rows)
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[c] for c in SETTING), []).append(row)
    base = {_draw(row): float(row["kl"]) for row in rows if row["choice"] == BASE}
    return [_line(key, found, base) for key, found in groups.items()]


def _draw(row: Mapping[str, str]) -> tuple[str, ...]:
    """Network, bits, steps and seed: what a row shares with its base."""
    return tuple(row[c] for c in IDENTITY if c not in ("axis", "choice"))


def _complete(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    seen: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        seen.setdefault(_draw(row), set()).add(row["choice"])
    wanted = {choice for _, choice, *_ in changes()}
    return [row for row in rows if wanted <= seen[_draw(row)]]


def _line(
    key: tuple[str, ...], found: list[Mapping[str, str]], base: Mapping[tuple[str, ...], float]
) -> dict[str, object]:
    w, a, steps, axis, choice = key
    models = sorted({row["model"] for row in found}, key=DIGITS.index)
    of = {model: [row for row in found if row["model"] == model] for model in models}
    sums = {c: sum(_mean(rows, c) for rows in of.values()) for c in ("gained", "lost", "n")}
    gained, lost, n = (round(sums[c]) for c in ("gained", "lost", "n"))
    least, most = paired_difference(gained, lost, n)
    ratios = [math.log(float(row["kl"]) / base[_draw(row)]) for row in found]
    compared = choice != BASE
    return {
        "bits": f"W{w}A{a}",
        "steps": steps,
        "axis": axis,
        "choice": choice,
        "seeds": len({row["seed"] for row in found}),
        **{model: f"{_mean(of[model], 'top1'):.2f}" for model in models},
        "n": n,
        "to base": f"{100 * (sums['gained'] - sums['lost']) / n:+.2f}" if compared else "",
        "95 % of it": f"{100 * least:+.1f} to {100 * most:+.1f}" if compared else "",
        "KL": f"{math.exp(statistics.fmean(ratios)):.2f}",
        "seconds": f"{_mean(found, 'seconds'):.0f}",
    }


def _mean(rows: list[Mapping[str, str]], column: str) -> float:
    return statistics.fmean(float(row[column]) for row in rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.design_space", description=__doc__)
    parser.add_argument("--bits", nargs=2, type=int, default=[3, 3], metavar=("W", "A"))
    parser.add_argument("--only", nargs="+", default=list(DIGITS), choices=list(DIGITS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300, help="for each unit (default 300)")
    parser.add_argument("--resume", action="store_true", help="keep rows, measure what is missing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
