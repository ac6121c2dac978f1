"""The address of a lesson's step: leads to the page and the settings that the step is about."""

import streamlit as st

from qlib.ui.shared import frame, lessons

lessons.follow()
frame.head("What would you like to understand?")
lessons.unknown()
lessons.listing()
st.page_link("pages/1_Start.py", label="Look around without a lesson", icon=":material/explore:")
