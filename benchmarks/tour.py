"""Makes the moving picture of the README from the stored runs.

``python -m benchmarks.tour``: a look at each page in a real browser, the bits going down on the
first of them, into ``assets/tour.gif``. Needs Chromium and the test requirements.
"""

import io
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks._table import markdown
from qlib import store
from qlib.core.paths import ASSETS
from tests.browser_kit import Server, Window, launched, serving, settled

FILE = ASSETS / "tour.gif"
SIZE, COLOURS = (960, 540), 128
# addresses, and for how many milliseconds each is shown
VIEWS = {
    "start?m=digits-vit&q=nearest&b=W8A8": 1600,
    "start?m=digits-vit&q=nearest&b=W4A4": 1200,
    "start?m=digits-vit&q=nearest&b=W2A2": 2200,
    "start?m=digits-vit&q=brecq&b=W2A2": 2200,
    "distributions?m=digits-vit&q=brecq&b=W3A3": 2600,
    "sensitivity?m=digits-vit&q=nearest&b=W3A3": 2600,
    "reconstruction?m=digits-vit&q=brecq&b=W3A3": 2600,
    "bits?m=digits-vit&q=ptmq&b=W4A4": 2600,
    "compare?m=digits-vit": 2600,
}


def main() -> None:
    """Visit, join, store; print what was shown."""
    with (
        launched() as browser,
        tempfile.TemporaryDirectory() as home,
        serving(Path(home), store.demo_dir()) as server,
    ):
        pictures = [_seen(Window(browser), server, view) for view in VIEWS]
    _join(pictures, list(VIEWS.values()))
    print(markdown([{"shown": view, "ms": ms} for view, ms in VIEWS.items()]))


def _seen(window: Window, server: Server, view: str) -> Image.Image:
    page = window.open(server.url(view))
    settled(page)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    window.close()
    return picture.resize(SIZE, Image.Resampling.LANCZOS)


def _join(pictures: list[Image.Image], milliseconds: list[int]) -> None:
    """One file with one palette for all, so that colours do not jump."""
    sheet = Image.new("RGB", (SIZE[0], SIZE[1] * len(pictures)))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (0, SIZE[1] * i))
    palette = sheet.quantize(COLOURS, method=Image.Quantize.MEDIANCUT)
    first, *others = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    first.save(FILE, save_all=True, append_images=others, duration=milliseconds, loop=0,
               optimize=True)  # fmt: skip


if __name__ == "__main__":
    main()
