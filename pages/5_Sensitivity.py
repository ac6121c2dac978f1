"""Which layer is to blame? One layer quantized at a time, or one left out, and errors by layer."""

import streamlit as st

from qlib.plots import layer_profile
from qlib.ui import blame, context, export, findings, frame, measure, sensitivity, whatif

QUESTION = "Which layer is to blame?"

top = st.container()
view = context.view(data=True)
if view is None:
    with top:
        frame.head(QUESTION)
    st.stop()

found = sensitivity.find(view)
wanted = sensitivity.controls(view)
ask = wanted if found.rows or not wanted.measured else sensitivity.instant(wanted)
with top:
    if ask.measured:
        frame.head(QUESTION, blame.answer(found.rows, ask.mode, ask.split))
    else:
        frame.head(QUESTION, blame.errors(found.table, view.data))
if wanted.measured:
    measure.panel(found)

made = sensitivity.profiles(found, ask)
order = [row["layer"] for row in found.layers]
if made and made[0].known:
    info = layer_profile.info(made, order=ask.order)
    order = list(info.layers)
    with st.container(key="s-main"):
        figure = sensitivity.main_figure(found, info)
        table, alt = whatif.table(found, order), layer_profile.alt(info)
        export.menu("sensitivity", figure, table, [view.record], alt=alt)
    sensitivity.helpers(found, ask, made[0])
else:
    st.info(sensitivity.nothing(found, ask), icon=":material/inventory_2:")
if not wanted.measured:
    measure.panel(found)
sensitivity.dumbbells(found)
whatif.section(found, order)
findings.panel(view.entry)
frame.try_this(
    "Switch *Question* to *All but this layer*: is the same layer still to blame?",
    "Set *What is rounded* to *Weights*, then to *Inputs*: other layers become guilty.",
    "Compare with *Local error*: the layer with the largest error is often not the one that hurts.",
    "Tick the worst layer in the table and run it: what does one layer in float buy?",
)
