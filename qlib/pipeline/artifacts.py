"""Writes the predictions of a run and thumbnails of its images."""

from pathlib import Path

import numpy as np
from torch import Tensor

from qlib.datasets.base import Images
from qlib.measure.features import cosines
from qlib.pipeline import judging
from qlib.pipeline.experiment import Experiment

PICTURES = 12  # the first test images, and as many more whose answer changed


def save_predictions(folder: Path, experiment: Experiment, outputs: dict[str, Tensor]) -> None:
    """Write ``preds.npz``: the five most probable classes of every image, and thumbnails.

    ``labels`` is −1 of images without one. Of features the classes are those that neighbours vote
    for, and ``quant_cosine`` is each image's likeness to float; without labels there are no
    classes at all.
    """
    images = experiment.test
    labels = np.full(len(images), -1) if images.labels is None else images.labels
    arrays = {"ids": np.array(images.ids), "labels": np.asarray(labels, np.int32)}
    for name, values in outputs.items():
        if (found := judging.guesses(experiment, values)) is not None:
            arrays[f"{name}_top5"] = found[0].numpy().astype(np.int16)
            arrays[f"{name}_prob"] = found[1].numpy().astype(np.float16)
    if experiment.task == "features":
        each = cosines(outputs["float"], outputs["quant"])
        arrays["quant_cosine"] = each.numpy().astype(np.float32)
    first = list(range(min(PICTURES, len(images))))
    shown = first + [i for i in _changed(arrays) if i not in first][:PICTURES]
    arrays["thumb_index"] = np.array(shown, dtype=np.int32)
    arrays["thumbs"] = np.stack([_picture(images, i) for i in shown])
    names = judging.class_names(experiment, outputs["float"].shape[1])
    np.savez_compressed(folder / "preds.npz", class_names=np.array(names), **arrays)


def _changed(arrays: dict[str, np.ndarray]) -> list[int]:
    """Images whose answer changed; of features without classes those that changed most."""
    if "quant_top5" not in arrays:
        return arrays["quant_cosine"].argsort().tolist()
    best = [arrays[f"{side}_top5"][:, 0] for side in ("float", "quant")]
    return np.flatnonzero(best[0] != best[1]).tolist()


def _picture(images: Images, index: int, side: int = 64) -> np.ndarray:
    """(h, w, 3) bytes, the middle square, at most ``side`` wide; small images keep their pixels."""
    image = images.image(index).convert("RGB")
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    image = image.crop((left, top, left + edge, top + edge))
    return np.asarray(image if edge <= side else image.resize((side, side)))
