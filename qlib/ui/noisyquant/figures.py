"""The figures of the NoisyQuant page: drawn and captioned."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from qlib.noise.profile import LayerNoise, NoiseProfile
from qlib.plots.noise import curves as _noise
from qlib.plots.noise import (
    error_over_noise,
    inside_one_cell,
    noise_tricks,
    noisy_values,
    who_gains,
)
from qlib.plots.shared import theme
from qlib.ui.noisyquant import data, saved, text
from qlib.ui.noisyquant.data import Found
from qlib.ui.noisyquant.saved import Saved
from qlib.ui.shared import context, state


@dataclass(frozen=True)
class Ask:
    """What the visitor chose in the controls.

    What the controls say. ``own``: in the scatter each layer has the reach of its search.
    """

    bits: int
    reach: float
    draw: str
    own: bool


@dataclass(frozen=True, eq=False)
class Shown:
    """Everything that the figures need.

    One layer at the bits that are asked for, and everything that the figures need.
    """

    found: Found
    profile: NoiseProfile
    ask: Ask

    @property
    def layer(self) -> LayerNoise:
        """The noise analysis of the chosen layer at the chosen bits."""
        return self.profile.at(self.found.layer, self.ask.bits)

    @property
    def images(self) -> str:
        """Which images' numbers are shown: calibration or test."""
        return self.found.view.data

    @property
    def name(self) -> str:
        """The beginning of the file names of saved pictures."""
        return f"{self.found.spec.network}_{self.found.layer}_{self.ask.bits}bit"


def draw(
    key: str,
    figure: go.Figure,
    alt: str,
    name: str,
    clicked: Callable[[str], None] | None = None,
) -> go.Figure:
    """Show a figure; ``clicked`` is called with its key when a mark is clicked."""
    more: dict[str, Any] = {}
    if clicked is not None:
        more = {"on_select": lambda: clicked(key), "selection_mode": "points"}
    st.plotly_chart(figure, key=key, config=theme.config(name), alt=alt, **more)
    return figure


def look() -> dict[str, bool]:
    """The drawing options now: dark or light, desk or room."""
    return {"dark": state.dark(), "large": state.presenting()}


def cell(shown: Shown) -> Saved:
    """Show the figure of the inside of one rounding cell."""
    layer, ask = shown.layer, shown.ask
    info = inside_one_cell.info(layer, ask.reach)
    alt, figure = inside_one_cell.alt(info), inside_one_cell.figure(info, **look())
    with st.container(key="n-cell-box"):
        draw("n-cell", figure, alt, f"{shown.name}_cell")
        st.caption(text.cell_note(layer, ask.reach, info.share, ask.draw))
    table = partial(saved.cell, info)
    return Saved("inside_one_cell", figure, alt, table, f"found, {ask.reach}")


def curves(shown: Shown) -> Saved:
    """Show the figure of the output error over the reach."""
    layer, ask = shown.layer, shown.ask
    info = error_over_noise.info(layer, ask.reach, ask.draw)
    alt, figure = error_over_noise.alt(info), error_over_noise.figure(info, **look())
    with st.container(key="n-curve-box"):
        draw("n-curve", figure, alt, f"{shown.name}_error", data.clicked_reach)
        st.caption(text.curve_note(shown.profile, layer, ask.reach, ask.draw))
    table = partial(saved.curves, info)
    return Saved("error_over_noise", figure, alt, table, f"found, {ask.reach}, {ask.draw!r}")


def scatter(shown: Shown) -> Saved:
    """Show the figure of which layers gain."""
    ask, images = shown.ask, shown.images
    reach = None if ask.own else ask.reach
    info = who_gains.info(shown.profile.layers, ask.bits, reach, ask.draw, images)
    figure = who_gains.figure(info, chosen=shown.found.layer, **look())
    alt = who_gains.alt(info)
    with st.container(key="n-scatter-box"):
        draw("n-scatter", figure, alt, f"{shown.found.spec.network}_gains", context.clicked_layer)
        st.caption(text.scatter_note(images, ask.draw))
    call = f"profile.layers, {ask.bits}, {reach}, {ask.draw!r}, {images!r}"
    return Saved("who_gains", figure, alt, partial(saved.gains, info), call)


def tricks(shown: Shown) -> Saved:
    """Show the figure of plain, clip search, mean shift and noise."""
    info = noise_tricks.info(shown.layer, shown.images)
    alt, figure = noise_tricks.alt(info), noise_tricks.figure(info, **look())
    with st.container(key="n-tricks-box"):
        draw("n-tricks", figure, alt, f"{shown.name}_tricks")
        st.caption(
            "One after the other, from a grid over the whole range. Noise comes last, at its best "
            "reach by expectation on the grid that the other two left."
        )
    table = partial(saved.tricks, shown.layer)
    return Saved("noise_tricks", figure, alt, table, f"found, {shown.images!r}")


def histogram(shown: Shown) -> Saved | None:
    """Show the values before and after the noise, where the run stored them."""
    hist = data.values(shown.found)
    if hist is None:
        st.info(
            "The run of the sidebar stored no counts of this layer's input, so its values cannot "
            "be drawn.",
            icon=":material/inventory_2:",
        )
        return None
    info = noisy_values.info(shown.layer, hist, shown.ask.reach)
    alt, figure = noisy_values.alt(info), noisy_values.figure(info, **look())
    with st.container(key="n-values-box"):
        draw("n-values", figure, alt, f"{shown.name}_values")
        st.caption(
            "Around the fullest place. The noise is taken off again behind the layer, exactly: "
            "only the rounding sees it."
        )
    return Saved("noisy_values", figure, alt, partial(saved.values, info))


def effect_line(shown: Shown) -> str:
    """The chosen layer's numbers at the chosen reach (Markdown)."""
    layer, ask = shown.layer, shown.ask
    sides = [
        (words, _noise.left(layer, ask.reach, ask.draw, images))
        for images, words in (("calib", "calibration"), ("test", "held-out"))
        if not (ask.draw == _noise.NORMAL and images == "test")
    ]
    shares = " · ".join(f"{words} **{_noise.times(share)}**" for words, share in sides)
    return (
        f"**`{layer.layer}`** · {ask.bits} bits · {_noise.steps(ask.reach)} · output error "
        f"{shares} · rounding **{layer.rounding:.2f}** × step²/12"
    )
