"""How soon a page has followed a change of layer or bits: ``python -m benchmarks.moves``.

In a real browser on the stored runs: from the press of *Next* (layer) or of an arrow key on the
bits, until the figures on the page are others than before and the app is at rest. One row a page
and kind of move: median and slowest. Needs Chromium and the test requirements.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks._table import markdown
from qlib import store
from tests.browser_kit import Window, launched, serving

FIGURE = ".js-plotly-plot .main-svg"
VIEW = "m=digits-vit&q=qdrop&b=W4A4"
PAGES = ("distributions", "sensitivity", "reconstruction")
START = "start"
TARGET = 0.3  # seconds
# resolves with the milliseconds from the press to new figures and an app at rest
WATCH = """
(press) => new Promise((done, fail) => {
  const app = document.querySelector('[data-testid="stApp"]');
  const drawn = () => [...document.querySelectorAll('.js-plotly-plot')]
    .map(e => e.textContent).join('|');
  const before = drawn(), start = performance.now();
  let seen = 0;
  const look = () => {
    const now = performance.now();
    if (drawn() !== before && !seen) { seen = now; }
    if (seen && app.dataset.testScriptState !== 'running') { done(seen - start); return; }
    if (now - start > 15000) { fail('nothing changed'); return; }
    requestAnimationFrame(look);
  };
  const at = document.querySelector(press.selector);
  if (press.key) {
    at.focus();
    at.dispatchEvent(new KeyboardEvent('keydown', {key: press.key, bubbles: true}));
  } else { at.click(); }
  requestAnimationFrame(look);
})
"""
NEXT = {"selector": ".st-key-layer-next button"}
LOWER = {"selector": '.st-key-b [role="slider"]', "key": "ArrowRight"}
HIGHER = {"selector": '.st-key-b [role="slider"]', "key": "ArrowLeft"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moves", description=__doc__)
    parser.add_argument("--moves", type=int, default=12)
    args = parser.parse_args()
    with (
        launched() as browser,
        tempfile.TemporaryDirectory() as home,
        serving(Path(home), store.demo_dir()) as server,
    ):
        window, rows = Window(browser), []
        for name in PAGES:
            page = window.open(server.url(f"{name}?{VIEW}"))
            page.wait_for_selector(FIGURE)
            page.wait_for_timeout(3000)
            rows.append(_row(name, "layer", [_move(page, NEXT) for _ in range(args.moves)]))
            turns = [HIGHER, LOWER] * (args.moves // 2)
            rows.append(_row(name, "bits", [_move(page, press) for press in turns]))
            page.context.close()
        page = window.open(server.url(f"{START}?{VIEW}"))
        page.wait_for_selector(FIGURE)
        page.wait_for_timeout(3000)
        buttons = [{"selector": f".st-key-b button:nth-of-type({i})"} for i in (1, 2)]
        turns = buttons * (args.moves // 2)
        rows.append(_row(START, "bits", [_move(page, press) for press in turns]))
        print(markdown(rows))


def _move(page: object, press: dict) -> float:
    seconds = page.evaluate(WATCH, press) / 1000
    page.wait_for_timeout(700)  # a person looks before going on
    return seconds


def _row(page: str, kind: str, seconds: list[float]) -> dict[str, object]:
    return {
        "page": page,
        "move": kind,
        "n": len(seconds),
        "median, s": f"{statistics.median(seconds):.2f}",
        "slowest, s": f"{max(seconds):.2f}",
        f"median under {TARGET} s": "yes" if statistics.median(seconds) < TARGET else "no",
    }


if __name__ == "__main__":
    main()
