"""A job as it runs: stages, live loss, time left, memory, events, Cancel. One timed fragment."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import streamlit as st

from qlib import jobs, store
from qlib.core import catalogue
from qlib.core.records import InvalidSpec
from qlib.jobs import Job
from qlib.plots.reconstruction import loss_curve
from qlib.plots.shared import theme
from qlib.ui.shared import analyses, answers, cards, findings, job_panel, state, timeline
from qlib.ui.shared.glossary import word
from qlib.ui.shared.timeline import Timeline, span

Color = Literal["blue", "green", "gray", "orange", "red"]
COLORS: dict[str, Color] = {
    "running": "blue",
    "done": "green",
    "queued": "gray",
    "cancelling": "orange",
}
LOGGED = 300  # newest events listed


def panel(job: Job | None) -> None:
    """Show the job of the address, if any. Call it on every run of the page, job or not.

    The fragment renews itself only while the job goes on; when its state changes the page runs
    once more.
    """
    every = job_panel.EVERY if job is not None and not job.over else None
    watch = st.fragment(_watch, run_every=every, key="job")
    watch(job.key if job else None, job.state if job else "")


def find(key: str | None) -> tuple[Job | None, str]:
    """The job or finished run called ``key``, own or stored, or a sentence that there is none."""
    if not key:
        return None, ""
    for folder in (store.runs_dir(), store.demo_dir()):
        try:
            return jobs.status(key, folder), ""
        except InvalidSpec:
            continue
    gone = f"There is no run `{key}` here any more. Choose settings below to make one."
    return None, state.problem_of(key) or jobs.problem(key, store.runs_dir()) or gone


def answer(job: Job | None) -> str:
    """The sentence under the page's title about the job."""
    if job is None:
        return (
            "Choose a network, a method and bits. The run works in the background and stays on "
            "disk: closing this page loses nothing."
        )
    if job.over and job.state != "done":
        return "This run did not finish; nothing of it is shown on other pages."
    if job.run_dir is None:
        return "The run works in the background: closing or reloading this page loses nothing."
    if job.spec.analysis:
        return analyses.answer(job.spec)
    try:
        record = store.load(job.run_dir)
    except InvalidSpec:
        return ""
    title = state.titles().get(record.spec.method, record.spec.method)
    return answers.start_answer(record, title)


def _watch(key: str | None, seen: str) -> None:
    if key is None:
        return
    job, _ = find(key)
    if job is None or job.state != seen:
        if job is not None and job.state == "done":
            st.session_state["finished"] = key
        st.rerun()
    _header(job)
    if job.state == "queued":
        job_panel.waiting(job)
    elif job.state in ("running", "cancelling"):
        _running(job)
    elif job.run_dir is not None:
        _done(job, job.run_dir)
    else:
        cards.ended_badly(job)
        _curves(_events(job), finished=True)


def _header(job: Job) -> None:
    spec, titles = job.spec, state.titles()
    with st.container(horizontal=True, vertical_alignment="center", key="job-head"):
        name = f"{titles.get(spec.method, spec.method)} W{spec.weight_bits}A{spec.act_bits}"
        st.subheader(f"{name} on `{spec.network}`", anchor=False, width="content")
        st.badge(job.state, color=COLORS.get(job.state, "red"))
        if not job.over:
            st.button(
                "Cancel",
                icon=":material/stop_circle:",
                disabled=job.state == "cancelling",
                on_click=_cancel,
                args=(job.key,),
                help="Stops at the next step. Nothing of the run is published.",
                key="cancel",
            )


def _cancel(key: str) -> None:
    with suppress(InvalidSpec):  # it ended, or its folder went, between the look and the click
        jobs.cancel(key, store.runs_dir())


def _events(job: Job) -> list[dict[str, Any]]:
    return jobs.events(job.key, job.folder.parents[1])


def learns(job: Job) -> bool:
    """Whether the job's method fits units, step by step."""
    return catalogue.learns(job.spec.method)


def _running(job: Job) -> None:
    events = _events(job)
    line = timeline.read(events, learns=learns(job))
    st.html(stages(line))
    st.progress(line.share, text=line.text + (f" · round {line.round}" if line.round > 1 else ""))
    one, two, three = st.columns(3)
    one.metric("Elapsed", span(_elapsed(job, line)))
    two.metric("Left in this round", _left(line), help=_LEFT)
    three.metric("Memory", f"{line.mb:,.0f} MB" if line.mb else "–")
    _curves(events)
    _log(events)


def _elapsed(job: Job, line: Timeline) -> float:
    return time.time() - job.started if job.started else line.seconds


_LEFT = (
    "Only from units measured in this run, for the units of this round; ranges and the final "
    "test come on top."
)


def _left(line: Timeline) -> str:
    if line.left is not None:
        return f"about {span(line.left)}"
    return "measuring…" if line.stages[line.stage] in ("Load", "Calibrate", "Reconstruct") else "–"


def stages(line: Timeline) -> str:
    """The stages as a row of bars (HTML): done, now with its share, still to come."""
    items = []
    for i, name in enumerate(line.stages):
        look = "done" if i < line.stage else "now" if i == line.stage else "next"
        now = ' aria-current="step"' if look == "now" else ""
        text = name
        if look == "now" and line.of:
            text = f"{name}: unit {line.index} of {line.of}"
        items.append(f'<li class="{look}" style="--qx-share:{line.share:.0%}"{now}>{text}</li>')
    return f'<ol class="qx-stages" aria-label="Stages of the run">{"".join(items)}</ol>'


def _curves(events: list[dict[str, Any]], *, finished: bool = False) -> None:
    curve = loss_curve.info(events, finished=finished)
    if curve.last is None:
        return
    st.plotly_chart(
        loss_curve.figure(curve, dark=state.dark()),
        key="loss-figure",
        config=theme.config("reconstruction_loss"),
        alt=loss_curve.alt(curve),
    )
    st.caption(word("loss"))


def _log(events: list[dict[str, Any]]) -> None:
    with st.expander(f"Events ({len(events)})", icon=":material/receipt_long:", key="event-log"):
        rows = [
            {
                "Second": e.get("t"),
                "Phase": e["phase"],
                "Unit": e.get("unit") or "",
                "Step": e.get("step") or None,
                "Loss": e.get("loss"),
                "Note": e.get("note") or "",
            }
            for e in events[-LOGGED:][::-1]
        ]
        st.dataframe(pd.DataFrame(rows), hide_index=True, height=220, alt="Events of the run")


def _done(job: Job, folder: Path) -> None:
    if st.session_state.pop("finished", None) == job.key:
        st.toast("The run is finished.", icon=":material/task_alt:", duration="short")
    if job.spec.analysis:
        analyses.link(job.spec)
        return
    try:
        record = store.load(folder)
    except InvalidSpec as error:
        st.error(str(error), icon=":material/broken_image:")
        return
    cards.result(record)
    findings.panel(store.Finished(folder, record), open_=True)
    with st.container(horizontal=True):
        st.page_link(
            "pages/9_Compare.py",
            label="Compare it with other runs",
            icon=":material/balance:",
            query_params={"runs": [answers.handle(record, state.titles())]},
        )
    events = _events(job)
    _curves(events, finished=True)
    if events:
        _log(events)
