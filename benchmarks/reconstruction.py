"""How fast calibration and reconstruction are: ratios taken in one process, one after the other.

``python -m benchmarks.reconstruction [--threads 1]`` prints, on CIFAR ResNets with random weights
and random images (speed does not depend on either):

1. seconds to calibrate ``cifar10-resnet20`` with 1,024 images;
2. one reconstruction step against a plain pass through the float block: forward, and backward to
   weights and input as in any training step, same batch, threads and memory format. The second
   figure in each pair is against a pass that spares the gradient of the block's input;
3. seconds per block of whole QDrop runs on networks of 9, 15 and 27 blocks.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks._table import machine, markdown
from qlib._registry import discover
from qlib.calibration import Calibration, Unit
from qlib.functional import take
from qlib.methods._dropping import dropping
from qlib.model import QuantModel
from qlib.models._resnet import SmallResNet
from qlib.models._units import find_blocks
from qlib.quantizers.soft_round import SoftRound
from qlib.reconstruct import Decay, Rate, reconstruct
from qlib.records import ignore
from qlib.scheme import PER_CHANNEL, BitPlan, Scheme

BATCH = 32
ROUNDS, STEPS = 5, 80  # rounds of interleaved measurements; steps in each


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reconstruction")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    print(f"{machine()}\n")
    print(f"Calibration of resnet20, 1,024 images: {calibration_seconds():.2f} s\n")
    print(markdown(step_ratios()), "\n")
    print(markdown(depth_rows()))


def calibration_seconds() -> float:
    """All ranges of weights and activations, the MSE observer, W4A4."""
    model, data, plan = _prepared(3, images=1024)
    start = time.perf_counter()
    data.attach(model, plan)
    return time.perf_counter() - start


def step_ratios() -> list[dict[str, object]]:
    """One row for the first block of each width: milliseconds and ratios."""
    model, data, plan = _prepared(3, images=256)
    data.attach(model, plan)
    rows = []
    for unit in data.walk(model, weights=True, inputs=True):
        unit.replace_weights(SoftRound.around)
        if unit.name in ("layer1.0", "layer2.1", "layer3.1"):
            rows.append(_ratios(unit, data))
    return rows


def depth_rows() -> list[dict[str, object]]:
    """QDrop with few steps on deeper and deeper networks: the time per block should stay."""
    best: dict[int, float] = {}
    for per_stage in (3, 5, 9, 3, 5, 9):  # twice, so that a busy moment does not count
        model, data, plan = _prepared(per_stage, images=256)
        method = discover("methods")["qdrop"](steps=20)
        start = time.perf_counter()
        method.apply(model, plan, data, ignore)
        spent = time.perf_counter() - start
        blocks = len(model.blocks)
        best[blocks] = min(spent, best.get(blocks, spent))
    return [
        {"blocks": n, "seconds": f"{s:.1f}", "seconds per block": f"{s / n:.3f}"}
        for n, s in best.items()
    ]


def _prepared(per_stage: int, images: int) -> tuple[QuantModel, Calibration, BitPlan]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SmallResNet(per_stage, (16, 32, 64), channels=3, projected=False).eval()
    x = torch.randn(images, 3, 32, 32, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last)
    model = QuantModel(net, x[:2], find_blocks(net), "boundary")
    observer = discover("observers")["mse"]()
    plan = discover("allocators")["same"]().allocate(
        model, Scheme(4, granularity=PER_CHANNEL), Scheme(4)
    )
    return model, Calibration(x, generator, observer, observer), plan


def _ratios(unit: Unit, data: Calibration) -> dict[str, object]:
    """Interleaved rounds: float with and without input gradient, BRECQ's step, QDrop's step."""
    kinds = {
        "whole": lambda: _float_pass(unit, to_input=True),
        "spared": lambda: _float_pass(unit, to_input=False),
        "rounding": lambda: _steps(unit, data, keep=1.0, scale=False),
        "keep 1": lambda: _steps(unit, data, keep=1.0, scale=True),
        "keep ½": lambda: _steps(unit, data, keep=0.5, scale=True),
        "keep ½, bf16": lambda: _steps(unit, data, keep=0.5, scale=True, bf16=True),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, run in kinds.items():
            times[name].append(_timed(run))
    row: dict[str, object] = {"block": f"{unit.name} {tuple(unit.inputs.shape[1:])}"}
    row["float pass, ms"] = f"{1e3 * min(times['whole']):.1f}"
    for name in (n for n in kinds if n not in ("whole", "spared")):
        pairs = [
            statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))
            for base in ("whole", "spared")
        ]
        row[f"{name}: ms"] = f"{1e3 * min(times[name]):.1f}"
        row[f"{name}: ratio"] = f"{pairs[0]:.2f} ({pairs[1]:.2f})"
    return row


def _timed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / STEPS


def _float_pass(unit: Unit, *, to_input: bool) -> None:
    weights = [layer.layer.weight.requires_grad_(True) for layer in unit.weighted]
    with unit.model.quantized(weights=False, inputs=False):
        for _ in range(STEPS):
            at = torch.randint(len(unit.inputs), (BATCH,), generator=None)
            x = take(unit.inputs, at).requires_grad_(to_input)
            (unit(x) - take(unit.targets, at)).square().sum().backward()
            for weight in weights:
                weight.grad = None
    for weight in weights:
        weight.requires_grad_(False)


def _steps(unit: Unit, data: Calibration, *, keep: float, scale: bool, bf16: bool = False) -> None:
    unit.arithmetic = torch.bfloat16 if bf16 else torch.float32
    unit.replace_weights(SoftRound.around)  # soft again: the last round left it hard
    learn = {"rounding": Rate(1e-3)} | ({"scale": Rate(4e-5, cosine=True)} if scale else {})
    with dropping(unit, keep, data.generator) as mixed:
        reconstruct(unit, learn=learn, inputs=mixed, steps=STEPS, batch=BATCH, penalty=0.01,
                    decay=Decay(warmup=0), generator=data.generator, report=ignore)  # fmt: skip


if __name__ == "__main__":
    main()
