"""Trains the three digits networks from nothing and stores them in ``assets/zoo``.

``python -m qlib.models.train_zoo [--only NAME] [--out DIR]``: some minutes on one core. No step
looks at the held-out images; yet sizes and recipes were chosen among a handful by what these
images showed, float and at 4 bits. So quote differences between float and quantized.
"""

import argparse
import json
import math
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from qlib.datasets.digits import Digits
from qlib.datasets.preprocessing.prepare import to_tensor
from qlib.models import _zoo
from qlib.models._weights import load_weights

SEED = 0
BATCH = 64


class Recipe(NamedTuple):
    """How one network is trained."""

    epochs: int
    rate: float  # highest learning rate
    decay: float  # of weights
    smoothing: float  # of labels


RECIPES = {
    "digits-vit": Recipe(400, 3e-3, 0.02, 0.0),
    "digits-resnet": Recipe(120, 4e-3, 0.05, 0.0),
    "digits-mobilenet": Recipe(160, 4e-3, 0.05, 0.1),
}


def main() -> None:
    """Train, store and measure the networks; a line for each on standard output."""
    parser = argparse.ArgumentParser(prog="python -m qlib.models.train_zoo", description=__doc__)
    parser.add_argument("--only", choices=list(_zoo.NETWORKS), help="train one network")
    parser.add_argument("--out", type=Path, default=_zoo.FOLDER, help="where to store them")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # sums in the same order on every machine
    table = args.out / "accuracy.json"
    measured = json.loads(table.read_text()) if table.exists() else {}
    for name in [args.only] if args.only else _zoo.NETWORKS:
        net = train(name)
        file = args.out / f"{name}.safetensors"
        save_file(_stored(net), file)
        load_weights(net, str(file), name)
        file.chmod(0o644)
        measured[name] = measure(net) | {"seed": SEED} | RECIPES[name]._asdict()
        table.write_text(json.dumps(measured, indent=1) + "\n")
        sys.stdout.write(f"{name}: {measured[name]['accuracy']:.2f} % held out, {file}\n")


def train(name: str) -> nn.Module:
    """Train one network; returned after its last step, in eval mode. The same for the same `SEED`.

    Initial weights are drawn by torch's global generator, which is left as it was.
    """
    recipe = RECIPES[name]
    images = Digits().training()
    x, y = to_tensor(images, _zoo.PREPROCESS), torch.from_numpy(images.labels)
    rng = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = _zoo.NETWORKS[name]().train()
        optimizer = torch.optim.AdamW(_groups(net, recipe.decay), lr=recipe.rate)
        steps = recipe.epochs * (len(x) // BATCH)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps=steps))
        for _ in range(recipe.epochs):
            order = torch.randperm(len(x), generator=rng)
            for rows in order[: len(x) // BATCH * BATCH].view(-1, BATCH):
                guess = net(_moved(x[rows], rng))
                loss = F.cross_entropy(guess, y[rows], label_smoothing=recipe.smoothing)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                schedule.step()
    return net.eval()


def measure(net: nn.Module) -> dict[str, Any]:
    """Held-out accuracy in percent, and the versions that it was measured with."""
    images = Digits().test()
    with torch.no_grad():
        guess = net(to_tensor(images, _zoo.PREPROCESS)).argmax(1)
    right = int((guess == torch.from_numpy(images.labels)).sum())
    versions = {package: version(package) for package in ("torch", "timm", "scikit-learn")}
    share = round(100 * right / len(images), 2)
    return {"accuracy": share, "right": right, "n": len(images), "versions": versions}


def _groups(net: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; gains, biases and position tables do not."""
    large = [p for n, p in net.named_parameters() if p.ndim > 1 and not n.endswith("_embed")]
    ids = {id(p) for p in large}
    rest = [p for p in net.parameters() if id(p) not in ids]
    return [{"params": large, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def _rate(step: int, *, steps: int) -> float:
    """Share of the peak learning rate: a short ramp up, then half a cosine down to 0."""
    ramp = max(steps // 20, 1)
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / (steps - ramp)))


def _moved(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each image shifted by up to a pixel, turned by up to 12 degrees, scaled by up to 10 %."""
    spread = torch.tensor([math.radians(12), 0.1, 0.25, 0.25])  # 0.25 = 1 of 8 pixels
    angle, size, right, down = ((torch.rand(len(x), 4, generator=rng) * 2 - 1) * spread).unbind(1)
    cos, sin = angle.cos() * (1 + size), angle.sin() * (1 + size)
    rows = [torch.stack([cos, -sin, right], 1), torch.stack([sin, cos, down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    low = x.amin()  # the value of empty paper; outside of the image it is 0, so shift
    return F.grid_sample(x - low, grid, align_corners=False) + low


def _stored(net: nn.Module) -> dict[str, Tensor]:
    """The state in half precision: half the file, and what is measured is what is stored."""
    state = net.state_dict()
    return {k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()}


if __name__ == "__main__":
    main()
