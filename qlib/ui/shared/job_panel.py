"""Jobs started from a page: find one, queue it, show it wait and run.

``prefix`` begins the keys of a page's widgets, so that two panels never share one.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import streamlit as st

from qlib import jobs, store
from qlib.core.records import InvalidSpec, RunSpec
from qlib.jobs import Job
from qlib.ui.shared import own_code

About = TypeVar("About")
EVERY = 1.0  # seconds between looks at a running job
MEASUREMENT = {  # how one that did not finish ended
    "cancelled": "The measurement was cancelled.",
    "failed": "The measurement was refused.",
    "crashed": "The measurement's process died.",
}


def known(spec: RunSpec) -> Job | None:
    """The job of a specification, if one was ever started and is still known."""
    with suppress(InvalidSpec):
        return jobs.status(spec.key, store.runs_dir())
    return None


def watch(look: Callable[[About, str], None], about: About, job: Job | None, key: str) -> None:
    """Draw ``look(about, state of the job)`` in a fragment; it renews itself while the job goes on.

    ``look`` begins with `moved`, so that the page runs once more when the state has changed.
    """
    live = job is not None and not job.over
    fragment = st.fragment(look, run_every=EVERY if live else None, key=key)
    fragment(about, job.state if job else "")


def moved(job: Job | None, seen: str) -> None:
    """Rerun the page if the job has left the state that the page was drawn for."""
    if (job.state if job else "") != seen:
        st.rerun()


def refusal(prefix: str) -> None:
    """Show, once, why the last press of the button queued nothing."""
    if f"{prefix}-refused" in st.session_state:
        st.error(st.session_state.pop(f"{prefix}-refused"), icon=":material/error:")


def queue(spec: RunSpec) -> Job:
    """Queue a job: the only way from a page to a process.

    Raises:
        InvalidSpec: as `qlib.jobs.submit`; or it would run code that this visitor may not run.
    """
    own_code.check(spec)
    return jobs.submit(spec, store.runs_dir())


def submit(spec: RunSpec, prefix: str) -> None:
    """Queue a job for a button; a refusal is kept for `refusal`."""
    try:
        queue(spec)
    except InvalidSpec as error:
        st.session_state[f"{prefix}-refused"] = str(error)


def waiting(job: Job) -> None:
    """Show a queued job's place in the queue."""
    if job.state == "queued":
        ahead = "the next to start" if job.place <= 1 else f"place {job.place} in the queue"
        st.info(f"Waiting: {ahead}. One run works at a time.", icon=":material/hourglass_top:")


def bar(job: Job, share: float, text: str, prefix: str, *, lost: str) -> None:
    """Show a job's progress and the button that stops it; ``lost``: what then becomes of it."""
    with st.container(horizontal=True, vertical_alignment="center", key=f"{prefix}-progress"):
        st.progress(share, text=text)
        st.button(
            "Cancel",
            icon=":material/stop_circle:",
            disabled=job.state == "cancelling",
            on_click=_cancel,
            args=(job.key,),
            help=lost,
            key=f"{prefix}-cancel",
        )


def _cancel(key: str) -> None:
    with suppress(InvalidSpec):  # it ended, or its folder went, between the look and the click
        jobs.cancel(key, store.runs_dir())
