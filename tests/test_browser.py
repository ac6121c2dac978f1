"""The app as a person meets it: a real server, a real browser, no network."""

import re
import time
from pathlib import Path

import fake_runs
import pytest
from browser_kit import ROOT, Server, chromium, serving, window  # noqa: F401 (fixtures)

from qlib import jobs
from qlib.core.records import RunSpec
from qlib.core.specs import checked

pytestmark = pytest.mark.browser

FIGURE = ".js-plotly-plot .main-svg"
BRECQ = "run?calib=64&brecq.steps={steps}&brecq.act_steps=20&test=100"


@pytest.fixture(scope="module")
def demo(tmp_path_factory, chromium) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("demo")
    return fake_runs.write_demo(folder, models=["digits-vit"], methods=["nearest", "brecq"])


@pytest.fixture(scope="module")
def server(tmp_path_factory, demo):
    with serving(tmp_path_factory.mktemp("home"), demo) as running:
        yield running


def there(page, selector: str, count: int) -> None:
    """So many elements are on the page, at once or soon: what is drawn may be drawn twice."""
    page.wait_for_function(
        "([s, n]) => document.querySelectorAll(s).length === n", arg=[selector, count]
    )


def maps(server: Server) -> str:
    """The files that the app's process has mapped."""
    return Path(f"/proc/{server.pid}/maps").read_text()


def test_start_shows_a_figure_at_once(server, window, record_property):  # noqa: F811
    page = window.open(server.url())  # warms the browser's cache of this profile
    page.wait_for_selector(FIGURE)
    began = time.monotonic()
    page.goto(server.url("start"))
    page.wait_for_selector(FIGURE)
    record_property("seconds_to_first_figure", round(time.monotonic() - began, 2))
    assert page.locator("h1").inner_text() == "What does quantization do to this model?"
    there(page, ".js-plotly-plot", 2)
    there(page, ".js-plotly-plot image", 6)


@pytest.mark.parametrize(
    ("link", "title"),
    [
        ("start?b=4", "What does quantization do to this model?"),
        ("run?method=QDrop&w=3", "Run calibration and reconstruction on your own settings"),
        ("compare", "Which method should I choose?"),
    ],
)
def test_link_opened_first_on_a_fresh_server(tmp_path, demo, window, link, title):  # noqa: F811
    with serving(tmp_path, demo) as fresh:
        page = window.open(fresh.url(link))
        page.get_by_role("heading", name=title).wait_for()
        for name in ("Start", "Run", "Compare"):
            page.get_by_test_id("stSidebarNav").get_by_text(name).last.wait_for()
        page.wait_for_timeout(500)
        assert page.get_by_role("dialog").count() == 0
        assert page.url == fresh.url(link)


def test_link_restores_and_address_follows(server, window):  # noqa: F811
    page = window.open(server.url("start?b=4"))
    page.get_by_text("16 levels (4 bits)").wait_for()
    page.get_by_role("radio", name="8", exact=True).click()
    page.get_by_text("256 levels (8 bits)").wait_for()
    page.wait_for_url("**/start?b=W8A8")


def test_click_on_a_point_sets_the_bits(server, window):  # noqa: F811
    page = window.open(server.url("start"), height=1400)
    points = page.locator(".js-plotly-plot").last.locator(".scatterlayer .points path.point")
    points.first.wait_for()
    box = points.nth(3).bounding_box()  # the fourth width of the first line: 4 bits
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.get_by_text("16 levels (4 bits)").wait_for()
    page.wait_for_url("**/start?b=W4A4")


def test_dark_theme_reaches_the_figures(server, window):  # noqa: F811
    page = window.open(server.url("start"), dark=True)
    page.wait_for_selector(FIGURE)
    color = "el => getComputedStyle(el).backgroundColor"
    assert page.locator(".stApp").evaluate(color) == "rgb(14, 17, 23)"
    page.wait_for_function(
        "() => getComputedStyle(document.querySelector('.js-plotly-plot .gtitle')).fill"
        " === 'rgb(232, 234, 238)'"
    )


@pytest.mark.parametrize("path", ["start", "run", "compare"])
@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080)])
def test_nothing_is_wider_than_the_window(server, window, path, size):  # noqa: F811
    page = window.open(server.url(path), width=size[0], height=size[1])
    page.wait_for_timeout(1200)
    main = page.get_by_test_id("stMain")
    assert main.evaluate("el => el.scrollWidth <= el.clientWidth")
    assert page.get_by_test_id("stException").count() == 0


def test_ticking_a_row_adds_the_run(server, window):  # noqa: F811
    page = window.open(server.url("compare"), height=1600)
    page.wait_for_selector(FIGURE)
    there(page, "[data-tag]", 2)
    table = page.get_by_test_id("stDataFrame").last
    table.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    box = table.bounding_box()
    page.mouse.click(box["x"] + 22, box["y"] + 35 * 3 + 18)  # third row, the tick
    page.wait_for_function("() => document.querySelectorAll('[data-tag]').length === 3")
    page.wait_for_url(re.compile("runs="))


def test_torch_stays_out_of_the_app(server, window):  # noqa: F811
    for path in ("start", "run", "compare"):
        window.open(server.url(path)).wait_for_timeout(500)
    assert "libtorch" not in maps(server)


def needs_zoo() -> None:
    if not (ROOT / "assets" / "zoo" / "digits-vit.safetensors").exists():
        pytest.skip("the embedded network has no weights in assets/zoo")


def test_run_from_click_to_result(server, window):  # noqa: F811
    """Start → live loss → result card → compare; another tab finds the job by its address."""
    needs_zoo()
    page = window.open(server.url(BRECQ.format(steps=150)), height=900)
    page.get_by_role("button", name="Start", exact=False).last.click()
    page.get_by_text("running", exact=True).wait_for()
    page.wait_for_url(re.compile("job=digits-vit_brecq_W4A4_"))
    page.locator(".gtitle", has_text="Unit").first.wait_for()
    assert page.locator(".qx-stages .now").inner_text().startswith("Reconstruct")
    other = window.open(page.url)
    other.get_by_role("heading", name="BRECQ W4A4 on digits-vit").wait_for()
    page.locator(".st-key-result").wait_for(timeout=120_000)
    assert "Top-1" in page.locator(".st-key-result").inner_text()
    page.get_by_role("link", name="Compare it with other runs").click()
    page.get_by_role("heading", name="Which method should I choose?").wait_for()
    page.locator("[data-tag]").first.wait_for()
    there(page, "[data-tag]", 1)
    assert "libtorch" not in maps(server)


def test_cancel_stops_the_run(server, window):  # noqa: F811
    needs_zoo()
    page = window.open(server.url(BRECQ.format(steps=50_000)), height=900)
    page.get_by_role("button", name="Start", exact=False).last.click()
    page.locator(".gtitle", has_text="Unit").first.wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("The run was cancelled").wait_for()
    key = re.search("job=([^&]+)", page.url).group(1)
    assert jobs.status(key, server.runs).state == "cancelled"
    page.get_by_role("button", name="Set up another run").click()
    page.get_by_text("Before you start").wait_for()
    assert "job=" not in page.url


def test_unknown_run_in_a_link_is_a_notice(server, window):  # noqa: F811
    key = checked(RunSpec("digits-vit", "digits", "brecq", seed=77)).key
    page = window.open(server.url(f"run?job={key}"))
    page.get_by_text(f"There is no run {key} here any more").wait_for()
    page.get_by_text("Before you start").wait_for()
