"""The table of all runs, what differs between the chosen ones, and folders that are no runs."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from qlib.core.records import RunRecord, network_name
from qlib.core.scores import ABSENT, accurate
from qlib.store import Finished
from qlib.ui.compare.selection import MOST, TABLE, URL, Known
from qlib.ui.shared import answers, cards, comparable, forms, state
from qlib.ui.shared.address import Session
from qlib.ui.shared.glossary import word

MEASURED = {  # column → metric; empty where a run does not have it
    "Top-1": "top1",
    "Float": "top1_float",
    "Agreement": "agreement",
    "Lost": "lost",
    "Gained": "gained",
    "k-NN": "knn",
    "k-NN float": "knn_float",
    "Cosine": "cosine",
    "CKA": "cka",
    "KL": "kl",
}
RARE = ("k-NN", "k-NN float", "Cosine", "CKA")
COLUMNS = {
    "Top-1": ("%.1f %%", "top-1"),
    "Float": ("%.1f %%", "float model"),
    "Agreement": ("%.1f %%", "agreement"),
    "Lost": ("%d", "lost"),
    "Gained": ("%d", "lost"),
    "k-NN": ("%.1f %%", "k-NN accuracy"),
    "k-NN float": ("%.1f %%", "k-NN accuracy"),
    "Cosine": ("%.4f", "cosine of features"),
    "CKA": ("%.4f", "CKA"),
    "KL": ("%.2g", "KL"),
    "Weights": ("%.3f MB", "size"),
    "Bit-ops": ("%.3f G", "bops"),
    "Time": ("%.1f s", "time"),
}


def filters(known: Known) -> None:
    """Show the filters of the run table: backbones, bits, and the box drawn in the figure."""
    one, two, three = st.columns([3, 3, 2], vertical_alignment="bottom")
    models = sorted({e.record.spec.model for e in known.values()})
    bits = sorted({answers.bits_label(e.record) for e in known.values()}, reverse=True)
    with one:
        st.multiselect(
            "Backbones listed", models, key="list_m", bind=URL, placeholder="all",
            format_func=network_name,
        )  # fmt: skip
    with two:
        st.multiselect("Bits listed", bits, key="list_b", bind=URL, placeholder="all")
    boxed = [name for name in st.session_state.get("boxed", ()) if name in known]
    with three:
        st.button(
            f"Leave the box ({len(boxed)} runs)" if boxed else "No box drawn",
            on_click=lambda: st.session_state.pop("boxed", None),
            disabled=not boxed,
            key="unbox",
            width="stretch",
            icon=":material/select_all:",
            help="Box select in the figure's toolbar: drag over points to list their runs.",
        )


def listed(known: Known, picked: Sequence[str], fewest: int = 0) -> list[str]:
    """Names for the table: the chosen runs first, then those that pass the filters and the box."""
    session, address = st.session_state, st.query_params
    # the filters stand below the figure, which needs the list: a link's come from the address
    only, wide = (
        session[key] if key in session else address.get_all(key) for key in ("list_m", "list_b")
    )
    boxed = [name for name in session.get("boxed", ()) if name in known]
    passing = [
        name
        for name, e in known.items()
        if (not only or e.record.spec.model in only)
        and (not wide or answers.bits_label(e.record) in wide)
        and (not boxed or name in boxed)
        and e.record.metrics["n"] >= fewest
    ]
    return [*picked, *(name for name in passing if name not in picked)]


def table(known: Known, names: Sequence[str], picked: Sequence[str]) -> None:
    """All runs; ticking rows sets the choice, which is kept in the address."""
    st.session_state[TABLE] = {"selection": {"rows": list(range(len(picked)))}}
    st.session_state["table-names"] = list(names)
    number = st.column_config.NumberColumn
    config = {name: number(format=form, help=word(term)) for name, (form, term) in COLUMNS.items()}
    config["95 % interval"] = st.column_config.TextColumn(help=word("interval"))
    st.dataframe(
        frame(known, names),
        hide_index=True,
        column_config=config,
        key=TABLE,
        on_select=ticked,
        selection_mode="multi-row",
        height=min(420, 38 + 35 * max(3, len(names))),
        alt="All runs that can be read",
    )


def ticked(session: Session = st.session_state) -> None:
    """The rows ticked in the table become the chosen runs."""
    names, rows = session["table-names"], session[TABLE]["selection"]["rows"]
    session["runs"] = [names[row] for row in rows if row < len(names)][:MOST]


def frame(known: Known, names: Sequence[str]) -> pd.DataFrame:
    """One row per run, as the table shows it."""
    demo = {e.folder for e in state.demo().good}
    rows = [_row(name, known[name], known[name].folder in demo) for name in names]
    data = pd.DataFrame(rows)
    # what no run here has is no column; Top-1 to Gained stay, as they are looked for
    empty = [c for c in RARE if c in data and all(row[c] is None for row in rows)]
    return data.drop(columns=empty)


def _row(name: str, entry: Finished, stored: bool) -> dict:
    record, titles = entry.record, state.titles()
    m, spec = record.metrics, record.spec
    told = {column: m.get(name) for column, name in MEASURED.items()}
    return {
        "Backbone": spec.network,
        "Method": titles.get(spec.method, spec.method),
        "Bits": answers.bits_label(record),
        "Top-1": told.pop("Top-1"),
        "95 % interval": answers.interval(record) if accurate(m) else ABSENT,
        **told,
        "Images": int(m["n"]),
        "Weights": m["weight_mb"],
        "Bit-ops": m["gbops"],
        "Time": record.seconds["total"],
        "From": "stored" if stored else "own",
        "Run": name.split()[-1],
    }


def differences(records: Sequence[RunRecord], names: Sequence[str]) -> None:
    """Show the fields of the specifications that differ; settings as rows or as columns."""
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    left.subheader("What differs", anchor=False)
    fields = comparable.differences(records)
    if not fields:
        st.caption("The chosen runs have the same specification.")
        return
    labels = [forms.label(field.removeprefix(comparable.SETTING)) for field in fields]
    data = pd.DataFrame(list(fields.values()), index=labels, columns=list(names))
    data.index.name = "Setting"
    if right.toggle("Runs as rows", key="turned", bind=URL):
        data = data.T
        data.index.name = "Run"
    st.dataframe(data.reset_index(), hide_index=True, alt="Settings that differ between the runs")


def broken() -> None:
    """Show folders that look like runs and are none, with what is wrong."""
    shelves = (state.demo(), state.own())
    cards.unreadable([e.problem for shelf in shelves for e in shelf.broken])
