"""*Try it now* as a person meets it: a real network in a process of its own, driven by the bits."""

import re
import shutil
import time
from pathlib import Path

import psutil
import pytest
from browser_kit import ROOT, Server, chromium, serving, window  # noqa: F401 (fixtures)

from qlib import store
from qlib.core.records import RunRecord

pytestmark = pytest.mark.browser

REST = """() => !document.querySelector('[data-stale=true]')
  && document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'"""
PATIENCE = 120_000  # ms: loading PyTorch on a busy machine
WIDTHS = (8, 4, 3)


@pytest.fixture(scope="module")
def demo(tmp_path_factory, chromium) -> Path:  # noqa: F811
    """The stored runs of one network that this needs: nearest, and one of many widths if any."""
    folder = tmp_path_factory.mktemp("demo")
    if not (ROOT / "assets" / "zoo" / "digits-vit.safetensors").exists():
        pytest.skip("the embedded network has no weights in assets/zoo")
    for entry in store.list_runs(ROOT / "assets" / "demo"):
        if entry.record and _needed(entry.record):
            shutil.copytree(entry.folder, folder / entry.key)
    return folder


def _needed(record: RunRecord) -> bool:
    spec = record.spec
    plain = spec.method == "nearest" and spec.weight_bits in WIDTHS
    return spec.model == "digits-vit" and not spec.analysis and (plain or bool(record.bit_widths))


@pytest.fixture(scope="module")
def server(tmp_path_factory, demo):
    with serving(tmp_path_factory.mktemp("home"), demo) as running:
        yield running


def workers(server: Server) -> list[psutil.Process]:
    """The processes beside the app."""
    found = psutil.Process(server.pid).children(recursive=True)
    return [p for p in found if "qlib.live._worker" in p.cmdline()]


def switch_on(page) -> None:
    page.get_by_text("Try it now").click()
    page.wait_for_selector(".qx-dozen", timeout=PATIENCE)


def choose(page, bits: int) -> None:
    page.get_by_role("radio", name=str(bits), exact=True).click()
    page.get_by_text(re.compile(rf"images, here and below, in \d+ ms.* {bits} bits")).wait_for()
    page.wait_for_selector(f".qx-dozen[aria-label='answers at {bits} bits']")
    page.wait_for_function(REST)


def answers(page) -> str:
    return page.locator(".qx-dozen").inner_text()


def test_the_bits_drive_a_real_network(server, window):  # noqa: F811
    page = window.open(server.url("start?m=digits-vit&b=W4A4"), height=900)
    page.wait_for_selector(".js-plotly-plot .main-svg")
    page.wait_for_timeout(500)
    assert workers(server) == []  # nobody has asked
    switch_on(page)
    assert len(workers(server)) == 1
    page.get_by_text("computed now").first.wait_for()
    seen = {}
    for bits in WIDTHS:
        choose(page, bits)
        seen[bits] = answers(page)
        assert page.locator(".qx-dozen [role=listitem]").count() == 12
    assert seen[3] != seen[8]
    choose(page, 8)
    assert answers(page) == seen[8]
    maps = Path(f"/proc/{server.pid}/maps").read_text()
    assert "libtorch" not in maps
    assert page.get_by_test_id("stException").count() == 0


def test_everybody_shares_one_process_and_a_killed_one_is_started_again(
    server, window  # noqa: F811
):  # fmt: skip
    pages = [window.open(server.url("start?m=digits-vit&b=W3A3")) for _ in range(2)]
    for page in pages:
        switch_on(page)
    (worker,) = workers(server)
    worker.kill()
    page = pages[0]
    page.get_by_role("radio", name="8", exact=True).click()
    page.get_by_text("The live network was killed").wait_for()
    page.locator(".js-plotly-plot").first.wait_for(state="visible")  # stored predictions stay
    page.get_by_role("button", name="Start it again").click()
    page.wait_for_selector(".qx-dozen", timeout=PATIENCE)
    assert len(workers(server)) == 1


def test_it_ends_with_the_app(tmp_path, demo, window):  # noqa: F811
    with serving(tmp_path, demo) as server:
        switch_on(window.open(server.url("start?m=digits-vit&b=W4A4")))
        (worker,) = workers(server)
        psutil.Process(server.pid).kill()
        until = time.monotonic() + 10
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until, "the process outlives the app"
            time.sleep(0.05)
