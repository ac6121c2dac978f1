"""A streamed histogram of one tensor: bounded memory whatever the number of images."""

import math

import torch
from torch import Tensor

from qlib.core.records import InvalidSpec

BINS = 4096


class Histogram:
    """A histogram on an even grid that doubles its width when a value falls outside.

    The extremes are exact. Of each batch at most ``limit`` evenly strided elements are counted;
    between 2048 and 4096 bins cover the range seen.
    """

    def __init__(self, limit: int = 2**16) -> None:
        self.limit = limit
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.start = self.width = 0.0  # left edge of the first bin; width of a bin
        self.lo, self.hi = float("inf"), float("-inf")

    def update(self, x: Tensor) -> None:
        """Count the elements of ``x`` (any shape).

        Raises:
            InvalidSpec: it holds infinite values or values that are no numbers.
        """
        x = x.detach()
        lo, hi = (float(v) for v in x.aminmax())
        if not math.isfinite(hi - lo):
            raise InvalidSpec(
                f"A tensor of the network reaches from {lo} to {hi}: it has no range to quantize. "
                "Check the weights and the images for infinite values."
            )
        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)
        seen = strided(x, self.limit)
        if self.width == 0.0:
            self.start, self.width = lo, max(hi - lo, 1e-12) * (1 + 1e-6) / BINS
        self._grow(lo, hi)
        end = self.start + BINS * self.width
        self.counts += torch.histc(seen.float(), BINS, self.start, end).double().cpu()

    def values(self) -> tuple[Tensor, Tensor]:
        """(1, n) bin centres with exact extremes added, and (1, n) how often each occurs."""
        used = self.counts.nonzero().squeeze(1)
        centres = self.start + (used.double() + 0.5) * self.width
        centres = centres.clamp(self.lo, self.hi)
        ends = torch.tensor([self.lo, self.hi], dtype=torch.float64)
        x = torch.cat([centres, ends]).float()
        counts = torch.cat([self.counts[used], torch.zeros(2, dtype=torch.float64)])
        return x[None], (counts / counts.sum().clamp(min=1)).float()[None]

    def _grow(self, lo: float, hi: float) -> None:
        while lo < self.start or hi > self.start + BINS * self.width:
            pairs = self.counts.view(-1, 2).sum(1)
            downwards = lo < self.start
            if downwards:
                self.start -= BINS * self.width
            self.width *= 2
            empty = torch.zeros_like(pairs)
            self.counts = torch.cat([empty, pairs] if downwards else [pairs, empty])


def strided(x: Tensor, limit: int, like: Tensor | None = None) -> Tensor:
    """At most ``limit`` elements of ``x``, evenly spread, as a vector; ``like`` as in `flat`.

    The stride is odd, so that it does not fall in step with channel counts.
    """
    values = flat(x, like)
    stride = -(-values.numel() // limit)
    return values[:: stride + (stride > 1 and stride % 2 == 0)]


def flat(x: Tensor, like: Tensor | None = None) -> Tensor:
    """All elements as a vector, in the order in which ``like`` (default ``x``) lies in memory.

    Copies nothing when ``x`` is dense and lies in that order.
    """
    like = x if like is None else like
    return x.flatten() if like.is_contiguous() else x.permute(_order(like)).flatten()


def _order(x: Tensor) -> list[int]:
    """Dimensions by falling stride."""
    return sorted(range(x.dim()), key=lambda d: -x.stride(d))
