"""What a network's outputs mean, classes or features, and how far two of them are apart in nats.

Everything that compares whole answers asks here: measures, Fisher information, tuning of biases,
the divergence as an objective. Scores of classes are compared by the KL divergence of their
softmax. Features have no distribution of their own; they are read as the mean of a Gaussian whose
variance is the features' own spread over the calibration images, so that

    KL(float ‖ quantized) = ‖f − q‖² / (2σ²),   σ² = mean over images of ‖f − mean f‖².

A network that answers at random is about 1 nat away; half of a relative squared error else.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST = 1e-30  # of a variance


class Answers(ABC):
    """What the outputs of one network mean."""

    @abstractmethod
    def read(self, outputs: Tensor) -> Tensor:
        """(n, d) of what the network returns, one row an image."""

    @abstractmethod
    def divergences(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """KL(reference ‖ outputs) of every image in nats, (n,) in double precision."""

    @abstractmethod
    def divergence_loss(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Σ over images of KL(reference ‖ outputs) in nats, with a gradient for ``outputs``."""

    @abstractmethod
    def sampled_loss(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Σ over images of −log p(y), y drawn from what the outputs themselves predict.

        The mean of its squared gradients is the diagonal of the true Fisher matrix.
        """

    @abstractmethod
    def doubt(self, reference: Tensor) -> Tensor:
        """Mean of the Fisher matrix's diagonal: ½·doubt·ΣΔ² is the KL of a small error Δ."""


@dataclass(frozen=True)
class Classes(Answers):
    """Scores of classes, (n, classes): logits of a softmax."""

    def read(self, outputs: Tensor) -> Tensor:
        """See `Answers.read`: as they are."""
        return outputs

    def divergences(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """See `Answers.divergences`."""
        p, q = reference.double().log_softmax(1), outputs.double().log_softmax(1)
        return (p.exp() * (p - q)).sum(1)

    def divergence_loss(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """See `Answers.divergence_loss`."""
        logs = outputs.log_softmax(1), reference.log_softmax(1)
        return F.kl_div(*logs, reduction="sum", log_target=True)

    def sampled_loss(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Cross-entropy to labels drawn from the softmax."""
        labels = torch.multinomial(outputs.detach().softmax(1), 1, generator=generator)
        return F.cross_entropy(outputs, labels[:, 0], reduction="sum")

    def doubt(self, reference: Tensor) -> Tensor:
        """Mean of p(1 − p): F = diag(p) − ppᵀ has the trace Σ p(1 − p)."""
        p = reference.softmax(1)
        return (p * (1 - p)).mean().clamp(min=torch.finfo(p.dtype).eps)


@dataclass(frozen=True)
class Features(Answers):
    """Features of an encoder: (n, d), tokens (n, t, d) or maps (n, c, h, w), pooled by their mean.

    Attributes:
        variance: σ² of the Gaussian, the squared spread of the features over images.
    """

    variance: float = 1.0

    @classmethod
    @torch.no_grad()
    def of(cls, outputs: Iterable[Tensor]) -> "Features":
        """With the spread of the float network's outputs, given in batches."""
        rows = torch.cat([pooled(part).double().cpu() for part in outputs])
        spread = float((rows - rows.mean(0)).square().sum(1).mean())
        if spread <= LEAST:  # one image, or an answer that is always the same
            spread = float(rows.square().sum(1).mean())
        return cls(spread if spread > LEAST else 1.0)

    def read(self, outputs: Tensor) -> Tensor:
        """See `Answers.read`: pooled."""
        return pooled(outputs)

    def divergences(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """See `Answers.divergences`."""
        gap = pooled(reference).double() - pooled(outputs).double()
        return gap.square().sum(1) / (2 * self.variance)

    def divergence_loss(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """See `Answers.divergence_loss`."""
        return (pooled(outputs) - pooled(reference)).square().sum() / (2 * self.variance)

    def sampled_loss(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Squared distance to features drawn from the Gaussian around the own ones."""
        means = pooled(outputs)
        noise = torch.randn(
            means.shape, generator=generator, device=means.device, dtype=means.dtype
        )
        drawn = means.detach() + self.variance**0.5 * noise
        return (means - drawn).square().sum() / (2 * self.variance)

    def doubt(self, reference: Tensor) -> Tensor:
        """1/σ² for each pooled feature, shared among the places that it is the mean of."""
        rows = pooled(reference)
        places = reference[0].numel() / rows.shape[1]
        return torch.as_tensor(1 / (self.variance * places**2), dtype=reference.dtype)


def pooled(outputs: Tensor) -> Tensor:
    """One row an image: (n, d) as it is; the mean over tokens (n, t, d), or over a map's places."""
    if outputs.dim() == 3:
        return outputs.mean(1)
    return outputs.flatten(2).mean(2) if outputs.dim() > 3 else outputs
