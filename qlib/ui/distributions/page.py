"""The parts of the Distributions page: start, ladder of ranges, and main figure."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import streamlit as st

from qlib.core.records import InvalidSpec, RunRecord
from qlib.plots.distributions import (
    channel_histogram,
    channel_map,
    code_counts,
    error_histogram,
    range_ladder,
    tensor,
    tensor_histogram,
)
from qlib.plots.distributions.tensor import Run
from qlib.plots.shared import theme, untyped
from qlib.store import tensors
from qlib.store.tensors import TensorHist
from qlib.ui.distributions import controls
from qlib.ui.distributions.controls import SIDES, URL, Choice
from qlib.ui.distributions.text import Seen
from qlib.ui.shared import context, state
from qlib.ui.shared.address import Session

LADDER = "h-ladder"
TALL = 690  # pixels of the ladder beyond which it scrolls
_BEGUN = "h-begun"


def begin(view: context.View, hists: Mapping[str, TensorHist]) -> None:
    """Choose the layer with the largest outliers where the address names none, once a model.

    Once, so that the browser's way back does not lead here again.
    """
    begun = st.session_state.setdefault(_BEGUN, set())
    model = view.record.spec.model
    if "layer" in st.query_params or model in begun:
        return
    begun.add(model)
    layer = furthest(hists, context.layers_of(view.record))
    if layer and layer != view.layer:
        context.set_layer(layer)
        st.rerun()


def furthest(hists: Mapping[str, TensorHist], layers: Sequence[str]) -> str | None:
    """The layer whose inputs have the largest outlier ratio."""
    found = [h for h in hists.values() if h.tensor in _inputs() and h.layer in layers]
    return max(found, key=lambda h: h.outlier_ratio).layer if found else None


def _inputs() -> tuple[str, ...]:
    return range_ladder.KINDS["input"]


def seen(record: RunRecord, hists: Mapping[str, TensorHist]) -> dict[str, Seen]:
    """Every tensor with its row of ``layers.csv``."""
    rows = {row["point"]: row for row in record.layers if "point" in row}
    return {name: Seen(hist, rows.get(name, {})) for name, hist in hists.items()}


def runs(view: context.View, choice: Choice, shown: Seen) -> list[Run]:
    """The run shown and the runs laid over it that have the same tensor."""
    title = state.titles().get(view.record.spec.method, view.record.spec.method)
    shown_runs = [Run(view.record.spec.method, title, shown.hist, shown.grids)]
    others = controls.others(view)
    for name in choice.others:
        entry = others[name]
        try:
            record = state.record(entry.folder)
            other = seen(record, state.hist(entry.folder)).get(shown.hist.name)
        except InvalidSpec as error:
            st.warning(str(error), icon=":material/broken_image:")
            continue
        if other:
            shown_runs.append(Run(entry.record.spec.method, name, other.hist, other.grids))
    return shown_runs


def main(choice: Choice, shown: Sequence[Run]) -> tuple[go.Figure, str, str]:
    """Draw the main figure; returns it, its words, and a name for files.

    The page says where a stage does not exist.
    """
    look = {"dark": state.dark(), "large": state.presenting()}
    hist, stage = shown[0].hist, choice.stage
    if (stage == "codes" and not tensor.has_grid(hist)) or tensor.kept_float(hist):
        _no_grid(hist, stage)
        stage = "float"
    if choice.channels and hist.channels is not None:
        stage = stage if stage in ("float", "rounded") else "rounded"
        info = channel_map.info(shown[0], stage=stage)
        return channel_map.figure(info, **look), channel_map.alt(info), "channels"
    if stage == "codes":
        info = code_counts.info(shown, log=choice.log)
        return code_counts.figure(info, **look), code_counts.alt(info), "codes"
    if stage == "error":
        info = error_histogram.info(shown, bins=choice.bins, log=choice.log)
        return error_histogram.figure(info, **look), error_histogram.alt(info), "error"
    info = tensor_histogram.info(
        shown, stage=stage, bins=choice.bins, log=choice.log, symlog=choice.symlog
    )
    return tensor_histogram.figure(info, **look), tensor_histogram.alt(info), stage


def _no_grid(hist: TensorHist, stage: str) -> None:
    if stage == "codes" and hist.tensor == "output":
        st.info("An output has no integer codes: the next layer's input has. Shown: its values.")
    elif stage != "float":
        st.info("This tensor stayed in float: it has no grid, no codes and no error.")


def channel(choice: Choice, shown: Run) -> None:
    """Show one channel by itself, chosen from a list, the furthest first."""
    info = channel_map.info(shown)
    order = [int(info.index[i]) for i in (-info.span).argsort(kind="stable")]
    if st.session_state.get("h_one") not in (None, *order):
        del st.session_state["h_one"]
    picked = st.selectbox(
        "One channel", order, key="h_one", bind=URL, help="The channels that spread furthest first."
    )
    one = channel_histogram.info(shown, picked, log=choice.log)
    st.plotly_chart(
        channel_histogram.figure(one, dark=state.dark(), large=state.presenting()),
        key="h-channel",
        config=theme.config(f"{shown.hist.layer}_channel_{picked}"),
        alt=channel_histogram.alt(one),
    )


def ladder(view: context.View, hists: Mapping[str, TensorHist], choice: Choice) -> None:
    """Show the ranges of all tensors of the kind; a click chooses one."""
    stamp = (view.folder / tensors.FILE).stat().st_mtime_ns
    look = (choice.kind, choice.order, state.dark(), state.presenting())
    figure, alt = _ladder(str(view.folder), stamp, *look, list(hists.values()))
    with st.container(
        height=TALL if untyped.layout(figure).height > TALL else "content", border=False
    ):
        st.plotly_chart(
            figure,
            key=LADDER,
            on_select=clicked,
            selection_mode="points",
            config=theme.config(f"{view.record.spec.key}_ranges"),
            alt=alt,
        )


@st.cache_resource(max_entries=64, show_spinner=False)
def _ladder(
    folder: str, stamp: int, kind: str, order: str, dark: bool, large: bool, _hists: list
) -> tuple[go.Figure, str]:
    """The figure and its words, made once for each run folder and look."""
    info = range_ladder.info(_hists, kind=kind, order=order)
    return range_ladder.figure(info, dark=dark, large=large), range_ladder.alt(info)


def clicked(session: Session = st.session_state) -> None:
    """Choose the tensor of the clicked rung.

    A click on a rung: its layer for all pages, its side of an attention product for this one.
    """
    points = session[LADDER]["selection"]["points"]
    data = points[0].get("customdata") if points else None
    if data and data[1] in SIDES:
        session["h_side"] = data[1]
    context.clicked_layer(LADDER, 0, session)
