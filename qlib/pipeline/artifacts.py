"""Writes the predictions of a run and thumbnails of its images."""

from pathlib import Path

import numpy as np
from torch import Tensor

from qlib.datasets.base import Images

PICTURES = 12  # the first test images, and as many more whose answer changed


def save_predictions(
    folder: Path, images: Images, logits: dict[str, Tensor], classes: tuple[str, ...]
) -> None:
    """Write ``preds.npz``: the five most probable classes of every image, and thumbnails."""
    arrays = {"ids": np.array(images.ids), "labels": np.asarray(images.labels, np.int32)}
    for name, values in logits.items():
        top = values.softmax(1).topk(min(5, values.shape[1]))
        arrays[f"{name}_top5"] = top.indices.numpy().astype(np.int16)
        arrays[f"{name}_prob"] = top.values.numpy().astype(np.float16)
    changed = (logits["float"].argmax(1) != logits["quant"].argmax(1)).nonzero()[:, 0].tolist()
    first = list(range(min(PICTURES, len(images))))
    shown = first + [i for i in changed if i not in first][:PICTURES]
    arrays["thumb_index"] = np.array(shown, dtype=np.int32)
    arrays["thumbs"] = np.stack([_picture(images, i) for i in shown])
    np.savez_compressed(folder / "preds.npz", class_names=np.array(classes), **arrays)


def _picture(images: Images, index: int, side: int = 64) -> np.ndarray:
    """(h, w, 3) bytes, the middle square, at most ``side`` wide; small images keep their pixels."""
    image = images.image(index).convert("RGB")
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    image = image.crop((left, top, left + edge, top + edge))
    return np.asarray(image if edge <= side else image.resize((side, side)))
