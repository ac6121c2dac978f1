"""One stored network for many bit-widths against one network for each.

``python -m benchmarks.multibit`` measures the embedded digits networks at 8 to 3 bits: PTMQ, QDrop
learned anew for every width, QDrop learned at 8 bits and switched (with and without new channel
statistics), and rounding to nearest. With ``--shared DIR`` (see the README) also
``cifar10-resnet20`` and DeiT-tiny. ``--choices`` compares what the paper leaves open,
``--ablations`` its own parts, ``--cost`` the seconds of one PTMQ run and one QDrop run.
Rows go to ``benchmarks/results/multibit.csv``; ``--resume`` goes on after a stop.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks._bench import Bench
from benchmarks._table import Table, machine, markdown
from benchmarks.accuracy import DIGITS
from qlib.core.records import RunSpec, ignore

WRITES = ("multibit", "multibit_choices", "multibit_ablations")  # files of benchmarks/results
WIDTHS = (8, 7, 6, 5, 4, 3)
FIXED = 4  # bits of the weights where only activations are switched
IDENTITY = ("model", "line", "weight_bits", "act_bits", "seed", "steps")
COLUMNS = (*IDENTITY, "n", "top1", "low", "high", "agreement", "kl", "seconds", "threads",
           "torch")  # fmt: skip


@dataclass(frozen=True)
class Network:
    """One network to quantize: on which images, and how long is learned."""

    model: str
    data: str
    steps: int
    more: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    few: int = 200  # steps where settings are compared with each other …
    test: int | None = None  # … and, where choices are, the held-out images
    norms: bool = True  # does it have batch norms, whose statistics can be renewed?


@dataclass(frozen=True)
class Line:
    """One line of the results: how networks of several widths are made.

    One line of the picture: a method, its settings, and the widths that one run of it gives.

    ``widths``: (weight bits, activation bits) of the run; ``switched``: what it is measured at.
    ``statistics``: new channel statistics at every width, from the calibration images.
    """

    name: str
    method: str
    widths: tuple[int, int]
    switched: tuple[tuple[int, int], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    statistics: bool = False


def networks(only: list[str], shared: Path | None) -> Iterator[Network]:
    """The networks to measure, of those asked for and available."""
    if "digits" in only:
        for model in DIGITS:
            yield Network(model, "digits", 300, norms=model != "digits-vit")
    if shared and "cifar" in only:
        more = {
            "weights": str(shared / "cifar10-resnet20.safetensors"),
            "calib": 1024,
            "calib_data": f"folder:{shared / 'cifar10-calib-5000.zip'}",
            "placement": "boundary",
        }
        data = f"folder:{shared / 'cifar10-test.zip'}"
        yield Network("cifar10-resnet20", data, 300, more, few=150, test=2000)
    if shared and "deit" in only:
        more = {
            "weights": str(shared / "deit_tiny_patch16_224.safetensors"),
            "calib": 64,
            "precision": "bfloat16",
            "calib_data": f"imagenet:{shared / 'imagenet-calib-250.zip'}",
        }
        data = f"imagenet:{shared / 'imagenet-val-650.zip'}"
        model = "timm:deit_tiny_patch16_224"
        settings = {
            "batch": 8,
            "act_scale_lr": 4e-3,
        }  # few steps: scales must get there all the same
        yield Network(model, data, 20, more, settings, few=20, test=200, norms=False)


def lines() -> Iterator[Line]:
    """The compared lines: one model for all widths, one for each, and careless switching.

    A QDrop run at 8 bits that is switched is PTMQ drawing 8 bits alone: equal to the bit.
    """
    every = tuple((b, b) for b in WIDTHS)
    naive = {"learned_at": "highest"}
    yield Line("PTMQ", "ptmq", (4, 4), every)
    yield Line("QDrop at 8, switched", "ptmq", (8, 8), every, naive)
    yield Line("same, new statistics", "ptmq", (8, 8), every, naive, statistics=True)
    for b in WIDTHS:
        yield Line("nearest", "nearest", (b, b), ((b, b),))
        yield Line("QDrop per width", "qdrop", (b, b), ((b, b),))
    fixed = tuple((FIXED, b) for b in WIDTHS)
    yield Line("PTMQ, weights fixed", "ptmq", (FIXED, FIXED), fixed, {"weight_set": "fixed"})
    for b in WIDTHS:
        if b != FIXED:
            yield Line("nearest", "nearest", (FIXED, b), ((FIXED, b),))
            yield Line("QDrop per width", "qdrop", (FIXED, b), ((FIXED, b),))


def ablations() -> Iterator[Line]:
    """What the mixer's cases and the distillation terms are worth.

    Without distillation there is either the mixture's error alone or, simpler still, that of one
    width drawn at each step, which the paper's loss of three passes may also be held against.
    """
    some = tuple((b, b) for b in (5, 4, 3))
    yield Line("PTMQ", "ptmq", (4, 4), some)
    yield Line("mixer case 1", "ptmq", (4, 4), some, {"case": "one"})
    yield Line("mixer case 2", "ptmq", (4, 4), some, {"case": "two"})
    none = {"distil_middle": 0.0, "distil_low": 0.0}
    yield Line("no distillation", "ptmq", (4, 4), some, none)
    yield Line("one width's error", "ptmq", (4, 4), some, none | {"compared": "one width"})


def choices() -> Iterator[Line]:
    """Variants of what the paper leaves open, one change at a time."""
    some = tuple((b, b) for b in (8, 5, 4, 3))
    changes: list[dict[str, Any]] = [{}]
    changes += [{"start": start} for start in ("middle", "highest", "mean")]
    changes += [{"middle_from": 4, "high_from": 6}, {"middle_from": 6, "high_from": 8}]
    thirds = {"low_share": 1 / 3, "middle_share": 1 / 3}
    changes += [thirds, {"low_share": 0.2, "middle_share": 0.4}]
    changes += [{"distil_middle": w, "distil_low": w} for w in (0.0, 0.3, 1.0)]
    changes += [{"detach": True}, {"drop_inside": False}, {"quant_prob": 1.0}, {"nested": True}]
    changes += [{"lr": 3e-3}, {"lr": 3e-2}, {"act_scale_lr": 4e-5}, {"act_scale_lr": 4e-3}]
    for change in changes:
        name = "; ".join(f"{k} {v}" for k, v in change.items()) or "PTMQ"
        yield Line(name, "ptmq", (4, 4), some, change)


def main() -> None:
    """Measure, store, print."""
    args = _arguments()
    wanted = {"choices": choices, "ablations": ablations}.get(args.what, lines)
    if args.what == "cost":
        print(f"{machine()}\n")
        print(markdown([_cost(network) for network in networks(args.only, args.shared)]))
        return
    name = "multibit" if wanted is lines else f"multibit_{args.what}"
    table = Table(name, COLUMNS, fresh=not args.resume)
    for network in networks(args.only, args.shared):
        for seed in args.seeds:
            todo = [line for line in wanted() if args.lines is None or line.name in args.lines]
            _measure(_shortened(network, args.what, args.steps), todo, seed, table)
    print(f"{machine()}\n")
    print(markdown(summary(table.rows())))


def _shortened(network: Network, what: str | None, steps: int | None = None) -> Network:
    """Choices, on which no claim rests, and costs take fewer steps and fewer images."""
    short = what in ("choices", "cost")
    steps = steps or (network.few if short else network.steps)
    return replace(network, steps=steps, test=network.test if short else None)


def _measure(network: Network, todo: list[Line], seed: int, table: Table) -> None:
    """All lines for one network and one draw of calibration images; loaded once."""
    done = {tuple(row[c] for c in IDENTITY) for row in table.rows()}
    lines = None
    for line in todo:
        steps = "0" if line.method == "nearest" else str(network.steps)
        names = [
            (network.model, line.name, str(w), str(a), str(seed), steps) for w, a in line.switched
        ]
        if all(name in done for name in names):
            continue
        if line.statistics and not network.norms:
            continue
        lines = lines or Lines(network, seed)
        sys.stderr.write(f"{network.model} seed {seed}: {line.name} {line.widths}\n")
        for row in lines.rows(line):
            table.add(row)


class Lines:
    """Measures lines for one network and one draw of calibration images; loaded once."""

    def __init__(self, network: Network, seed: int) -> None:
        self.network, self.seed, self.steps = network, seed, network.steps
        self.spec = RunSpec(
            network.model, network.data, "nearest", seed=seed, test=network.test, **network.more
        )
        self.bench = Bench(self.spec)

    def quantize(self, line: Line) -> float:
        """Apply the line's method as a run of its own would. Returns the seconds that it took."""
        settings = {}
        if line.method != "nearest":
            settings = {"steps": self.steps, **self.network.settings, **line.settings}
        weight_bits, act_bits = line.widths
        spec = replace(self.spec, method=line.method, settings=settings, weight_bits=weight_bits,
                       act_bits=act_bits)  # fmt: skip
        return sum(self.bench.quantize(spec).values())

    def rows(self, line: Line) -> Iterator[dict[str, object]]:
        """Quantize as the line says; a row of results for each of its widths."""
        import torch

        from qlib.network import switching

        model = self.bench.experiment.model
        seconds = self.quantize(line)
        for weight_bits, act_bits in line.switched:
            if switching.bit_widths(model):
                switching.set_bits(model, act_bits, weights=weight_bits)
            with _statistics(self.bench.experiment, line.statistics):
                found = self.bench.accuracy()
            numbers = {k: found[k] for k in ("top1", "agreement", "kl")}
            numbers |= {"low": found["top1_low"], "high": found["top1_high"], "seconds": seconds}
            yield {
                "model": self.network.model,
                "line": line.name,
                "weight_bits": weight_bits,
                "act_bits": act_bits,
                "seed": self.seed,
                "steps": self.steps if line.method != "nearest" else 0,
                "n": int(found["n"]),
                **{k: round(v, 4 if k == "kl" else 2) for k, v in numbers.items()},
                "threads": torch.get_num_threads(),
                "torch": torch.__version__.partition("+")[0],
            }


@contextmanager
def _statistics(experiment, renewed: bool) -> Iterator[None]:
    """New channel statistics for the chosen widths, and the former weights again afterwards."""
    from qlib.learning.tuning import tune_norms

    layers = list(experiment.model.weighted().values())
    before = [layer.weight_point.quantizer for layer in layers]
    if renewed:
        tune_norms(experiment.model, experiment.data, ignore)
    try:
        yield
    finally:
        if renewed:
            for layer, quantizer in zip(layers, before, strict=True):
                layer.weight_point.fill(quantizer)
                layer.correction = None


def _cost(network: Network) -> dict[str, object]:
    """Seconds of PTMQ for all widths and of QDrop for one, in turns, the least of three."""
    lines = Lines(_shortened(network, "cost"), 0)
    todo = {"QDrop": Line("", "qdrop", (4, 4), ()), "PTMQ": Line("", "ptmq", (4, 4), ())}
    turns = [{name: lines.quantize(line) for name, line in todo.items()} for _ in range(3)]
    found = {name: min(turn[name] for turn in turns) for name in todo}
    return {
        "model": network.model,
        "steps": lines.steps,
        **{f"{name} (s)": round(seconds, 1) for name, seconds in found.items()},
        "ratio": round(found["PTMQ"] / found["QDrop"], 2),
        "widths": len(WIDTHS),
    }


def summary(rows: list[dict[str, str]]) -> list[dict[str, object]]:
    """One table line for each line of the picture: top-1 at each width, mean over seeds."""
    groups: dict[tuple[str, ...], dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        same = row["weight_bits"] == row["act_bits"] and "fixed" not in row["line"]
        which = "as activations" if same else row["weight_bits"]
        key = (row["model"], row["line"], which, row["steps"])
        groups.setdefault(key, {}).setdefault(row["act_bits"], []).append(row)
    for (model, line, which, steps), found in groups.items():  # where both have the same bits
        if which != "as activations" and which not in found:
            same = groups.get((model, line, "as activations", steps), {})
            found |= {which: same.get(which, [])}
    widths = sorted({row["act_bits"] for row in rows}, key=int)[::-1]
    return [
        {
            "network": model,
            "line": line,
            "weight bits": which,
            "steps": steps,
            "seeds": max(map(len, found.values())),
            "n": next(iter(found.values()))[0]["n"],
            **{f"{b} bits": _told(found.get(b, [])) for b in widths},
            "95 % of n, fewest bits": _interval(found[min(found, key=int)]),
        }
        for (model, line, which, steps), found in groups.items()
    ]


def _mean(rows: list[dict[str, str]]) -> float:
    return sum(float(row["top1"]) for row in rows) / len(rows)


def _told(rows: list[dict[str, str]]) -> str:
    return f"{_mean(rows):.2f}" if rows else ""


def _interval(rows: list[dict[str, str]]) -> str:
    """Wilson's, as if one seed's images had the mean over seeds."""
    from qlib.measure.statistics import wilson

    n = int(rows[0]["n"])
    low, high = wilson(round(_mean(rows) / 100 * n), n)
    return f"{100 * low:.1f}–{100 * high:.1f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.multibit", description=__doc__)
    parser.add_argument("--shared", type=Path, help="folder of real images and trained weights")
    parser.add_argument("--only", nargs="+", default=["digits", "cifar", "deit"],
                        choices=["digits", "cifar", "deit"])  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="for each unit (default: the network's)")
    parser.add_argument("--lines", nargs="+", help="only the lines of these names")
    parser.add_argument("--resume", action="store_true", help="keep rows, measure what is missing")
    for what in ("choices", "ablations", "cost"):
        parser.add_argument(f"--{what}", dest="what", action="store_const", const=what)
    return parser.parse_args()


if __name__ == "__main__":
    main()
