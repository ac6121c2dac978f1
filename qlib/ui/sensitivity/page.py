"""The Sensitivity page: its controls, what they ask for, and the figures that answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from qlib.core.records import InvalidSpec
from qlib.plots.layers import damage, kind_map, layer_profile, local_accumulated, split_bars
from qlib.plots.layers.damage import Profile, Row
from qlib.plots.shared import theme
from qlib.store import Finished
from qlib.ui.sensitivity import text
from qlib.ui.shared import answers, context, export, frame, state
from qlib.ui.shared.address import Session
from qlib.ui.shared.context import View
from qlib.ui.shared.glossary import word

URL = "query-params"
MODES = {
    "alone": "Only this layer",
    "left_out": "All but this layer",
    "local": "Local error",
    "accumulated": "Accumulated error",
}
METRICS = {"kl": "KL to float", "top1": "Top-1", "agreement": "Agreement", "sqnr": "SQNR"}
ERRORS = {"sqnr": "SQNR", "cosine": "Cosine", "mse": "Relative MSE"}
SPLITS = {"both": "Weights and inputs", "weights": "Weights", "inputs": "Inputs"}
ORDERS = {"network": "Network order", "worst": "Worst first"}
MOST = 2  # methods laid over the one of the bar


@dataclass(frozen=True)
class Ask:
    """What the visitor chose in the controls."""

    mode: str
    metric: str
    split: str
    order: str
    others: tuple[str, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether the question needs a sensitivity run."""
        return self.mode in ("alone", "left_out")


@dataclass(frozen=True)
class Found:
    """The stored data of a run: its profile's rows (or none), and its rows of layers."""

    view: View
    rows: Sequence[Row]
    problem: str = ""

    @property
    def table(self) -> Sequence[Row]:
        """The rows of the run's table of layers."""
        return self.view.record.layers

    @property
    def layers(self) -> list[Row]:
        """One row per layer in network order."""
        order = context.layers_of(self.view.record)
        named = {r["layer"]: r for r in self.table if r["tensor"] != "boundary"}
        return [named[name] for name in order]

    @property
    def kept(self) -> tuple[str, ...]:
        """Layers that the run left in float."""
        return kept_of(self.table)


def kept_of(table: Sequence[Row]) -> tuple[str, ...]:
    """Layers with an output and no rounded tensor."""
    rounded = {r["layer"] for r in table if r["tensor"] != "output" and damage.number(r, "bits")}
    whole = {r["unit"] for r in table if r["tensor"] == "boundary"}
    outputs = [r for r in table if r["tensor"] == "output"]
    return tuple(
        r["layer"] for r in outputs if not {r["layer"]} & rounded and r["unit"] not in whole
    )


def find(view: View) -> Found:
    """The profile of the run that is looked at, if one is finished and readable."""
    entry = context.profile_of(view.record)
    if entry is None:
        return Found(view, [])
    try:
        return Found(view, state.profile(entry.folder))
    except InvalidSpec as error:
        return Found(view, [], str(error))


def controls(view: View) -> Ask:
    """One row: mode, metric, split, order, and methods to lay over."""
    cells = st.columns([10, 9, 11, 9, 12])
    with cells[0]:
        mode = _select("Question", MODES, "s_mode", word("sensitivity"))
    with cells[1]:
        if mode in ("alone", "left_out"):
            metric = _select("Measured as", METRICS, "s_metric", word("KL"))
        else:
            metric = _select("Measured as", ERRORS, "s_error", word("SQNR"))
    with cells[2]:
        fixed = mode not in ("alone", "left_out")
        help = "What is rounded. Errors of outputs are stored for weights and inputs together."
        split = _select("What is rounded", SPLITS, "s_split", help, disabled=fixed)
    with cells[3]:
        order = _select("Order", ORDERS, "s_order", "Order of the layers along the axis.")
    with cells[4]:
        others = _others(view, mode)
    return Ask(mode, metric, "both" if fixed else split, order, others)


def _select(name: str, options: dict[str, str], key: str, help: str, disabled: bool = False) -> str:
    return st.selectbox(
        name, list(options),
        format_func=options.__getitem__, key=key, bind=URL, help=help,
        disabled=disabled, filter_mode=None,
    )  # fmt: skip


def _others(view: View, mode: str) -> tuple[str, ...]:
    """Other methods at the same bits that can be laid over this one."""
    titles, mine = state.titles(), view.record.spec.method
    known = [m for m in dict.fromkeys(e.record.spec.method for e in view.siblings) if m != mine]
    known = [m for m in known if _partner(view, m, mode) is not None]
    return tuple(
        st.multiselect(
            "Lay over",
            known,
            format_func=lambda m: titles.get(m) or m,
            key="s_with",
            bind=URL,
            max_selections=MOST,
            placeholder="another method" if known else "none measured",
            disabled=not known,
            help="The same question asked of other methods at the same bits.",
        )
    )


def _partner(view: View, method: str, mode: str) -> Finished | None:
    """The run of another method at the same bits, if it can answer questions of this mode."""
    entry = context.entry_for(view.siblings, method, answers.bits_label(view.record))
    if entry is None or (
        mode in ("alone", "left_out") and context.profile_of(entry.record) is None
    ):
        return None
    return entry


def profiles(found: Found, ask: Ask) -> list[Profile]:
    """The run's own profile, then those of the other methods; runs that cannot answer are told."""
    own_and_others = [one(found, ask)]
    for method in ask.others:
        entry = _partner(found.view, method, ask.mode)
        if entry is None:  # it went after it was chosen
            continue
        analysed = context.profile_of(entry.record) if ask.measured else None
        try:
            record = state.record(entry.folder)
            rows = state.profile(analysed.folder) if analysed else []
        except InvalidSpec as error:
            st.warning(str(error), icon=":material/broken_image:")
            continue
        other = View(entry, record, found.view.layer, found.view.data, found.view.siblings)
        own_and_others.append(one(Found(other, rows), ask))
    return [p for p in own_and_others if p.values]


def one(found: Found, ask: Ask) -> Profile:
    """The numbers of one run for the question that is asked."""
    record = found.view.record
    title = state.titles().get(record.spec.method, record.spec.method)
    named = {"method": record.spec.method, "title": title, "kept": found.kept}
    if ask.measured:
        return damage.measured(
            found.rows, ask.mode, ask.metric, ask.split, layers=found.layers, **named
        )
    n = images(record, found.view.data)
    return damage.compared(found.table, ask.mode, ask.metric, found.view.data, n=n, **named)


def instant(ask: Ask) -> Ask:
    """The question that can be answered without a profile, from the errors that are stored."""
    return replace(ask, mode="local", metric="sqnr", split="both")


def nothing(found: Found, ask: Ask) -> str:
    """A sentence on why there is no figure."""
    if not ask.measured:
        return text.errors(found.table, found.view.data)
    if found.rows and not damage.ends(found.rows, ask.metric):
        return (
            f"This run has no {METRICS[ask.metric]}: its images have no labels, or its network "
            "gives features. Choose KL to float."
        )
    return "The measurement of this run has no numbers for this question; choose another split."


def images(record, data: str) -> int:
    """How many images the errors of outputs were taken on, where the run says so; else 0."""
    return record.data.get("errors_n_test" if data == "test" else "errors_n", 0)


# ---- figures ---------------------------------------------------------------------------------


def split_clicked(key: str, session: Session = st.session_state) -> None:
    """A click on a bar of the split sets what is rounded; the float bar does nothing."""
    points = session[key]["selection"]["points"]
    data = points[0].get("customdata") if points else None
    if data is not None and data[0] in SPLITS:
        session["s_split"] = data[0]


def show(key: str, figure, alt: str, name: str, on_select=context.clicked_layer) -> None:
    """Show a figure whose marks can be clicked.

    A click changes the address, and the address marks the layer in every figure. The selection in
    the chart itself is lost then, as the figure has changed: so a layer can be clicked again.
    """
    st.plotly_chart(
        figure,
        key=key,
        on_select=lambda: on_select(key),
        selection_mode="points",
        config=theme.config(name),
        alt=alt,
    )


def look() -> dict[str, bool]:
    """The drawing options now: dark or light, desk or room."""
    return {"dark": state.dark(), "large": state.presenting()}


def main_figure(found: Found, info: layer_profile.LayerProfile) -> go.Figure:
    """Show the profile of layers with its small print and the chosen layer's numbers."""
    key, layer = "s-profile", found.view.layer
    figure = layer_profile.figure(info, chosen=layer, **look())
    show(key, figure, layer_profile.alt(info), f"{found.view.record.spec.key}_layers")
    st.markdown(text.chosen(layer, found.rows, found.table, found.view.data))
    first = info.first
    st.caption(f"{text.method_line(first)} {text.ranges_line(first)}")
    return figure


def helpers(found: Found, ask: Ask, first: Profile) -> None:
    """Show the split of weights and inputs beside the map of kinds."""
    left, right = st.columns([4, 5], gap="medium")
    key, record = "s-map", found.view.record
    with right:
        info = kind_map.info(first)
        figure = kind_map.figure(info, chosen=found.view.layer, **look())
        show(key, figure, kind_map.alt(info), f"{record.spec.key}_kinds")
    with left, st.container(key="s-split"):
        if found.rows:
            metric = ask.metric if ask.measured and ask.metric in split_bars.METRICS else "top1"
            if not damage.ends(found.rows, metric):  # no labels, or no answers
                metric = "kl"
            bars = split_bars.info(found.rows, metric=metric, method=record.spec.method)
            figure = split_bars.figure(bars, **look())
            name = f"{record.spec.key}_split"
            show("s-bars", figure, split_bars.alt(bars), name, split_clicked)
            st.caption(
                f"The whole network on {bars.n:,} held-out images. Click a bar to ask the "
                "question above for weights or inputs alone."
            )
            frame.data_table("weights and inputs", split_frame(found.rows))


def split_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The whole network's numbers, one row per split."""
    by_split = damage.ends(rows, "kl")
    columns = ("kl", "top1", "top1_low", "top1_high", "agreement", "sqnr_db")
    return pd.DataFrame(
        [{"rounded": split_bars.NAMES[s]} | {c: r[c] for c in columns} for s, r in by_split.items()]
    )


def errors_frame(info: local_accumulated.LocalAccumulated) -> pd.DataFrame:
    """SQNR in dB, one row per layer."""
    body: dict[str, list[Any]] = {"layer": [v.layer for v in info.layers]}
    for (mode, data), profile in info.profiles.items():
        body[f"{mode}, {local_accumulated.SIDES[data][2]} (dB)"] = [v.value for v in profile.values]
    return pd.DataFrame(body)


def dumbbells(found: Found) -> None:
    """Show the figure of local and accumulated error.

    P10 and what its words mean; says so where the run stored no outputs.
    """
    st.subheader("Where is error made, and where does it gather?", anchor=False)
    info = local_accumulated.info(found.table, kept=found.kept)
    if info is None:
        st.info(text.errors(found.table, "test"), icon=":material/inventory_2:")
        return
    key = "s-dumbbell"
    figure = local_accumulated.figure(info, chosen=found.view.layer, **look())
    alt = local_accumulated.alt(info)
    show(key, figure, alt, f"{found.view.record.spec.key}_errors")
    st.caption(
        f"**Local**: {word('local error')} **Accumulated**: {word('accumulated error')} A large "
        "local error may fade in later layers, and a small one may grow. The dotted lines are a "
        "guide, not a bound: 6.02 dB for each bit is what values spread evenly over the range get."
    )
    export.menu("local-accumulated", figure, errors_frame(info), [found.view.record], alt=alt)
