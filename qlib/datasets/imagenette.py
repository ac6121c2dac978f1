"""Imagenette: ten easy ImageNet classes in full pictures, downloaded when asked for.

Source: J. Howard, github.com/fastai/imagenette. Its ten classes are ImageNet classes, so labels
are ImageNet's class indices: any network with the 1,000 outputs can be measured, and all 1,000
compete. Networks with ten outputs of their own take the unpacked folder as ``folder:PATH``.
"""

from pathlib import Path
from typing import ClassVar

from qlib.datasets._fetch import fetch
from qlib.datasets._imagenet import THOUSAND, ByWordNet

NAME = "imagenette"
SERVER = "https://s3.amazonaws.com"
SIZE = "320px"  # short side; networks take 224 or so, and the originals are 1.5 GB
FOLDER = "imagenette2-320"


class Imagenette(ByWordNet):
    """Imagenette, ten classes of ImageNet.

    9,469 images to calibrate with and 3,925 to test with, apart in ``train/`` and ``val/``.
    """

    title: ClassVar[str] = "Imagenette (10 ImageNet classes)"

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """See `Dataset.variants`."""
        return (NAME,)

    def __init__(self, name: str = NAME, label_set: str = THOUSAND) -> None:
        super().__init__(_folder(), label_set)


def _folder() -> Path:
    from torchvision import datasets

    def make(root: str, download: bool) -> Path:
        datasets.Imagenette(root, split="val", size=SIZE, download=download)
        return Path(root) / FOLDER

    return fetch(make, NAME, SERVER, f"the folder {FOLDER} with train/ and val/")
