"""How low can I go, and where? Accuracy over bit-widths, one network or many, bits per unit."""

import streamlit as st

from qlib.ui import (
    bits,
    bits_bar,
    bits_figures,
    bits_queue,
    bits_sides,
    bits_units,
    bits_words,
    context,
    findings,
    frame,
    state,
    stored,
)

QUESTION = "How low can I go, and where?"

top = st.container()
known = context.entries()
shown = bits.find()
if shown is None:
    with top:
        frame.head(QUESTION)
        stored.explain_missing(state.demo())
    st.stop()

bits_bar.draw(shown, known)
context.tell(*shown.notes)
cost, zoom, lines = bits_figures.controls(shown)
info = bits_figures.curve(shown, cost, zoom, lines)
with top:
    mine = next((x for x in info.lines if x.key == shown.track.key), None) if info else None
    frame.head(QUESTION, bits_words.answer(shown, mine))
if info:
    figure = bits_figures.main(shown, info)
bits_figures.readout(shown)
if info:
    with st.container(key="b-source"):
        bits_figures.save(shown, info, figure, lines)

with st.container(key="b-sides"):
    st.subheader("Weights or activations: which break first?", anchor=False)
    bits_sides.show_map(shown)
bits_queue.panel(shown)

many = bits_figures.many_of(shown)
if many:
    with st.container(key="b-mix"):
        bits_units.section(many.first)
else:
    st.subheader("Different bits for different units", anchor=False)
    st.info(bits_words.NO_UNITS, icon=":material/inventory_2:")
if shown.own:
    findings.panel(shown.entry)
frame.try_this(
    "Press *Play*, or step down with the arrow keys: where does the cliff begin?",
    "Click cells far from the diagonal of the map: which side is worth the bits?",
    "Draw the lines over *Size*: which method is best for the same memory?",
    "Push the budget down: which units does the search leave at many bits?",
)
