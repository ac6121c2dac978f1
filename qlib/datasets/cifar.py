"""CIFAR-10 and CIFAR-100: 32x32 colour photographs, downloaded when asked for.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from functools import partial
from typing import Any, ClassVar

from qlib.datasets._arrays import from_array
from qlib.datasets._draw import draw_calibration, draw_test
from qlib.datasets._fetch import fetch
from qlib.datasets.base import Dataset, Images

SERVER = "https://www.cs.toronto.edu"
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


class Cifar(Dataset):
    """CIFAR-10 or CIFAR-100.

    Calibration images come from the 50,000 for training, test images are the other 10,000.
    """

    title: ClassVar[str] = "CIFAR-10 and CIFAR-100"

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """See `Dataset.variants`."""
        return tuple(FOLDERS)

    def __init__(self, name: str) -> None:
        self._name = name
        self._held_out = self._part(train=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index, see `Dataset.classes`."""
        return tuple(self._held_out.classes)

    def calibration(self, n: int, seed: int, *, balanced: bool = False) -> Images:
        """See `Dataset.calibration`."""
        part = self._part(train=True)
        images = from_array(part.data, part.targets, f"{self._name}/train")
        return draw_calibration(images, n, seed, self._name, balanced=balanced)

    def test(self, n: int | None = None) -> Images:
        """See `Dataset.test`."""
        part = self._held_out
        images = from_array(part.data, part.targets, f"{self._name}/test")
        return draw_test(images, n, self._name)

    def _part(self, train: bool) -> Any:
        from torchvision import datasets

        make = datasets.CIFAR10 if self._name == "cifar10" else datasets.CIFAR100
        expected = f"the folder {FOLDERS[self._name]}"
        return fetch(partial(make, train=train), self._name, SERVER, expected)
