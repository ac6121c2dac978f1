"""How soon a page shows its first figure, through a real browser, on the stored demo runs.

``python -m benchmarks.pages [--visits 9]``: seconds from opening the address to the figure being
drawn: the first visit to a fresh server, visits by new browser profiles (which load all scripts
anew), and by one that was there before. Needs Chromium and the test requirements.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks._table import markdown
from qlib import store
from tests.browser_kit import Window, launched, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

PAGES = ("start", "distributions", "sensitivity", "reconstruction", "compare")
FIGURE = ".js-plotly-plot .main-svg"


def main() -> None:
    """Measure and print one row a page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("--visits", type=int, default=9)
    args = parser.parse_args()
    with launched() as browser:
        window = Window(browser)
        print(markdown([_measured(window, path, args.visits) for path in PAGES]))


def _measured(window: Window, path: str, visits: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as home, serving(Path(home), store.demo_dir()) as server:
        url = server.url(path)
        first = _new_profile(window, url)
        new = [_new_profile(window, url) for _ in range(visits)]
        page = window.open(url)
        known = [_seconds(page, url) for _ in range(visits)]
        page.context.close()
    return {
        "page": path,
        "first visit, s": f"{first:.2f}",
        f"new profile, median of {visits} (slowest), s": _middle(new),
        f"known profile, median of {visits} (slowest), s": _middle(known),
    }


def _middle(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({max(seconds):.2f})"


def _new_profile(window: Window, url: str) -> float:
    start = time.perf_counter()
    page = window.open(url)
    page.wait_for_selector(FIGURE)
    spent = time.perf_counter() - start
    page.context.close()
    return spent


def _seconds(page: "Page", url: str) -> float:
    start = time.perf_counter()
    page.goto(url)
    page.wait_for_selector(FIGURE)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
