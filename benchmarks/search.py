"""How long searches for grids and for noise take.

``python -m benchmarks.search --shared DIR``: DeiT-tiny, W6A6, real images (see the README). For 16,
32 and 64 calibration images, and for the first 3, 6 and all 12 blocks with 32 images: seconds of
the observers' ranges, of NoisyQuant's search over all its layers when the ranges are there, and of
the whole of PTQ4ViT. Each is told twice: by the clock, and in seconds of processor time, which a
busy machine does not lengthen.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks._table import machine, markdown
from benchmarks.noise import spec_of
from qlib.core.records import ignore
from qlib.core.registry import discover
from qlib.learning.calibration import Calibration
from qlib.methods._search.noise import noisy_layers
from qlib.network.blocks import find_blocks
from qlib.network.model import QuantModel
from qlib.pipeline.experiment import Experiment, load_experiment
from qlib.pipeline.quantize import bit_plan

IMAGES, BLOCKS = (16, 32, 64), (3, 6, 12)
USUAL = 32  # images, where blocks are counted


def main() -> None:
    """Measure and print."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    print(f"{machine()}\n")
    rows = []
    for images, blocks in _sizes():
        experiment = load_experiment(
            spec_of(args.shared, calib=images), torch.device("cpu"), ignore
        )
        rows.append(_timed_all(experiment, images, blocks, args.shared, args.repeat))
        sys.stderr.write(f"{rows[-1]}\n")
    print(markdown(rows))


def _sizes() -> list[tuple[int, int]]:
    by_images = [(n, BLOCKS[-1]) for n in IMAGES if n != USUAL]
    return [(USUAL, n) for n in reversed(BLOCKS)] + by_images


def _timed_all(
    experiment: Experiment, images: int, blocks: int, shared: Path, repeat: int
) -> dict[str, object]:
    model, data = _cut(experiment, blocks)
    plan = bit_plan(model, spec_of(shared))
    methods = discover("methods")

    def ranges() -> None:
        fresh = Calibration(data.images, data.generator, data.weight_observer, data.act_observer)
        fresh.attach(model, plan)

    def noise() -> None:
        for name, quantizer in base.items():
            model.points[name].quantizer = quantizer
        methods["noisyquant"]().add_noise(model, data, ignore)

    first = _best(ranges, repeat)
    base = {name: point.quantizer for name, point in model.points.items()}
    second, layers = _best(noise, repeat), len(noisy_layers(model))
    fresh = Calibration(data.images, data.generator, data.weight_observer, data.act_observer)
    third = _best(lambda: methods["ptq4vit"]().apply(model, plan, fresh, ignore), 1)
    return {
        "images": images,
        "blocks": blocks,
        "ranges of observers, s": first,
        "NoisyQuant's search, s": second,
        "its layers": layers,
        "PTQ4ViT, whole, s": third,
        "its layers and products": len(model.layers),
    }


def _cut(experiment: Experiment, blocks: int) -> tuple[QuantModel, Calibration]:
    """The first blocks of the network with everything that comes before and after them."""
    net, old = copy.deepcopy(experiment.net), experiment.data
    whole = net.get_submodule("blocks")
    assert isinstance(whole, torch.nn.Sequential)
    net.blocks = whole[:blocks]
    model = QuantModel(net, old.images[:2], find_blocks(net))
    rng = torch.Generator().manual_seed(0)
    return model, Calibration(old.images, rng, old.weight_observer, old.act_observer)


def _best(call: Callable[[], None], repeat: int) -> str:
    """Seconds by the clock and of the processor: the fastest of some calls."""
    found = []
    for _ in range(repeat):
        start, busy = time.perf_counter(), time.process_time()
        call()
        found.append((time.perf_counter() - start, time.process_time() - busy))
    clock, processor = (min(column) for column in zip(*found, strict=True))
    return f"{clock:.1f} ({processor:.1f})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder with images and weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=2, help="of each, the fastest counts")
    return parser.parse_args()


if __name__ == "__main__":
    main()
