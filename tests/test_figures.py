"""What holds for every figure of every page, on the stored runs that come with the project."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[1]
VIEWS = {
    "1_Start": {},
    "4_Distributions": {
        "m": "digits-vit",
        "q": "nearest",
        "b": "W4A4",
        "layer": "blocks.1.mlp.fc2",
    },
    "5_Sensitivity": {"m": "digits-vit", "q": "qdrop", "b": "W3A3"},
    "6_NoisyQuant": {"m": "digits-vit", "layer": "blocks.0.mlp.fc2", "n_bits": "4"},
    "7_Reconstruction": {"m": "digits-vit", "q": "qdrop", "b": "W3A3"},
    "8_Bits": {"m": "digits-vit", "b": "W4A4"},
    "9_Compare": {"m": "digits-resnet", "b": "W2A2"},
}
MOST = 10_000
# bars of probability without an axis of their own: the scale is written above them
WITHOUT_AXES = {"1_Start": "bar = probability of the class, 0 to 1"}


@pytest.fixture(scope="module", params=VIEWS)
def page(request) -> tuple[str, AppTest]:
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    at.session_state["details"] = True  # Start sends its table when it is opened
    at.run()
    for key, value in VIEWS[request.param].items():
        at.query_params[key] = value
    at.switch_page(f"pages/{request.param}.py").run()
    assert not at.exception
    return request.param, at


def figures(at: AppTest) -> list[tuple[dict, str]]:
    charts = at.get("plotly_chart")
    return [(json.loads(chart.proto.spec or chart.spec), chart.proto.alt) for chart in charts]


def length(values: object) -> int:
    """Numbers in a trace's x, y or z, which Plotly packs when they come as an array."""
    if isinstance(values, dict):
        return base64.b64decode(values["bdata"]).__len__() // np.dtype(values["dtype"]).itemsize
    if isinstance(values, list) and values and isinstance(values[0], list):
        return sum(map(len, values))
    return len(values or ())


def marks(figure: dict) -> int:
    return sum(max(length(trace.get(k)) for k in "xyz") for trace in figure["data"])


def unnamed(figure: dict) -> list[str]:
    """Axes with numbers at their ticks and no title: nobody can tell what they count."""
    axes = {k: v for k, v in figure["layout"].items() if k.startswith(("xaxis", "yaxis"))}
    return [k for k, v in axes.items() if not v.get("title", {}).get("text") and _numbered(v)]


def _numbered(axis: dict) -> bool:
    if axis.get("visible") is False or axis.get("showticklabels") is False or "matches" in axis:
        return False
    texts = axis.get("ticktext") or axis.get("categoryarray")
    if isinstance(texts, dict) or axis.get("type") == "category":
        return False
    return not texts or all(text.replace(".", "").isdigit() for text in texts if text)


def test_every_figure_is_described_in_words_and_numbers(page) -> None:
    name, at = page
    assert figures(at)
    for _, alt in figures(at):
        assert len(alt) > 40, f"{name}: {alt!r}"
        assert any(c.isdigit() for c in alt), f"{name}: {alt!r}"


def test_every_figure_names_both_its_axes(page) -> None:
    name, at = page
    for figure, alt in figures(at):
        said = json.dumps(figure["layout"], ensure_ascii=False)
        if WITHOUT_AXES.get(name, "\0") in said:
            continue
        assert not unnamed(figure), f"{name}: {alt[:60]}"


def test_no_page_draws_more_than_it_may(page) -> None:
    name, at = page
    assert sum(marks(figure) for figure, _ in figures(at)) <= MOST, name


def test_every_page_shows_its_data_as_tables(page) -> None:
    _, at = page
    assert len(at.dataframe) + len(at.get("arrow_data_frame")) >= 1
