"""Real handwritten digits, 8x8 pixels, that come with scikit-learn: nothing to download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

from typing import ClassVar

from qlib.datasets._draw import draw_calibration, draw_test, shuffled
from qlib.datasets.base import Dataset, Images

HELD_OUT_PER_CLASS = 60  # 600 test images; the other 1,197 train and calibrate


class Digits(Dataset):
    """Handwritten digits of scikit-learn.

    1,797 images. Held out are, of each class, the 60 first by `shuffled`: fixed for ever.
    """

    title: ClassVar[str] = "Digits (embedded, 8×8)"

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """See `Dataset.variants`."""
        return ("digits",)

    def __init__(self, name: str = "digits") -> None:
        import numpy as np
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        # values 0..16 -> 0..255, so that a picture of them is a usual grey picture
        images = np.asarray(pixels, np.float64).reshape(-1, 8, 8)
        self._pixels = np.rint(images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
        self._labels = np.asarray(labels, np.int64)
        ids = [f"digits/{i:04d}" for i in range(len(self._labels))]
        held_out = []
        for label in range(10):
            own = np.flatnonzero(self._labels == label)
            order = shuffled([ids[i] for i in own], "held-out")[:HELD_OUT_PER_CLASS]
            held_out += [int(own[k]) for k in order]
        self._ids = ids
        self._test = sorted(held_out)
        self._train = sorted(set(range(len(ids))) - set(held_out))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index, see `Dataset.classes`."""
        return tuple("0123456789")

    def calibration(self, n: int, seed: int, *, balanced: bool = False) -> Images:
        """See `Dataset.calibration`."""
        return draw_calibration(self.training(), n, seed, "digits", balanced=balanced)

    def test(self, n: int | None = None) -> Images:
        """See `Dataset.test`."""
        return draw_test(self._images(self._test), n, "digits")

    def training(self) -> Images:
        """The 1,197 images that are not held out, in order: what the zoo was trained on."""
        return self._images(self._train)

    def _images(self, rows: list[int]) -> Images:
        from PIL import Image

        def open_(index: int) -> Image.Image:
            return Image.fromarray(self._pixels[rows[index]])

        return Images([self._ids[i] for i in rows], self._labels[rows], open_)
