"""What a network expects of an image."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocess:
    """What the network expects of an image; the dataset layer carries it out.

    ``input_size`` is (channels, height, width). An image is resized so that the crop of
    ``input_size`` is its central ``crop_pct`` share, scaled to [0, 1], then normalised.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"  # nearest | bilinear | bicubic
    crop_pct: float = 1.0
    crop_mode: str = "center"
