"""The card beside the form: what the run will cost, whether it exists already, and Start."""

import streamlit as st

from qlib import store
from qlib.core.preview import Preview
from qlib.core.records import InvalidSpec, RunSpec
from qlib.core.scores import score
from qlib.jobs.estimate import Estimate, estimate
from qlib.ui.shared import job_panel, state
from qlib.ui.shared.glossary import word
from qlib.ui.shared.timeline import span

START = "Runs in the background; you can leave the page."
GREEN, AMBER = 60, 600  # seconds: a coffee-free run, and one to go away for


def card(spec: RunSpec | None, problem: str, seen: Preview | None = None) -> None:
    """Show estimate and Start for a checked specification, or what is wrong with the form.

    ``seen``: the preview, if there is one; where it says that the run would be refused there is
    nothing to start.
    """
    with st.container(border=True, key="before"):
        st.markdown("**Before you start**")
        if spec is None:
            st.warning(problem, icon=":material/edit:")
            st.button("Start", type="primary", width="stretch", disabled=True, key="start")
            return
        own, stored = (store.find(spec, [f]) for f in (store.runs_dir(), store.demo_dir()))
        if entry := own or stored:
            _exists(entry)
        if own is None:
            refused = bool(seen and seen.refused and not spec.allow_float)
            _offer(spec, stored is not None, refused)


def _offer(spec: RunSpec, again: bool, refused: bool) -> None:
    """Estimate and Start.

    Args:
        again: the same run is among the stored ones.
        refused: too little of the network can be quantized, as its preview says.
    """
    _expected(estimate(spec, [e.record for e in state.everything().values()]))
    if "refused" in st.session_state:
        st.error(st.session_state.pop("refused"), icon=":material/error:")
    st.button(
        "Start it again here" if again else "Start",
        type="secondary" if again else "primary",
        icon=":material/play_arrow:",
        width="stretch",
        key="start",
        disabled=refused,
        on_click=submit,
        args=(spec,),
        help="The preview says why not." if refused else START,
    )


def submit(spec: RunSpec) -> None:
    """Queue the run and put its key into the address, so that any tab finds it."""
    try:
        job = job_panel.queue(spec)
    except InvalidSpec as error:
        st.session_state["refused"] = str(error)
        return
    st.query_params["job"] = job.key


def _exists(entry: store.Finished) -> None:
    found = score(entry.record.metrics)
    told = f": {found.text(found.value)} {found.name}" if found else ""
    st.success(f"An identical run is finished{told}.", icon=":material/task_alt:")
    st.button(
        "Open the finished run",
        type="primary",
        width="stretch",
        key="open",
        on_click=lambda: st.query_params.update({"job": entry.key}),
        help="The same settings and seed give the same result.",
    )


def _expected(found: Estimate) -> None:
    if found.seconds_low is None or found.seconds_high is None:
        st.markdown(":gray[:material/circle:] Time not known yet")
        st.caption(found.basis)
        return
    low, high = span(found.seconds_low), span(found.seconds_high)
    color, light = _light(found.seconds_high)
    st.markdown(f":{color}[:material/circle:] {light}")
    st.metric("Time", low if low == high else f"{low} – {high}", help=word("estimate"))
    sizes = [
        f"{name} about {_size(mb)}"
        for name, mb in (("Memory", found.memory_mb), ("disk", found.disk_mb))
        if mb is not None
    ]
    st.caption(" · ".join(sizes))
    st.caption(found.basis)
    if found.seconds_high > GREEN:
        st.caption(" ".join(found.knobs))


def _light(seconds: float) -> tuple[str, str]:
    if seconds <= GREEN:
        return "green", "Quick: under a minute"
    if seconds <= AMBER:
        return "orange", "A few minutes"
    return "red", "Long: leave it running"


def _size(mb: float) -> str:
    return f"{mb / 1000:.1f} GB" if mb >= 1000 else f"{mb:.0f} MB"
