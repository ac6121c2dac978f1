"""A quantizer as a staircase, and in closed form what it does on average to shifted values.

Works for every grid whose levels rise with the code, even or not, clipping included.
Paper: NoisyQuant, Liu et al., CVPR 2023, arXiv 2211.16056 (theorem 1, here without its limits)
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from qlib.quantizers.base import Quantizer

Numbers = NDArray[np.float64]
HALVINGS = 40  # of the interval between two levels, to find where rounding jumps
ROOM = 2**18  # numbers that the candidates of one step may fill
BINS = 16  # of each cell, where many values are counted


@dataclass(frozen=True)
class StepGrid:
    """Q(u) = ``levels``[k] for u from ``edges``[k − 1] to ``edges``[k]; both ascend.

    The first step reaches down to −∞, the last one up to ∞.
    """

    levels: Numbers
    edges: Numbers

    @classmethod
    @torch.no_grad()
    def of(cls, q: Quantizer) -> "StepGrid":
        """The staircase of a quantizer with one grid for the whole tensor.

        Raises:
            ValueError: its levels do not rise with the code.
        """
        codes = torch.arange(q.scheme.qmin, q.scheme.qmax + 1, device=q.scale.device)
        levels = q.values(codes.double())
        if not (levels.diff() > 0).all():
            raise ValueError(f"the levels of a grid '{q.title}' do not rise with the code.")
        low, high = levels[:-1].clone(), levels[1:].clone()
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            below = q.nearest(middle) <= codes[:-1]
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return cls(levels.cpu().numpy(), high.cpu().numpy())

    @property
    def gaps(self) -> tuple[float, float]:
        """The narrowest and the widest distance of neighbouring levels."""
        gaps = np.diff(self.levels)
        return float(gaps.min()), float(gaps.max())

    def mean(self, x: Numbers, reach: Numbers) -> Numbers:
        """E[(Q(x + N) − N − x)²] with N uniform in ±``reach``; both broadcast.

        (1/2n)·∫ (Q(u) − u)² du over u from x − n to x + n, from the antiderivative.
        """
        x, n = np.broadcast_arrays(x, reach)
        noisy = n > 1e-9 * self.gaps[0]
        safe = np.where(noisy, n, 1.0)
        area = self._area(x + safe) - self._area(x - safe)
        plain = np.square(self.levels[np.searchsorted(self.edges, x, "right")] - x)
        return np.where(noisy, area / (2 * safe), plain)

    def drift(self, x: Numbers, reach: Numbers) -> Numbers:
        """E[Q(x + N) − N − x], the part of the error that draws do not take away; as `mean`."""
        x, n = np.broadcast_arrays(x, reach)
        noisy = n > 1e-9 * self.gaps[0]
        safe = np.where(noisy, n, 1.0)
        area = self._height(x + safe) - self._height(x - safe)
        plain = self.levels[np.searchsorted(self.edges, x, "right")] - x
        return np.where(noisy, area / (2 * safe), plain)

    def sums(self, x: Numbers, weight: Numbers, reach: Numbers, shift: Numbers) -> Numbers:
        """(k,) Σ weight · `mean` of x + ``shift``, for k pairs of a reach and a shift."""
        reach, shift = np.broadcast_arrays(reach, shift)
        parts = -(-len(reach) * len(x) // ROOM)
        pairs = zip(np.array_split(reach, parts), np.array_split(shift, parts), strict=True)
        return np.concatenate([self.mean(x + c[:, None], n[:, None]) @ weight for n, c in pairs])

    def counted(self, x: Numbers, weight: Numbers) -> tuple[Numbers, Numbers, NDArray[np.intp]]:
        """Few values that stand for many: the mean of those in each 16th of a cell.

        Cells without an end are cut like the cell beside them.

        Returns:
            (m,) values and their weights, and (n,) which of them stands for each of ``x``.
        """
        edges = self._ends
        cell = np.searchsorted(self.edges, x, "right")
        place = np.floor((x - edges[cell]) / (edges[cell + 1] - edges[cell]) * BINS)
        _, of = np.unique(cell * 1e6 + place.clip(-4e5, 4e5), return_inverse=True)
        total = np.asarray(np.bincount(of, weight), np.float64)
        sums = np.bincount(of, weight * x)
        return sums / total, total, of

    @cached_property
    def _ends(self) -> Numbers:
        """The edges with one more on either side, as far off as the next."""
        if len(self.edges) == 1:
            gap = np.diff(self.levels)
            return np.concatenate([self.edges - gap, self.edges, self.edges + gap])
        first, last = self.edges[1] - self.edges[0], self.edges[-1] - self.edges[-2]
        return np.concatenate([[self.edges[0] - first], self.edges, [self.edges[-1] + last]])

    def _height(self, u: Numbers) -> Numbers:
        """The antiderivative of Q(u) − u."""
        at = np.searchsorted(self.edges, u, "right")
        return self.levels[at] * u - u * u / 2 + self._falls[at]

    @cached_property
    def _falls(self) -> Numbers:
        return np.concatenate([[0.0], np.cumsum(-np.diff(self.levels) * self.edges)])

    @cached_property
    def _starts(self) -> Numbers:
        """What is missing to (u − level)³/3 in each step, so that the antiderivative is whole."""
        before = (self.edges - self.levels[:-1]) ** 3 / 3
        after = (self.edges - self.levels[1:]) ** 3 / 3
        return np.concatenate([[0.0], np.cumsum(before - after)])

    def _area(self, u: Numbers) -> Numbers:
        at = np.searchsorted(self.edges, u, "right")
        gap = u - self.levels[at]
        return gap * gap * gap / 3 + self._starts[at]
