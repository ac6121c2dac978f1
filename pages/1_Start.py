"""What does quantization do to this model? Stored runs only: nothing is computed here."""

import streamlit as st

from qlib.plots import _theme, accuracy_bits, prediction_strip
from qlib.records import Refused
from qlib.ui import answers, frame, state, stored
from qlib.ui.words import word

QUESTION = "What does quantization do to this model?"

shelf = state.demo()
grid = stored.grid(shelf)
if not grid:
    frame.head(QUESTION)
    stored.explain_missing(shelf)
    st.stop()

top = st.container()
record, method = stored.controls(grid)
runs = [e.record for e in stored.of_model(grid, record.spec.model)]
with top:
    frame.head(QUESTION, answers.start_answer(record, state.titles().get(method, method)))
stored.warn_broken(shelf)

dark, bits = state.dark(), record.spec.weight_bits
try:
    strip = stored.strip(shelf, record)
    with st.container(key="pixels" if strip.small else "photos"):
        st.plotly_chart(
            prediction_strip.figure(strip, dark=dark),
            key="strip-figure",
            config=_theme.config(f"{record.spec.key}_predictions"),
            alt=prediction_strip.alt(strip),
        )
    st.caption(stored.STRIP_NOTE + " " + answers.source_line(record) + ".")
except Refused as error:
    st.warning(f"The stored predictions cannot be shown: {error}", icon=":material/broken_image:")

left, right = st.columns([5, 3], gap="medium")
with left:
    shown = stored.two_lines(runs, method)
    curve = accuracy_bits.info(shown, titles=state.titles(), current=bits)
    st.plotly_chart(
        accuracy_bits.figure(curve, dark=dark),
        key="bits-figure",
        on_select=stored.follow_click,
        selection_mode="points",
        config=_theme.config(f"{record.spec.model}_accuracy_over_bits"),
        alt=accuracy_bits.alt(curve),
    )
with right:
    st.space("small")
    frame.try_this(
        "The shaded band is the 95 % interval: where the dashed float line runs through it, "
        "no loss can be told.",
        "Step down the bits until pictures turn wrong. Then switch to *Best stored*.",
        "Change the backbone: does the cliff move?",
    )
    st.page_link(
        "pages/3_Run.py",
        label="Run this on your own settings",
        icon=":material/play_circle:",
        query_params=stored.as_settings(record),
    )

with st.expander("Details: the numbers behind the figures", icon=":material/table_chart:"):
    st.dataframe(
        stored.table(runs),
        hide_index=True,
        column_config=stored.columns(),
        alt=f"All stored runs of {record.spec.model}",
    )
    st.caption(f"top-1: {word('top-1')} Interval: {word('interval')}")
