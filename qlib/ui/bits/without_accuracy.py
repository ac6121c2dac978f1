"""The Bits page of a run that has no accuracy: what was measured at each width, as a table."""

import pandas as pd
import streamlit as st

from qlib.core.scores import accurate
from qlib.store import Finished
from qlib.ui.bits.view import measured
from qlib.ui.shared import address, answers, context, frame, resolve, state

WHY = {
    "features": "Its network gives features, not classes",
    "unlabelled": "Its images have no labels",
}
COLUMNS = {"k-NN (%)": "knn", "Agreement (%)": "agreement", "Cosine": "cosine", "CKA": "cka",
           "KL (nats)": "kl", "Weights (MB)": "weight_mb", "Bit-ops (G)": "gbops"}  # fmt: skip


def asked() -> Finished | None:
    """The run that the address asks for, if it is one without accuracy."""
    choice = resolve.choose(address.asked(), context.entries(), state.titles())
    return choice.entry if choice and not accurate(choice.entry.record.metrics) else None


def show(entry: Finished, question: str) -> None:
    """Show the run's widths and those of its backbone's other runs on the same images."""
    record = entry.record
    frame.head(
        question,
        f"{WHY.get(record.task, 'It measured something else')}, so there is no accuracy over "
        "bit-widths: how close each width stays to the float network is in the table.",
    )
    st.dataframe(table(entry), hide_index=True, alt="What was measured at each pair of bit-widths")
    st.caption(f"{answers.source_line(record)}.")


def table(entry: Finished) -> pd.DataFrame:
    """One row for each run and pair of widths, most bits first; empty where not measured."""
    titles, own, rows = state.titles(), entry.record, []
    for other in context.entries():
        record = other.record
        alike = record.spec.model == own.spec.model and record.task == own.task
        if not alike or record.data.get("test_hash") != own.data.get("test_hash"):
            continue
        for (weights, acts), cell in measured(other).items():
            told = {column: cell.get(name) for column, name in COLUMNS.items()}
            name = titles.get(record.spec.method, record.spec.method)
            rows.append({"Method": name, "Weight bits": weights, "Activation bits": acts} | told)
    data = pd.DataFrame(rows).dropna(axis=1, how="all")
    return data.sort_values(["Weight bits", "Activation bits", "Method"], ascending=False)
