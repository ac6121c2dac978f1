"""The contract of a source of images, and the one place where an image becomes a tensor."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from qlib.core.records import InvalidSpec
from qlib.core.rows import PictureNote

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


@dataclass(frozen=True)
class File:
    """The file that an image lies in: its size in bytes, and its content, read when asked for."""

    size: int
    read: Callable[[], bytes]  # raises InvalidSpec naming a bad file


@dataclass(frozen=True)
class Images:
    """Some images of a dataset, opened one at a time.

    ``ids`` are stable names (for hashes and galleries); ``labels`` are class indices, or None
    for images without classes. ``file``: (index) -> `File`; None where images lie in no files.
    """

    ids: Sequence[str]
    labels: "np.ndarray | None"  # int64, (n,)
    open: Any  # (index) -> PIL image; raises InvalidSpec naming a bad file
    file: Callable[[int], File] | None = None

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

    @classmethod
    def for_head(cls, name: str, label_set: str) -> "Dataset":
        """The source for a network whose head was trained on ``label_set`` ("" where unknown).

        Sources whose classes have several numberings override it (see `qlib.datasets.imagenet`).
        """
        return cls(name)

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of results should know about the images and their labels."""
        return ()

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
        """Held-out images: all of them, or a fixed random ``n`` (same every time).

        Without labels (None) where a source has none.

        Raises:
            InvalidSpec: fewer than ``n`` are there.
        """

    # ---- what only sources of files have: by default there is nothing to do ------------------

    def use_classes(self, index_of: Mapping[str, int]) -> None:
        """Give class folders these class indices; folders that are not named are left out.

        Raises:
            InvalidSpec: the classes of this source have an order of their own.
        """
        raise InvalidSpec(
            f"{self.title} has its own order of classes, so that a file of classes (--classes) "
            "says nothing about it; leave it out, or give the images as folder:PATH."
        )

    def skip_damaged(self) -> bool:
        """From now on leave out files that cannot be read, and count them in `note`.

        False: the images of this source lie in no files of their own.
        """
        return False

    def leave_out(self, images: Images) -> int:
        """Never test with what ``images`` hold, byte by byte; how many were left out."""
        return 0

    @property
    def note(self) -> PictureNote:
        """What was done to the images handed out so far, and what lies there unread."""
        return {}


Base = Dataset
