"""The one run that the Bits page lacks: the offer to start it, its progress, how it ended."""

from dataclasses import dataclass, replace

import streamlit as st

from qlib import jobs, store
from qlib.core import catalogue, specs
from qlib.core.records import InvalidSpec, RunSpec, network_name
from qlib.jobs import Job
from qlib.jobs.estimate import estimate
from qlib.ui.bits.measured import switchable
from qlib.ui.bits.view import Shown
from qlib.ui.shared import job_panel, progress, state, timeline
from qlib.ui.shared.timeline import span


@dataclass(frozen=True)
class Wanted:
    """A run that the page offers to start: why, and the text of its button."""

    spec: RunSpec
    why: str
    label: str


def wanted(shown: Shown) -> Wanted | None:
    """The run to offer: the chosen unmeasured cell, else the missing network of many widths.

    None where nothing is missing, or the live network measures it without a run.
    """
    if shown.cell is None:
        return None if switchable(shown) else _of_cell(shown)
    if shown.many is None:
        return _of_many(shown)
    return None


def _of_cell(shown: Shown) -> Wanted | None:
    (w, a), base = shown.pair, shown.entry.record.spec
    spec = _checked(replace(base, weight_bits=w, act_bits=a))
    if spec is None:
        return None
    title, label = shown.track.title, shown.label
    why = f"**{label} of {title} is not measured.** A run with the settings of the others does it."
    if shown.track.one:
        why = (
            f"**{label} of {title} is not measured.** The stored network was not asked for these "
            "widths. A run with these bits as its own learns the network again, and measures them."
        )
    return Wanted(spec, why, f"Compute {label}")


def _of_many(shown: Shown) -> Wanted | None:
    method, base = catalogue.many_widths(), shown.track.near((4, 4)).record.spec
    if method is None:
        return None
    title = state.titles()[method]
    spec = _checked(
        replace(base, method=method, weight_bits=4, act_bits=4, settings={}, keep_float=())
    )
    why = (
        "**No network with many bit-widths is stored for this backbone.** Each line above is a run "
        f"for each width. {title} learns one rounding for all widths together; then one stored "
        "model is switched between them."
    )
    return Wanted(spec, why, f"Queue {title} for {network_name(shown.model)}") if spec else None


def _checked(spec: RunSpec) -> RunSpec | None:
    try:
        return specs.checked(spec)
    except InvalidSpec:
        return None


def panel(shown: Shown) -> None:
    """Show the offer, the progress or the end of the run. Call it on every run of the page.

    The fragment renews itself only while the job goes on; when its state changes the page runs
    once more.
    """
    asked = wanted(shown)
    job = _job(asked)
    job_panel.watch(_watch, asked, job, "b-watch")


def _job(asked: Wanted | None) -> Job | None:
    return None if asked is None else job_panel.known(asked.spec)


def _watch(asked: Wanted | None, seen: str) -> None:
    if asked is None:
        return
    job = _job(asked)  # again: the fragment runs alone, after its own button too
    job_panel.moved(job, seen)
    with st.container(border=True, key="b-offer"):
        if job is not None and not job.over:
            _running(job)
            return
        if job is not None and job.state != "done":
            said = {"cancelled": "was cancelled", "failed": "was refused", "crashed": "died"}
            st.warning(f"This run {said[job.state]}. {job.message}", icon=":material/warning:")
        _offer(asked, again=job is not None)


def _offer(asked: Wanted, again: bool) -> None:
    st.markdown(asked.why)
    st.caption(_cost(asked.spec))
    job_panel.refusal("b")
    st.button(
        f"{asked.label} again" if again else asked.label,
        type="primary",
        icon=":material/play_arrow:",
        key="b-queue",
        on_click=start,
        args=(asked.spec,),
        help="Runs in the background; you can leave the page.",
    )


def _cost(spec: RunSpec) -> str:
    found = estimate(spec, [e.record for e in state.everything().values()])
    if found.seconds_low is None or found.seconds_high is None:
        return f"How long it takes is not known yet. {found.basis}"
    low, high = span(found.seconds_low), span(found.seconds_high)
    told = f"about {low}" if low == high else f"{low} to {high}"
    return f"It takes {told}. {found.basis}"


def start(spec: RunSpec) -> None:
    """Queue the run."""
    job_panel.submit(spec, "b")


def _running(job: Job) -> None:
    job_panel.waiting(job)
    events = jobs.events(job.key, store.runs_dir())
    line = timeline.read(events, learns=progress.learns(job))
    st.html(progress.stages(line))
    left = f" · about {span(line.left)} left in this round" if line.left is not None else ""
    lost = "Stops at the next step. Nothing of the run is published."
    job_panel.bar(job, line.share, line.text + left, "b", lost=lost)
    st.page_link(
        "pages/3_Run.py", label="Open its progress", icon=":material/play_circle:",
        query_params={"job": job.key},
    )  # fmt: skip
