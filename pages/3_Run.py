"""Run calibration and reconstruction on your own settings, in the background."""

import streamlit as st

from qlib import jobs, store
from qlib.core.records import InvalidSpec
from qlib.ui.run import form as setup
from qlib.ui.run import presets, preview, submit
from qlib.ui.shared import cards, frame, progress

QUESTION = "Run calibration and reconstruction on your own settings"

job, missing = progress.find(st.query_params.get("job"))
frame.head(QUESTION, progress.answer(job))
progress.panel(job)
if missing:
    st.info(missing, icon=":material/link_off:")

if job is not None:
    st.button(
        "Set up another run",
        icon=":material/add:",
        key="another",
        on_click=setup.again,
        args=(job.spec,),
        help="Back to the form, with the settings of this run.",
    )
    st.stop()

setup.begin()
presets.cards()
form, side = st.columns([2, 1], gap="medium")
with form:
    draft = setup.draft()
try:
    spec, problem = setup.checked(draft), ""
except InvalidSpec as error:
    spec, problem = None, str(error)
with side:
    before = st.container()
    seen = preview.card(spec)
    with before:
        submit.card(spec, problem, seen)
cards.unreadable(jobs.broken(store.runs_dir()), "Job folders")
