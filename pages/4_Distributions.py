"""What do the numbers in this layer look like, before and after? Only counts are read."""

import streamlit as st

from qlib.plots import _theme
from qlib.records import Refused
from qlib.ui import (
    collect,
    context,
    distributions,
    export,
    findings,
    frame,
    state,
    tensor_controls,
    tensor_words,
)
from qlib.ui.words import word

QUESTION = "What do the numbers in this layer look like, before and after?"

top = st.container()
view = context.view()
if view is None:
    with top:
        frame.head(QUESTION)
    st.stop()
try:
    hists = state.hist(view.folder)
except Refused as error:
    with top:
        frame.head(QUESTION)
    collect.missing(view, error)
    st.stop()
distributions.begin(view, hists)

choice = tensor_controls.controls(view, hists)
known = distributions.seen(view.record, hists)
left, right = st.columns([3, 5], gap="medium")
with left:
    distributions.ladder(view, hists, choice)
with right:
    hist = tensor_controls.tensor(view, hists, choice)
    if hist is None:
        with top:
            frame.head(QUESTION)
        st.stop()
    shown = known[hist.name]
    runs = distributions.runs(view, choice, shown)
    figure, alt, name = distributions.main(choice, runs)
    st.plotly_chart(
        figure,
        key="h-main",
        config=_theme.config(f"{view.record.spec.key}_{hist.name}_{name}"),
        alt=alt,
    )
    with st.container(key="h-numbers", horizontal=True, gap="medium"):
        for label, value, term in tensor_words.numbers(shown):
            st.metric(label, value, help=word(term), width="content")
    if name == "channels":
        distributions.channel(choice, runs[0])
    frame.try_this(
        tensor_words.hint(shown),
        "Click a layer in the ladder. Thin: all values; thick: 99.8 % of them; thickest: half of "
        "them. The small bars end the grid, a diamond marks outliers.",
        "Step down the bits in the sidebar: levels grow rare, and the range usually shrinks.",
    )
with top:
    frame.head(QUESTION, f"`{hist.layer}`: {tensor_words.answer(shown)}")
findings.panel(view.entry)
frame.data_table("Bins of this tensor", tensor_words.bins(hist))
frame.data_table("All tensors", tensor_words.table(known))
export.menu("distribution", figure, tensor_words.bins(hist), [view.record])
