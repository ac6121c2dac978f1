"""What if some layers stayed in float? The table with ticks, and the run that answers."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from qlib import jobs, store
from qlib.core.records import InvalidSpec, RunRecord, RunSpec
from qlib.core.scores import accurate, score
from qlib.jobs import Job
from qlib.jobs.estimate import estimate
from qlib.measure import paired
from qlib.measure.statistics import p_text
from qlib.plots.layers import damage
from qlib.store import Finished
from qlib.ui.sensitivity import text as blame
from qlib.ui.sensitivity.page import Found
from qlib.ui.shared import answers, job_panel, state
from qlib.ui.shared.address import Session
from qlib.ui.shared.glossary import word
from qlib.ui.shared.timeline import span

KEEP = "s_keep"  # the ticked layers, in the address
TABLE = "s-table"
TICK = "Keep in float"
URL = "query-params"


def table(found: Found, order: Sequence[str]) -> pd.DataFrame:
    """The rows of the table, layers in ``order``, without the ticks; also the data to export."""
    rows, data = found.rows, found.view.data
    asked = {
        "KL alone": damage.measured(rows, "alone", "kl", layers=found.layers),
        "KL won back": damage.measured(rows, "left_out", "kl", layers=found.layers),
        "Top-1 lost": damage.measured(rows, "alone", "top1", layers=found.layers),
        "Own SQNR": damage.compared(found.table, "local", "sqnr", data),
        "Accumulated": damage.compared(found.table, "accumulated", "sqnr", data),
    }
    values = {name: {v.layer: v.value for v in p.values} for name, p in asked.items()}
    named = {r["layer"]: r for r in found.layers}
    lines = []
    for layer in order:
        line = {"Shown": "▶" if layer == found.view.layer else "", "Layer": layer}
        flagged = blame.flags(layer, asked)
        line |= {"Flags": "in float" if layer in found.kept else flagged}
        line |= {name: values[name].get(layer) for name in asked}
        lines.append(line | {"Block": named[layer]["unit"], "Kind": named[layer]["kind"]})
    return pd.DataFrame(lines)


def section(found: Found, order: Sequence[str]) -> pd.DataFrame:
    """Table with search and ticks, then what keeping the ticked layers in float gives."""
    st.subheader("What if some layers stayed in float?", anchor=False)
    free = [name for name in order if name not in found.kept]
    one, two = st.columns([3, 5], gap="medium")
    with one:
        search = st.text_input(
            "Search layers", key="s_find", bind=URL, placeholder="for example fc2 or blocks.3"
        )
    with two:
        ticked = st.multiselect(
            "Layers to keep in float", free, key=KEEP, bind=URL,
            placeholder="Tick them in the table or choose them here",
        )  # fmt: skip
    whole = table(found, order)
    shown = whole.loc[whole["Layer"].str.contains(search.strip(), case=False, regex=False)]
    _editor(shown, ticked, found.kept)
    st.caption(
        "Flags name their column: a tenth of the whole network's damage, or an error of a tenth of "
        "the signal's power (10 dB). ▶ marks the layer that all pages show."
    )
    if ticked:
        _what_if(found, ticked)
    return whole


def _editor(shown: pd.DataFrame, ticked: Sequence[str], kept: Sequence[str]) -> None:
    """The table; its ticks and the list above it say the same."""
    if shown.empty:
        st.info("No layer's name has these letters.", icon=":material/search_off:")
        return
    layers = list(shown["Layer"])
    key, start = _base(st.session_state, layers, set(ticked))
    marked = shown.assign(**{TICK: [name in start for name in layers]})
    number = st.column_config.NumberColumn
    st.data_editor(
        marked,
        key=key,
        hide_index=True,
        column_order=[c for c in ("Shown", "Layer", TICK, *shown.columns[2:-2])],
        height=min(420, 38 + 35 * len(layers)),
        disabled=[c for c in marked.columns if c != TICK],
        on_change=tick,
        args=(key, layers, start),
        column_config={
            "Shown": st.column_config.TextColumn("", width=28, help="The layer of all pages."),
            "Layer": st.column_config.TextColumn(width=150),
            "Flags": st.column_config.TextColumn(width=180),
            "KL alone": number(format="%.2g", width=85, help="nats, only this layer quantized"),
            "KL won back": number(format="%.2g", width=95, help="nats, all but this layer"),
            "Top-1 lost": number(format="%.1f", width=85, help="points, only this layer quantized"),
            "Own SQNR": number(format="%.1f dB", width=85, help=word("local error")),
            "Accumulated": number(format="%.1f dB", width=95, help=word("accumulated error")),
            TICK: st.column_config.CheckboxColumn(width=100, help="Tick, then run it below."),
        },
        alt="All layers with their damage and errors",
    )


def _base(session: MutableMapping, layers: Sequence[str], ticked: set[str]) -> tuple[str, set]:
    """The key of the table and the ticks that it starts with.

    A table that is given other data forgets where it was scrolled to; so as long as its own ticks
    say the same as the list, it keeps its key and the ticks it started with.
    """
    known = session.get("s-base")
    here = set(layers)
    if known and known["layers"] == list(layers) and known["now"] & here == ticked & here:
        return known["key"], known["start"]
    number = known["number"] + 1 if known else 0
    key = f"{TABLE}-{number}"
    session["s-base"] = {
        "number": number, "key": key, "layers": list(layers), "start": ticked, "now": ticked
    }  # fmt: skip
    return key, ticked


def tick(
    key: str,
    layers: Sequence[str],
    start: set[str],
    session: Session = st.session_state,
) -> None:
    """Ticks in the table change the list of layers, which is kept in the address."""
    now = set(session[KEEP]) - set(layers) | start & set(layers)
    for row, change in session[key]["edited_rows"].items():
        if TICK in change:
            now = now | {layers[int(row)]} if change[TICK] else now - {layers[int(row)]}
    session["s-base"]["now"] = now
    kept = [name for name in layers if name in now]
    session[KEEP] = [name for name in session[KEEP] if name in now and name not in layers] + kept


# ---- the run ---------------------------------------------------------------------------------


def spec_with(base: RunSpec, layers: Sequence[str]) -> RunSpec:
    """The same run with these layers in float as well."""
    return replace(base, keep_float=tuple(sorted({*base.keep_float, *layers})))


def _what_if(found: Found, ticked: Sequence[str]) -> None:
    """The answer where it is known; else its progress, or what it costs and the button."""
    base = found.view.record
    spec = spec_with(base.spec, ticked)
    entry = store.find(spec, [store.runs_dir(), store.demo_dir()])
    if entry is not None:
        _answer(found, entry, ticked)
        return
    job = _job(spec)
    with st.container(border=True, key="s-what-if"):
        if job is not None and not job.over:
            st.markdown(f"The run with {_layers(ticked)} in float is {job.state}.")
        else:
            if job is not None:
                st.warning(f"This run {job.state}. {job.message}", icon=":material/warning:")
            st.markdown(
                f"A run with the same settings, and {_layers(ticked)} in float. {_cost(spec)}"
            )
            if "s-refused-run" in st.session_state:
                st.error(st.session_state.pop("s-refused-run"), icon=":material/error:")
            st.button(
                f"Run with {len(ticked)} layer{'s' * (len(ticked) > 1)} in float",
                type="primary", icon=":material/play_arrow:", key="s-run", on_click=_submit,
                args=(spec,),
            )  # fmt: skip
        if job is not None:
            st.page_link(
                "pages/3_Run.py", label="Open its progress", icon=":material/play_circle:",
                query_params={"job": job.key},
            )  # fmt: skip


def _submit(spec: RunSpec) -> None:
    try:
        job_panel.queue(spec)
    except InvalidSpec as error:
        st.session_state["s-refused-run"] = str(error)


def _job(spec: RunSpec) -> Job | None:
    try:
        return jobs.status(spec.key, store.runs_dir())
    except InvalidSpec:
        return None


def _cost(spec: RunSpec) -> str:
    found = estimate(spec, [e.record for e in state.everything().values()])
    if found.seconds_low is None or found.seconds_high is None:
        return "How long it takes is not known yet."
    low, high = span(found.seconds_low), span(found.seconds_high)
    return f"It takes about {low}." if low == high else f"It takes about {low} to {high}."


def _layers(names: Sequence[str]) -> str:
    if len(names) > 3:
        return f"{len(names)} layers"
    return " and ".join(f"`{n}`" for n in names)


def _answer(found: Found, entry: Finished, ticked: Sequence[str]) -> None:
    """Accuracy before and after with intervals, and the same images paired."""
    base, other = found.view.record, entry.record
    with st.container(border=True, key="s-answer"):
        st.markdown(f"**With {_layers(ticked)} in float** · {verdict(base, other)}")
        try:
            st.markdown(pairs(found, entry))
        except InvalidSpec as error:
            st.warning(str(error), icon=":material/broken_image:")
        st.caption(f"{answers.source_line(other)}.")
        with st.container(horizontal=True):
            st.page_link(
                "pages/5_Sensitivity.py", label="Look at that run here",
                icon=":material/troubleshoot:", query_params={"run": entry.key},
            )  # fmt: skip
            titles = state.titles()
            names = [answers.handle(r, titles) for r in (base, other)]
            st.page_link(
                "pages/9_Compare.py", label="Compare both runs", icon=":material/balance:",
                query_params={"runs": names},
            )  # fmt: skip


def verdict(base: RunRecord, other: RunRecord) -> str:
    """A sentence with both accuracies and their intervals."""
    size = other.metrics["weight_mb"] - base.metrics["weight_mb"]
    return (
        f"{_scores(other, base)} KL to float {other.metrics['kl']:.2g} nats, "
        f"before {base.metrics['kl']:.2g}. The weights take {size:+.3f} MB."
    ).replace("-0.000", "+0.000")


def _scores(other: RunRecord, base: RunRecord) -> str:
    """Both runs' scores with their intervals, and the float network's where it has one."""
    after, before = score(other.metrics), score(base.metrics)
    if after is None or before is None:
        return ""
    name = "top-1" if accurate(other.metrics) else after.name
    told = (
        f"{name} {after.text(after.value)} (95 %: {after.interval}), before "
        f"{before.text(before.value)} ({before.interval})"
    )
    in_float = f"; float {before.text(before.reference)}" if before.reference is not None else ""
    return f"{told}{in_float}."


def pairs(found: Found, entry: Finished) -> str:
    """How many of the same images each run alone has right, and whether chance explains it.

    Raises:
        InvalidSpec: predictions are missing, damaged, or of other images.
    """
    base, other = found.view.record, entry.record
    runs: Mapping[str, Any] = {
        key: paired.checked(state.preds(folder), key)
        for key, folder in ((base.spec.key, found.view.folder), (entry.key, entry.folder))
    }
    pair = paired.between(other, runs[entry.key], base, runs[base.spec.key])
    low, high = pair.interval
    text = (
        f"Of the same {pair.n:,} images, {pair.first} became right and {pair.second} became wrong: "
        f"{pair.difference:+.1f} points (95 %: {low:+.1f} to {high:+.1f}, {p_text(pair.p)})."
    ).replace("-", "−")
    if low <= 0 <= high:
        return f"{text} **These images cannot tell the two runs apart.**"
    return f"{text} **{'It helps.' if pair.first > pair.second else 'It hurts.'}**"
