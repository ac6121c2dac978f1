"""Imagenette: ten easy ImageNet classes in full pictures, downloaded when asked for.

Source: J. Howard, github.com/fastai/imagenette. Its ten classes are ImageNet classes, so labels
are ImageNet's class indices: any network with the 1,000 outputs can be measured, and all 1,000
compete. Networks with ten outputs of their own take the unpacked folder as ``folder:PATH``.
"""

from pathlib import Path
from typing import ClassVar

from qlib.core.rows import PictureNote
from qlib.datasets._fetch import fetch
from qlib.datasets._imagenet import class_index, class_names
from qlib.datasets._tree import Tree
from qlib.datasets.base import Dataset, Images

NAME = "imagenette"
SERVER = "https://s3.amazonaws.com"
SIZE = "320px"  # short side; networks take 224 or so, and the originals are 1.5 GB
FOLDER = "imagenette2-320"


class Imagenette(Dataset):
    """Imagenette, ten classes of ImageNet.

    9,469 images to calibrate with and 3,925 to test with, apart in ``train/`` and ``val/``.
    """

    title: ClassVar[str] = "Imagenette (10 ImageNet classes)"

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """See `Dataset.variants`."""
        return (NAME,)

    def __init__(self, name: str = NAME) -> None:
        self._tree = Tree(_folder(), class_index)

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


def _folder() -> Path:
    from torchvision import datasets

    def make(root: str, download: bool) -> Path:
        datasets.Imagenette(root, split="val", size=SIZE, download=download)
        return Path(root) / FOLDER

    return fetch(make, NAME, SERVER, f"the folder {FOLDER} with train/ and val/")
