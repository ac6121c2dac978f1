"""Weights that lie far outside of their own tensor: damage, more often than not."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

FAR = 100.0  # times the root mean square of the others
FEWEST = 16  # values of a tensor of which one can be said to lie outside


@dataclass(frozen=True)
class Outlier:
    """A tensor with one value far beyond the others.

    ``value``: the one; ``at``: its place in the tensor; ``others``: the root mean square of the
    others, in the same unit; ``count``: how many values of the tensor lie as far out.
    """

    name: str
    value: float
    at: tuple[int, ...]
    others: float
    count: int

    @property
    def words(self) -> str:
        """What it is, for people: ``conv1.weight[3, 0, 1, 1] is 1e+04, where …``."""
        place = ", ".join(map(str, self.at))
        more = f" (one of {self.count} such values)" if self.count > 1 else ""
        return (
            f"{self.name}[{place}] is {self.value:.3g}{more}, where the others of this tensor are "
            f"about {self.others:.2g}"
        )


def outlier_tensors(net: nn.Module) -> list[Outlier]:
    """The parameters of a network that have a value far beyond their others, the farthest first.

    Nothing is judged of parameters with fewer than 16 values, nor of those that are not finite.
    """
    there = [found for name, p in net.named_parameters() if (found := _outlier(name, p.detach()))]
    return sorted(there, key=lambda outlier: -abs(outlier.value) / max(outlier.others, 1e-30))


def _outlier(name: str, tensor: Tensor) -> Outlier | None:
    if tensor.numel() < FEWEST or not tensor.is_floating_point():
        return None
    flat = tensor.double().reshape(-1).abs()
    largest, place = flat.max(0)
    if not bool(largest.isfinite()) or not bool(largest > 0):
        return None
    far = _far(flat)
    if not bool(far.any()):
        return None
    others = flat[~far].square().mean().sqrt()
    at = tuple(int(i) for i in torch.unravel_index(place, tensor.shape))
    return Outlier(name, float(tensor[at]), at, float(others), int(far.sum()))


def _far(flat: Tensor) -> Tensor:
    """Which values lie out: at most 1 % of them, each `FAR` times above the rest of the tensor."""
    most = max(1, math.floor(flat.numel() / 100))
    ordered = flat.sort(descending=True).values
    rest = ordered[most:].square().mean().sqrt()
    return flat > FAR * max(float(rest), 1e-30)


def lines(net: nn.Module, most: int = 3) -> Iterator[str]:
    """Up to ``most`` outliers in words."""
    yield from (outlier.words for outlier in outlier_tensors(net)[:most])
