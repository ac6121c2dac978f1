"""What do the numbers in this layer look like, before and after? Only counts are read."""

import streamlit as st

from qlib.core.records import InvalidSpec
from qlib.plots.shared import theme
from qlib.ui.distributions import collect, controls, page, text
from qlib.ui.shared import context, export, findings, frame, state
from qlib.ui.shared.glossary import word

QUESTION = "What do the numbers in this layer look like, before and after?"

top = st.container()
view = context.view()
if view is None:
    with top:
        frame.head(QUESTION)
    st.stop()
try:
    hists = state.hist(view.folder)
except InvalidSpec as error:
    with top:
        frame.head(QUESTION)
    collect.missing(view, error)
    st.stop()
page.begin(view, hists)

choice = controls.controls(view, hists)
known = page.seen(view.record, hists)
left, right = st.columns([3, 5], gap="medium")
with left:
    page.ladder(view, hists, choice)
with right:
    hist = controls.tensor(view, hists, choice)
    if hist is None:
        with top:
            frame.head(QUESTION)
        st.stop()
    shown = known[hist.name]
    runs = page.runs(view, choice, shown)
    figure, alt, name = page.main(choice, runs)
    st.plotly_chart(
        figure,
        key="h-main",
        config=theme.config(f"{view.record.spec.key}_{hist.name}_{name}"),
        alt=alt,
    )
    with st.container(key="h-numbers", horizontal=True, gap="medium"):
        for label, value, term in text.numbers(shown):
            st.metric(label, value, help=word(term), width="content")
    if name == "channels":
        page.channel(choice, runs[0])
    frame.try_this(
        text.hint(shown),
        "Click a layer in the ladder. Thin: all values; thick: 99.8 % of them; thickest: half of "
        "them. The small bars end the grid, a diamond marks outliers.",
        "Step down the bits in the sidebar: levels grow rare, and the range usually shrinks.",
    )
with top:
    frame.head(QUESTION, f"`{hist.layer}`: {text.answer(shown)}")
findings.panel(view.entry)
frame.data_table("Bins of this tensor", text.bins(hist))
frame.data_table("All tensors", text.table(known))
export.menu("distribution", figure, text.bins(hist), [view.record])
