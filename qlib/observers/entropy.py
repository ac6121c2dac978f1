"""The range that changes the histogram least (Kullback–Leibler), as in TensorRT's calibration."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qlib.core.params import param
from qlib.core.scheme import Scheme
from qlib.observers.base import Observer


@dataclass(frozen=True)
class Entropy(Observer):
    """Minimises KL(P ‖ Q): P the histogram with its tails piled onto the clip edges, Q the same
    mass after each grid level has spread its share evenly over the bins that it stands for.
    """

    title = "entropy (KL)"
    paper = "Migacz, 8-bit inference with TensorRT, GTC 2017"
    bins: int = param(512, "Bins of the histogram that is compared.", low=32, high=4096)
    candidates: int = param(64, "Widths that are tried.", low=2, high=512)

    def find_range(
        self, x: Tensor, scheme: Scheme, counts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        lo, hi = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
        if scheme.symmetric:
            hi = torch.maximum(-lo, hi)
            lo = -hi
        width = torch.where(hi > lo, hi - lo, torch.ones_like(hi))
        at = ((x - lo[:, None]) / width[:, None] * self.bins).long().clamp(0, self.bins - 1)
        weight = torch.ones_like(x) if counts is None else counts
        mass = torch.zeros(len(x), self.bins, device=x.device).scatter_add_(1, at, weight.float())
        mass = mass / mass.sum(1, keepdim=True).clamp(min=1e-30)
        shares = torch.linspace(1 / self.candidates, 1, self.candidates, device=x.device)
        per_row = max(1, 2**22 // (self.candidates * self.bins))
        best = torch.cat(
            [
                self._divergence(
                    mass[r : r + per_row],
                    lo[r : r + per_row],
                    width[r : r + per_row],
                    shares,
                    scheme,
                ).argmin(1)
                for r in range(0, len(x), per_row)
            ]
        )
        return lo * shares[best], hi * shares[best]

    def _divergence(
        self, mass: Tensor, lo: Tensor, width: Tensor, shares: Tensor, scheme: Scheme
    ) -> Tensor:
        """(rows, candidates) KL in nats of (rows, bins) histograms."""
        rows, bins = mass.shape
        k = len(shares)
        centre = (torch.arange(bins, device=mass.device) + 0.5) / bins  # 0..1 of the full range
        origin = (-lo / width)[:, None, None]  # where 0.0 lies, 0..1
        low, high = origin * (1 - shares[:, None]), origin + (1 - origin) * shares[:, None]
        inside = (centre >= low) & (centre <= high)  # (rows, k, bins)
        first = inside.int().argmax(2, keepdim=True)
        last = (bins - 1 - inside.flip(2).int().argmax(2)).unsqueeze(2)
        p = torch.where(inside, mass[:, None], 0.0)
        p.scatter_add_(2, first, (mass[:, None] * (centre < low)).sum(2, keepdim=True))
        p.scatter_add_(2, last, (mass[:, None] * (centre > high)).sum(2, keepdim=True))
        level = ((centre - low) / (high - low) * scheme.steps).round().long()
        level = level.clamp(0, scheme.steps)
        # Q is built from what lies inside: the piled-up tails are what clipping loses
        within = torch.where(inside, mass[:, None], 0.0)
        filled = (within > 0).float()
        shape = (rows, k, scheme.steps + 1)
        total = torch.zeros(shape, device=mass.device).scatter_add_(2, level, within)
        members = torch.zeros(shape, device=mass.device).scatter_add_(2, level, filled)
        q = (total / members.clamp(min=1)).gather(2, level) * filled
        q = q / q.sum(2, keepdim=True).clamp(min=1e-30)
        terms = p * (p.clamp(min=1e-12).log() - q.clamp(min=1e-12).log())
        return torch.where(p > 0, terms, 0.0).sum(2)
