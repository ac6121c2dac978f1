"""How soon a page has followed a change of layer or bits.

``python -m benchmarks.moves``, in a real browser on the stored runs: from the press of *Next*
(layer) or of an arrow key on the bits (on the NoisyQuant page: on the reach of the noise), until
the figures on the page are others than before and the app is at rest. One row a page and kind of
move: median and slowest. Last, Start with *Try it now* on: until the network that the bits switch
has said something else of a dozen images. Needs Chromium and the test requirements.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks._table import markdown
from qlib import store
from tests.browser_kit import Window, launched, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

FIGURE = ".js-plotly-plot .main-svg"
VIEW = "m=digits-mobilenet&q=qdrop&b=W4A4&layer=blocks.0.0.conv_dw"
START = "start"
PAGES = (START, "distributions", "sensitivity", "reconstruction")
MOVES = 12  # of each kind
TARGET = 0.3  # seconds
LIVE_VIEW, LIVE_TARGET = "m=digits-vit&q=ptmq&b=W4A4", 0.5
DOZEN = ".qx-dozen"
# pages with a slider of their own: page, kind of move, what it shows, where the slider is
SLIDERS = (
    ("noisyquant", "reach", "m=digits-vit&layer=blocks.2.mlp.fc2", ".st-key-n_reach input"),
    ("bits", "bits", "m=digits-vit&q=ptmq&b=W5A5", ".st-key-b input[type=range]"),
)
# a promise of the milliseconds from the next press to new figures and an app at rest
WATCH = """
css => { window.moved = new Promise((done, fail) => {
  const app = document.querySelector('[data-testid="stApp"]');
  const drawn = () => [...document.querySelectorAll(css)]
    .map(e => e.innerHTML).join('|');
  const before = drawn();
  let start = 0, seen = 0;
  const pressed = () => { start = start || performance.now(); };
  for (const kind of ['keydown', 'pointerdown']) {
    document.addEventListener(kind, pressed, {capture: true, once: true});
  }
  const look = () => {
    const now = performance.now();
    if (start && !seen && drawn() !== before) { seen = now; }
    if (seen && app.dataset.testScriptState !== 'running') { done(seen - start); return; }
    if (start && now - start > 15000) { fail('nothing changed'); return; }
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}); }
"""
NEXT = ".st-key-layer-next button"
SLIDER = ".st-key-b input, .st-key-b [role=slider]"
CHOICES = ".st-key-b button"  # help, 8, 6, 5, 4, 3, 2


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(prog="python -m benchmarks.moves", description=__doc__).parse_args()
    with (
        launched() as browser,
        tempfile.TemporaryDirectory() as home,
        serving(Path(home), store.demo_dir()) as server,
    ):
        window = Window(browser)
        rows = [row for name in PAGES for row in _rows(window, server.url(f"{name}?{VIEW}"), name)]
        rows += [_slid(window, server.url(f"{name}?{view}"), name, kind, slider)
                 for name, kind, view, slider in SLIDERS]  # fmt: skip
        print(markdown([*rows, _live(window, server.url(f"{START}?{LIVE_VIEW}"))]))


def _rows(window: Window, url: str, name: str) -> list[dict[str, object]]:
    page = window.open(url)
    page.wait_for_selector(FIGURE)
    page.wait_for_timeout(3000)
    if name == START:
        choices = page.locator(CHOICES)
        found = {"bits": _moves(page, lambda i: choices.nth((5, 4)[i % 2]).click())}
    else:
        following = page.locator(NEXT)
        found = {"layer": _moves(page, lambda _: following.click())}
        page.locator(SLIDER).first.focus()
        keys = ("ArrowRight", "ArrowLeft")
        found["bits"] = _moves(page, lambda i: page.keyboard.press(keys[i % 2]))
    page.context.close()
    return [_row(name, kind, seconds) for kind, seconds in found.items()]


def _slid(window: Window, url: str, name: str, kind: str, slider: str) -> dict[str, object]:
    page = window.open(url)
    page.wait_for_selector(FIGURE)
    page.wait_for_timeout(3000)
    page.locator(slider).first.focus()
    keys = ("ArrowRight", "ArrowLeft")
    found = _moves(page, lambda i: page.keyboard.press(keys[i % 2]))
    page.context.close()
    return _row(name, kind, found)


def _live(window: Window, url: str) -> dict[str, object]:
    """Widths 3 and 2 in turns: there the answers differ most."""
    page = window.open(url)
    page.wait_for_selector(FIGURE)
    page.get_by_text("Try it now").click()
    page.wait_for_selector(DOZEN, timeout=120_000)
    page.wait_for_timeout(3000)
    choices = page.locator(CHOICES)
    found = _moves(page, lambda i: choices.nth(-1 - i % 2).click(), DOZEN)
    page.context.close()
    return _row("start, live", "bits", found, LIVE_TARGET)


def _moves(
    page: "Page", press: Callable[[int], object], css: str = ".js-plotly-plot"
) -> list[float]:
    seconds = []
    for i in range(MOVES):
        page.evaluate(WATCH, css)
        press(i)
        seconds.append(page.evaluate("() => window.moved") / 1000)
        page.wait_for_timeout(700)  # a person looks before going on
    return seconds


def _row(page: str, kind: str, seconds: list[float], target: float = TARGET) -> dict[str, object]:
    return {
        "page": page,
        "move": kind,
        "n": len(seconds),
        "median, s": f"{statistics.median(seconds):.2f}",
        "slowest, s": f"{max(seconds):.2f}",
        "target, s": target,
        "median below": "yes" if statistics.median(seconds) < target else "no",
    }


if __name__ == "__main__":
    main()
