"""The Bits page as a person meets it: lines, map, budget, hand edits, Play and links, in Chromium.

All on stored runs; a check waits until the page says something, not for a length of time.
"""

import re
import shutil
from pathlib import Path

import pytest
from browser_kit import ROOT, chromium, copied, serving, settled, window  # noqa: F401 (fixtures)

from qlib import store
from qlib.allocation import front
from qlib.ui.bits.units import STEPS

pytestmark = pytest.mark.browser

METHODS = ("nearest", "ptmq", "qdrop")
FIGURES = ("b-curve", "b-map", "b-steps", "b-front")
# what a figure was given, its words and numbers
DRAWN = """key => { const plot = document.querySelector(`.st-key-${key} .js-plotly-plot`);
  return {names: plot.data.map(t => t.name), texts: plot.data.map(t => t.text || []).flat(2),
    title: plot.layout.title.text, notes: (plot.layout.annotations || []).map(a => a.text)}; }"""
# where a column and a row of the map are in the window
SPOT = """([x, y]) => { const plot = document.querySelector('.st-key-b-map .js-plotly-plot');
  const box = plot.getBoundingClientRect(), all = plot._fullLayout;
  return [box.left + all._size.l + all.xaxis.d2p(x), box.top + all._size.t + all.yaxis.d2p(y)]; }"""
# from now on, every address
ADDRESSES = """() => { window.visited = []; for (const name of ['pushState', 'replaceState']) {
  const plain = history[name].bind(history);
  history[name] = (...all) => { plain(...all); window.visited.push(location.search); }; } }"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory, chromium) -> Path:  # noqa: F811
    """The stored runs of one network: a model for each width, and two with all widths."""
    folder = tmp_path_factory.mktemp("demo")
    for entry in store.list_runs(ROOT / "assets" / "demo"):
        spec = entry.record.spec if entry.record else None
        if spec and spec.model == "digits-vit" and spec.method in METHODS and not spec.analysis:
            shutil.copytree(entry.folder, folder / entry.key)
    return folder


@pytest.fixture(scope="module")
def many(demo):
    """The record of the network with many widths."""
    found = (e.record for e in store.list_runs(demo) if e.record.bit_widths)
    return next(r for r in found if r.spec.settings.get("learned_at") != "highest")


@pytest.fixture(scope="module")
def server(tmp_path_factory, demo):
    with serving(tmp_path_factory.mktemp("home"), demo) as running:
        yield running


@pytest.fixture
def opened(server, window):  # noqa: F811
    """Opens the page with more of an address, and waits for all of it."""

    def page(query: str = "", **size):
        found = window.open(server.url(f"bits?m=digits-vit{query}"), **size)
        settled(found)
        return found

    return page


def looks(page) -> dict:
    """What a person sees of all choices: figures, numbers in large print, sentences."""
    found = (page.get_by_test_id(f"stMetric{x}").all_inner_texts() for x in ("Label", "Value"))
    return {
        "figures": {key: page.evaluate(DRAWN, key) for key in FIGURES},
        "numbers": {a.strip(): b.strip() for a, b in zip(*found, strict=True)},
        "head": page.locator(".st-key-head").inner_text(),
        "said": page.locator(".st-key-b-sides p", has_text="· top-1").first.inner_text(),
        "wrong": page.get_by_test_id("stException").count(),
    }


def choose_cell(page, column: int, row: int, label: str) -> None:
    page.locator(".st-key-b-map").scroll_into_view_if_needed()
    page.mouse.click(*page.evaluate(SPOT, [column, row]))
    page.get_by_text(f"Top-1, {label}").wait_for()
    settled(page)


def move_budget(page, many, by: int) -> None:
    """Press an arrow on the budget so often, and wait until the page has followed."""
    slider = page.locator(".st-key-b_budget_weight_mb input[type=range]")
    place = int(slider.input_value()) + by
    slider.focus()
    for _ in range(abs(by)):
        page.keyboard.press("ArrowRight" if by > 0 else "ArrowLeft")
    low, *_, high = (c.weight_mb for c in front.front(many.blocks))
    page.get_by_text(f"At most {low + place * (high - low) / STEPS:.3f} MB").wait_for()
    settled(page)


def test_lines_with_bands_and_no_sideways_scrolling(opened):
    page = opened(width=1920, height=1080)
    curve = page.evaluate(DRAWN, "b-curve")
    lines = {"PTMQ: one model, 6 widths", "Nearest: 6 models", "QDrop: 5 models"}
    assert lines <= set(curve["names"]) and lines <= set(curve["notes"])
    assert {f"{x.split(':')[0]}, 95 % interval" for x in lines} <= set(curve["names"])
    assert page.locator(".st-key-b-curve .scatterlayer .js-fill").count() >= 3  # bands are drawn
    main = page.get_by_test_id("stMain")
    assert main.evaluate("e => e.scrollWidth <= e.clientWidth")
    page.set_viewport_size({"width": 1280, "height": 720})
    page.wait_for_function("() => document.querySelector('.st-key-b-curve svg').clientWidth < 1000")
    assert main.evaluate("e => e.scrollWidth <= e.clientWidth")
    assert page.get_by_test_id("stException").count() == 0


def test_another_cell_of_the_map_is_told(opened, many):
    page = opened("&b=W4A4")
    before = looks(page)
    assert before["said"].startswith("W4A4 · PTMQ")
    choose_cell(page, 5, 0, "W8A3")
    assert "b=W8A3" in page.url
    (row,) = (r for r in many.bit_widths if (r["weight_bits"], r["act_bits"]) == (8, 3))
    after = looks(page)
    assert after["numbers"]["Top-1, W8A3"] == f"{row['top1']:.1f} %" and after["wrong"] == 0
    assert after["said"].startswith(f"W8A3 · PTMQ · top-1 {row['top1']:.1f} %")
    assert after["figures"]["b-curve"]["names"] == before["figures"]["b-curve"]["names"]


def test_budget_drives_units_there_and_back(opened, many):
    page = opened()
    start = looks(page)
    move_budget(page, many, -12)
    less = looks(page)
    for name in ("Predicted KL", "Weights", "Bit-operations"):
        assert less["numbers"][name] != start["numbers"][name]
    assert less["figures"]["b-steps"]["texts"] != start["figures"]["b-steps"]["texts"]
    move_budget(page, many, 12)
    assert looks(page) == start and start["wrong"] == 0


def test_a_width_edited_by_hand_counts_until_it_is_let_go(opened):
    page = opened("&b_budget_weight_mb=0")
    before = looks(page)
    best = page.locator(".st-key-b-best button")
    assert best.first.is_disabled()
    table = page.locator("[class*=st-key-b-units-]")
    while not page.locator("#portal input").count():  # a table still being drawn misses clicks
        table.click(position={"x": 110, "y": 35 * 1.5})
        page.keyboard.press("Enter")
        page.wait_for_timeout(1000)
    page.keyboard.type("8")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"mix=8\d{5}\b"))
    page.locator(".st-key-b-best button:enabled").first.wait_for()
    settled(page)
    after = looks(page)
    was, now = (x["figures"]["b-steps"]["texts"] for x in (before, after))
    assert now == ["8", *was[1:]] and now != was
    assert after["numbers"]["Weights"] != before["numbers"]["Weights"]
    best.first.click()
    page.locator(".st-key-b-best button:disabled").first.wait_for()
    settled(page)
    assert looks(page) == before and before["wrong"] == 0


def test_play_steps_down_by_itself_and_stops(opened):
    page = opened("&b=W5A5")
    page.evaluate(ADDRESSES)
    play, stop = (page.get_by_role("button", name=name) for name in ("Play", "Stop"))
    play.click()
    page.get_by_text("Top-1, W3A3").wait_for()
    play.wait_for()
    seen = re.findall(r"b=(W\dA\d)", " ".join(page.evaluate("window.visited")))
    assert list(dict.fromkeys(seen)) == ["W4A4", "W3A3"] and seen == sorted(seen)[::-1]
    play.click()  # nothing is below: from the top again
    stop.wait_for()
    stop.click()
    play.wait_for()
    settled(page)
    rests = looks(page)
    assert "Top-1, W3A3" not in rests["numbers"]
    page.wait_for_timeout(2600)  # two turns in which nothing may move
    assert looks(page) == rests and rests["wrong"] == 0


def test_a_link_carries_all_choices(opened, window, many):  # noqa: F811
    page = opened()
    for name, says in (("Size", "weights at that width"), ("KL to float", "nats, log")):
        page.get_by_role("radio", name=name, exact=True).first.click()
        page.locator(".js-plotly-plot text", has_text=says).first.wait_for()
        settled(page)
    choose_cell(page, 3, 2, "W6A5")
    move_budget(page, many, -4)
    other = window.open(copied(page))
    settled(other)
    assert looks(other) == looks(page)
    assert "W6A5" in looks(other)["said"] and looks(other)["wrong"] == 0
