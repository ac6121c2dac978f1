"""The contract of a source of images, and the one place where an image becomes a tensor."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


@dataclass(frozen=True)
class Images:
    """Some images of a dataset, opened one at a time.

    ``ids`` are stable names (for hashes and galleries); ``labels`` are class indices, or None
    for images without classes.
    """

    ids: Sequence[str]
    labels: "np.ndarray | None"  # int64, (n,)
    open: Any  # (index) -> PIL image; raises InvalidSpec naming a bad file

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> "Image":
        """The image at ``index``, opened now."""
        return self.open(index)


class Dataset(ABC):
    """One source of images: one file.

    ``variants`` are its keys; a source that takes a path lists a pattern (``folder:PATH``).
    Calibration and test images never overlap.
    """

    title: ClassVar[str]

    @classmethod
    @abstractmethod
    def variants(cls) -> tuple[str, ...]:
        """Keys for the pickers, without loading torch or any data."""

    @classmethod
    def owns(cls, name: str) -> bool:
        """Whether this source reads the dataset called ``name``."""
        return name in cls.variants()

    @abstractmethod
    def __init__(self, name: str) -> None:
        """Open the source; cheap, and complains at once about what is missing.

        Raises:
            InvalidSpec: one sentence that says what to put where.
        """

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Class names by index; length = number of classes of the full task."""

    @abstractmethod
    def calibration(self, n: int, seed: int, *, balanced: bool = False) -> Images:
        """``n`` images to calibrate with, drawn with a generator seeded by ``seed``.

        ``balanced``: as many of each class as can be, see `qlib.datasets._draw.in_turns`.

        Raises:
            InvalidSpec: fewer than ``n`` are there, or classes are asked for and not known.
        """

    @abstractmethod
    def test(self, n: int | None = None) -> Images:
        """Held-out images with labels: all of them, or a fixed random ``n`` (same every time).

        Raises:
            InvalidSpec: fewer than ``n`` are there, or they have no labels.
        """


Base = Dataset
