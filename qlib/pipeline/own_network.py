"""Checks a network of the user's own, and fills in preprocessing where none is given."""

import torch
from torch import Tensor, nn

from qlib.core.preprocess import Preprocess
from qlib.core.records import InvalidSpec, RunSpec
from qlib.datasets.base import Images
from qlib.datasets.preprocessing.prepare import to_tensor
from qlib.models.base import Built, Complete
from qlib.network.replace import float_copy
from qlib.pipeline.task import Returned, returned


def completed(
    built: Built, images: Images, spec: RunSpec, folders: int = 0
) -> tuple[Complete, list[str]]:
    """The same network with preprocessing and number of classes, and notes on what was assumed.

    Without preprocessing images stay as they are: the size of the first, values from 0 to 1. The
    number of classes is 0 of an encoder, see `qlib.pipeline.task.returned`.

    Args:
        folders: class folders of the images.

    Raises:
        InvalidSpec: as `qlib.pipeline.task.returned` and `check_network`.
    """
    module, notes = evaluated(built.module)
    notes = [*built.notes, *notes]
    preprocess, classes = built.preprocess, built.classes
    if preprocess is None:
        first = images.image(0)
        size = (1 if first.mode == "L" else 3, first.height, first.width)
        preprocess = Preprocess(size, (0.0,) * size[0], (1.0,) * size[0])
        notes.append(
            f"The network came without preprocessing: images are taken at the size of the first, "
            f"{size[0]} × {size[1]} × {size[2]}, with values from 0 to 1."
        )
    about = built.notes, built.names, built.label_set
    if classes and not spec.output and spec.task != "features":
        return Complete(module, preprocess, classes, *about), notes
    few = to_tensor(images, preprocess, 0, 2)
    seen = returned(module, few, output=spec.output, task=spec.task, folders=folders)
    classes = 0 if seen.task == "features" else seen.width
    return Complete(seen.net, preprocess, classes, *about), [*notes, *seen.notes]


def check_labels(labels: object, images: Tensor, classes: int) -> Tensor:
    """``labels`` themselves.

    Raises:
        InvalidSpec: no tensor of class numbers, one for each image.
    """
    wanted = f"labels must be a tensor of {len(images)} class numbers, one for each image"
    if not isinstance(labels, Tensor) or labels.shape != images.shape[:1]:
        got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise InvalidSpec(f"{wanted}; got {got}.")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise InvalidSpec(f"{wanted}; got {_type(labels)}. Convert them with labels.long().")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InvalidSpec(
            f"{wanted}, from 0 to {classes - 1}; got {low} to {high}. Number them as the network "
            "does."
        )
    return labels


def check(net: object, images: object, *, output: str = "", task: str = "auto") -> Returned:
    """Check that a network can be quantized with these calibration images; what it returns.

    Args:
        output, task: see `qlib.pipeline.task.returned`.

    Raises:
        InvalidSpec: no; in one sentence what is wrong and what to do.
    """
    net, images = check_network(net), check_images(images)
    there = next((p.device for p in net.parameters()), images.device)
    if there != images.device:
        raise InvalidSpec(
            f"The network is on {there} and the images are on {images.device}; move one of them, "
            f"such as images.to({str(there)!r})."
        )
    return returned(net, images[:2], output=output, task=task)


def check_network(net: object) -> nn.Module:
    """Check that ``net`` is a network that can be quantized, and return it.

    Raises:
        InvalidSpec: no module with float32 weights.
    """
    if not isinstance(net, nn.Module):
        raise InvalidSpec(
            f"net must be a torch.nn.Module; got {type(net).__name__}. Give the network itself."
        )
    odd = next((p for p in net.parameters() if p.dtype != torch.float32), None)
    if odd is not None:
        raise InvalidSpec(
            f"The network has weights of type {_type(odd)}, and float32 is needed; call "
            "net.float() first."
        )
    if isinstance(net, nn.Conv2d | nn.Linear):
        raise InvalidSpec(
            f"The network is a single {type(net).__name__}, whose place could not be taken; put it "
            "into a module, such as nn.Sequential(net)."
        )
    return net


def evaluated(net: object) -> tuple[nn.Module, list[str]]:
    """A network in eval mode: ``net`` itself, or a copy where some of it trains; and notes.

    Raises:
        InvalidSpec: as `check_network`, or it cannot be copied.
    """
    net, notes = check_network(net), list[str]()
    training = [name for name, part in net.named_modules() if part.training]
    if training:
        part = "The network" if training[0] == "" else f"The network's part {training[0]!r}"
        notes.append(
            f"{part} came in training mode, where batch norms and dropout depend on the batch and "
            "on chance; a copy in eval mode was used."
        )
        net = float_copy(net)
    by_batch = [name for name, part in net.named_modules() if _counts_the_batch(part)]
    if by_batch:
        notes.append(
            "Batch norms without statistics of their own take those of the batch, so that answers "
            f"depend on which images are in it: {', '.join(by_batch)}."
        )
    return net, notes


def _counts_the_batch(part: nn.Module) -> bool:
    """Whether a norm in eval mode still takes statistics over the batch."""
    return isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None


def check_images(images: object) -> Tensor:
    """Check that ``images`` are a batch of images, and return them.

    Raises:
        InvalidSpec: not a float tensor (n, channels, height, width) of finite values.
    """
    wanted = "a float32 tensor (n, channels, height, width), preprocessed as the network expects"
    if not isinstance(images, Tensor):
        raise InvalidSpec(
            f"images must be {wanted}; got {type(images).__name__}. Stack them with torch.stack."
        )
    if images.dim() != 4 or not images.numel():
        raise InvalidSpec(
            f"images must be {wanted}; got the shape {tuple(images.shape)}. For a single image, "
            "images[None] adds the first axis."
        )
    if images.dtype != torch.float32:
        raise InvalidSpec(
            f"images must be {wanted}; got {_type(images)}. Convert them with images.float(), and "
            "bytes also to the network's scale."
        )
    if not bool(images.isfinite().all()):
        raise InvalidSpec(
            f"images must be {wanted}; some values are infinite or NaN. Look at the preprocessing."
        )
    return images


def _type(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
