"""Loss and soft rounding of a unit while it is, or was, fitted; renewed live in one fragment."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from qlib import jobs, store
from qlib.core.records import InvalidSpec, RunRecord
from qlib.jobs import Job
from qlib.plots.reconstruction import soft_rounding, unit_loss
from qlib.plots.reconstruction.soft_rounding import SoftRounding
from qlib.plots.reconstruction.unit_fits import fitted_as
from qlib.plots.reconstruction.unit_loss import UnitLoss
from qlib.plots.shared import theme
from qlib.store import Finished
from qlib.ui.reconstruction.page import Shown, unit_of
from qlib.ui.shared import address, export, frame, state
from qlib.ui.shared.context import View
from qlib.ui.shared.glossary import word

EVERY = 2.0  # seconds between looks at a running job
STEP = "r_step"

Events = dict[str, list[dict[str, Any]]]


def panel(view: View, shown: Shown | None, others: Mapping[str, Finished]) -> None:
    """Show how the unit was fitted.

    Call it on every run of the page, also where there is nothing to show (``shown`` None).

    While a job with the run's own network, method and bits works, the curves are that job's; only
    then does the fragment renew itself.
    """
    job = live(view.record) if shown else None
    watch = st.fragment(_watch, run_every=EVERY if job else None, key="r_fit")
    watch(view, shown, others, job.key if job else "")


def live(record: RunRecord) -> Job | None:
    """The running job with the network, the method and the bits of a run."""
    try:
        queued = jobs.list_jobs(store.runs_dir())
    except InvalidSpec:  # the runs folder cannot be written: there is no queue
        return None
    mine = _kind(record)
    working = (j for j in queued if j.state in ("running", "cancelling"))
    return next((j for j in working if _kind(j) == mine), None)


def _kind(of: RunRecord | Job) -> tuple:
    spec = of.spec
    return spec.model, spec.method, spec.weight_bits, spec.act_bits, spec.analysis


def _watch(view: View, shown: Shown | None, others: Mapping[str, Finished], key: str) -> None:
    if shown is None:
        return
    events = {m: state.events(others[m].folder) for m in shown.methods}
    if key:
        job = live(view.record)
        if job is None or job.key != key:
            st.rerun()
        fresh = jobs.events(key, store.runs_dir())
        begun = [e["unit"] for e in fresh if e["phase"] == "reconstruct"]
        reached = bool(fitted_as(view.layer, unit_of(view), begun))
        if reached:
            events[view.record.spec.method] = fresh
        _now(key, "its loss is shown" if reached else _waiting(begun))
    curve = _loss(view, shown, events)
    soft = _soft(view, events, key)
    records = [others[m].record for m in shown.methods]
    if curve is not None:
        _data("of the loss", curve[0], losses(curve[1]), records, unit_loss.alt(curve[1]))
    if soft is not None:
        alt = soft_rounding.alt(soft[1])
        _data("of the soft rounding", soft[0], softs(soft[1]), records[:1], alt)


def _data(
    name: str, figure: go.Figure, numbers: pd.DataFrame, records: list[RunRecord], alt: str
) -> None:
    with st.container(horizontal=True):
        export.menu(
            name.removeprefix("of the ").replace(" ", "_"), figure, numbers, records, alt=alt
        )
        frame.data_table(name, numbers)


def _waiting(begun: list[str]) -> str:
    where = f"it is at `{begun[-1]}`" if begun else "it is not learning yet"
    return f"{where} and has not come to this unit, so the stored loss is shown"


def _now(key: str, said: str) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge("live", icon=":material/progress_activity:", color="blue")
        st.page_link("pages/3_Run.py", label="Open the job", query_params={"job": key})
    st.caption(f"A run of this method and these bits is working now: {said}.")


def _loss(view: View, shown: Shown, events: Events) -> tuple[go.Figure, UnitLoss] | None:
    info = unit_loss.info(
        events, view.layer, unit_of(view), titles=state.titles(), smooth="smooth" in shown.look
    )
    if info.main is None:
        st.info(f"No loss is stored for the unit of `{view.layer}`.", icon=":material/history:")
        return None
    figure = unit_loss.figure(
        info,
        dark=state.dark(),
        large=state.presenting(),
        log="log" in shown.look,
        penalty="penalty" in shown.look,
    )
    st.plotly_chart(
        figure,
        key="r_loss",
        config=theme.config(f"{view.entry.key}_loss"),
        alt=unit_loss.alt(info),
    )
    st.caption(_under(info))
    return figure, info


def _under(info: UnitLoss) -> str:
    """What to know when reading the curves; more where methods fit units of different sizes."""
    text = word("start of the loss")
    if info.tracks[0].unit in info.broken:
        text = "This unit diverged: try a smaller learning rate. Other units are shown as they are."
    if len({t.unit for t in info.tracks}) > 1:
        text += " Methods that fit layers and blocks have losses of different size: compare shapes."
    return text


def losses(info: UnitLoss) -> pd.DataFrame:
    """One row per method, round and kept step."""
    return pd.DataFrame(
        {
            "Method": track.title,
            "Unit": fit.unit,
            "Round": fit.round,
            "Step": step,
            "Loss": loss,
            "Penalty": penalty,
        }
        for track in info.tracks
        for fit in track.fits
        for step, loss, penalty in zip(fit.step, fit.loss, fit.penalty, strict=True)
    )


def _soft(view: View, events: Events, job: str) -> tuple[go.Figure, SoftRounding] | None:
    method = view.record.spec.method
    asked = "" if job else st.query_params.get(STEP, "")
    step = int(asked) if asked.isdecimal() else None
    info = soft_rounding.info(events[method], view.layer, unit_of(view), method=method, step=step)
    if not info.snapshots:
        st.info(_why_not(method, events[method]), icon=":material/history:")
        return None
    figure = soft_rounding.figure(info, dark=state.dark(), large=state.presenting())
    st.plotly_chart(
        figure,
        key="r_soft",
        config=theme.config(f"{view.entry.key}_soft_rounding"),
        alt=soft_rounding.alt(info),
    )
    if len(info.steps) > 1 and not job:  # steps that are still coming cannot be slid over
        st.session_state[STEP] = info.chosen.step
        st.select_slider(
            "Step shown at the right",
            info.steps,
            key=STEP,
            on_change=_stepped,
            args=(info.steps[-1],),
            help=word("soft rounding"),
        )
    return figure, info


def _stepped(last: int) -> None:
    """The address tells a step that is not the last one."""
    step = st.session_state[STEP]
    address.put({STEP: None if step == last else str(step)})


def _why_not(method: str, events: Sequence[Mapping[str, Any]]) -> str:
    title = state.titles().get(method, method)
    if any(e.get("flipped") is not None for e in events):  # it was looked at, and nothing was soft
        return f"{title} had no soft rounding here: its weights were rounded hard all along."
    if not any(e.get("phase") == "reconstruct" for e in events):
        return f"{title} learned nothing here, so nothing chose its side step by step."
    return (
        "This run was stored without pictures of soft rounding, which not every method has. Run "
        "it again to see whether, and how, the weights choose their sides."
    )


def softs(info: SoftRounding) -> pd.DataFrame:
    """One row per snapshot: what has chosen a side, and the share in each bin of h."""
    bins = len(info.snapshots[0].shares)
    return pd.DataFrame(
        {
            "Step": s.step,
            "Decided (%)": 100 * s.decided,
            "Moved (%)": None if s.flipped is None else 100 * s.flipped,
            **{f"h {i / bins:.2f}": 100 * share for i, share in enumerate(s.shares)},
        }
        for s in info.snapshots
    )
