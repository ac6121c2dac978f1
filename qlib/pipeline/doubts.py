"""Reasons not to believe a run's numbers, noticed while it ran."""

import numpy as np
from torch import Tensor

from qlib.core.rows import Doubt
from qlib.measure import labels
from qlib.measure.labels import Fit
from qlib.measure.outliers import lines
from qlib.pipeline.experiment import Experiment

FIRST = 5  # classes whose order is told
SAME = 0.9  # share of the images that get one answer
FILE = "--classes FILE"


def doubts_of(experiment: Experiment, logits: Tensor) -> list[Doubt]:
    """Every reason there is, one function each.

    ``logits``: of the float network on the test images, (n, classes).
    """
    at_chance = about_labels(experiment, logits)
    return [*at_chance, *(about_weights(experiment) if at_chance else ())]


def about_weights(experiment: Experiment) -> list[Doubt]:
    """A weight far beyond the others of its tensor, where the float network is not to be believed.

    Some networks have such weights and are right, so that they alone are no reason.
    """
    outliers = list(lines(experiment.net))
    if not outliers:
        return []
    text = f"Weights lie far outside of their tensors: {'; '.join(outliers)}."
    remedy = "Check where the weights come from, and fetch or save them again."
    return [Doubt(name="weights", text=text, remedy=remedy)]


def about_labels(experiment: Experiment, logits: Tensor) -> list[Doubt]:
    """The float network is at chance, or another order of classes fits its answers far better."""
    if experiment.task != "classes":  # nobody knows what is right, or there are no answers
        return []
    guesses, classes = logits.argmax(1).numpy(), experiment.classes
    fit = labels.fit(experiment.labelled().numpy(), guesses, logits.shape[1])
    if not fit.doubtful:
        return []
    own_order = "order" in experiment.pictures and experiment.pictures["order"] != "wordnet"
    used = ", ".join(f"{i} = {classes[i]}" for i in sorted(_labelled(experiment))[:FIRST])
    text = [_accuracy(fit), _other_order(fit), _same_answer(guesses, classes)]
    text.append(f"Order of classes used: {used}, …")
    doubt = Doubt(name="labels", text=" ".join(filter(None, text)), remedy=_remedy(fit, own_order))
    if fit.reordered is not None:
        doubt["top1_reordered"] = fit.reordered
    if fit.order and own_order:
        doubt["order"] = [f"{classes[label]},{output}" for label, output in fit.order.items()]
    return [doubt]


def _labelled(experiment: Experiment) -> set[int]:
    return set(experiment.labelled().tolist())


def _accuracy(fit: Fit) -> str:
    right = f"The float network is right on {fit.accuracy:.1f} % of {fit.n:,} images"
    if fit.at_chance:
        return (
            f"{right}, which is at or below chance ({100 / fit.classes:.3g} % of "
            f"{fit.classes:,} classes): labels or preprocessing probably do not fit."
        )
    return f"{right}, and its labels probably do not fit."


def _other_order(fit: Fit) -> str:
    if fit.order:
        return f"With another order of classes it would be {fit.reordered:.1f} %."
    if fit.reordered is None:
        return "There are too few images of each class to try other orders."
    return (
        f"No other order of classes explains it: the best gives {fit.reordered:.1f} % on images "
        "that did not choose it."
    )


def _same_answer(guesses: np.ndarray, classes: tuple[str, ...]) -> str:
    counts = np.bincount(guesses, minlength=len(classes))
    share, name = counts.max() / len(guesses), classes[int(counts.argmax())]
    return f"It answers {name} for {100 * share:.0f} % of them." if share >= SAME else ""


def _remedy(fit: Fit, own_order: bool) -> str:
    if fit.order and own_order:
        moved = [label for label, output in fit.order.items() if label != output]
        return (
            f"Give the network's order with {FILE} (one folder name a line, the first for output "
            f"0, or folder,index): {len(moved)} classes move, and the record lists it."
        )
    if fit.order:
        return "Check how these images are numbered: the network numbers its classes otherwise."
    order = f", or give the order of the classes with {FILE}" if own_order else ""
    return f"Check the network's weights and its preprocessing (size, mean, channel order){order}."
