"""The row of controls of the Distributions page, and the tensor that they ask for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from qlib import store
from qlib.store import tensors
from qlib.store.tensors import TensorHist
from qlib.ui.shared import answers, context, state
from qlib.ui.shared.glossary import word

URL = "query-params"
STAGES = {"float": "Float", "rounded": "Rounded", "codes": "Codes", "error": "Error"}
KINDS = {"weight": "Weight", "input": "Input", "output": "Output"}
SIDES = {"left": "Left", "right": "Right"}
BINS = (64, 128, 256)
OVERLAID = 2  # runs laid over the one shown


@dataclass(frozen=True)
class Choice:
    """What the visitor chose in the controls.

    What the controls say. ``channels``: channel by channel; ``others``: titles of methods.

    ``side`` (``left``, ``right``) is empty where the layer has one input.
    """

    kind: str
    side: str
    stage: str
    log: bool
    symlog: bool
    bins: int
    channels: bool
    order: str
    others: tuple[str, ...]


def controls(view: context.View, hists: Mapping[str, TensorHist]) -> Choice:
    """Show all controls in one row; what is rarely changed is behind a button."""
    sides = {side: hists.get(f"{view.layer}.{side}") for side in SIDES}
    pair = {side: hist for side, hist in sides.items() if hist is not None}
    side, channels = "", False
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="h-row"):
        kind = _one("Tensor", KINDS, "h_t", "input", word("tensor"))
        stage = _one("Stage", STAGES, "h_stage", "float", word("stage"))
        if len(pair) == len(SIDES):
            first = max(pair, key=lambda name: pair[name].outlier_ratio)
            side = _one("Which input", SIDES, "h_side", first, word("attention inputs"))
        else:
            channels = _per_channel(kind)
        with st.popover("View", icon=":material/tune:", key="h-view"):
            log = st.toggle("Logarithmic count", True, key="h_log", bind=URL)
            symlog = st.toggle(
                "Value axis logarithmic far out",
                key="h_sym",
                bind=URL,
                help="Linear around zero, logarithmic beyond: shows outliers and bulk together.",
            )
            bins = _one("Bins", {b: str(b) for b in BINS}, "h_bins", 256, "Fewer bins: less noise.")
            orders = {"network": "Network", "outliers": "Outliers first"}
            order = _one("Order of the layers", orders, "h_o", "network", word("outlier ratio"))
            others = _others(view)
    return Choice(kind, side, stage, log, symlog, bins, channels, order, others)


def _per_channel(kind: str) -> bool:
    picked = st.toggle(
        "Per channel",
        key="h_ch",
        bind=URL,
        disabled=kind != "weight",
        help="Weights only: every output channel as a row of its own.",
    )
    return picked and kind == "weight"


def _one(name: str, options: Mapping, key: str, first: Any, help: str) -> Any:
    picked = st.segmented_control(
        name,
        list(options),
        format_func=options.__getitem__,
        default=first,
        required=True,
        key=key,
        bind=URL,
        help=help,
    )
    return first if picked is None else picked


def _others(view: context.View) -> tuple[str, ...]:
    """Other methods at the same bits, to be laid over the figure; by title."""
    known = list(others(view))
    session = st.session_state
    if "h_with" in session:  # other bits may have other methods
        session["h_with"] = [title for title in session["h_with"] if title in known]
    picked = st.multiselect(
        "Lay over",
        known,
        key="h_with",
        bind=URL,
        max_selections=OVERLAID,
        disabled=not known,
        placeholder="other methods" if known else "no other method at these bits",
        help="The same tensor as other runs of the same bits round it.",
    )
    return tuple(title for title in picked if title in known)


def others(view: context.View) -> dict[str, store.Finished]:
    """Title → run of each other method that is stored for this backbone at these bits."""
    titles, bits = state.titles(), answers.bits_label(view.record)
    by_title: dict[str, store.Finished] = {}
    for entry in view.siblings:
        method = entry.record.spec.method
        same = answers.bits_label(entry.record) == bits and method != view.record.spec.method
        if same and (entry.folder / tensors.FILE).exists():
            by_title.setdefault(titles.get(method, method), entry)
    return by_title


def tensor(
    view: context.View, hists: Mapping[str, TensorHist], choice: Choice
) -> TensorHist | None:
    """The tensor of the chosen layer.

    The tensor of the layer that the controls ask for, or the nearest; None, told, without any.

    The product of an attention head has two inputs and no weight; a layer inside a block may read
    its input unrounded, then what enters the block is shown.
    """
    layer, kind = view.layer, choice.kind
    if choice.side and kind != "output":
        if kind == "weight":
            st.info("This layer multiplies two inputs and has no weights. Shown: an input.")
        return hists[f"{layer}.{choice.side}"]
    if found := hists.get(f"{layer}.{kind}"):
        return found
    unit = next((r["unit"] for r in view.record.layers if r["layer"] == layer), "")
    if kind == "input" and (found := hists.get(f"{unit}.boundary")):
        st.info(f"In this run activations are rounded where they enter `{unit}`: that is shown.")
        return found
    st.info(f"This run has no counts of the {KINDS[kind].lower()} of `{layer}`.")
    return None
