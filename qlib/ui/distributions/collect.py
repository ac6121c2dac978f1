"""The offer to repeat a run that stored no counts of its values."""

import streamlit as st

from qlib import store
from qlib.core.records import InvalidSpec, RunSpec
from qlib.store import tensors
from qlib.ui.shared import context, job_panel


def missing(view: context.View, error: InvalidSpec) -> None:
    """Say why a run has no counts, with a button that runs the same again to collect them."""
    st.info(f"The numbers inside this run were not kept: {error}", icon=":material/inventory_2:")
    spec, own = view.record.spec, store.runs_dir()
    again = store.find(spec, [own, store.demo_dir()])
    if again and (again.folder / tensors.FILE).exists() and again.folder != view.folder:
        st.page_link(
            "pages/4_Distributions.py",
            label="The same run with its numbers is here: open it",
            icon=":material/task_alt:",
            query_params={"run": again.key},
        )
        return
    if store.find(spec, [own]):
        st.markdown(f"Take the folder `{own / spec.key}` away and the run can be made again.")
        return
    if "h-refused" in st.session_state:
        st.error(st.session_state.pop("h-refused"), icon=":material/error:")
    st.button(
        "Collect now",
        type="primary",
        icon=":material/play_arrow:",
        key="h-collect",
        on_click=_collect,
        args=(spec,),
        help="Runs the same settings and seed again in the background; the result is the same.",
    )
    if key := st.session_state.get("h-job"):
        st.page_link(
            "pages/3_Run.py",
            label="It is queued: open its progress",
            icon=":material/progress_activity:",
            query_params={"job": key},
        )


def _collect(spec: RunSpec) -> None:
    try:
        st.session_state["h-job"] = job_panel.queue(spec).key
    except InvalidSpec as error:
        st.session_state["h-refused"] = str(error)
