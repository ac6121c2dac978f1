"""Features of an encoder held against the float ones: cosine, linear CKA, nearest neighbours.

All take one row an image, (n, d). Neighbours tell how useful features still are, where images have
classes: each image is classified by those most alike to it among all others (leave-one-out).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qlib.measure.statistics import Z95, wilson

NEIGHBOURS = 20
TEMPERATURE = 0.07  # of the votes, as in DINO's and instance discrimination's protocol
CHUNK = 256  # images compared with all others at once
CLASSES_KEPT = 5


def cosines(reference: Tensor, features: Tensor) -> Tensor:
    """(n,) cos(reference, features) of each image, −1 to 1; 1 where both are 0."""
    x, y = reference.double(), features.double()
    lengths = x.norm(dim=1) * y.norm(dim=1)
    dots = (x * y).sum(1)
    same = (x == y).all(1)
    return torch.where(same, 1.0, dots / lengths.clamp(min=1e-300)).clamp(-1, 1)


def cka(reference: Tensor, features: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features, 0 to 1 (arXiv 1905.00414).

    ‖YᵀX‖² / (‖XᵀX‖·‖YᵀY‖) with centred columns: the same for features that are rotated, mirrored
    or scaled as a whole. 1 where both are constant over images, 0 where one of them is.
    """
    x, y = (t.double() - t.double().mean(0) for t in (reference, features))
    if len(x) < x.shape[1]:  # the Gram matrices are smaller
        k, m = x @ x.T, y @ y.T
        cross, own, other = (k * m).sum(), k.norm(), m.norm()
    else:
        cross, own, other = (y.T @ x).square().sum(), (x.T @ x).norm(), (y.T @ y).norm()
    size = float(own * other)
    if size <= 0:
        return float(float(own) == float(other))
    return min(1.0, max(0.0, float(cross) / size))


@dataclass(frozen=True)
class Votes:
    """What neighbours say of each image: classes, best first, and their shares, (n, up to 5)."""

    classes: Tensor
    shares: Tensor

    @property
    def guess(self) -> Tensor:
        """(n,) the class with the most votes."""
        return self.classes[:, 0]


def neighbours(n: int) -> int:
    """How many neighbours vote among ``n`` images: 20, or all others where there are fewer."""
    return min(NEIGHBOURS, n - 1)


def vote(features: Tensor, labels: Tensor, classes: int) -> Votes:
    """Leave-one-out k-nearest-neighbour classification of every image by all the others.

    The nearest are those of the largest cosine; each votes for its class with exp(cosine / 0.07).

    Args:
        features: (n, d), n at least 2.
        labels: (n,) from 0 to ``classes`` − 1.
    """
    x = F.normalize(features.double(), dim=1)
    k, n = neighbours(len(x)), len(x)
    found = []
    for start in range(0, n, CHUNK):
        alike = x[start : start + CHUNK] @ x.T
        own = torch.arange(start, start + len(alike))
        alike[torch.arange(len(alike)), own] = -math.inf
        near = alike.topk(k, dim=1)
        weights = (near.values / TEMPERATURE).exp()
        votes = weights.new_zeros(len(alike), classes)
        votes.scatter_add_(1, labels[near.indices], weights)
        found.append((votes / votes.sum(1, keepdim=True)).topk(min(CLASSES_KEPT, classes)))
    return Votes(torch.cat([f.indices for f in found]), torch.cat([f.values for f in found]))


def similarity(reference: Tensor, features: Tensor) -> dict[str, float]:
    """How alike features are to the float ones: mean cosine with its interval, 5th percentile, CKA.

    ``cosine_low`` to ``cosine_high``: 95 % interval of the mean over images, by its standard error.
    """
    each = cosines(reference, features)
    mean = float(each.mean())
    half = Z95 * float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else 0.0
    return {
        "cosine": mean,
        "cosine_low": max(-1.0, mean - half),
        "cosine_high": min(1.0, mean + half),
        "cosine_p5": float(each.quantile(0.05)),
        "cka": cka(reference, features),
        "n": len(each),
    }


def neighbour_accuracy(labels: Tensor, votes: Votes, reference: Votes) -> dict[str, float]:
    """Percentages from 0 to 100: k-NN accuracy with its Wilson interval, that in float, agreement.

    ``lost`` and ``gained``: images that only float or only quantized features classify rightly.
    """
    right, before = votes.guess == labels, reference.guess == labels
    low, high = wilson(int(right.sum()), len(labels))
    return {
        "knn": 100 * float(right.double().mean()),
        "knn_low": 100 * low,
        "knn_high": 100 * high,
        "knn_float": 100 * float(before.double().mean()),
        "knn_k": neighbours(len(labels)),
        "agreement": 100 * float((votes.guess == reference.guess).double().mean()),
        "lost": int((before & ~right).sum()),
        "gained": int((right & ~before).sum()),
    }
