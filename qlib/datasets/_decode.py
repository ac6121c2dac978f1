"""Bytes of a file -> an upright picture of 8 bits, grey or in colour, and what was done to it."""

import io
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from qlib.core.records import InvalidSpec

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow looks at the content, not the name, and some of its formats start other programs
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 64 * 2**20  # of one image
MAX_THIN = 1000  # long side over short side: resized to 224, such a picture has 50 million pixels
BACKGROUND = (255, 255, 255)
ORIENTATION = 0x0112  # the tag of EXIF that says how the camera was held
SIXTEEN_BIT = 65_535
INTEGERS = ("PNG", "PPM")  # here Pillow's 32-bit pictures hold 16 bits, spread over their range


MEND = "repair the file or take it out"


class Unreadable(InvalidSpec):
    """A picture that cannot be read: which, and why."""

    def __init__(self, name: str, reason: str, advice: str = MEND) -> None:
        super().__init__(f"{name} is {reason}; {advice}.")
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class Picture:
    """An image of mode L or RGB; ``changes``: which of `qlib.core.rows.CHANGES` were made."""

    image: "Image"
    changes: tuple[str, ...]


def decode(content: bytes, name: str) -> Picture:
    """Read, turn, compose and scale a picture; its size is looked at before it is decoded.

    Raises:
        Unreadable: empty, damaged, too large, too thin or no image; ``name`` is in the sentence.
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise Unreadable(name, "empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which is not used
            image = Image.open(io.BytesIO(content), formats=formats())
            _check_size(image.size, name)
            turn = _orientation(image)
            several = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
            image.load()
            picture, changes = _eight_bit(image, name)
    except InvalidSpec:
        raise
    except Image.DecompressionBombError:
        reason = f"too large: more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, and at most"
        raise Unreadable(name, f"{reason} {MAX_PIXELS:,} are read") from None
    except UnidentifiedImageError:
        reason = f"damaged or no image (its content is none of {', '.join(formats())})"
        raise Unreadable(name, reason) from None
    except Exception as error:  # decoders raise whatever they like on damaged input
        text = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise Unreadable(name, f"damaged or no image ({text})") from None
    if turn is not None:
        picture, changes = picture.transpose(turn), (*changes, "turned")
    return Picture(picture, (*changes, "first_frame") if several else changes)


@cache
def formats() -> tuple[str, ...]:
    """The formats that this Pillow reads."""
    from PIL import Image

    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    long, short = max(size), max(1, min(size))
    if width * height > MAX_PIXELS:
        reason = f"too large: {width} x {height} pixels, and at most {MAX_PIXELS:,} are read"
    elif long > MAX_THIN * short:
        reason = (
            f"too thin: {width} x {height} pixels, and one side may be at most {MAX_THIN:,} times "
            "the other"
        )
    else:
        return
    raise Unreadable(name, reason)


def _orientation(image: "Image"):
    """How to turn the picture so that up is up; None where it is, or nothing (readable) is said."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }  # fmt: skip
    if image.format == "TIFF":  # Pillow turns these itself
        return None
    try:
        return turns.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # metadata that cannot be read says nothing about the picture
        return None


def _eight_bit(image: "Image", name: str) -> "tuple[Image, tuple[str, ...]]":
    """The picture in mode L or RGB, and what was done to it."""
    if image.mode.startswith("I;16"):
        return _scaled(image, SIXTEEN_BIT), ("sixteen_bit",)
    if image.mode == "I" and image.format in INTEGERS:
        return _scaled(image, SIXTEEN_BIT), ("sixteen_bit",)
    if image.mode in ("I", "F"):
        return _scaled(image, _range_of(image, name)), ("by_range",)
    if image.has_transparency_data:
        return _composed(image)
    if image.mode == "1":
        return image.convert("L"), ()
    return (image if image.mode in ("L", "RGB") else image.convert("RGB")), ()


def _scaled(image: "Image", top: float) -> "Image":
    """Grey values from 0 to ``top`` -> 0 to 255, rounded to the nearest."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image, np.float64)
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))


def _range_of(image: "Image", name: str) -> float:
    """The top of the smallest usual range that holds the values: 1, 255 or 65,535."""
    import numpy as np

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    tops = (255, SIXTEEN_BIT) if image.mode == "I" else (1, 255, SIXTEEN_BIT)
    top = next((t for t in tops if high <= t), None)
    if top is None or not low >= 0:
        raise Unreadable(
            name,
            f"grey with values from {low:g} to {high:g}, and ranges of 0 to 1, 0 to 255 and 0 to "
            "65,535 are read",
        )
    return top


def _composed(image: "Image") -> "tuple[Image, tuple[str, ...]]":
    """Without transparency: laid on one background, whatever colours are hidden below it."""
    from PIL import Image

    grey = image.mode in ("L", "LA", "La", "1")
    layers = image.convert("RGBA")
    opaque = layers.getchannel("A").getextrema() == (255, 255)
    if not opaque:
        ground = Image.new("RGBA", layers.size, (*BACKGROUND, 255))
        layers = Image.alpha_composite(ground, layers)
    flat = layers.getchannel("R") if grey else layers.convert("RGB")
    return flat, () if opaque else ("composed",)
