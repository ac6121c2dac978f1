"""Links as people pass them on: copied, opened elsewhere, worked by keyboard, shown to a room."""

import re
from pathlib import Path

import fake_noise
import fake_profiles
import pytest
from browser_kit import (  # noqa: F401 (fixtures)
    CLIPBOARD,
    chromium,
    copied,
    serving,
    settled,
    window,
)

from qlib import store
from qlib.core.records import RunSpec
from qlib.core.specs import checked
from qlib.ui.shared import resolve

pytestmark = pytest.mark.browser

LAYER = "blocks.2.mlp.fc1"
VIEWS = {  # a view of each page that is not the one it opens with
    "start": "q=brecq&b=W4A4",
    "distributions": f"q=brecq&b=W4A4&layer={LAYER}",
    "sensitivity": f"b=W4A4&layer={LAYER}&d=calib",
    "noisyquant": f"b=W4A4&layer={LAYER}&n_bits=4&n_reach=0.50",
    "reconstruction": f"q=brecq&b=W4A4&layer={LAYER}",
    "bits": "q=brecq&b=W4A4&b_x=Size",
    "compare": "m=digits-vit&b=W4A4&x=size",
    "run": "method=QDrop&w=3&calib=99",
}
FOCUS = """() => { let e = document.activeElement, keys = [];
  const inner = e.shadowRoot && e.shadowRoot.activeElement;
  for (let p = e; p; p = p.parentElement)
    for (const c of p.classList || []) if (c.startsWith('st-key-')) keys.push(c.slice(7));
  return [keys[0] || (e.closest('[data-testid=stSidebarNav]') ? 'nav' : ''),
          inner ? inner.className : '']; }"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory, chromium) -> Path:  # noqa: F811
    """Nearest and BRECQ at 8, 4 and 2 bits, with outputs; one of them analysed."""
    folder = tmp_path_factory.mktemp("demo")
    for method in ("nearest", "brecq"):
        for bits in (8, 4, 2):
            spec = RunSpec("digits-vit", "digits", method, weight_bits=bits, act_bits=bits)
            fake_profiles.write_base(folder, checked(spec))
    fake_profiles.write(folder, checked(RunSpec("digits-vit", "digits", "nearest")))
    fake_noise.write(folder, checked(RunSpec("digits-vit", "digits", "nearest")))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, demo):
    with serving(tmp_path_factory.mktemp("home"), demo) as running:
        yield running


def looks(page) -> dict[str, str]:
    """What a person sees: question, answer, and the values of the bar."""
    found = {"head": page.locator(".st-key-head").inner_text()}
    for key in ("m", "q", "layer"):
        field = page.locator(f".st-key-context .st-key-{key} input")
        found[key] = field.first.input_value() if field.count() else ""
    bits = page.locator(".st-key-context .st-key-b")
    found["b"] = bits.inner_text() if bits.count() else ""
    found["figures"] = " | ".join(page.locator(".gtitle").all_text_contents())
    return found


@pytest.mark.parametrize("path", VIEWS)
def test_copied_link_shows_the_same_elsewhere(server, demo, window, tmp_path, path):  # noqa: F811
    page = window.open(server.url(f"{path}?{VIEWS[path]}"))
    settled(page)
    link = copied(page)
    assert link.startswith(server.url(path)) and page.get_by_test_id("stException").count() == 0
    if path != "run":  # nothing is left to what a server shows by default
        assert {"m=", "q=", "b=W4A4"} <= set(re.findall(r"\b(?:m=|q=|b=W\dA\d)", link))
    with serving(tmp_path, demo) as fresh:
        other = window.open(link.replace(server.url(), fresh.url()))
        settled(other)
        assert looks(other) == looks(page)


def test_every_page_of_the_app_has_a_view_here():
    pages = Path(__file__).resolve().parents[1] / "pages"
    names = {p.stem.split("_")[1].lower() for p in pages.glob("[1-9]*.py")}
    assert names <= set(VIEWS)


def test_copying_works_on_plain_http_too(server, window):  # noqa: F811
    """Where the browser hides its clipboard, as on http://192.168.…, the older command does it."""
    page = window.open(server.url())
    page.context.grant_permissions(CLIPBOARD)
    reader = page.context.new_page()
    reader.goto(server.url("_stcore/health"))
    page.add_init_script("Object.defineProperty(Navigator.prototype, 'clipboard', {value: null})")
    page.goto(server.url(f"sensitivity?layer={LAYER}"))
    settled(page)
    assert page.evaluate("navigator.clipboard") is None
    page.get_by_role("button", name="Copy link").click()
    page.get_by_role("button", name="Copied").wait_for()
    reader.bring_to_front()
    assert f"layer={LAYER}" in reader.evaluate("navigator.clipboard.readText()")


def test_where_copying_is_forbidden_the_address_is_shown(server, window):  # noqa: F811
    page = window.open(server.url())
    page.add_init_script(
        "Object.defineProperty(Navigator.prototype, 'clipboard', {value: null});"
        "document.execCommand = () => false"
    )
    page.goto(server.url(f"sensitivity?layer={LAYER}"))
    settled(page)
    page.get_by_role("button", name="Copy link").click()
    box = page.get_by_label("Link to this view")
    box.wait_for()
    assert f"layer={LAYER}" in box.input_value()
    assert box.evaluate("e => e.selectionEnd - e.selectionStart === e.value.length")


def test_choice_goes_along_from_page_to_page(server, window):  # noqa: F811
    page = window.open(server.url("start"))
    page.get_by_role("radio", name="4", exact=True).click()
    page.wait_for_url("**/start?b=W4A4")
    nav = page.get_by_test_id("stSidebarNav")
    nav.get_by_text("Sensitivity").last.click()
    page.wait_for_url(re.compile(r"/sensitivity\?b=W4A4"))
    settled(page)
    assert "W4A4" in looks(page)["b"]
    before = looks(page)["layer"]
    page.keyboard.press("ArrowRight")
    page.wait_for_url(re.compile("layer="))
    settled(page)
    chosen = looks(page)["layer"]
    assert chosen != before
    nav.get_by_text("Run", exact=True).last.click()
    page.wait_for_url("**/run")
    nav.get_by_text("Distributions").last.click()
    page.wait_for_url(re.compile(r"/distributions\?.*layer="))
    settled(page)
    assert looks(page)["layer"] == chosen and "W4A4" in looks(page)["b"]
    page.get_by_role("button", name="Reset", exact=True).click()
    page.wait_for_url("**/distributions")


def test_back_undoes_the_last_choice(server, window):  # noqa: F811
    page = window.open(server.url(f"sensitivity?layer={LAYER}"))
    settled(page)
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"() => !location.href.includes('{LAYER}')")
    settled(page)
    page.go_back()
    page.wait_for_url(re.compile(LAYER))
    settled(page)
    assert looks(page)["layer"] == LAYER


def test_every_control_of_the_bar_is_reached_by_tab(server, window):  # noqa: F811
    page = window.open(server.url(f"sensitivity?layer={LAYER}"))
    settled(page)
    seen: list[str] = []
    for _ in range(90):
        page.keyboard.press("Tab")
        key, inner = page.evaluate(FOCUS)
        name = f"{key}.{inner}" if inner else key
        if name and name not in seen:
            seen.append(name)
    bar = ["m", "q", "b", "layer", "layer-previous", "layer-next", "d"]
    wanted = ["nav", *bar, "linkbar.copy", "linkbar.reset", "present"]
    assert [name for name in seen if name in wanted] == wanted
    assert len(seen) > len(wanted), "the page's own controls are reached too"


def test_present_enlarges_and_hides(server, window):  # noqa: F811
    page = window.open(server.url("start"))
    page.wait_for_selector(".js-plotly-plot .gtitle")
    page.locator(".st-key-try-this").wait_for()
    page.locator(".st-key-present label").click()
    page.wait_for_url("**/start?present=1")
    settled(page)
    size = "e => parseFloat(getComputedStyle(e).fontSize)"
    page.wait_for_function(
        "() => parseFloat(getComputedStyle(document.querySelector('.gtitle')).fontSize) >= 20"
    )
    ticks = page.locator(".js-plotly-plot .xtick text, .js-plotly-plot .ytick text")
    assert ticks.count() and all(t.evaluate(size) >= 18 for t in ticks.all())
    page.locator(".st-key-try-this").wait_for(state="hidden")
    main = page.get_by_test_id("stMain")
    assert main.evaluate("el => el.scrollWidth <= el.clientWidth")


def test_unknown_names_are_a_notice_on_every_page(server, window):  # noqa: F811
    for path in ("start", "distributions", "sensitivity", "reconstruction", "compare"):
        page = window.open(server.url(f"{path}?m=gone&q=magic&b=W7A7&layer=nowhere&run=x"))
        settled(page)
        page.get_by_text("There is no run x here").first.wait_for()
        assert page.get_by_test_id("stException").count() == 0, path


def test_the_bar_agrees_with_the_store(server, demo, window):  # noqa: F811
    page = window.open(server.url("sensitivity?q=brecq&b=W4A4"))
    settled(page)
    known = [e for e in store.list_runs(demo) if e.record and not e.record.spec.analysis]
    entry = resolve.entry_for(known, "brecq", "W4A4")
    layers = resolve.layers_of(store.load(entry.folder))
    shown = looks(page)["layer"]
    place = layers.index(shown) + 1
    page.get_by_text(f"Layer {place} of {len(layers)}").wait_for()
