"""The sensitivity measurement as a job of the page: its offer, progress and end."""

from collections.abc import Sequence

import streamlit as st

from qlib import store
from qlib.jobs import Job
from qlib.plots.layers import damage, layer_profile
from qlib.plots.layers.damage import Row
from qlib.plots.shared import theme
from qlib.sensitivity import profile
from qlib.ui.sensitivity import text as blame
from qlib.ui.sensitivity.page import Found, look
from qlib.ui.shared import job_panel, state
from qlib.ui.shared.timeline import span

WATCH = "s-watch"


def job_of(found: Found) -> Job | None:
    """The job that measures this run's layers, if one was ever started and is still known."""
    if found.rows:
        return None
    return job_panel.known(profile.spec_of(found.view.record.spec))


def panel(found: Found) -> None:
    """Show the offer, progress or end of the measurement. Call it on every run of the page.

    The fragment renews itself only while the job goes on; when its state changes the page runs
    once more.
    """
    job = job_of(found)
    job_panel.watch(_watch, found, job, WATCH)


def _watch(found: Found, seen: str) -> None:
    if found.rows:
        return
    job = job_of(found)  # again: the fragment runs alone, after its own button too
    job_panel.moved(job, seen)
    if job is not None and not job.over:
        _running(found, job)
        return
    if job is not None and job.state != "done":
        _ended(found, job)
    _offer(found, again=job is not None)


def _offer(found: Found, again: bool) -> None:
    """Why there is nothing yet, what it would cost, and the button."""
    if found.problem:
        st.warning(found.problem, icon=":material/broken_image:")
    with st.container(border=True, key="s-offer"):
        st.markdown(
            "**Nobody has measured the layers of this run yet.** To know which layer is to blame, "
            "each one is quantized alone, and each one is left alone in float, and the answers of "
            "the network are compared. The errors below are stored already."
        )
        st.caption(blame.cost(found.table, seconds(found)))
        job_panel.refusal("s")
        st.button(
            "Measure it again" if again else "Measure it",
            type="primary",
            icon=":material/troubleshoot:",
            key="s-measure",
            on_click=start,
            args=(found.view.record.spec,),
            help="Runs in the background; you can leave the page.",
        )


def seconds(found: Found) -> list[float]:
    """Durations of finished profiles of the same backbone on the same device."""
    spec = found.view.record.spec
    records = [e.record for e in state.analyses().values()]
    same = [r for r in records if (r.spec.model, r.spec.device) == (spec.model, spec.device)]
    return [float(r.seconds["total"]) for r in same]


def start(spec) -> None:
    """Queue the measurement of a run."""
    job_panel.submit(profile.spec_of(spec), "s")


def _running(found: Found, job: Job) -> None:
    job_panel.waiting(job)
    rows = profile.partial(job.folder)
    job_panel.bar(job, *progress(rows, job), "s", lost="What is measured so far stays to be seen.")
    _so_far(found, rows)


def progress(rows: Sequence[Row], job: Job) -> tuple[float, str]:
    """Progress of the job: the share done and a sentence.

    Share done and a sentence; time left only from what this job has measured.
    """
    if not rows:
        return 0.0, "Preparing: loading the network and its quantizers"
    done, of = int(rows[-1]["index"]), int(rows[-1]["of"] or 0)
    text = f"{done} of {of} measurements"
    times = [e["t"] for e in store.events(job.folder) if e["phase"] == "profile" and not e["steps"]]
    if len(times) > len(damage.WHOLE) and of:
        each = (times[-1] - times[0]) / (len(times) - 1)
        text += f", about {span(each * (of - done))} left"
    return (min(1.0, done / of) if of else 0.0), text


def _so_far(found: Found, rows: Sequence[Row]) -> None:
    """The profile as far as it is measured: each layer alone; the rest is dotted."""
    spec = found.view.record.spec
    made = damage.measured(
        rows,
        "alone",
        "kl",
        layers=found.layers,
        kept=found.kept,
        method=spec.method,
        title=state.titles().get(spec.method, spec.method),
    )
    if not made.known:
        return
    info = layer_profile.info([made])
    st.plotly_chart(
        layer_profile.figure(info, chosen=found.view.layer, **look()),
        key="s-partial",
        config=theme.config(f"{spec.key}_partial"),
        alt=layer_profile.alt(info),
    )
    st.caption("Each layer quantized alone, as far as it is measured. Dotted: not measured.")


def _ended(found: Found, job: Job) -> None:
    """What happened to a measurement that did not finish, with what it had measured."""
    said = job_panel.MEASUREMENT[job.state]
    rows = profile.partial(job.folder)
    kept = f" It had made {len(rows)} measurements; they are shown here." if rows else ""
    st.warning(f"**{said}** {job.message}{kept}", icon=":material/warning:")
    _so_far(found, rows)
