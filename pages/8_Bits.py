"""How low can I go, and where? Accuracy over bit-widths, one network or many, bits per unit."""

import streamlit as st

from qlib.ui.bits import bar, figures, queue, sides, text, units, view, without_accuracy
from qlib.ui.shared import context, findings, frame, state, stored

QUESTION = "How low can I go, and where?"

top = st.container()
known = context.entries()
if (entry := without_accuracy.asked()) is not None:
    without_accuracy.show(entry, QUESTION)
    findings.panel(entry)
    st.stop()
shown = view.find()
if shown is None:
    with top:
        frame.head(QUESTION)
        stored.explain_missing(state.demo())
    st.stop()

bar.draw(shown, known)
context.tell(*shown.notes)
cost, zoom, lines = figures.controls(shown)
info = figures.curve(shown, cost, zoom, lines)
with top:
    mine = next((x for x in info.lines if x.key == shown.track.key), None) if info else None
    frame.head(QUESTION, text.answer(shown, mine))
figure = figures.main(shown, info) if info else None
figures.readout(shown)
if info and figure:
    with st.container(key="b-source"):
        figures.save(shown, info, figure, lines)

with st.container(key="b-sides"):
    st.subheader("Weights or activations: which break first?", anchor=False)
    sides.show_map(shown)
queue.panel(shown)

many = figures.many_of(shown)
if many:
    with st.container(key="b-mix"):
        units.section(many.first)
else:
    st.subheader("Different bits for different units", anchor=False)
    st.info(text.NO_UNITS, icon=":material/inventory_2:")
if shown.own:
    findings.panel(shown.entry)
frame.try_this(
    "Press *Play*, or step down with the arrow keys: where does the cliff begin?",
    "Click cells far from the diagonal of the map: which side is worth the bits?",
    "Draw the lines over *Size*: which method is best for the same memory?",
    "Push the budget down: which units does the search leave at many bits?",
)
