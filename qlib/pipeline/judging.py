"""How outputs are judged: accuracy on labels, agreement without labels, or likeness of features."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qlib.measure import features, metrics
from qlib.pipeline.experiment import Experiment

# what a run also tells of nearest rounding, and under which name
NEAREST = ("top1", "cosine", "cka", "knn")


def judged(experiment: Experiment, outputs: Tensor, reference: Tensor) -> dict[str, float]:
    """The metrics of outputs for the held-out images; which ones, the experiment's task says.

    Args:
        outputs: (n, classes) or (n, features), one row for each held-out image.
        reference: the float network's.
    """
    labels = experiment.labels
    if experiment.task == "classes" and labels is not None:
        return metrics.accuracy(labels, outputs, reference)
    if experiment.task == "unlabelled":
        return metrics.unlabelled(outputs, reference)
    found = features.similarity(reference, outputs)
    found["kl"] = float(experiment.model.answers.divergences(reference, outputs).mean())
    if voting(experiment):
        votes = [_votes(experiment, part) for part in (outputs, reference)]
        found |= features.neighbour_accuracy(_labels(experiment), *votes)
    return found


def of_nearest(experiment: Experiment, outputs: Tensor, reference: Tensor) -> dict[str, float]:
    """What a run tells of plain rounding, each name ending in ``_nearest``."""
    told = judged(experiment, outputs, reference)
    names = ("agreement",) if experiment.task == "unlabelled" else NEAREST
    return {f"{name}_nearest": told[name] for name in names if name in told}


def voting(experiment: Experiment) -> bool:
    """Whether neighbours can vote: features of at least two images with labels."""
    return experiment.task == "features" and experiment.labels is not None and _n(experiment) > 1


def guesses(experiment: Experiment, outputs: Tensor) -> tuple[Tensor, Tensor] | None:
    """The up to five likeliest classes of every image and their probabilities.

    Of features these are the votes of neighbours; None where images have no classes.
    """
    if voting(experiment):
        votes = _votes(experiment, outputs)
        return votes.classes, votes.shares
    if experiment.task == "features":
        return None
    top = outputs.softmax(1).topk(min(5, outputs.shape[1]))
    return top.indices, top.values


def notes(experiment: Experiment) -> list[str]:
    """What a reader should know of how neighbours vote."""
    if not voting(experiment):
        return []
    k = features.neighbours(_n(experiment))
    return [
        f"k-NN accuracy: each held-out image is classified by the {k} others whose features have "
        f"the largest cosine to its own (leave-one-out), votes weighed by exp(cosine / "
        f"{features.TEMPERATURE}); float and quantized features each among themselves."
    ]


def class_names(experiment: Experiment, width: int) -> Sequence[str]:
    """Names by class index, for the stored guesses; numbers where nobody knows the names."""
    known = experiment.classes
    if experiment.task == "features":
        return known or ("no classes",)
    return known if len(known) == width else [f"class {i}" for i in range(width)]


def _votes(experiment: Experiment, outputs: Tensor) -> features.Votes:
    return features.vote(outputs, _labels(experiment), len(experiment.classes))


def _labels(experiment: Experiment) -> Tensor:
    labels = experiment.labels
    return torch.zeros(_n(experiment), dtype=torch.long) if labels is None else labels


def _n(experiment: Experiment) -> int:
    return len(experiment.test)
