"""Values of a network's tensors before and after rounding, as many as a picture needs."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qlib.core.histogram import strided
from qlib.measure.levels import bent, ends, outside
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer
from qlib.quantizers.base import Quantizer

WEIGHTS = 2**20  # values kept of one weight
CHANNELS = 128  # channels of a weight that are kept whole, evenly chosen among more


@dataclass
class Sample:
    """Values of one tensor before and after rounding: all of them, or as many evenly spread ones.

    Attributes:
        quantizer: what rounds it; None for outputs and for tensors left in float.
        low, high: exact extremes of all float values.
        ends: lowest and highest level, medians where channels have grids of their own.
        levels: all levels, where they are not evenly spaced.
        outside, seen: how many values lie further outside the grid than half a step, of how many.
        index, rows: some channels of a weight, their float and their rounded values (C, n).
    """

    name: str
    quantizer: Quantizer | None = None
    low: float = float("inf")
    high: float = float("-inf")
    ends: tuple[float, float] | None = None
    levels: np.ndarray | None = None
    outside: float = 0.0
    seen: int = 0
    index: np.ndarray | None = None
    rows: tuple[np.ndarray, np.ndarray] | None = None
    _kept: tuple[list, list, list] = field(default_factory=lambda: ([], [], []))

    @property
    def float(self) -> np.ndarray:
        """The values before rounding."""
        return np.concatenate(self._kept[0])

    @property
    def rounded(self) -> np.ndarray:
        """The values after rounding."""
        return np.concatenate(self._kept[1])

    @property
    def codes(self) -> np.ndarray | None:
        """Whole numbers; None without a grid."""
        return np.concatenate(self._kept[2]) if self._kept[2] else None

    def take(self, x: Tensor, limit: int) -> None:
        """Keep ``x``, and what the quantizer makes of it (``x`` itself, where there is none)."""
        q = self.quantizer
        if q is None:
            self.pair(x, x, limit)
            return
        self.pair(x, q(x), limit)
        self._kept[2].append(_array(strided(q.codes(x), limit, like=x)).astype(np.int16))
        self.outside += float(outside(q, x).sum())
        if self.ends is None:
            low, high = ends(q, x)
            self.ends = float(low.median()), float(high.median())
            levels = bent(q, x)
            self.levels = None if levels is None else _array(levels)

    def pair(self, x: Tensor, y: Tensor, limit: int) -> None:
        """Keep values of ``x``, and those of ``y`` that stand at the same places."""
        low, high = x.aminmax()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        self.seen += x.numel()
        self._kept[0].append(_array(strided(x, limit)))
        self._kept[1].append(_array(strided(y, limit, like=x)))

    def take_channels(self, weight: Tensor) -> None:
        """Keep at most `CHANNELS` output channels whole."""
        chosen = torch.linspace(0, len(weight) - 1, min(CHANNELS, len(weight))).round().long()
        rounded = weight if self.quantizer is None else self.quantizer(weight)
        self.index = chosen.numpy()
        self.rows = _array(weight[chosen].flatten(1)), _array(rounded[chosen].flatten(1))


def samples_of(model: QuantModel) -> Iterator[Sample]:
    """One for each tensor: weights are taken at once, the others are still empty."""
    seen = set()
    for name, layer in model.layers.items():
        boundary = f"{model.unit_of(name)}.boundary"
        if boundary in model.points and boundary not in seen:
            seen.add(boundary)
            yield Sample(boundary, model.points[boundary].quantizer)
        if isinstance(layer, QuantLayer):
            sample = Sample(f"{name}.weight", layer.weight_point.quantizer)
            sample.take(layer.weight, WEIGHTS)
            sample.take_channels(layer.weight)
            yield sample
        for tensor in layer.points():
            if (point := model.points.get(f"{name}.{tensor}")) is not None:
                yield Sample(f"{name}.{tensor}", point.quantizer)
        yield Sample(f"{name}.output")


def _array(x: Tensor) -> np.ndarray:
    """A copy: a view would keep the whole tensor that it was taken from."""
    return np.array(x.detach().cpu().numpy())
