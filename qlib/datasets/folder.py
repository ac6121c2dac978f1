"""One's own images: a folder with a sub-folder a class, or a zip of one."""

from collections.abc import Mapping
from typing import ClassVar

from qlib.core.rows import PictureNote
from qlib.datasets._files import natural
from qlib.datasets._tree import Tree, source_path
from qlib.datasets.base import Dataset, Images

PATTERN = "folder:PATH"
PREFIX = "folder:"


class Folder(Dataset):
    """Images in a folder or zip; classes are its sub-folders, in the order of their names.

    Where all names are whole numbers, 10 comes after 9. `use_classes` gives any other order.

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
        self._tree = Tree(source_path(name), _by_name)
        self._given: dict[str, int] = {}  # folder -> class index, where a file says so

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index, see `Dataset.classes`."""
        if not self._given:
            return tuple(_in_order(self._tree.folders))
        folders: dict[int, list[str]] = {}
        for folder in self._tree.folders:
            folders.setdefault(self._given[folder], []).append(folder)
        return tuple(" + ".join(folders.get(i, [f"class {i}"])) for i in range(max(folders) + 1))

    def use_classes(self, index_of: Mapping[str, int]) -> None:
        """See `Dataset.use_classes`; labels are the indices of the file."""
        self._tree.use_classes(index_of)
        self._given = dict(index_of)

    def skip_damaged(self) -> bool:
        """See `Dataset.skip_damaged`."""
        return self._tree.skip_damaged()

    def leave_out(self, images: Images) -> int:
        """See `Dataset.leave_out`."""
        return self._tree.leave_out(images)

    @property
    def counts(self) -> Mapping[str, int]:
        """Class folder -> pictures in it, before any are left out."""
        return self._tree.counts

    @property
    def note(self) -> PictureNote:
        """See `Dataset.note`."""
        folders = self._tree.folders
        by_number = bool(folders) and all(map(natural, folders))
        order = "file" if self._given else "numbers" if by_number else "names"
        return self._tree.note | PictureNote(order=order)

    def calibration(self, n: int, seed: int, *, balanced: bool = False) -> Images:
        """See `Dataset.calibration`."""
        return self._tree.calibration(n, seed, balanced=balanced)

    def test(self, n: int | None = None) -> Images:
        """See `Dataset.test`."""
        return self._tree.test(n)


def _by_name(folders: list[str], where: str) -> dict[str, int]:
    return {name: i for i, name in enumerate(_in_order(folders))}


def _in_order(folders: list[str]) -> list[str]:
    """By number where every name is one, else by name."""
    keys = {name: natural(name) for name in folders}
    if None in keys.values():
        return sorted(folders)
    return sorted(folders, key=lambda name: keys[name] or (0, name))
