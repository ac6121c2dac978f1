"""Which layer is to blame? One layer quantized at a time, or one left out, and errors by layer."""

import streamlit as st

from qlib.plots.layers import layer_profile
from qlib.ui.sensitivity import measure, page, text, what_if
from qlib.ui.shared import context, export, findings, frame

QUESTION = "Which layer is to blame?"

top = st.container()
view = context.view(data=True)
if view is None:
    with top:
        frame.head(QUESTION)
    st.stop()

found = page.find(view)
wanted = page.controls(view)
ask = wanted if found.rows or not wanted.measured else page.instant(wanted)
with top:
    if ask.measured:
        frame.head(QUESTION, text.answer(found.rows, ask.mode, ask.split))
    else:
        frame.head(QUESTION, text.errors(found.table, view.data))
if wanted.measured:
    measure.panel(found)

made = page.profiles(found, ask)
order = [row["layer"] for row in found.layers]
if made and made[0].known:
    info = layer_profile.info(made, order=ask.order)
    order = list(info.layers)
    with st.container(key="s-main"):
        figure = page.main_figure(found, info)
        table, alt = what_if.table(found, order), layer_profile.alt(info)
        export.menu("sensitivity", figure, table, [view.record], alt=alt)
    page.helpers(found, ask, made[0])
else:
    st.info(page.nothing(found, ask), icon=":material/inventory_2:")
if not wanted.measured:
    measure.panel(found)
page.dumbbells(found)
what_if.section(found, order)
findings.panel(view.entry)
frame.try_this(
    "Switch *Question* to *All but this layer*: is the same layer still to blame?",
    "Set *What is rounded* to *Weights*, then to *Inputs*: other layers become guilty.",
    "Compare with *Local error*: the layer with the largest error is often not the one that hurts.",
    "Tick the worst layer in the table and run it: what does one layer in float buy?",
)
