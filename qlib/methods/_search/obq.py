"""One-shot rounding with second moments: OBQ and GPTQ on matrices.

Rounding weight q of a row costs (w_q − ŵ_q)²/(2·[H⁻¹]_qq) when the weights still free move by
−(w_q − ŵ_q)/[H⁻¹]_qq · H⁻¹[:, q] to make up for it; H = Σ x·xᵀ over what the layer reads.
Papers: OBQ, Frantar & Alistarh, NeurIPS 2022, arXiv 2208.11580; GPTQ, arXiv 2210.17323
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qlib.quantizers.base import Quantizer

BLOCK = 128  # columns between two updates of everything that lies behind
ROOM = 2**25  # numbers held at once where every row has an inverse of its own


# --- second moments


def product(one: Tensor, two: Tensor) -> Tensor:
    """Σ over positions of one·twoᵀ, (groups, d, d), in double."""
    return torch.bmm(one, two.transpose(1, 2)).double()


def matched(weight: Tensor, cross: Tensor, hessian: Tensor, damping: float) -> Tensor:
    """The float weight that does on x̂ what ``weight`` does on x, by least squares.

    W + W·(K − H)·(H + damping)⁻¹ with K = Σ x·x̂ᵀ. As ‖Wx − Ŵx̂‖² is ‖(this − Ŵ)x̂‖² and a rest
    that no Ŵ changes (but for the damping), rounding this with H is rounding against float outputs.
    """
    return weight + weight @ (cross - hessian) @ _inverse(hessian, damping)


# --- rounding


@dataclass(frozen=True)
class Levels:
    """The grid of every weight of a matrix: scale, and its ends in steps from 0.0.

    All (groups, rows, d), in the weight's own precision, in which `Quantizer.codes` rounds too.
    """

    scale: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, fitted: Quantizer, weight: Tensor, groups: int) -> "Levels":
        """Of a fitted quantizer, whoever shares a scale in it."""
        split = fitted.scheme.granularity.split(weight)
        ends = (fitted.scale, fitted.low, fitted.high)
        like = [torch.as_tensor(e, device=weight.device, dtype=weight.dtype) for e in ends]
        return cls(*(as_rows(e.expand_as(split).reshape(weight.shape), groups) for e in like))

    def part(self, rows: slice | Tensor, columns: slice | Tensor) -> "Levels":
        """The grids of some rows and columns."""
        return Levels(*(t[:, rows, columns] for t in (self.scale, self.low, self.high)))

    def nearest(self, w: Tensor) -> Tensor:
        """Steps from 0.0 to the nearest level."""
        ratio = w.to(self.scale.dtype) / self.scale
        return torch.minimum(torch.maximum(ratio.round(), self.low), self.high)


def as_rows(weight: Tensor, groups: int) -> Tensor:
    """(out, …) as (groups, out / groups, d)."""
    return weight.reshape(groups, len(weight) // groups, -1)


def round_in_order(weight: Tensor, hessian: Tensor, levels: Levels, damping: float) -> Tensor:
    """GPTQ: column after column, in the same order for every row.

    Args:
        weight: (groups, rows, d), double.
        hessian: (groups, d, d), double.
        damping: share of the mean diagonal that is added to the diagonal.

    Returns:
        steps from 0.0, shaped like ``weight``.
    """
    w, steps = weight.clone(), torch.empty_like(levels.scale)
    upper = torch.linalg.cholesky(_inverse(hessian, damping), upper=True)
    d = weight.shape[2]
    for start in range(0, d, BLOCK):
        end = min(start + BLOCK, d)
        errors = torch.empty_like(w[..., start:end])
        for i in range(start, end):
            at = slice(i, i + 1)
            here = levels.part(slice(None), at)
            steps[..., at] = here.nearest(w[..., at])
            error = (w[..., at] - (steps[..., at] * here.scale)) / upper[:, at, at]
            w[..., i:end] -= error * upper[:, at, i:end]
            errors[..., i - start : i - start + 1] = error
        w[..., end:] -= errors @ upper[:, start:end, end:]
    return steps


def round_strongest_first(
    weight: Tensor, hessian: Tensor, levels: Levels, damping: float
) -> Tensor:
    """`round_in_order`, each group's columns sorted by falling second moment."""
    order = hessian.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    columns = order[:, None, :].expand_as(weight)
    square = order[:, None, :].expand_as(hessian)
    turned = hessian.gather(2, square).gather(1, square.transpose(1, 2))
    sorted_levels = Levels(*(t.gather(2, columns) for t in (levels.scale, levels.low, levels.high)))
    steps = round_in_order(weight.gather(2, columns), turned, sorted_levels, damping)
    return torch.empty_like(steps).scatter_(2, columns, steps)


def round_cheapest_first(weight: Tensor, hessian: Tensor, levels: Levels, damping: float) -> Tensor:
    """OBQ: every row rounds its cheapest weight next. For small layers: d³ work for each row.

    Arguments and result as in `round_in_order`.
    """
    groups, rows, d = weight.shape
    inverse = _inverse(hessian, damping)[:, None]
    at_once = max(1, ROOM // (groups * d * d))
    parts = [slice(start, start + at_once) for start in range(0, rows, at_once)]
    done = [
        _each_row(weight[:, p].clone(), inverse.repeat(1, weight[:, p].shape[1], 1, 1),
                  levels.part(p, slice(None)))
        for p in parts
    ]  # fmt: skip
    return torch.cat(done, dim=1)


def _each_row(w: Tensor, inverse: Tensor, levels: Levels) -> Tensor:
    """`round_cheapest_first` of (groups, r, d), every row with an inverse (…, d, d) of its own."""
    fixed = torch.zeros_like(w, dtype=torch.bool)
    steps = torch.empty_like(levels.scale)
    for _ in range(w.shape[2]):
        here = levels.nearest(w)
        error = w - here * levels.scale
        cost = (error.square() / inverse.diagonal(dim1=2, dim2=3)).masked_fill(fixed, torch.inf)
        at = cost.argmin(2, keepdim=True)
        fixed.scatter_(2, at, True)
        steps.scatter_(2, at, here.gather(2, at))
        column = inverse.gather(3, at[..., None].expand(*w.shape, 1))[..., 0]
        pivot = column.gather(2, at)
        w -= error.gather(2, at) / pivot * column
        inverse -= column[..., :, None] * (column / pivot)[..., None, :]
    return steps


def _inverse(hessian: Tensor, damping: float) -> Tensor:
    """(H + damping · mean diagonal)⁻¹; an input that is always 0 counts as if it were alone."""
    h = hessian.clone()
    diagonal = h.diagonal(dim1=1, dim2=2)
    dead = diagonal == 0
    diagonal += damping * diagonal.mean(1, keepdim=True)
    diagonal[dead] = 1.0
    return torch.cholesky_inverse(torch.linalg.cholesky(h))
