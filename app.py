"""The frame of the app: navigation over the pages, sidebar and style. `streamlit run app.py`"""

import streamlit as st

from qlib.ui import frame

st.set_page_config(
    "Quant Explorer", str(frame.ASSETS / "icon.svg"), "wide", initial_sidebar_state=248
)
start = st.Page(
    "pages/1_Start.py",
    title="Start",
    icon=":material/rocket_launch:",
    url_path="start",
    help="What does quantization do to this model?",
)
run = st.Page(
    "pages/3_Run.py",
    title="Run",
    icon=":material/play_circle:",
    url_path="run",
    help="What do calibration and reconstruction give on my own settings?",
)
compare = st.Page(
    "pages/9_Compare.py",
    title="Compare",
    icon=":material/balance:",
    url_path="compare",
    help="Which method should I choose?",
)
page = st.navigation({"": [frame.home(start)], "Learn": [start], "Run": [run], "Decide": [compare]})
st.logo(str(frame.ASSETS / "logo.svg"), size="large", icon_image=str(frame.ASSETS / "icon.svg"))
frame.first_visit()
frame.style()
frame.sidebar()
page.run()
