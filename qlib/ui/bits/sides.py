"""Weights against activations on the Bits page: the map of widths, its clicks, its numbers."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from qlib.core.records import network_name
from qlib.plots.bits import width_map
from qlib.plots.shared import theme
from qlib.ui.bits import bar, measured, text, view
from qlib.ui.bits.view import Shown
from qlib.ui.shared import export, state
from qlib.ui.shared.address import Session
from qlib.ui.shared.glossary import word

URL = "query-params"
MAP = "b-map"


@st.cache_resource(max_entries=64, show_spinner=False)
def _map(
    said: str, chosen: width_map.Pair, dark: bool, large: bool, _info: width_map.WidthMap
) -> go.Figure:
    return width_map.figure(_info, chosen=chosen, dark=dark, large=large)


def show_map(shown: Shown) -> None:
    """P14: a click on a cell sets the bits; the numbers of the chosen cell beside it."""
    left, right = st.columns([5, 4], gap="medium")
    with right:
        metric = st.segmented_control(
            "Shown as", list(width_map.METRICS),
            format_func=width_map.METRICS.__getitem__, default="top1",
            required=True, key="b_map", bind=URL, help=word("KL"),
        )  # fmt: skip
    track = shown.track
    info = width_map.info(
        track.title, track.cells, track.states, shown.pair, metric=metric or "top1"
    )
    figure = _map(repr(info), shown.pair, state.dark(), state.presenting(), info)
    with left:
        st.plotly_chart(
            figure,
            key=MAP,
            on_select=cell_clicked,
            selection_mode="points",
            config=theme.config(f"{network_name(shown.model)}_{track.key}_weights_activations"),
            alt=width_map.alt(info),
        )
    with right:
        st.markdown(text.chosen(shown))
        measured.offer_pair(shown)
        _sides_table(shown)
        st.caption(
            "Hatched cells (–) were not measured: click one to look at it and to compute it. "
            "✕: its run did not finish."
        )
        export.menu(
            "weights-activations", figure, map_frame(info), [shown.entry.record],
            alt=width_map.alt(info),
        )  # fmt: skip


def _sides_table(shown: Shown) -> None:
    rows = sides(shown)
    if len(rows) < 2:
        return
    number = st.column_config.NumberColumn
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        column_config={
            "Top-1": number(format="%.1f %%", width=70),
            "KL": number(format="%.2g", width=74, help=word("KL")),
            "Weights": number(format="%.3f MB", width=90, help=word("size")),
        },
        alt="The chosen widths, each side alone, and both with the most bits",
    )


def cell_clicked(session: Session = st.session_state) -> None:
    """A click on a cell sets both bits; beside the cells, nothing."""
    points = session[MAP]["selection"]["points"]
    data = points[0].get("customdata") if points else None
    if data and len(data) == 2:
        bar.stop()
        view.go((int(data[0]), int(data[1])))


def sides(shown: Shown) -> list[dict[str, Any]]:
    """The chosen pair, each of its sides alone low, and the most bits: which side costs what."""
    (w, a), track = shown.pair, shown.track
    top = max((max(p) for p in track.cells), default=8)
    asked = [
        ("Both", (w, a)), ("Weights alone", (w, top)), ("Activations alone", (top, a)),
        ("Neither", (top, top)),
    ]  # fmt: skip
    found = {pair: name for name, pair in asked if pair in track.cells}  # the last name counts
    return [
        {
            "Rounded low": name, "Bits": "W{}A{}".format(*pair),
            "Top-1": track.cells[pair]["top1"], "KL": track.cells[pair].get("kl"),
            "Weights": track.cells[pair]["weight_mb"],
        }
        for name, pair in asked if found.get(pair) == name
    ]  # fmt: skip


def map_frame(info: width_map.WidthMap) -> pd.DataFrame:
    """One row per measured pair."""
    rows = [
        {
            "weight_bits": w,
            "act_bits": a,
            "top1": c.top1,
            "top1_low": c.low,
            "top1_high": c.high,
            "kl": c.kl,
        }
        for (w, a), c in sorted(info.cells.items(), reverse=True)
    ]
    return pd.DataFrame(rows)
