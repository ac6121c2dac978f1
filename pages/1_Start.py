"""What does quantization do to this model? Stored runs, until somebody presses *Try it now*."""

import streamlit as st

from qlib.core.records import InvalidSpec
from qlib.plots.bits import accuracy_bits
from qlib.plots.shared import prediction_strip, theme
from qlib.ui.shared import answers, bar, context, findings, frame, lessons, per_width, state, stored
from qlib.ui.shared.glossary import word
from qlib.ui.start import strips, tryout

QUESTION = "What does quantization do to this model?"

entries = stored.accurate_ones(per_width.entries(context.entries()))
choice = stored.choose(entries)
if choice is None:
    frame.head(QUESTION)
    stored.explain_missing(state.demo())
    st.stop()

record, method = choice.entry.record, choice.spec.method
frame.head(QUESTION, answers.start_answer(record, state.titles().get(method, method)))
context.tell(*choice.notes)
stored.controls(entries, choice)
bar.tools(choice.params)
stored.warn_broken(state.demo())

look = {"dark": state.dark(), "large": state.presenting()}
try:
    pictures = strips.pictures(entries, choice.entry)
    answer = tryout.row(entries, choice, pictures)
    strip = strips.strip(choice.entry, pictures, answer)
    with st.container(key="pixels" if strip.small else "photos"):
        st.plotly_chart(
            prediction_strip.figure(strip, **look),
            key="strip-figure",
            config=theme.config(f"{record.spec.key}_predictions"),
            alt=prediction_strip.alt(strip),
        )
    source = "Stored with the run." if answer is None else "Computed now, except accuracies."
    st.caption(f"{source} {strips.NOTE} {answers.source_line(record)}.")
except InvalidSpec as error:
    st.warning(f"The stored predictions cannot be shown: {error}", icon=":material/broken_image:")

runs = stored.comparable(entries, choice.entry)
left, right = st.columns([5, 3], gap="medium")
with left:
    shown = stored.two_lines(runs, method, record)
    curve = accuracy_bits.info(shown, titles=state.titles(), current=record.spec.weight_bits)
    st.plotly_chart(
        accuracy_bits.figure(curve, **look),
        key="bits-figure",
        on_select=stored.follow_click,
        selection_mode="points",
        config=theme.config(f"{record.spec.network}_accuracy_over_bits"),
        alt=accuracy_bits.alt(curve),
    )
with right:
    st.space("small")
    frame.try_this(
        "The shaded band is each run's own 95 % interval. Whether a loss can be told, the sentence "
        "above takes from a paired test: both networks saw the same images.",
        "Step down the bits until pictures turn wrong. Then switch to the best method.",
        "Change the backbone: does the cliff move?",
    )
    st.page_link(
        "pages/3_Run.py",
        label="Run this on your own settings",
        icon=":material/play_circle:",
        query_params=stored.as_settings(record),
    )

if not per_width.is_other(choice.entry):
    findings.panel(choice.entry)
st.subheader("Guided views, with a question each", anchor=False)
lessons.listing()
details = st.expander(
    "Details: the numbers behind the figures",
    icon=":material/table_chart:",
    key="details",
    on_change="rerun",  # closed, it loads no table into the browser: the figure comes sooner
)
if details.open:
    details.dataframe(
        stored.table(runs),
        hide_index=True,
        column_config=stored.columns(),
        alt=f"All stored runs of {record.spec.network}",
    )
    details.caption(f"top-1: {word('top-1')} Interval: {word('interval')}")
