"""The panel of a run's findings: sentence, remedy, a link to the view that shows it."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import streamlit as st

from qlib.core.records import InvalidSpec
from qlib.guide import findings
from qlib.guide.findings import Finding
from qlib.store import Finished
from qlib.ui.shared import context, lessons, resolve, state


def panel(entry: Finished, *, open_: bool = False) -> None:
    """Show at most five findings of a run in an expander; nothing where there are none."""
    shown = _all(entry)[: findings.MOST]
    if not shown:
        return
    many = "1 finding" if len(shown) == 1 else f"{len(shown)} findings"
    with st.expander(
        f"{many} about this run", icon=":material/lightbulb:", expanded=open_, key="findings"
    ):
        known = context.entries()
        for finding in shown:
            _line(finding, entry, known)


def _line(finding: Finding, entry: Finished, known: Sequence[Finished]) -> None:
    words, link = st.columns([6, 1], vertical_alignment="center")
    words.markdown(f"{finding.text} {finding.remedy}")
    file = lessons.page_files().get(finding.page)
    if file:
        view = where(finding, entry, known)
        link.page_link(file, label="Look", icon=":material/search:", query_params=view)


def where(finding: Finding, entry: Finished, known: Sequence[Finished]) -> dict[str, str]:
    """Address parameters that show a finding of this very run; ``known``: all runs."""
    params = resolve.Choice(entry).params
    first = resolve.choose(params, known, {})
    if first is None or first.entry.key != entry.key:
        params["run"] = entry.key
    return params | finding.set


def _all(entry: Finished) -> list[Finding]:
    """Every file is read if it can be; rules pass over what is missing."""
    try:
        record = state.record(entry.folder)
    except InvalidSpec:
        return []
    parts: dict[str, Any] = {}
    for name, read in (("hist", state.hist), ("preds", state.preds)):
        with suppress(InvalidSpec):
            parts[name] = read(entry.folder)
    with suppress(InvalidSpec):
        analysed = context.profile_of(record)
        parts["profile"] = state.profile(analysed.folder) if analysed else ()
    with suppress(InvalidSpec):
        measured = state.noise_of(record.spec)
        parts["noise"] = state.noise(measured.folder) if measured else None
    return findings.of(record, **parts)
