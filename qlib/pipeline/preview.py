"""Looks at a run's network and images before anything is quantized: what they are, what fits."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qlib.core.preprocess import Preprocess
from qlib.core.preview import Preview, Shown
from qlib.core.records import Event, Report, RunSpec, ignore
from qlib.datasets.preprocessing.prepare import to_tensor
from qlib.network.blocks import find_blocks
from qlib.network.model import QuantModel
from qlib.pipeline.experiment import Material, channels_last, load_material, too_little
from qlib.pipeline.picture_note import sentences

PICTURES = 8
SIDE = 224  # pixels; larger pictures are sent smaller


def preview(spec: RunSpec, report: Report = ignore) -> Preview:
    """Load the network and images of a checked specification and look at them, on the CPU.

    Raises:
        InvalidSpec: the run would be refused for what its network or its images are. Too small a
            share of multiplications that can be quantized is told in the preview instead.
    """
    report(Event("load", spec.model))
    material = load_material(spec)
    sources, prepare = material.sources, material.built.preprocess
    positions = _spread(len(sources.test))
    batch = [to_tensor(sources.test, prepare, i, i + 1) for i in positions]
    report(Event("load", note="layers"))
    few = channels_last(to_tensor(sources.calib, prepare, 0, 2))
    net = material.built.module
    model = QuantModel(net, few, find_blocks(net), spec.placement)
    left = model.coverage.left_float
    return Preview(
        pictures=tuple(_shown(material, positions, torch.cat(batch))),
        counts=_counts(material),
        calib=len(sources.calib),
        test=len(sources.test),
        prepared=prepare.words,
        task=material.task,
        outputs=material.built.classes,
        share=model.coverage.share,
        left_float=tuple(sorted(left, key=lambda part: -left[part])),
        refused=too_little(model.coverage),
        first=tuple(model.first_layers),
        last=tuple(model.last_layers),
        joined=tuple(span for span in model.spans if len(span) > 1),
        notes=(*model.notes, *material.notes, *sentences(sources.note(material.classes))),
    )


def _spread(images: int) -> list[int]:
    """Up to eight positions from the first image to the last: of most classes where sorted."""
    return sorted(set(np.linspace(0, images - 1, min(PICTURES, images)).round().astype(int)))


def _shown(material: Material, positions: Sequence[int], batch: Tensor) -> list[Shown]:
    test, prepare = material.sources.test, material.built.preprocess
    pixels = [_pixels(x, prepare) for x in batch]
    guesses = _guesses(material, batch)
    return [
        Shown(str(test.ids[i]), pixels[at], _label(material, i), *guesses[at])
        for at, i in enumerate(positions)
    ]


def _label(material: Material, position: int) -> str:
    labels = material.sources.test.labels
    return "" if labels is None else _words(material.classes, int(labels[position]))


def _guesses(material: Material, batch: Tensor) -> list[tuple[str, float]]:
    """The float network's likeliest class of each image and its probability."""
    if material.task == "features":
        return [("", 0.0)] * len(batch)
    built = material.built
    with torch.no_grad():
        logits = built.module(channels_last(batch)).float()
    best = logits.softmax(1).max(1)
    own = built.names if built.names and len(built.names) == built.classes else None
    names = own or (material.classes if len(material.classes) == built.classes else ())
    return [
        (_words(names, int(i)), float(p))
        for i, p in zip(best.indices, best.values.nan_to_num(), strict=True)
    ]


def _words(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else f"class {index}"


def _counts(material: Material) -> dict[str, int]:
    """Held-out pictures of each class that has any; empty where nobody knows the classes."""
    labels = material.sources.test.labels
    if labels is None:
        return {}
    found, many = np.unique(labels, return_counts=True)
    return {_words(material.classes, int(i)): int(n) for i, n in zip(found, many, strict=True)}


def _pixels(x: Tensor, prepare: Preprocess) -> np.ndarray:
    """A prepared image (channels, h, w) as bytes (h, w, 3), its normalisation undone."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (prepare.mean, prepare.std))
    unit = (x * std + mean).clamp(0, 1)
    bytes_ = (255 * unit).round().byte().expand(3, -1, -1).permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(bytes_))
    image.thumbnail((SIDE, SIDE))  # only makes smaller
    return np.asarray(image)
