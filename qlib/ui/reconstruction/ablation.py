"""What each ingredient of learned rounding adds, from the stored runs of the same conditions."""

from collections.abc import Mapping
from itertools import pairwise

import pandas as pd
import streamlit as st

from qlib.core import catalogue
from qlib.core.records import InvalidSpec
from qlib.measure import paired
from qlib.measure.statistics import holm
from qlib.plots.reconstruction import waterfall
from qlib.plots.reconstruction.waterfall import Waterfall
from qlib.plots.shared import theme
from qlib.store import Finished
from qlib.ui.shared import answers, export, frame, state
from qlib.ui.shared.context import View

RECIPE = """\
from qlib.plots.reconstruction import waterfall

p = {p!r}  # of exact paired tests, Holm-corrected, against the step before
info = waterfall.info({{r.spec.method: r for r in records}}, metric={metric!r}, titles=titles, p=p)
print(waterfall.alt(info))
figure = waterfall.figure(info)
figure"""


def panel(view: View, others: Mapping[str, Finished]) -> None:
    """Show the steps nearest → AdaRound → BRECQ → QDrop that are stored, in a metric to choose."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("What each ingredient adds", anchor=False, width="stretch")
        metric = st.segmented_control(
            "Metric",
            list(waterfall.METRICS),
            format_func=waterfall.METRICS.__getitem__,
            default="top1",
            required=True,
            key="r_metric",
            bind="query-params",
            label_visibility="collapsed",
        )
    records = {m: e.record for m, e in others.items() if m in catalogue.ingredients()}
    metric = metric or "top1"
    if metric not in view.record.metrics:  # no labels, or features
        metric = "kl"
        st.caption("These runs have no such number; shown is the KL to float.")
    p = tests(others, metric)
    info = waterfall.info(records, metric=metric, titles=state.titles(), p=p)
    if len(info.steps) < 2:
        st.info(
            f"At {answers.bits_label(view.record)} too few methods are stored under equal "
            "conditions to compare them step by step.",
            icon=":material/stairs:",
        )
        return
    figure = waterfall.figure(info, dark=state.dark(), large=state.presenting())
    st.plotly_chart(
        figure,
        key="r_waterfall",
        config=theme.config(f"{view.record.spec.network}_ingredients"),
        alt=waterfall.alt(info),
    )
    st.caption(_under(info) + answers.source_line(view.record) + ".")
    numbers = table(info)
    with st.container(horizontal=True):
        recipe = RECIPE.format(metric=info.metric, p=p)
        made, alt = list(records.values()), waterfall.alt(info)
        export.menu("ingredients", figure, numbers, made, alt=alt, recipe=recipe)
        frame.data_table("of the ingredients", numbers)


def tests(others: Mapping[str, Finished], metric: str) -> dict[str, float]:
    """Method → p of its step, by exact paired tests corrected for their number (Holm).

    Empty for KL, which is no count of images, and where runs cannot be paired.
    """
    judges = {"top1": paired.hits, "agreement": paired.agrees}
    if metric not in judges:
        return {}
    steps = [(m, others[m]) for m in catalogue.ingredients() if m in others]
    p_values = {}
    try:
        arrays = [paired.checked(state.preds(e.folder), e.key) for _, e in steps]
        runs = [(m, e.record, a) for (m, e), a in zip(steps, arrays, strict=True)]
        for (_, one, before), (method, other, after) in pairwise(runs):
            p_values[method] = paired.between(one, before, other, after, judges[metric]).p
    except InvalidSpec:
        return {}
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))


def _under(info: Waterfall) -> str:
    """What the marks mean, and which methods have no stored run."""
    text = "" if info.metric == "kl" else "Thin bars: 95 % intervals of each run alone. "
    if any(s.p is not None for s in info.steps):
        text += "p: exact paired test of a step on the same images, Holm-corrected. "
    if info.missing:
        text += f"Not stored at these bits: {', '.join(info.missing)}. "
    return text


def table(info: Waterfall) -> pd.DataFrame:
    """One row per ingredient."""
    return pd.DataFrame(
        {
            "Method": s.title,
            "Ingredient": waterfall.plain(s.ingredient),
            waterfall.AXES[info.metric]: s.value,
            "95 % from": s.low,
            "95 % to": s.high,
            "Gain": info.gain(i) if i else None,
            "Paired p, Holm": s.p,
        }
        for i, s in enumerate(info.steps)
    )
