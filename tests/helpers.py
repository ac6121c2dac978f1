"""A tiny residual network with batch norms, its data, and quick settings, for tests."""

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlib.allocation.same import Same
from qlib.core import params
from qlib.core.records import Report, ignore
from qlib.core.registry import discover
from qlib.core.scheme import PER_CHANNEL, BitPlan, Scheme
from qlib.learning.calibration import Calibration
from qlib.network.model import QuantModel
from qlib.observers.minmax import MinMax
from qlib.observers.mse import Mse

BLOCKS = ("one", "two")
CLASSES = 5


class Residual(nn.Module):
    """Two convolutions with batch norms around a shortcut; ``act2`` comes after the sum."""

    def __init__(self, before: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.skip = nn.Identity()
        if before != width:
            conv = nn.Conv2d(before, width, 1, stride, bias=False)
            self.skip = nn.Sequential(conv, nn.BatchNorm2d(width))
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))) + self.skip(x))


class TinyNet(nn.Module):
    """(n, 3, 8, 8) -> (n, 5); ``one`` has an identity shortcut, ``two`` a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.one = Residual(8, 8)
        self.two = Residual(8, 12, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(self.act(self.bn(self.stem(x)))))
        return self.fc(self.pool(x).flatten(1))


def pictures(n: int = 32, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 8, 8) of one pattern for each class under noise, and their labels (n,)."""
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=rng)
    return 0.7 * patterns[labels] + torch.randn(n, 3, 8, 8, generator=rng), labels


@cache
def _trained() -> TinyNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = TinyNet()
    x, y = pictures(512, seed=3)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(60):
        part = slice(64 * (step % 8), 64 * (step % 8) + 64)
        optimizer.zero_grad()
        F.cross_entropy(net(x[part]), y[part]).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


def trained() -> TinyNet:
    """The network after a short training (about one second, once for each process)."""
    return copy.deepcopy(_trained())


def quantizable(placement: str = "inputs", net: nn.Module | None = None) -> QuantModel:
    return QuantModel(net or trained(), pictures(2)[0], BLOCKS, placement)


def plan(
    model: QuantModel, weight_bits: int = 4, act_bits: int = 4, edge_layers: str = "8-bit"
) -> BitPlan:
    weight = Scheme(weight_bits, granularity=PER_CHANNEL)
    return Same().allocate(model, weight, Scheme(act_bits), edge_layers=edge_layers)


def calibration(
    images: Tensor | None = None, *, seed: int = 0, report: Report = ignore, quick: bool = True
) -> Calibration:
    """32 pictures; ``quick``: ranges from the extremes, else by mean error."""
    images = pictures()[0] if images is None else images
    observer = MinMax() if quick else Mse()
    rng = torch.Generator().manual_seed(seed)
    return Calibration(images, rng, observer, observer, batch=16, report=report)


def settings(method: str, steps: int = 12) -> dict[str, Any]:
    """Few steps and small batches, whatever the method calls its fields."""
    known = params.params(discover("methods")[method])
    quick: dict[str, Any] = {name: steps for name in known if name.endswith("steps")}
    return quick | ({"batch": 8} if "batch" in known else {})


def method(name: str, steps: int = 12, **changes: Any) -> Any:
    return replace(discover("methods")[name](**settings(name, steps)), **changes)


def applied(name: str, *, placement: str = "inputs", seed: int = 0, steps: int = 12,
            bits: tuple[int, int] = (4, 4), **changes: Any) -> QuantModel:  # fmt: skip
    """The tiny network after a method, switched on."""
    model = quantizable(placement)
    recipe = method(name, steps, **changes)
    recipe.apply(model, plan(model, *bits), calibration(seed=seed), ignore)
    model.switch(weights=True, inputs=True)
    return model


def codes(model: QuantModel) -> dict[str, Tensor]:
    """Integer codes of every weight that has a quantizer."""
    points = {name: layer.weight_point.quantizer for name, layer in model.weighted().items()}
    found = {n: q.codes(model.layers[n].weight) for n, q in points.items() if q is not None}
    return {name: code.detach().clone() for name, code in found.items()}


def scales(model: QuantModel) -> dict[str, Tensor]:
    """Scale of every activation point that has a quantizer."""
    points = {name: point.quantizer for name, point in model.points.items()}
    return {n: q.scale.detach().clone() for n, q in points.items() if q is not None}
