"""The runs side by side: choosing them, the table, what differs, what cannot be read."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from qlib.records import RunRecord
from qlib.store import Entry
from qlib.ui import answers, forms, likeness, pickers, state
from qlib.ui.words import word

MOST = 6
TABLE = "run-table"
URL = "query-params"
COLUMNS = {
    "Top-1": ("%.1f %%", "top-1"),
    "Float": ("%.1f %%", "float model"),
    "Agreement": ("%.1f %%", "agreement"),
    "Lost": ("%d", "lost"),
    "Gained": ("%d", "lost"),
    "Weights": ("%.3f MB", "size"),
    "Bit-ops": ("%.3f G", "bops"),
    "Time": ("%.1f s", "time"),
}


def handles(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Every readable run by the name that pickers and links use."""
    titles = state.titles()
    return {answers.handle(e.record, titles): e for e in entries.values()}


def choose(known: Mapping[str, Entry]) -> list[str]:
    """The chosen runs' names; those of a link that are not here are told, not raised."""
    asked = st.query_params.get_all("runs")
    missing = [name for name in asked if name not in known]
    picked = pickers.runs(list(known), _first(known), most=MOST, on_change=_forget_table)
    if missing:
        st.info(
            f"This link names runs that are not here: {', '.join(f'`{m}`' for m in missing)}. "
            "The others are shown.",
            icon=":material/link_off:",
        )
    return picked


def _first(known: Mapping[str, Entry]) -> list[str]:
    """What is compared before anyone chose: one backbone's methods at W4A4."""
    for model in dict.fromkeys(e.record.spec.model for e in known.values()):
        fitting = [
            name
            for name, e in known.items()
            if e.record.spec.model == model and answers.bits_label(e.record) == "W4A4"
        ]
        if len(fitting) > 1:
            return sorted(fitting)[:MOST]
    return list(known)[:2]


def _forget_table() -> None:
    st.session_state.pop(TABLE, None)


def filtered(known: Mapping[str, Entry], picked: Sequence[str]) -> list[str]:
    """Names for the table: the chosen runs first, then those that pass the two filters."""
    one, two = st.columns(2)
    models = sorted({e.record.spec.model for e in known.values()})
    bits = sorted({answers.bits_label(e.record) for e in known.values()}, reverse=True)
    with one:
        only = st.multiselect("Backbones listed", models, key="list_m", bind=URL, placeholder="all")
    with two:
        wide = st.multiselect("Bits listed", bits, key="list_b", bind=URL, placeholder="all")
    passing = [
        name
        for name, e in known.items()
        if (not only or e.record.spec.model in only)
        and (not wide or answers.bits_label(e.record) in wide)
    ]
    return [*picked, *(name for name in passing if name not in picked)]


def table(known: Mapping[str, Entry], names: Sequence[str], picked: Sequence[str]) -> None:
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


def ticked(session: MutableMapping[str, Any] = st.session_state) -> None:
    """The rows ticked in the table become the chosen runs."""
    names, rows = session["table-names"], session[TABLE]["selection"]["rows"]
    session["runs"] = [names[row] for row in rows if row < len(names)][:MOST]


def frame(known: Mapping[str, Entry], names: Sequence[str]) -> pd.DataFrame:
    """One row per run, as the table and the CSV show it."""
    demo = {e.folder for e in state.demo().good}
    return pd.DataFrame([_row(name, known[name], known[name].folder in demo) for name in names])


def _row(name: str, entry: Entry, stored: bool) -> dict:
    record, titles = entry.record, state.titles()
    m, spec = record.metrics, record.spec
    return {
        "Backbone": spec.model,
        "Method": titles.get(spec.method, spec.method),
        "Bits": answers.bits_label(record),
        "Top-1": m["top1"],
        "95 % interval": answers.interval(record),
        "Float": m["top1_float"],
        "Agreement": m["agreement"],
        "Lost": int(m["lost"]),
        "Gained": int(m["gained"]),
        "Weights": m["weight_mb"],
        "Bit-ops": m["gbops"],
        "Time": record.seconds["total"],
        "From": "stored" if stored else "own",
        "Run": name.split()[-1],
    }


def csv(known: Mapping[str, Entry], names: Sequence[str]) -> bytes:
    """The chosen runs with their whole specification, for a spreadsheet."""
    rows = []
    for name in names:
        record = known[name].record
        spec = record.spec.to_json()
        settings = spec.pop("settings")
        numbers = {k: round(v, 4) for k, v in record.metrics.items()}
        took = {f"seconds_{k}": round(v, 2) for k, v in record.seconds.items()}
        test = {"test_hash": record.data.get("test_hash"), "simulated": True}
        rows.append(
            {"run": record.spec.key, **spec, "settings": settings, **numbers, **took, **test}
        )
    return pd.DataFrame(rows).to_csv(index=False).encode()


def unlike_banner(records: Sequence[RunRecord]) -> bool:
    """Warn that a ranking would not be fair; True when it is not."""
    names = likeness.unlike(records)
    if names:
        st.warning(
            f"**Not like for like.** These runs differ in: {', '.join(names)}. "
            "So no ranking is given.",
            icon=":material/balance:",
        )
    return bool(names)


def differences(records: Sequence[RunRecord], names: Sequence[str]) -> None:
    """Only the fields of the specifications that differ."""
    found = likeness.differences(records)
    if not found:
        st.caption("The chosen runs have the same specification.")
        return
    rows = [
        {"Setting": forms.label(field.removeprefix(likeness.SETTING))}
        | dict(zip(names, values, strict=True))
        for field, values in found.items()
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, alt="Settings that differ between the runs")


def broken() -> None:
    """Folders that look like runs and are none, with what is wrong."""
    problems = [e.problem for shelf in (state.demo(), state.own()) for e in shelf.broken]
    if problems:
        with st.expander(
            f"Folders that cannot be read ({len(problems)})", icon=":material/heart_broken:"
        ):
            st.markdown("\n".join(f"- {p}" for p in problems))
