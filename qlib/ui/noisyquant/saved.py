"""Data and exports of the NoisyQuant page's figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from qlib.core.records import RunRecord
from qlib.noise.profile import STAGES, LayerNoise
from qlib.plots.noise import noise_tricks
from qlib.plots.noise.error_over_noise import ErrorOverNoise
from qlib.plots.noise.inside_one_cell import InsideOneCell
from qlib.plots.noise.noisy_values import NoisyValues
from qlib.plots.noise.who_gains import WhoGains
from qlib.ui.shared import export

RECIPE = """\
from qlib.noise import profile as noise_profile
from qlib.plots.noise import {plot}

spec = noise_profile.spec_of(specs[0])
folder = HERE / spec.key
if not (folder / noise_profile.FILE).exists():
    folder.mkdir(parents=True, exist_ok=True)
    run(spec, folder=folder)
profile = noise_profile.load(folder)
found = profile.at({layer!r}, {bits})
info = {plot}.info({call})
print({plot}.alt(info))
figure = {plot}.figure(info)
figure"""


@dataclass(frozen=True, eq=False)
class Saved:
    """What can be exported of one figure.

    What a figure leaves: itself, its words, its numbers, and the call that makes its info.

    ``plot``: its module; ``call``: the arguments of ``info`` in a notebook; "" if it has none.
    """

    plot: str
    figure: go.Figure
    alt: str
    table: Callable[[], pd.DataFrame]
    call: str = ""


def leave(figures: Sequence[Saved], found: LayerNoise, record: RunRecord) -> None:
    """Show the exports of all figures in an expander, made only while it is open.

    So a slider that moves the figures does not wait for tables that nobody looks at.
    """
    box = st.expander(
        "Data and export of these figures",
        icon=":material/table_chart:",
        key="n-data",
        on_change="rerun",
    )
    if not box.open:
        return
    tabs = box.tabs([saved.plot.replace("_", " ").capitalize() for saved in figures])
    for saved, tab in zip(figures, tabs, strict=True):
        with tab:
            table, view = saved.table(), saved.plot.replace("_", "-")
            made = recipe(saved, found)
            export.menu(view, saved.figure, table, [record], alt=saved.alt, recipe=made)
            words = f"Data of {saved.plot.replace('_', ' ')}"
            st.dataframe(table, hide_index=True, height=240, alt=words)


def recipe(saved: Saved, found: LayerNoise) -> str:
    """Python that makes the figure in a notebook; "" where it needs more than the analysis."""
    if not saved.call:
        return ""
    said = {"plot": saved.plot, "call": saved.call, "layer": found.layer, "bits": found.bits}
    return RECIPE.format(**said)


# ---- tables ----------------------------------------------------------------------------------


def cell(info: InsideOneCell) -> pd.DataFrame:
    """Data frame of errors by position."""
    errors = {"plain (step²)": info.plain, "with noise (step²)": info.noisy}
    return pd.DataFrame({"position (steps)": info.at} | errors)


def curves(info: ErrorOverNoise) -> pd.DataFrame:
    """Data frame of errors by reach, relative to reach 0."""
    return pd.DataFrame(
        {
            "reach (steps)": info.reaches,
            "calibration": info.calib,
            "lowest draw": info.low,
            "highest draw": info.high,
            "held-out": info.test,
            "predicted": info.predicted,
        }
    )


def gains(info: WhoGains) -> pd.DataFrame:
    """Data frame with one row per layer."""
    return pd.DataFrame(
        {
            "layer": dot.layer,
            "kind": dot.role,
            "reach (steps)": dot.reach,
            "rounding ÷ (step²/12)": dot.x,
            "output error, × without": dot.y,
        }
        for dot in info.dots
    )


def tricks(found: LayerNoise) -> pd.DataFrame:
    """Data frame with one row per stage."""
    return pd.DataFrame(
        {
            "after": [noise_tricks.NAMES[stage][0] for stage in STAGES],
            "calibration (%)": 100 * found.stages[:, 0],
            "held-out (%)": 100 * found.stages[:, 1],
        }
    )


def values(info: NoisyValues) -> pd.DataFrame:
    """One row a bin: as counted, and the expected density in its middle."""
    middle = (info.edges[:-1] + info.edges[1:]) / 2
    after = np.interp(middle, info.at, info.after)
    return pd.DataFrame(
        {
            "from (steps)": info.edges[:-1],
            "before (% per step)": 100 * info.before,
            "after (% per step)": 100 * after,
        }
    )
