"""One's own images: a folder with a sub-folder a class, or a zip of one."""

from typing import ClassVar

from qlib.datasets._tree import Tree, source_path
from qlib.datasets.base import Dataset, Images

PATTERN = "folder:PATH"
PREFIX = "folder:"


class Folder(Dataset):
    """Images in a folder or zip; classes are its sub-folders in alphabetical order.

    ``train/`` beside ``test/`` or ``val/`` separates calibration from test images. Without them
    the images drawn by `calibration` are left out of `test` of the same object, and an object
    that is only tested tests with all. Calibration alone needs no class folders.
    """

    title: ClassVar[str] = "Folder or zip of class folders"

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """See `Dataset.variants`."""
        return (PATTERN,)

    @classmethod
    def owns(cls, name: str) -> bool:
        """Whether ``name`` begins with this source's key."""
        return name.startswith(PREFIX) and name != PATTERN

    def __init__(self, name: str) -> None:
        self._tree = Tree(source_path(name), _alphabetical)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index, see `Dataset.classes`."""
        return tuple(self._tree.folders)

    def calibration(self, n: int, seed: int, *, balanced: bool = False) -> Images:
        """See `Dataset.calibration`."""
        return self._tree.calibration(n, seed, balanced=balanced)

    def test(self, n: int | None = None) -> Images:
        """See `Dataset.test`."""
        return self._tree.test(n)


def _alphabetical(folders: list[str], where: str) -> dict[str, int]:
    return {name: i for i, name in enumerate(folders)}
