"""Other images in place of the calibration images: shifted, mirrored, or nothing but noise."""

import torch
from torch import Tensor
from torch.nn import functional as F

FARTHEST = 8  # one part in so many of a side: how far an image is shifted


def shifted(images: Tensor, generator: torch.Generator, *, mirror: bool = False) -> Tensor:
    """Each image (n, c, h, w) moved by whole pixels, up to an eighth of a side; edges repeat.

    ``mirror``: left and right change places in every other image, by chance. Right for photographs,
    wrong for digits and letters.
    """
    n, _, *sides = images.shape
    reach = [max(1, side // FARTHEST) for side in sides]
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    moves = [torch.randint(2 * far + 1, (n,), generator=generator).tolist() for far in reach]
    turned = (torch.rand(n, generator=generator) < 0.5).tolist() if mirror else [False] * n
    moved = []
    for image, down, right, turn in zip(padded, *moves, turned, strict=True):
        cut = image[:, down : down + sides[0], right : right + sides[1]]
        moved.append(cut.flip(2) if turn else cut)
    return torch.stack(moved)


def noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise shaped like ``images``, with each channel's mean and standard deviation."""
    dims = (0, 2, 3)
    mean, spread = images.mean(dims, keepdim=True), images.std(dims, keepdim=True, correction=0)
    return mean + spread * torch.randn(images.shape, generator=generator).to(images)
