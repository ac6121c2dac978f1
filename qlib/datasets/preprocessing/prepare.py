"""From images to the tensors that a network expects. Plumbing: imported late, needs torch."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qlib.core.records import InvalidSpec
from qlib.datasets.base import Images

if TYPE_CHECKING:
    from PIL.Image import Image

    from qlib.core.preprocess import Preprocess

MAX_PIXELS = 64 * 2**20  # of a resized image, before it is cropped
COLOURS = {1: "L", 3: "RGB"}  # channels -> Pillow's name of the pixel format


def to_tensor(
    images: Images, preprocess: "Preprocess", start: int = 0, stop: int | None = None
) -> Tensor:
    """Tensor of images ``start`` to ``stop`` (default: all), resized, cropped and normalised.

    Returns:
        float32 (n, channels, height, width).

    Raises:
        InvalidSpec: a file cannot be read (it is named), or no image is in that range.
    """
    one = transform(preprocess)
    rows = range(len(images))[start:stop]
    if not rows:
        raise InvalidSpec(
            f"No image lies between {start} and {stop}: the set has {len(images)} images."
        )
    return torch.stack([_named(one, images, i) for i in rows])


def batches(
    images: Images, preprocess: "Preprocess", size: int = 128
) -> Iterator[tuple[int, Tensor]]:
    """Batches as (position of the first image, tensor), at most ``size`` images each.

    Only one batch is in memory, however large the set is. Raises what `to_tensor` raises.
    """
    for start in range(0, len(images), size):
        yield start, to_tensor(images, preprocess, start, start + size)


def transform(preprocess: "Preprocess") -> "Callable[[Image], Tensor]":
    """The function image -> float32 (channels, height, width), as timm evaluates its networks.

    An image that has the right size already is not resampled.

    Raises:
        InvalidSpec: the network wants a number of channels that is neither 1 nor 3. So does the
            function, for an image that would grow beyond all bounds.
    """
    from timm.data.transforms_factory import transforms_imagenet_eval

    channels = preprocess.input_size[0]
    if channels not in COLOURS:
        raise InvalidSpec(
            f"This network wants images of {channels} channels; grey (1) and colour (3) images "
            "can be made. Choose another network."
        )
    _, height, width = preprocess.input_size
    steps = transforms_imagenet_eval(
        (height, width),
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop_pct,
        crop_mode=preprocess.crop_mode,
    )
    mode = COLOURS[channels]

    def to_one(image: "Image") -> Tensor:
        _check_growth(image, preprocess)
        return torch.as_tensor(steps(image if image.mode == mode else image.convert(mode)))

    return to_one


def _named(one: "Callable[[Image], Tensor]", images: Images, index: int) -> Tensor:
    """An image's tensor; a refusal of its size names the image."""
    image = images.image(index)
    try:
        return one(image)
    except InvalidSpec as error:
        raise InvalidSpec(f"{images.ids[index]}: {error}") from None


def _check_growth(image: "Image", preprocess: "Preprocess") -> None:
    """Raises:
    InvalidSpec: resized so that its short side fits, the image would be too large for memory.
    """
    _, height, width = preprocess.input_size
    if preprocess.crop_mode == "squash" or image.size == (width, height):
        return
    factor = max(height, width) / preprocess.crop_pct / min(image.size)
    pixels = round(image.width * factor) * round(image.height * factor)
    if pixels > MAX_PIXELS:
        raise InvalidSpec(
            f"The image of {image.width} x {image.height} pixels would have {pixels:,} when "
            f"resized for this network, and at most {MAX_PIXELS:,} are made; crop it or take it "
            "out."
        )
