"""A range that keeps a given share of the values and clips the tails."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qlib.core.params import param
from qlib.core.scheme import Scheme
from qlib.observers.base import Observer


@dataclass(frozen=True)
class Percentile(Observer):
    """Clips the same share at both ends (one end only where the values have one sign)."""

    title = "percentile"
    percent: float = param(
        99.99,
        "Percentile kept at each end: 99.99 cuts 0.01 % off either tail.",
        low=50.0,
        high=100.0,
    )

    def find_range(
        self, x: Tensor, scheme: Scheme, counts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x, order = x.sort(1)
        weight = torch.ones_like(x) if counts is None else counts.gather(1, order)
        share = weight.double().cumsum(1)
        share = share / share[:, -1:].clamp(min=1e-30)
        cut = 1 - self.percent / 100
        last = x.shape[1] - 1
        # the first value whose cumulated share exceeds the cut, and the mirror image of it
        low = (share <= cut).sum(1, keepdim=True).clamp(max=last)
        high = (share < 1 - cut - 1e-12).sum(1, keepdim=True).clamp(max=last)
        return x.gather(1, low)[:, 0].clamp(max=0), x.gather(1, high)[:, 0].clamp(min=0)
