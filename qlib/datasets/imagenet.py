"""ImageNet images, or any part of them, in folders or zips named by WordNet id.

Source: Russakovsky et al., IJCV 2015, arXiv 1409.0575. Its terms forbid passing the images on.
"""

from typing import ClassVar

from qlib.datasets._imagenet import THOUSAND, ByWordNet
from qlib.datasets._tree import source_path

PATTERN = "imagenet:PATH"
PREFIX = "imagenet:"


class ImageNet(ByWordNet):
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

    def __init__(self, name: str, label_set: str = THOUSAND) -> None:
        super().__init__(source_path(name), label_set)
