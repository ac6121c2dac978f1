"""Fashion-MNIST: 28x28 grey pictures of clothes, downloaded when asked for.

Source: Xiao, Rasul and Vollgraf, 2017, arXiv 1708.07747.
"""

from functools import partial
from typing import Any, ClassVar

from qlib.datasets._arrays import from_array
from qlib.datasets._draw import draw_calibration, draw_test
from qlib.datasets._fetch import fetch
from qlib.datasets.base import Dataset, Images

NAME = "fashion-mnist"
SERVER = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"


class FashionMnist(Dataset):
    """Fashion-MNIST.

    Calibration images come from the 60,000 for training, test images are the other 10,000.
    """

    title: ClassVar[str] = "Fashion-MNIST"

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """See `Dataset.variants`."""
        return (NAME,)

    def __init__(self, name: str = NAME) -> None:
        self._held_out = self._part(train=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index, see `Dataset.classes`."""
        return tuple(self._held_out.classes)

    def calibration(self, n: int, seed: int, *, balanced: bool = False) -> Images:
        """See `Dataset.calibration`."""
        images = self._images(self._part(train=True), "train")
        return draw_calibration(images, n, seed, NAME, balanced=balanced)

    def test(self, n: int | None = None) -> Images:
        """See `Dataset.test`."""
        return draw_test(self._images(self._held_out, "test"), n, NAME)

    def _images(self, part: Any, which: str) -> Images:
        return from_array(part.data.numpy(), part.targets.tolist(), f"{NAME}/{which}")

    def _part(self, train: bool) -> Any:
        from torchvision import datasets

        expected = "the four .gz files in the folder FashionMNIST/raw"
        return fetch(partial(datasets.FashionMNIST, train=train), NAME, SERVER, expected)
