"""The frame of the app: navigation over the pages, sidebar and style. `streamlit run app.py`"""

import streamlit as st

from qlib.ui.shared import address, frame, lessons

st.set_page_config("Quant Explorer", frame.ICON, "wide", initial_sidebar_state=272)
start = frame.screen("1_Start", "rocket_launch", "What does quantization do to this model?")
run = [frame.screen("3_Run", "play_circle", "What do my own settings give?")]
look = [
    frame.screen("4_Distributions", "bar_chart", "What do the numbers in this layer look like?"),
    frame.screen("5_Sensitivity", "troubleshoot", "Which layer is to blame?"),
    frame.screen("6_NoisyQuant", "grain", "When does adding noise remove error?"),
    frame.screen("7_Reconstruction", "build", "What does learning the rounding change?"),
]
compare = frame.screen("9_Compare", "balance", "Which method should I choose?")
decide = [frame.screen("8_Bits", "stairs", "How low can I go, and where?"), compare]
rest = [frame.home(start), frame.screen("0_Lesson", "school", "Guided views", hidden=True)]
page = st.navigation({"": rest, "Learn": [start], "Run": run, "Inspect": look, "Decide": decide})
frame.first_visit()
address.enter(page.url_path)
frame.style()
frame.sidebar(page.url_path)
lessons.card()
page.run()
