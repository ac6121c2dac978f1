"""Does the table of single units foretell what a mixture of bit-widths does?

``python -m benchmarks.allocation [--seed 0] [--assignments 40] [--steps 100]`` quantizes two
embedded networks for 3 to 8 bits (PTMQ), fills the table on calibration images, and measures
assignments that the table has not seen on held-out images:

- any: every unit draws its width. A column tells how well size alone would have ranked them;
- one mean: the widths 3 to 8 are dealt out to the units, so that the mean width is always the same
  and only the table knows a difference;
- best against equal: what the front picks for no more bit-operations than equal bits for all.

Rank correlations are Spearman's with Fisher's 95 % interval. What is measured again on the
calibration images themselves shows units that harm each other; the rest comes from other images.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks._table import machine, markdown
from qlib.allocation import front
from qlib.allocation.front import Choice
from qlib.core.records import RunSpec, ignore
from qlib.core.rows import UnitRow
from qlib.core.specs import checked
from qlib.measure import metrics
from qlib.network import switching
from qlib.pipeline.experiment import Experiment, load_experiment
from qlib.pipeline.quantize import quantize
from qlib.sensitivity.units import block_sensitivity

MODELS = ("digits-vit", "digits-resnet")


@dataclass
class Network:
    """A network that was quantized for several widths, with its table."""

    experiment: Experiment
    reference: Tensor  # float logits of the held-out images
    calibration: Tensor  # float logits of the calibration images
    blocks: list[UnitRow]

    def measure(self, choice: Choice) -> dict[str, float]:
        """Accuracy on test images with an assignment of bits."""
        switching.set_bits(self.experiment.model, choice.bits)
        logits = self.experiment.predict(self.experiment.model, "mixed")
        return metrics.accuracy(self.experiment.labelled(), logits, self.reference)

    @torch.no_grad()
    def calibration_kl(self, choice: Choice) -> float:
        """KL divergence to float on calibration images with an assignment of bits."""
        switching.set_bits(self.experiment.model, choice.bits)
        return metrics.kl_divergence(
            self.calibration, self.experiment.model(self.experiment.data.images)
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.allocation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--assignments", type=int, default=40)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    print(f"{machine()}; PTMQ {args.steps} steps, seed {args.seed}\n")
    ranks, picks = [], []
    for model in MODELS:
        network = _quantized(model, args.seed, args.steps)
        rng = np.random.default_rng(args.seed)
        for drawn in ("any", "one mean"):
            choices = _drawn(network.blocks, drawn, args.assignments, rng)
            ranks.append({"model": model, "drawn": drawn} | _ranked(network, choices))
        picks += [{"model": model} | row for row in _against_equal(network)]
    print(markdown(ranks), "\n")
    print(markdown(picks))


def _quantized(model: str, seed: int, steps: int) -> Network:
    spec = checked(
        RunSpec(model, "digits", "ptmq", 4, 4, placement="boundary", seed=seed,
                settings={"steps": steps})
    )  # fmt: skip
    experiment = load_experiment(spec, torch.device("cpu"), ignore)
    logits = quantize(experiment, spec, ignore)
    images = experiment.data.images
    with torch.no_grad(), experiment.model.quantized(weights=False, inputs=False):
        known = experiment.model(images)
    return Network(experiment, logits["float"], known, block_sensitivity(experiment.model, images))


def _drawn(blocks: list[UnitRow], how: str, most: int, rng: np.random.Generator) -> list[Choice]:
    """``most`` assignments, none twice."""
    units = list(front.cheapest(blocks).bits)
    widths = sorted({row["bits"] for row in blocks if row["unit"] == units[0]})
    hand = list(islice(cycle(widths), len(units)))
    found: dict[tuple[int, ...], None] = {}
    while len(found) < most:
        bits = rng.choice(widths, len(units)) if how == "any" else rng.permutation(hand)
        found[tuple(bits.tolist())] = None
    return [front.priced(blocks, dict(zip(units, bits, strict=True))) for bits in found]


def _ranked(network: Network, choices: list[Choice]) -> dict[str, object]:
    seen = [network.measure(choice) for choice in choices]
    known = [network.calibration_kl(choice) for choice in choices]
    foretold, kl = [c.kl for c in choices], [s["kl"] for s in seen]
    sizes = [-c.weight_mb for c in choices]
    return {
        "n": len(choices),
        "images": seen[0]["n"],
        "table and KL": _correlation(foretold, kl),
        "table and top-1": _correlation(foretold, [-s["top1"] for s in seen]),
        "size and KL": _correlation(sizes, kl),
        "KL ÷ table, median": f"{np.median(np.divide(kl, foretold)):.2f}",
        "calibration images: correlation": _correlation(foretold, known),
        "quotient": f"{np.median(np.divide(known, foretold)):.2f}",
        "top-1": f"{min(s['top1'] for s in seen):.1f} to {max(s['top1'] for s in seen):.1f}",
    }


def _correlation(x: list[float], y: list[float]) -> str:
    """Spearman's, ties at their mean rank."""
    ranks = [pd.Series(np.round(v, 12)).rank() for v in (x, y)]
    if min(r.nunique() for r in ranks) == 1:
        return "–"
    r = float(ranks[0].corr(ranks[1]))
    half = 1.96 / math.sqrt(len(x) - 3)
    low, high = (math.tanh(math.atanh(min(r, 1 - 1e-12)) + side * half) for side in (-1, 1))
    return f"{r:.2f} ({low:.2f} to {high:.2f})"


def _against_equal(network: Network) -> Iterator[dict[str, object]]:
    widths = sorted({row["bits"] for row in network.blocks})
    for bits in widths[:-1]:
        equal = front.uniform(network.blocks, bits)
        best = front.cheapest(network.blocks, gbops=equal.gbops)
        row: dict[str, object] = {"equal bits": bits, "best": "".join(map(str, best.bits.values()))}
        for name, choice in (("equal", equal), ("best", best)):
            seen = network.measure(choice)
            row[f"{name}: table"] = f"{choice.kl:.4f}"
            row[f"{name}: KL"] = f"{seen['kl']:.4f}"
            row[f"{name}: top-1"] = f"{seen['top1']:.2f}"
            row[f"{name}: MB"] = f"{choice.weight_mb:.4f}"
        yield row


if __name__ == "__main__":
    main()
