"""ImageNet's classes, the 1,000 and larger lists: WordNet ids and names by class index."""

from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from qlib.core.records import InvalidSpec
from qlib.core.rows import PictureNote
from qlib.datasets._draw import subset
from qlib.datasets._tree import Tree
from qlib.datasets.base import Dataset, Images

THOUSAND = "imagenet-1k"  # timm's names of the lists of classes that heads are trained on
NO_CLASS = -1


@cache
def wordnet_ids(label_set: str = THOUSAND) -> tuple[str, ...]:
    """WordNet ids (``n01440764`` and so on) in the order of the class indices of a head."""
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo(label_set).label_names())


@cache
def class_names(label_set: str = THOUSAND) -> tuple[str, ...]:
    """Names (``tench`` …) by class index; longer where several classes share the short one."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo(label_set)
    full = [info.index_to_description(i) for i in range(info.num_classes())]
    short = [name.split(",")[0] for name in full]
    many = Counter(short)
    names = [s if many[s] == 1 else f for s, f in zip(short, full, strict=True)]
    # the bird and the machine are both just "crane"
    many = Counter(names)
    return tuple(
        name if many[name] == 1 else f"{name} ({wordnet_id})"
        for name, wordnet_id in zip(names, wordnet_ids(label_set), strict=True)
    )


def class_index(folders: list[str], where: str, label_set: str = THOUSAND) -> dict[str, int]:
    """Folder name -> class index of a head; `NO_CLASS` where it has none for one of the 1,000.

    Raises:
        InvalidSpec: a folder is none of the head's ids, and not one of the 1,000 either.
    """
    index_of_id = dict.fromkeys(wordnet_ids(), NO_CLASS)
    index_of_id |= {wordnet_id: i for i, wordnet_id in enumerate(wordnet_ids(label_set))}
    unknown = [name for name in folders if name not in index_of_id]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise InvalidSpec(
            f"{where} has a folder {unknown[0]!r}{more} that is none of ImageNet's WordNet "
            f"ids ({len(wordnet_ids(label_set)):,} in {label_set}); folders must be named like "
            "n01440764. Use folder:PATH for other classes."
        )
    return {name: index_of_id[name] for name in folders}


class ByWordNet(Dataset):
    """Images in folders that are named by WordNet id.

    For a head that was trained on a larger list of classes (21,841, say) labels are the indices of
    that head; test images of classes that it does not tell apart are left out.
    """

    def __init__(self, path: Path, label_set: str = THOUSAND) -> None:
        self._set, self._left_out = label_set, 0
        self._tree = Tree(path, partial(class_index, label_set=label_set))

    @classmethod
    def for_head(cls, name: str, label_set: str) -> Dataset:
        """See `Dataset.for_head`."""
        # subclasses take the name of the source
        return cls(name, label_set or THOUSAND)  # pyright: ignore[reportArgumentType]

    @property
    def notes(self) -> Sequence[str]:
        """See `Dataset.notes`."""
        if self._set == THOUSAND:
            return ()
        left = f" {self._left_out} test images of classes that it lacks are left out."
        return (
            f"The head tells the {len(self.classes):,} classes of {self._set} apart: folders were "
            f"numbered as it numbers them, by WordNet id.{left if self._left_out else ''}",
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index, see `Dataset.classes`."""
        return class_names(self._set)

    def calibration(self, n: int, seed: int, *, balanced: bool = False) -> Images:
        """See `Dataset.calibration`."""
        return self._tree.calibration(n, seed, balanced=balanced)

    def test(self, n: int | None = None) -> Images:
        """See `Dataset.test`."""
        images = self._tree.test(n)
        if images.labels is None or images.labels.min() != NO_CLASS:
            return images
        kept = [i for i, label in enumerate(images.labels) if label != NO_CLASS]
        self._left_out = len(images) - len(kept)
        if not kept:
            raise InvalidSpec(
                f"None of the {len(images)} test images in {self._tree.where} is of a class of "
                f"{self._set}, which the network's head tells apart; choose other images, or "
                "--labels none."
            )
        return subset(images, kept)

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
