"""The range with the least rounding error.  After the MSE observers of BRECQ and QDrop."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qlib.core.params import param
from qlib.core.scheme import Scheme
from qlib.observers.base import Observer

CHUNK = 2**18  # elements at a time: stays in the processor's cache


@dataclass(frozen=True)
class Mse(Observer):
    """Minimises mean |x − x̂|^power over the width of the range and the place of zero in it.

    A candidate is (hundredths of the full width, integer that stands for 0), as in QDrop's code.
    A coarse grid is followed by a fine one around each row's best: about 200 evaluations a value
    at any bit-width, where the exhaustive search needs up to 25,600.
    """

    title = "MSE"
    paper = "QDrop, Wei et al., ICLR 2022, arXiv 2203.05740"
    power: float = param(2.4, "Exponent of the error; above 2 protects the tails.", low=1.0)

    def find_range(
        self, x: Tensor, scheme: Scheme, counts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        lo, hi = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
        steps = scheme.steps
        if scheme.symmetric:
            full = 2 * torch.maximum(-lo, hi)
            fixed = x.new_full((len(x), 1), -scheme.qmin)
        else:
            full = hi - lo
            fixed = None
        full = torch.where(full > 0, full, torch.ones_like(full))
        natural = (-lo / full * steps).round()

        hundredths = torch.arange(1, 101, device=x.device)
        coarse = hundredths[(hundredths % 5 == 0) | (hundredths <= 3)].expand(len(x), -1)
        zeros = fixed if fixed is not None else _around(natural, _spread(steps), lo, hi, steps)
        best = self._best(x, counts, full, steps, *_pairs(coarse, zeros))
        reach, gap = 5, max(1, steps // 32)
        while True:
            near = best[0][:, None] + torch.arange(-reach, reach + 1, device=x.device)
            offsets = [-gap, 0, gap]
            zeros = fixed if fixed is not None else _around(best[1], offsets, lo, hi, steps)
            best = self._best(x, counts, full, steps, *_pairs(near.clamp(1, 100), zeros))
            if gap == 1:
                break
            reach, gap = 2, gap // 2
        scale = best[0] / 100 * full / steps
        if scheme.symmetric:  # what `qparams` turns back into this very scale
            return -scale * steps / 2, scale * steps / 2
        return -best[1] * scale, (steps - best[1]) * scale

    def _best(
        self,
        x: Tensor,
        counts: Tensor | None,
        full: Tensor,
        steps: int,
        shares: Tensor,
        zeros: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The best of (rows, k) candidates: its hundredths and its zero, each (rows,)."""
        error = torch.empty(shares.shape, device=x.device)
        rows_at_once = max(1, CHUNK // x.shape[1])
        for r in range(0, len(x), rows_at_once):
            rows = slice(r, r + rows_at_once)
            n = x[rows].numel()
            at_once = max(1, CHUNK // n)
            for k in range(0, shares.shape[1], at_once):
                part = (rows, slice(k, k + at_once))
                scale = (shares[part] / 100 * full[rows, None] / steps)[..., None]
                error[part] = self._error(
                    x[rows, None],
                    scale,
                    zeros[part][..., None],
                    steps,
                    None if counts is None else counts[rows],
                )
        at = error.argmin(1, keepdim=True)
        return shares.gather(1, at)[:, 0], zeros.gather(1, at)[:, 0]

    def _error(
        self, x: Tensor, scale: Tensor, zero: Tensor, steps: int, counts: Tensor | None
    ) -> Tensor:
        """(rows, k) mean error of (rows, 1, n) values under (rows, k, 1) grids."""
        ratio = x / scale
        d = torch.clamp(ratio.round(), -zero, steps - zero).sub_(ratio).abs_().pow_(self.power)
        total = d.mean(2) if counts is None else torch.einsum("rkn,rn->rk", d, counts)
        return total * scale[..., 0] ** self.power


def _spread(steps: int) -> list[int]:
    """Offsets of the coarse search for zero: all of them on small grids."""
    if steps < 8:
        return list(range(-steps, steps + 1))
    unit = max(1, steps // 16)
    return [unit * k for k in (-4, -2, -1, 0, 1, 2, 4)]


def _around(centre: Tensor, offsets: list[int], lo: Tensor, hi: Tensor, steps: int) -> Tensor:
    """(rows, k) zeros near ``centre``; rows of one sign keep zero at their end of the grid."""
    zeros = (centre[:, None] + centre.new_tensor(offsets)).clamp(0, steps)
    zeros = torch.where((lo == 0)[:, None], torch.zeros_like(zeros), zeros)
    return torch.where(((hi == 0) & (lo < 0))[:, None], torch.full_like(zeros, steps), zeros)


def _pairs(shares: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor]:
    """Every share with every zero: two tensors (rows, shares × zeros)."""
    rows = len(zeros)
    if bool((zeros == zeros[:, :1]).all()):
        zeros = zeros[:, :1]
    a, b = shares[:, :, None].expand(rows, -1, zeros.shape[1]), zeros[:, None, :]
    return a.reshape(rows, -1), b.expand_as(a).reshape(rows, -1)
