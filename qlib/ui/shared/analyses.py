"""Finished analyses on the Run page: without an accuracy of their own, shown on another page."""

import streamlit as st

from qlib.core.records import RunSpec
from qlib.noise.profile import NOISE
from qlib.sensitivity.profile import SENSITIVITY

SHOWN = {
    SENSITIVITY: ("pages/5_Sensitivity.py", "Sensitivity", "each layer's damage is measured"),
    NOISE: ("pages/6_NoisyQuant.py", "NoisyQuant", "noise is measured in each linear layer"),
}


def answer(spec: RunSpec) -> str:
    """The sentence about a finished analysis (Markdown)."""
    _, page, what = SHOWN[spec.analysis]
    return f"Done: in `{spec.network}` {what}. The page *{page}* shows it."


def link(spec: RunSpec) -> None:
    """Show the link to the page of the analysis, with what it is about."""
    file, page, _ = SHOWN[spec.analysis]
    where = {"m": spec.model}
    if spec.analysis == SENSITIVITY:
        where |= {"q": spec.method, "b": f"W{spec.weight_bits}A{spec.act_bits}"}
    icon = ":material/arrow_forward:"
    st.page_link(file, label=f"Look at it on {page}", icon=icon, query_params=where)
