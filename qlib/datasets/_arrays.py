"""Images that lie in one array in memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qlib.datasets.base import Images

if TYPE_CHECKING:
    import numpy as np


def from_array(pixels: "np.ndarray", labels: Sequence[int], prefix: str) -> Images:
    """Images from one array in memory.

    ``pixels`` uint8 (n, h, w) or (n, h, w, 3); the ids are ``prefix/00000`` and so on.
    """
    import numpy as np
    from PIL import Image

    ids = [f"{prefix}/{i:05d}" for i in range(len(pixels))]
    return Images(ids, np.asarray(labels, np.int64), lambda i: Image.fromarray(pixels[i]))
