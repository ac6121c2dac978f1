"""What a network returns: one output of several, scores of classes, or an encoder's features."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qlib.core.records import InvalidSpec
from qlib.network import outputs
from qlib.network.trace import trace

ENDINGS = ("Norm", "Pool", "Flatten")  # parts of class names: what encoders end with
KINDS = {2: "features", 3: "tokens", 4: "maps"}
KL_NOTE = (
    "KL of features: between Gaussians around them, with the float features' own spread over the "
    "calibration images, which is half of the squared error relative to that spread."
)


@dataclass(frozen=True)
class Returned:
    """What a network returns for an image.

    Attributes:
        net: the network; a twin of it that returns one tensor, where one was chosen of several.
        task: ``classes`` or ``features``.
        width: classes, or features after pooling.
        notes: what was chosen, guessed or pooled.
    """

    net: nn.Module
    task: str
    width: int
    notes: tuple[str, ...] = ()


def returned(
    net: nn.Module, images: Tensor, *, output: str = "", task: str = "auto", folders: int = 0
) -> Returned:
    """Run a network on a few images and see what it returns.

    Args:
        images: (n, c, h, w), two or so.
        output: as `RunSpec.output`.
        task: as `RunSpec.task`. With "auto" these are features: what a network without a
            classifier (timm's ``num_classes`` of 0) returns, tokens and maps, and, where the
            number of outputs is not that of the class folders, what ends in a norm or a pooling.
        folders: class folders of the images; 0: none, or not known.

    Raises:
        InvalidSpec: the network cannot take the images, returns several outputs and none of them
            is named, or something else than the task needs.
    """
    notes = []
    answer = _run(net, images)
    if output:
        outputs.chosen(answer, output)
        net = outputs.choosing(net, output)
        notes.append(f"Of the network's outputs {output!r} was chosen.")
        answer = _run(net, images)
    if not isinstance(answer, Tensor):
        raise InvalidSpec(outputs.asked(answer))
    _check_shape(answer, len(images), task)
    why = _features_because(net, images, answer, folders) if task == "auto" else ""
    if not why and task != "features":
        return Returned(net, "classes", answer.shape[1], tuple(notes))
    if why:
        notes.append(
            f"The network was taken for an encoder without classes, as {why}: no accuracy, its "
            "features are compared with the float ones. Say --task classes if they are scores."
        )
    places = {3: "tokens", 4: "places of the map"}.get(answer.dim())
    if places:
        shape = ", ".join(map(str, answer.shape[1:]))
        notes.append(f"The output has the shape (n, {shape}): the mean over its {places} is taken.")
    width = answer.shape[2 if answer.dim() == 3 else 1]
    return Returned(net, "features", width, (*notes, KL_NOTE))


def _run(net: nn.Module, images: Tensor) -> object:
    try:
        with torch.no_grad():
            return net(images)
    except InvalidSpec:
        raise
    except Exception as error:  # whatever another person's network raises
        shape = tuple(images.shape[1:])
        text = (str(error).strip() or "no reason given").splitlines()[0][:200]
        raise InvalidSpec(
            f"The network cannot take images of the shape (channels, height, width) = {shape} "
            f"({type(error).__name__}: {text}); give images preprocessed as it was trained with."
        ) from None


def _check_shape(answer: Tensor, images: int, task: str) -> None:
    shape = tuple(answer.shape)
    dims = (2,) if task == "classes" else (2, 3, 4)
    if answer.dim() in dims and len(answer) == images and answer.is_floating_point():
        return
    wanted = "class scores, (images, classes)"
    if task != "classes":
        wanted += ", or features: (images, features), (images, tokens, features) or maps"
    raise InvalidSpec(
        f"The network returns a tensor of shape {shape} and type "
        f"{str(answer.dtype).removeprefix('torch.')} for {images} images; it has to return "
        f"{wanted}: wrap it in a module that does."
    )


def _features_because(net: nn.Module, images: Tensor, answer: Tensor, folders: int) -> str:
    """Why an output is taken for features; empty where it is taken for scores of classes."""
    if getattr(net, "num_classes", None) == 0:
        return "its num_classes is 0"
    if answer.dim() > 2:
        return f"it returns {KINDS[answer.dim()]} of the shape {tuple(answer.shape[1:])}"
    if not folders or answer.shape[1] == folders:
        return ""
    seen = trace(net, images)
    last = [call for call in seen.calls if call.output is seen.output and call.name]
    kinds = [type(call.module).__name__ for call in last if not any(call.module.children())]
    if len(kinds) == 1 and any(ending in kinds[0] for ending in ENDINGS):
        return f"it ends in {kinds[0]} and returns {answer.shape[1]} numbers for {folders} classes"
    return ""
