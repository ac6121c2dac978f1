"""Where the levels of a grid lie, whatever its spacing: asked of `Quantizer.values` alone."""

import torch
from torch import Tensor

from qlib.quantizers.base import Quantizer

EVEN = 1e-3  # of a step: neighbours whose distances differ by less are evenly spaced


def ends(q: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest level that each element of ``x`` may take.

    Without dimensions where all elements share one grid, else shaped like ``x``, or like its first
    element where the others have the same.
    """
    return _level(q, x, q.scheme.qmin), _level(q, x, q.scheme.qmax)


def step(q: Quantizer, x: Tensor) -> Tensor:
    """The (mean) distance of neighbouring levels, shaped as in `ends`: s on an even grid."""
    low, high = ends(q, x)
    return (high - low) / q.scheme.steps


def outside(q: Quantizer, x: Tensor) -> Tensor:
    """Which elements are clipped: beyond the last level by more than half the last step."""
    low, high = ends(q, x)
    below = (_level(q, x, q.scheme.qmin + 1) - low) / 2
    above = (high - _level(q, x, q.scheme.qmax - 1)) / 2
    return (x < low - below) | (x > high + above)


def bent(q: Quantizer, x: Tensor) -> Tensor | None:
    """All levels by code, where they are not evenly spaced; None where they are.

    Medians where channels have grids of their own; not told for groups, nor where elements that
    share a scale differ.
    """
    if q.scheme.granularity.kind == "group" or q.mixed:
        return None
    codes = torch.arange(q.scheme.qmin, q.scheme.qmax + 1, device=x.device, dtype=x.dtype)
    rows = q.values(codes.expand(q.scale.numel(), -1).reshape(_room(q, len(codes))))
    rows = rows.reshape(-1, len(codes))
    gaps = rows.diff(dim=1)
    even = (gaps - gaps.mean(1, keepdim=True)).abs() <= EVEN * gaps.mean(1, keepdim=True)
    return None if even.all() else rows.median(0).values


def _level(q: Quantizer, x: Tensor, code: int) -> Tensor:
    if q.scheme.granularity.kind != "tensor":
        return q.values(x.new_full(x.shape, code))
    return q.values(x.new_full(x[:1].shape if q.mixed else (), code))


def _room(q: Quantizer, n: int) -> tuple[int, ...]:
    """The shape in which ``n`` codes for each scale broadcast against the scales."""
    return (*q.scale.shape[:-1], n) if q.scale.dim() else (n,)
