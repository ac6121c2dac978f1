"""ImageNet images, or any part of them, in folders or zips named by WordNet id.

Source: Russakovsky et al., IJCV 2015, arXiv 1409.0575. Its terms forbid passing the images on.
"""

from typing import ClassVar

from qlib.core.rows import PictureNote
from qlib.datasets._imagenet import class_index, class_names
from qlib.datasets._tree import Tree, source_path
from qlib.datasets.base import Dataset, Images

PATTERN = "imagenet:PATH"
PREFIX = "imagenet:"


class ImageNet(Dataset):
    """ImageNet, or a part of it.

    Labels are ImageNet's class indices, however few of the 1,000 classes are there.

    Calibration and test images are kept apart as in ``folder:PATH``.
    """

    title: ClassVar[str] = "ImageNet (folder or zip by WordNet id)"

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """See `Dataset.variants`."""
        return (PATTERN,)

    @classmethod
    def owns(cls, name: str) -> bool:
        """Whether ``name`` begins with this source's key."""
        return name.startswith(PREFIX) and name != PATTERN

    def __init__(self, name: str) -> None:
        self._tree = Tree(source_path(name), class_index)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index, see `Dataset.classes`."""
        return class_names()

    def calibration(self, n: int, seed: int, *, balanced: bool = False) -> Images:
        """See `Dataset.calibration`."""
        return self._tree.calibration(n, seed, balanced=balanced)

    def test(self, n: int | None = None) -> Images:
        """See `Dataset.test`."""
        return self._tree.test(n)

    def skip_damaged(self) -> bool:
        """See `Dataset.skip_damaged`."""
        return self._tree.skip_damaged()

    def leave_out(self, images: Images) -> int:
        """See `Dataset.leave_out`."""
        return self._tree.leave_out(images)

    @property
    def note(self) -> PictureNote:
        """See `Dataset.note`."""
        return self._tree.note | PictureNote(order="wordnet")
