"""Colours that everybody can tell apart, and figures for a room."""

from itertools import combinations
from typing import get_args

import numpy as np
import plotly.graph_objects as go
import pytest

from qlib.core import catalogue
from qlib.core.records import BASELINE
from qlib.core.registry import discover
from qlib.plots.shared import large as _large
from qlib.plots.shared import theme

# Machado, Oliveira & Fernandes 2009, table 1, severity 1.0: what dichromats see (linear RGB)
VISION = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
PAGES = (theme.paper(False), theme.paper(True))


def linear(color: str) -> np.ndarray:
    """``#RRGGBB`` to linear-light RGB, 0 to 1 (IEC 61966-2-1)."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """Ratio of relative luminances (WCAG 2)."""
    low, high = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Linear RGB to CIE L*a*b*, D65."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
              [0.0193339, 0.1191920, 0.9503041]]  # fmt: skip
    xyz = np.array(to_xyz) @ rgb / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def seen(color: str, vision: str) -> np.ndarray:
    return lab(np.clip(np.array(VISION[vision]) @ linear(color), 0, 1))


def test_the_measures_themselves():
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    np.testing.assert_allclose(lab(linear("#FFFFFF")), [100, 0, 0], atol=0.02)
    np.testing.assert_allclose(lab(linear("#FF0000")), [53.24, 80.09, 67.20], atol=0.02)
    grey = np.linalg.norm(seen("#777777", "protan") - seen("#777777", "normal"))
    assert grey < 0.1  # who lacks one kind of cone sees grey as grey
    # a confused pair: red and green of one lightness come close for deutans, not for others
    pair = ("#C45B3C", "#7A7A1E")
    far, near = (np.linalg.norm(seen(pair[0], v) - seen(pair[1], v)) for v in ("normal", "deutan"))
    assert near < 0.5 * far


@pytest.mark.parametrize("color", [*theme.COLORS, theme.GREY, theme.WRONG, theme.RIGHT])
def test_contrast_on_both_backgrounds(color):
    assert min(contrast(color, page) for page in PAGES) >= 3.0


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable(dark):
    for color in (theme.ink(dark), theme.faint(dark)):
        assert contrast(color, theme.paper(dark)) >= 4.5


@pytest.mark.parametrize("vision", VISION)
def test_method_colours_differ_for_everybody(vision):
    colors = [*theme.COLORS, theme.GREY]
    for one, other in combinations(colors, 2):
        far = np.linalg.norm(seen(one, vision) - seen(other, vision))
        assert far >= 20, f"{one} and {other} are {far:.1f} apart"


def test_every_method_has_a_look_of_its_own():
    looks = catalogue.looks()
    assert len(looks) >= 15 and "ptmq_naive" in looks
    for one, other in combinations(map(theme.style, looks), 2):
        assert one.symbol != other.symbol
        assert one.color != other.color or one.dash != other.dash
    styles = {name: theme.style(name) for name in {*discover("methods"), *looks}}
    assert len(set(styles.values())) == len(styles)
    assert {style.color for style in styles.values()} <= {*theme.COLORS, theme.GREY}
    assert [key for key, style in styles.items() if style.color == theme.GREY] == [BASELINE]


def test_the_theme_has_every_colour_that_a_method_may_name():
    assert set(theme.METHOD_COLORS) == set(get_args(catalogue.Color))
    with pytest.raises(ValueError, match=r"colour 'pink'.* one of grey, "):
        catalogue.Look("pink", "dash", "square")  # type: ignore[arg-type]


def test_a_room_sees_larger_text_lines_and_marks():
    made = go.Figure()
    made.add_scatter(x=[1, 2], y=[1, 2], mode="lines+markers", marker_size=[3, 20])
    made.add_scatter(x=[1, 2], y=[1, 2], mode="lines", line_width=0, fill="toself")
    made.add_scatter(x=[1], y=[2], mode="text", text="a", textfont_size=12)
    made.add_scatter(x=[1], y=[2], error_y={"array": [1], "thickness": 1})
    made.add_heatmap(z=[[1]], colorbar={"title": "count"})
    made.add_bar(x=[1], y=[1])
    made.add_annotation(text="note", x=1, y=1, font={"size": 12})
    made.add_hline(y=1, line_width=1)
    theme.frame(made, title="A sentence that is the take-away " * 4, large=True)
    line, area, words, point, heat = made.data[:5]
    assert line.line.width == 3 and list(line.marker.size) == [10, 20]
    assert area.line.width == 0  # the edge of a band stays invisible
    assert words.textfont.size == 18 and point.marker.size == 10 and point.error_y.thickness == 3
    assert heat.colorbar.tickfont.size == heat.colorbar.title.font.size == 18
    layout = made.layout
    assert layout.annotations[0].font.size == layout.xaxis.tickfont.size == layout.font.size == 18
    assert layout.title.font.size == _large.TITLE and layout.shapes[0].line.width == 2
    assert layout.height == round(theme.MAIN_HEIGHT * _large.HEIGHT)


def test_a_desk_is_left_as_it_was():
    made = go.Figure(go.Scatter(x=[1], y=[1], marker_size=4))
    theme.frame(made, title="x")
    assert made.data[0].marker.size == 4 and made.layout.font.size == theme.FONT_SIZE
    assert made.layout.height == theme.MAIN_HEIGHT
