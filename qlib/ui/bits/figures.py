"""Accuracy over bit-widths on the Bits page: controls, figure, clicks, read-out, table."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from qlib.core.records import BASELINE, network_name
from qlib.plots.bits import accuracy_bits
from qlib.plots.bits.accuracy_bits import AccuracyBits
from qlib.plots.shared import theme
from qlib.ui.bits import bar, text, view
from qlib.ui.bits.view import Shown, Track
from qlib.ui.shared import address, answers, export, frame, resolve, state
from qlib.ui.shared.address import Session
from qlib.ui.shared.glossary import word

URL = "query-params"
LINES, COST = "b_lines", "b_x"
COSTS = {"bits": "Bits", "size": "Size", "bops": "Bit-operations"}
MAIN = "b-curve"


@st.cache_resource(max_entries=64, show_spinner=False)
def _curve(said: str, dark: bool, large: bool, _info: AccuracyBits) -> go.Figure:
    """Kept: stepping through the widths comes by the same figures again. ``said``: all numbers."""
    return accuracy_bits.figure(_info, counts=True, dark=dark, large=large)


# ---- accuracy over widths --------------------------------------------------------------------


def controls(shown: Shown) -> tuple[str, bool, list[str]]:
    """Show the controls: the axis, whether accuracy is cut, which other lines are drawn."""
    usual = _usual(shown)
    titles = {key: t.title for key, t in shown.tracks.items() if t.equal}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="large", key="b-axis"):
        cost = st.segmented_control(
            "Along the axis", list(COSTS),
            format_func=COSTS.__getitem__, default="bits", required=True,
            key=COST, bind=URL, width="content",
            help="Size and bit-operations are those of each width.",
        )  # fmt: skip
        zoom = st.toggle(
            "Zoom in", key="b_zoom", bind=URL, help="Cuts the axis of accuracy below the lowest."
        )
        if LINES in st.session_state:
            st.session_state[LINES] = [k for k in st.session_state[LINES] if k in titles]
        picked = st.multiselect(
            "Lines", list(titles), default=[k for k in usual if k in titles],
            format_func=titles.__getitem__,
            key=LINES, bind=URL, placeholder="the chosen method alone",
            help="Methods drawn beside the chosen one.",
        )  # fmt: skip
    return cost or "bits", zoom, [k for k in titles if k in {*picked, shown.track.key}]


def _usual(shown: Shown) -> list[str]:
    """Networks with many widths, the baseline, and the learned method stored at most widths.

    Of several of these the best at 4 bits.
    """
    learned = [t for t in shown.tracks.values() if not t.one and t.key != BASELINE]
    most = max((len(t.equal) for t in learned), default=0)
    rich = [e.record for t in learned if len(t.equal) == most for e in t.runs.values()]
    best = [resolve.best(rich, "W4A4")] if rich else []
    return [k for k, t in shown.tracks.items() if t.one or k in (BASELINE, *best)]


def curve(shown: Shown, cost: str, zoom: bool, keys: Sequence[str]) -> AccuracyBits | None:
    """The figure of accuracy over bits for these lines; None where nothing has equal bits."""
    if not any(shown.tracks[k].equal for k in keys):
        return None
    same = shown.pair[0] if shown.pair[0] == shown.pair[1] else None
    return accuracy_bits.info(
        shown.records(keys), titles=state.titles(), current=same, cost=cost,
        chosen=shown.track.key, failed=shown.failed, zoom=zoom,
    )  # fmt: skip


def main(shown: Shown, info: AccuracyBits) -> go.Figure:
    """Show accuracy over bits; a click on a point selects its line and its bits."""
    figure = _curve(repr(info), state.dark(), state.presenting(), info)
    known = {k: view.place(t, shown.siblings) for k, t in shown.tracks.items()}
    st.session_state["b-places"] = known
    st.plotly_chart(
        figure,
        key=MAIN,
        on_select=point_clicked,
        selection_mode="points",
        config=theme.config(f"{network_name(shown.model)}_accuracy_over_bits"),
        alt=accuracy_bits.alt(info),
    )
    return figure


def point_clicked(session: Session = st.session_state) -> None:
    """A click on a point sets the bits, and the line that it is on; beside them, nothing."""
    points = session[MAIN]["selection"]["points"]
    data = points[0].get("customdata") if points else None
    if not data or len(data) < 5:
        return
    bar.stop()
    b = int(data[0])
    address.put({"b": f"W{b}A{b}"} | session["b-places"].get(data[4], {}))


def data_frame(info: AccuracyBits) -> pd.DataFrame:
    """The figure's numbers, one row per point."""
    rows = [
        {
            "Line": x.title, "Stored as": "one model" if x.one else "a model for each width",
            "Bits": p.bits, "Top-1": p.top1, "Low": p.low, "High": p.high, "Lost": p.lost,
            "Gained": p.gained, "Weights": p.size, "Bit-operations": p.bops,
        }
        for x in info.lines for p in x.points
    ]  # fmt: skip
    return pd.DataFrame(rows)


def columns() -> dict:
    """Units and definitions of the table's columns."""
    number = st.column_config.NumberColumn
    return {
        "Top-1": number(format="%.1f %%", help=word("top-1")),
        "Low": number(format="%.1f %%", help=word("interval")),
        "High": number(format="%.1f %%", help=word("interval")),
        "Lost": number(help=word("lost")),
        "Gained": number(help=word("lost")),
        "Weights": number(format="%.3f MB", help=word("size")),
        "Bit-operations": number(format="%.3f G", help=word("bops")),
    }


def readout(shown: Shown) -> None:
    """Show the chosen widths in a row of numbers, and what all widths take together."""
    numbers = text.readout(shown)
    with st.container(key="b-numbers"):
        if numbers:
            for cell, (name, value, other, term) in zip(
                st.columns(len(numbers)), numbers, strict=True
            ):
                cell.metric(
                    f"{name}, {shown.label}", value, other or None, delta_color="off",
                    delta_arrow="off", help=word(term),
                )  # fmt: skip
        else:
            st.markdown(text.chosen(shown))
        st.caption(text.storage(shown))


def save(shown: Shown, info: AccuracyBits, figure: go.Figure, keys: Sequence[str]) -> None:
    """Show small print, export and the table of the accuracy-over-bits figure."""
    left, right = st.columns([7, 1], vertical_alignment="center")
    left.caption(f"{answers.source_line(shown.entry.record)}.{text.left_out(shown)}")
    data, alt = data_frame(info), accuracy_bits.alt(info)
    with right:
        export.menu("accuracy-over-bits", figure, data, shown.records(keys), alt=alt)
    frame.data_table("accuracy over bits", data, columns())


def many_of(shown: Shown) -> Track | None:
    """The network with many widths that units can be switched in."""
    track = shown.many
    return track if track and track.first.record.blocks else None
