"""The error of one linear layer's output under many grids and noises at once.

Lengths are in steps of the grid where not said otherwise: levels are whole numbers.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qlib.core.functional import qparams
from qlib.core.scheme import Scheme
from qlib.network.points import QuantLayer

ROOM = 2**20  # numbers that the candidates of one step may fill: stays in the processor's cache
FEW = 128  # rows that the searches look at before the best candidates are tried on all
FINE = 4  # hundredths of the range, or 64ths of a step, on either side of the coarse best


@dataclass(frozen=True)
class Grids:
    """Uniform grids side by side, (k,) of each part; the outermost levels are in steps from 0."""

    step: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, lo: Tensor, hi: Tensor, scheme: Scheme) -> "Grids":
        """The grids of clipping ranges lo … hi, (k,)."""
        step, zero = qparams(lo, hi, scheme)
        return cls(step, scheme.qmin - zero, scheme.qmax - zero)

    def __getitem__(self, at: slice | int) -> "Grids":
        at = slice(at, at + 1) if isinstance(at, int) else at
        return Grids(self.step[at], self.low[at], self.high[at])

    def __add__(self, other: "Grids") -> "Grids":
        return Grids(*(torch.cat(pair) for pair in zip(self._parts(), other._parts(), strict=True)))

    def __len__(self) -> int:
        return len(self.step)

    def error(self, x: Tensor, added: Tensor) -> Tensor:
        """x + N − Q(x + N) in steps, (k, n, d), for x (n, d) and N (k, d); k of either may be 1."""
        moved = x / self.step[:, None, None] + added[:, None]
        if len(self) == 1:  # plain numbers are clamped much faster
            return moved - moved.round().clamp_(float(self.low), float(self.high))
        return moved - moved.round().clamp_(self.low[:, None, None], self.high[:, None, None])

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.step, self.low, self.high


class Output:
    """Σ (ŵ·x̂ − w·x)² over rows and outputs, as a function of how x is rounded.

    With x̂ = x − δ it is ‖δ·ŵᵀ − x·(ŵ − w)ᵀ‖²: the second part is the weight's own error and is
    computed once; where outputs outnumber inputs, ŵ is replaced by its triangular factor r, as
    ‖δ·ŵᵀ‖ = ‖δ·rᵀ‖ for ŵ = qr. A bias takes noise off exactly and cancels.

    Args:
        x: (n, d) float rows; w_hat: (out, d), the rounded weight.
    """

    def __init__(self, x: Tensor, layer: QuantLayer, w_hat: Tensor) -> None:
        w = layer.weight.detach().flatten(1)
        o = x @ w.T if layer.bias is None else torch.addmm(layer.bias.detach(), x, w.T)
        rest = x @ (w - w_hat).T
        wide = w_hat.shape[0] > w_hat.shape[1]
        self.x, self.energy = x, max(float(o.square().sum()), torch.finfo(o.dtype).tiny)
        self._short = torch.linalg.qr(w_hat, mode="r").R if wide else w_hat
        self._fixed, self._to_rest = rest.square().sum(), rest @ w_hat

    def first(self, n: int) -> "Output":
        """The same of the first n rows: cheaper, for a search."""
        part = object.__new__(Output)
        part.x, part.energy, part._short = self.x[:n], self.energy, self._short
        part._fixed, part._to_rest = self._fixed * 0, self._to_rest[:n]  # the same for all
        return part

    def error(self, grids: Grids, added: Tensor) -> Tensor:
        """(k,) for k grids and k noises (k, d); of either there may be one for all."""
        return self.errors(grids, added)[0]

    def errors(self, grids: Grids, added: Tensor) -> tuple[Tensor, Tensor]:
        """(k,) of the output, and (k,) Σ δ² of the input in steps."""
        k = max(len(grids), len(added))
        each = max(1, ROOM // max(1, self.x.numel()))
        parts = []
        for start in range(0, k, each):
            at = slice(start, start + each)
            grid = grids[at] if len(grids) > 1 else grids
            delta = grid.error(self.x, added[at] if len(added) > 1 else added)
            parts.append(self._of(delta, grid.step))
        output, inside = (torch.cat(side) for side in zip(*parts, strict=True))
        return output, inside

    def _of(self, delta: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        flat = delta.flatten(1)
        far = torch.linalg.vector_norm((delta @ self._short.T).flatten(1), dim=1).double()
        near = torch.linalg.vector_norm(flat, dim=1).double()
        along = (flat @ self._to_rest.flatten()).double()
        step = step.double()
        total = (step * far).square() + 2 * step * along + self._fixed.double()
        return total.clamp(min=0), near.square()


def reached(
    output: Output, grid: Grids, draws: Tensor, reaches: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(S, R) errors of the output and of the input for S draws (S, d) times R reaches, 0 first."""
    some = torch.as_tensor(reaches[1:], dtype=draws.dtype, device=draws.device)
    noises = (some[:, None] * draws[:, None]).flatten(0, 1)
    tried = torch.cat([torch.zeros_like(draws[:1]), noises])
    outside, inside = output.errors(grid, tried)
    return _by_draw(outside, len(draws)), _by_draw(inside, len(draws))


def _by_draw(errors: Tensor, draws: int) -> np.ndarray:
    """(1 + S·(R − 1),) to (S, R): without noise all draws are one."""
    found = errors.cpu().numpy()
    return np.concatenate([found[:1].repeat(draws)[:, None], found[1:].reshape(draws, -1)], axis=1)


def best_clip(output: Output, lo: Tensor, hi: Tensor, scheme: Scheme, other: Grids) -> Grids:
    """The grid with the least error: hundredths of the range lo … hi, the whole, or ``other``.

    Every fourth hundredth on some rows, then those around the best, then the finalists on all rows.
    """
    few, none = output.first(FEW), output.x.new_zeros(1, output.x.shape[1])

    def grids(hundredths: Tensor) -> Grids:
        return Grids.of(lo * hundredths / 100, hi * hundredths / 100, scheme)

    coarse = torch.arange(4, 101, 4, device=lo.device)
    best = coarse[few.error(grids(coarse), none).argmin()]
    fine = (best + torch.arange(1 - FINE, FINE, device=lo.device)).clamp(1, 100)
    best = fine[few.error(grids(fine), none).argmin()]
    finalists = grids(torch.stack([coarse[-1], best])) + other
    return finalists[int(output.error(finalists, none).argmin())]


def best_shift(output: Output, grid: Grids) -> float:
    """The common shift in steps, from −1 to 1, with the least error; 0 unless another is better.

    In 16ths of a step on some rows, then 64ths around the best, which then meets 0 on all rows.
    """
    few, one = output.first(FEW), output.x.new_ones(1, output.x.shape[1])
    coarse = torch.arange(-16, 16, device=one.device) / 16
    best = coarse[few.error(grid, coarse[:, None] * one).argmin()]
    fine = best + torch.arange(-FINE, FINE + 1, device=one.device) / 64
    best = fine[few.error(grid, fine[:, None] * one).argmin()]
    finalists = torch.stack([torch.zeros_like(best), best])
    return float(finalists[output.error(grid, finalists[:, None] * one).argmin()])
