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

    @property
    def words(self) -> str:
        """All of it in words, for people."""
        channels, height, width = self.input_size
        mean, std = (", ".join(f"{n:.3g}" for n in ns) for ns in (self.mean, self.std))
        return (
            f"{channels} × {height} × {width}, {self.interpolation}, crop {self.crop_pct:g} "
            f"({self.crop_mode}), mean {mean}, std {std}"
        )
