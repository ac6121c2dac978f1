"""When does adding noise remove error? One layer, all its bit-widths and reaches; the theorem."""

import streamlit as st

from qlib.ui.noisyquant import data as noise_data
from qlib.ui.noisyquant import page, theorem
from qlib.ui.shared import context, findings, frame

noise_data.begin()
top = st.container()
view = context.view(data=True)
if view is None:
    with top:
        frame.head(page.QUESTION)
    theorem.section()
    st.stop()

with top:
    page.body(noise_data.find(view))
theorem.section()
findings.panel(view.entry)
frame.try_this(
    "Move the reach to 0.50: inside the cell the error becomes step²/12 everywhere. Values midway "
    "between levels gain, values on levels lose.",
    "Step through the bits: the levels move, and the same layer can flip from help to harm.",
    "Choose one draw, then another: the method fixes one number per channel, so luck takes part.",
    "Look at *Who gains* at ±0.50: do the layers follow theory's curve?",
)
