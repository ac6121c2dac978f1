"""The frame of the app: navigation over the pages, sidebar and style. `streamlit run app.py`"""

import streamlit as st

from qlib.ui import frame

st.set_page_config("Quant Explorer", frame.ICON, "wide", initial_sidebar_state=248)
start = frame.screen("1_Start", "rocket_launch", "What does quantization do to this model?")
run = frame.screen("3_Run", "play_circle", "What do my own settings give?")
compare = frame.screen("9_Compare", "balance", "Which method should I choose?")
home = frame.home(start)
page = st.navigation({"": [home], "Learn": [start], "Run": [run], "Decide": [compare]})
frame.first_visit()
frame.style()
frame.sidebar()
page.run()
