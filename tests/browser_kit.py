"""A real server and a real browser for tests: own port, own home, nothing but loopback."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 30_000  # ms: a busy machine is slow, not wrong
CLIPBOARD = ["clipboard-read", "clipboard-write"]
READY = """() => {
  const all = css => [...document.querySelectorAll(css)];
  const app = document.querySelector('[data-testid=stApp]');
  return app.dataset.testScriptState === 'notRunning' && all('.st-key-linkbar').length === 1
    && !all('[data-stale=true]').length && !all('[data-testid=stSkeleton]').length
    && all('.st-key-context [data-testid=stSelectbox]')
       .every(e => (e.querySelector('input') || {}).value)
    && all('[data-testid=stPlotlyChart]')
       .every(e => !e.checkVisibility() || e.querySelector('.gtitle'));
}"""


@dataclass(frozen=True)
class Server:
    """A running app; ``runs`` is its folder of own runs."""

    port: int
    pid: int
    runs: Path

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.port}/{path}"


@contextmanager
def serving(home: Path, demo: Path) -> Iterator[Server]:
    """The app in a process of its own, until the block ends; its jobs end with it."""
    from qlib import jobs

    runs = home / "runs"
    env = os.environ | {
        "HOME": str(home),
        "QLIB_DEMO": str(demo),
        "QLIB_RUNS": str(runs),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    log = (home / "server.log").open("wb")
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        wait_for(process, port)
        yield Server(port, process.pid, runs)
    finally:
        for job in jobs.list_jobs(runs):
            if not job.over:
                jobs.kill(job.key, runs)
        process.terminate()
        process.wait(10)
        log.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(process: subprocess.Popen, port: int) -> None:
    for _ in range(300):
        assert process.poll() is None, "the app did not start"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health") as answer:
                if answer.read() == b"ok":
                    return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("the app did not become healthy")


@dataclass
class Window:
    """Opens pages of one browser; ``outside`` collects every request that left loopback."""

    browser: object
    outside: list[str] = field(default_factory=list)
    contexts: list = field(default_factory=list)

    def open(self, url: str, *, width: int = 1280, height: int = 720, dark: bool = False):
        """A page in a fresh profile; it has loaded when the page's title is there."""
        context = self.browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        context.set_default_timeout(PATIENCE)
        context.route("**/*", self._loopback_only)
        self.contexts.append(context)
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("h1")
        return page

    def _loopback_only(self, route) -> None:
        url = route.request.url
        if url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(url)
            route.abort()

    def close(self) -> None:
        for context in self.contexts:
            context.close()


@contextmanager
def launched() -> Iterator[object]:
    """The system's browser until the block ends.

    Raises:
        ImportError, FileNotFoundError: there is no Playwright, or no Chromium.
    """
    from playwright.sync_api import sync_playwright

    if not CHROMIUM.exists():
        raise FileNotFoundError(f"no browser at {CHROMIUM}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def chromium():
    """The browser, once for all tests, however many files import this fixture."""
    if _RUNNING:
        yield _RUNNING[0]
        return
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with launched() as browser:
        _RUNNING.append(browser)
        yield browser
        _RUNNING.clear()


_RUNNING: list[object] = []


@pytest.fixture
def window(chromium):
    """A window for one test; a request to anywhere but this machine fails the test."""
    made = Window(chromium)
    yield made
    made.close()
    assert made.outside == []


def settled(page) -> None:
    """The script has run through, and everything that it drew is there."""
    page.wait_for_timeout(300)
    page.wait_for_function(READY)
    page.wait_for_timeout(500)
    page.wait_for_function(READY)


def copied(page) -> str:
    page.context.grant_permissions(CLIPBOARD)
    page.get_by_role("button", name="Copy link").click()
    page.get_by_role("button", name="Copied").wait_for()
    return page.evaluate("navigator.clipboard.readText()")
