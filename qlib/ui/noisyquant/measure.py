"""The noise analysis as a job of the page: its offer, progress and end."""

import pandas as pd
import streamlit as st

from qlib.core.records import RunSpec
from qlib.jobs import Job
from qlib.noise import profile as noise_profile
from qlib.ui.noisyquant.data import Found
from qlib.ui.shared import frame, job_panel, state
from qlib.ui.shared.timeline import span

WATCH = "n-watch"


def job_of(found: Found) -> Job | None:
    """The job that measures this network, if one was ever started and is still known."""
    if found.profile is not None:
        return None
    return job_panel.known(noise_profile.spec_of(found.spec))


def panel(found: Found) -> None:
    """Show the offer, progress or end of the analysis. Call it on every run of the page.

    The fragment renews itself only while the job goes on; when its state changes the page runs
    once more.
    """
    job = job_of(found)
    job_panel.watch(_watch, found, job, WATCH)


def _watch(found: Found, seen: str) -> None:
    if found.profile is not None:
        return
    job = job_of(found)  # again: the fragment runs alone, after its own button too
    job_panel.moved(job, seen)
    if job is not None and not job.over:
        _running(job)
        return
    if job is not None and job.state != "done":
        _ended(job)
    _offer(found, again=job is not None)


def _offer(found: Found, again: bool) -> None:
    """Why there is nothing yet, what it would cost, and the button."""
    if found.problem:
        st.warning(found.problem, icon=":material/broken_image:")
    with st.container(border=True, key="n-offer"):
        st.markdown(
            f"**Nobody has measured noise in `{found.spec.network}` yet.** Each linear layer is "
            "looked at alone, everything else in float: at 3 to 8 bits, with 31 reaches of the "
            "noise and three draws of it, on calibration images and on held-out ones. One analysis "
            "serves all methods and bit-widths of this network."
        )
        st.caption(cost(found))
        job_panel.refusal("n")
        st.button(
            "Measure it again" if again else "Measure it",
            type="primary",
            icon=":material/grain:",
            key="n-measure",
            on_click=start,
            args=(found.spec,),
            help="Runs in the background; you can leave the page.",
        )


def cost(found: Found) -> str:
    """The time that earlier analyses of the same network took here, in words."""
    records = [e.record for shelf in (state.own(), state.demo()) for e in shelf.analyses]
    same = [
        float(r.seconds["total"])
        for r in records
        if (r.spec.model, r.spec.analysis, r.spec.device)
        == (found.spec.model, noise_profile.NOISE, found.spec.device)
    ]
    if not same:
        return "How long it takes is not known yet; on the digits networks it is seconds."
    return f"For this network that took {span(min(same))} before."


def start(spec: RunSpec) -> None:
    """Queue the noise analysis that serves a run."""
    job_panel.submit(noise_profile.spec_of(spec), "n")


def _running(job: Job) -> None:
    job_panel.waiting(job)
    rows = noise_profile.partial(job.folder)
    job_panel.bar(job, *progress(rows), "n", lost="What is measured so far stays to be seen.")
    _so_far(rows)


def progress(rows: list[dict]) -> tuple[float, str]:
    """Progress of the job: the share done and a sentence."""
    if not rows:
        return 0.0, "Preparing: loading the network, collecting the rows of its layers"
    done, of = int(rows[-1]["index"]), int(rows[-1]["of"] or 0)
    return (min(1.0, done / of) if of else 0.0), f"{done} of {of} measurements"


def _so_far(rows: list[dict]) -> None:
    """What is measured: how much of each layer's output error is left at the searched reach."""
    if not rows:
        return
    helped = sum(row["left"] < 1 for row in rows)
    st.caption(f"So far noise lowers the error in {helped} of {len(rows)} measurements.")
    body = [{"layer": r["layer"], "bits": r["bits"], "error left": r["left"]} for r in rows]
    frame.data_table("measured so far", pd.DataFrame(body))


def _ended(job: Job) -> None:
    """What happened to an analysis that did not finish, with what it had measured."""
    said = job_panel.MEASUREMENT[job.state]
    rows = noise_profile.partial(job.folder)
    kept = f" It had made {len(rows)} measurements." if rows else ""
    st.warning(f"**{said}** {job.message}{kept}", icon=":material/warning:")
    _so_far(rows)
