"""What NoisyQuant adds to other methods.

``python -m benchmarks.noise --shared DIR``: DeiT-tiny on 650 ImageNet photographs (see the README),
32 calibration images, mean-squared-error ranges; W8A8, W6A6, W4A4 with the first and the last layer
at 8 bits. A base is calibrated once for each width; then noise is added to it, alone (three draws)
and with a common shift. Rows go to ``benchmarks/results/noise.csv`` as they are measured, each
layer's predicted and measured error to ``noise_layers.csv``; a second call goes on where the first
one stopped. `--fresh` begins again.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from benchmarks._table import Table, machine, markdown
from qlib.core.records import RunSpec, ignore
from qlib.core.registry import discover
from qlib.core.specs import checked
from qlib.measure.paired import count
from qlib.measure.statistics import exact_paired, wilson
from qlib.methods.noisyquant import BASES
from qlib.network.model import QuantModel
from qlib.network.trace import removing
from qlib.pipeline.experiment import Experiment, load_experiment
from qlib.pipeline.quantize import bit_plan
from qlib.quantizers.noisy import Noisy

WRITES = ("noise", "noise_layers")  # files of benchmarks/results
WIDTHS = (6, 4, 8)
# what noise is added, and how many draws: a shift alone does not depend on them
VARIANTS = {"noise": ({}, 3), "noise and shift": ({"shift": True}, 1)}
NOT = "without"  # a base alone
HELD_OUT = 32  # test images on which layers are measured
BATCH = 16  # test images at a time: what lies between layers stays in the cache
IDENTITY = ("model", "bits", "base", "noise", "seed")
COLUMNS = (*IDENTITY, "n", "right", "right_float", "gained", "lost", "agreement",
           "layers", "output_error", "seconds", "threads", "torch")  # fmt: skip
LAYER_COLUMNS = (*IDENTITY, "layer", "reach", "shift", "predicted", "measured")
MODEL = "timm:deit_tiny_patch16_224"


def spec_of(shared: Path, bits: int = 6, calib: int = 32) -> RunSpec:
    """The base's specification; its method is put on later."""
    return checked(
        RunSpec(
            MODEL,
            f"imagenet:{shared / 'imagenet-val-650.zip'}",
            "nearest",
            bits,
            bits,
            weight_observer="mse",
            act_observer="mse",
            weights=str(shared / "deit_tiny_patch16_224.safetensors"),
            calib=calib,
            calib_data=f"imagenet:{shared / 'imagenet-calib-250.zip'}",
        )
    )


@dataclass
class Bench:
    """The loaded network with its images, and answers that were already computed."""

    experiment: Experiment
    shared: Path
    right: dict[object, Tensor] = field(default_factory=dict)
    images: Tensor | None = None

    @property
    def model(self) -> QuantModel:
        """The network that is quantized."""
        return self.experiment.model

    def answers(self, key: object) -> Tensor:
        """(n,) the network's guesses as it is now; networks with the same key answer the same."""
        if key not in self.right:
            self.model.switch(weights=key != "float", inputs=key != "float")
            with torch.no_grad():
                self.right[key] = torch.cat([self.model(x).argmax(1) for x in self._images()])
        return self.right[key]

    def _images(self) -> tuple[Tensor, ...]:
        if self.images is None:
            self.images = self.experiment.predict.first(len(self.experiment.test))
        return self.images.split(BATCH)

    def calibrated(self, base: str, bits: int) -> float:
        """Put a base's quantizers into the network. Returns the seconds it took."""
        self.experiment.data.generator.manual_seed(0)
        plan, start = bit_plan(self.model, spec_of(self.shared, bits)), time.perf_counter()
        discover("methods")[BASES[base]]().apply(self.model, plan, self.experiment.data, ignore)
        return time.perf_counter() - start


def main() -> None:
    """Measure, store, print."""
    args = _arguments()
    table = Table("noise", COLUMNS, fresh=args.fresh)
    layers = Table("noise_layers", LAYER_COLUMNS, fresh=args.fresh)
    wanted = [(bits, base) for bits in WIDTHS for base in BASES]
    bench = None
    for bits, base in wanted:
        todo = [c for c in _cases(bits, base) if c not in _done(table)]
        if todo:
            cpu = torch.device("cpu")
            bench = bench or Bench(load_experiment(spec_of(args.shared), cpu, ignore),
                                   args.shared)  # fmt: skip
            _measure(bench, bits, base, todo, table, layers)
    print(f"{machine()}\n")
    print(markdown(summary(table.rows())), "\n")
    print(told(layers.rows()))


def _cases(bits: int, base: str) -> list[tuple[str, ...]]:
    drawn = [(v, str(seed)) for v, (_, seeds) in VARIANTS.items() for seed in range(seeds)]
    return [(MODEL, str(bits), base, *case) for case in [(NOT, "0"), *drawn]]


def _done(table: Table) -> set[tuple[str, ...]]:
    return {tuple(row[c] for c in IDENTITY) for row in table.rows()}


def _measure(bench: Bench, bits: int, base: str, todo: list, table: Table, layers: Table) -> None:
    model = bench.model
    labels, float_answers = bench.experiment.labelled(), bench.answers("float")
    seconds = bench.calibrated(base, bits)
    without = bench.answers((bits, base))
    points = {n: p.quantizer for n, p in model.points.items() if n.endswith(".input")}
    held_out = bench.experiment.predict.first(HELD_OUT)
    error = output_errors(model, held_out)
    for case in todo:
        sys.stderr.write(f"{' '.join(case)}\n")
        _, _, _, variant, seed = case
        for name, quantizer in points.items():
            model.points[name].quantizer = quantizer
        chosen, start = {}, time.perf_counter()
        if variant != NOT:
            bench.experiment.data.generator.manual_seed(1 + int(seed))
            recipe = discover("methods")["noisyquant"](base=base, **VARIANTS[variant][0])
            added = recipe.add_noise(model, bench.experiment.data, ignore)
            chosen = {n: c for n, c in added.items()
                      if c}  # fmt: skip
            seconds = time.perf_counter() - start
        answers = bench.answers((bits, base, *_noises(model)))
        now = output_errors(model, held_out, list(chosen)) if chosen else {}
        for name, noise in chosen.items():
            found = {"layer": name, "reach": noise.reach, "shift": noise.shift,
                     "predicted": noise.left, "measured": now[name] / error[name]}  # fmt: skip
            layers.add(_named(case) | {k: _short(v) for k, v in found.items()})
        pair = count((answers == labels).numpy(), (without == labels).numpy())
        ratios = [now[name] / error[name] for name in chosen] or [1.0]
        table.add(_named(case) | {
            "n": len(labels),
            "right": int((answers == labels).sum()),
            "right_float": int((float_answers == labels).sum()),
            "gained": pair.first,
            "lost": pair.second,
            "agreement": int((answers == float_answers).sum()),
            "layers": len(chosen),
            "output_error": _short(statistics.geometric_mean(ratios)),
            "seconds": f"{seconds:.1f}",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        })  # fmt: skip


def _named(case: tuple[str, ...]) -> dict[str, object]:
    return dict(zip(IDENTITY, case, strict=True))


def _short(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else value


def _noises(model: QuantModel) -> tuple[bytes, ...]:
    """What tells networks apart that stand on the same base: nothing where there is no noise."""
    found = ((n, p.quantizer) for n, p in model.points.items())
    return tuple(n.encode() + q.noise.numpy().tobytes() for n, q in found if isinstance(q, Noisy))


@torch.no_grad()
def output_errors(
    model: QuantModel, images: Tensor, names: list[str] | None = None
) -> dict[str, float]:
    """Σ‖ŵ·x̂ − ŵ·x‖² of each layer (with a weight) for x from the float network.

    It is the part of the output's error that rounding the input makes.
    """
    total = {name: 0.0 for name in names or model.weighted()}

    def watched(name: str) -> RemovableHandle:
        layer = model.weighted()[name]

        def see(_: torch.nn.Module, args: tuple, __: Tensor) -> None:
            layer.weight_point.on = True
            plain = layer.forward(*args)
            layer.input_point.on = True
            total[name] += float((layer.forward(*args) - plain).double().square().sum())
            layer.weight_point.on = layer.input_point.on = False

        return layer.register_forward_hook(see)

    hooks = [watched(name) for name in total]
    with removing(hooks), model.quantized(weights=False, inputs=False):
        model(images)
    return total


# --- what it says


def summary(rows: Sequence[Mapping[str, str]]) -> list[dict[str, object]]:
    """One line for each width, base and kind of noise, seeds together; wide widths first.

    "difference": mean over seeds to the base in points. "p": the exact paired test of one seed,
    the middle one of its seeds. "output error": geometric mean over the layers with noise.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[c] for c in IDENTITY[:-1]), []).append(row)
    order = sorted(groups, key=lambda key: (-int(key[1]), list(BASES).index(key[2])))
    return [_line(key, groups[key]) for key in order]


def _line(key: tuple[str, ...], found: list[Mapping[str, str]]) -> dict[str, object]:
    _, bits, base, noise = key
    mean = {c: statistics.fmean(float(r[c]) for r in found)
            for c in ("n", "right", "right_float", "gained", "lost", "layers",
                      "output_error")}  # fmt: skip
    n = mean["n"]
    low, high = wilson(round(mean["right"]), int(n))
    alone = noise == NOT
    p = statistics.median_low([exact_paired(int(r["gained"]), int(r["lost"])) for r in found])
    return {
        "bits": f"W{bits}A{bits}",
        "base": base,
        "noise": noise,
        "seeds": len(found),
        "n": int(n),
        "float": f"{100 * mean['right_float'] / n:.2f}",
        "top-1": f"{100 * mean['right'] / n:.2f}",
        "95 % of n": f"{100 * low:.1f}–{100 * high:.1f}",
        "difference": "" if alone else f"{100 * (mean['gained'] - mean['lost']) / n:+.2f}",
        "p": "" if alone else f"{p:.2f}" if p >= 0.005 else f"{p:.0e}",
        "layers": "" if alone else f"{mean['layers']:.0f}",
        "output error": "" if alone else f"{mean['output_error']:.2f}",
    }


def told(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows on how well the expected error of a layer's input predicts that of its output."""
    if not rows:
        return "No layer has noise."
    x, y = (np.array([float(r[c]) for r in rows]) for c in ("predicted", "measured"))
    lines = [f"Layers with noise: {len(rows)}; correlation of predicted and measured error "
             f"{np.corrcoef(np.log(x), np.log(y))[0, 1]:.2f}."]  # fmt: skip
    for low, high in _bands():
        at = (x >= low) & (x < high)
        if at.any():
            lines.append(
                f"predicted {low:g} to {high:g}: {at.sum()} layers, {(y[at] < 1).sum()} gained, "
                f"measured median {np.median(y[at]):.3f}"
            )
    return "\n".join(lines)


def _bands() -> Iterator[tuple[float, float]]:
    ends = (0.0, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
    return pairwise(ends)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noise", description=__doc__)
    parser.add_argument("--shared", type=Path, help="folder with the real images and weights")
    parser.add_argument("--fresh", action="store_true", help="forget the rows measured so far")
    args = parser.parse_args()
    if args.shared is None and args.fresh:
        parser.error("--fresh needs --shared: without images nothing can be measured again.")
    return args


if __name__ == "__main__":
    main()
