"""Choosing the runs to compare: the list, the clicks in the figure, the ticks in the table."""

from collections.abc import Mapping, Sequence

import streamlit as st

from qlib.core.records import RunRecord
from qlib.core.scores import ABSENT, accurate, score
from qlib.store import Finished
from qlib.ui.shared import answers, comparable, pickers, state
from qlib.ui.shared.address import Session

MOST = 6
TABLE, SCATTER = "run-table", "scatter"
URL = "query-params"
COSTS = {"time": "Time", "size": "Size", "bops": "Bit-operations"}

WHY = {"features": "its network gives features", "unlabelled": "its images have no labels"}

Known = Mapping[str, Finished]


def handles(entries: Mapping[str, Finished]) -> dict[str, Finished]:
    """Every run that can be compared, by the name that pickers and links use."""
    titles = state.titles()
    return {answers.handle(e.record, titles): e for e in entries.values()}


# ---- which runs ------------------------------------------------------------------------------


def choose(known: Known, record: RunRecord) -> list[str]:
    """Let the visitor choose the runs to compare.

    The names of the chosen runs; those of a link that are not here are told, not raised.

    Before anyone chooses, the methods of the bar's backbone at its bits are compared; the bar's
    run is ``record``. Another backbone or other bits in the bar start anew from there, unless a
    link has changed the choice at the same time.
    """
    asked, session = st.query_params.get_all("runs"), st.session_state
    first, now = start(known, record), (record.spec.model, answers.bits_label(record))
    bar, linked = session.get("compare-bar", (now, asked))
    session["compare-bar"] = now, asked
    missing = [name for name in asked if name not in known]
    if bar != now and linked == asked:
        session["runs"], missing = first, []
    session["scatter-names"] = {e.record.spec.key: name for name, e in known.items()}
    picked = pickers.runs(list(known), first, most=MOST, on_change=_forget_table)
    if missing:
        st.info(
            f"This link names runs that are not here: {', '.join(f'`{m}`' for m in missing)}. "
            "The others are shown.",
            icon=":material/link_off:",
        )
    return picked


def start(known: Known, record: RunRecord) -> list[str]:
    """The runs compared at first: the methods of this run's backbone at its bits."""
    spec, bits = record.spec, answers.bits_label(record)
    fitting = [
        name
        for name, e in known.items()
        if (e.record.spec.model, answers.bits_label(e.record)) == (spec.model, bits)
        and not comparable.unlike([record, e.record])
    ]
    return sorted(fitting)[:MOST] or list(known)[:2]


def _forget_table() -> None:
    st.session_state.pop(TABLE, None)


def controls() -> tuple[str, bool, int]:
    """Cost axis, whether other runs are drawn behind, the fewest test images that count."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="large"):
        cost = st.segmented_control(
            "Cost to compare with", list(COSTS),
            format_func=COSTS.__getitem__, default="time",
            required=True, key="x", bind=URL, width="content",
        )  # fmt: skip
        fewest = st.number_input(
            "Fewest test images", 0, 1_000_000, 0, 100, key="min_n", bind=URL, width=170,
            help="Runs measured on fewer images are left out: their intervals are too wide.",
        )  # fmt: skip
        others = st.toggle(
            "Show the other runs too", key="others", bind=URL,
            help="Click one in the figure to compare it, or draw a box to list those inside.",
        )  # fmt: skip
    return cost or "time", others, fewest


def enough(known: Known, picked: Sequence[str], fewest: int) -> list[str]:
    """The chosen runs with enough test images; the page says which were left out."""
    kept = [name for name in picked if known[name].record.metrics["n"] >= fewest]
    if len(kept) < len(picked):
        out = [name for name in picked if name not in kept]
        st.caption(f"Left out, with fewer than {fewest:,} test images: {', '.join(out)}.")
    return kept


def scored(known: Known, picked: Sequence[str]) -> list[str]:
    """The chosen runs that have an accuracy; the page says what the others have."""
    kept = [name for name in picked if accurate(known[name].record.metrics)]
    others = [name for name in picked if name not in kept]
    for name in others:
        record = known[name].record
        found = score(record.metrics)
        told = f"{found.name} {found.text(found.value)} ({found.interval})" if found else ABSENT
        st.caption(f"{name} has no accuracy ({WHY[record.task]}): {told}.")
    return kept


def behind(known: Known, names: Sequence[str], picked: Sequence[str]) -> list[RunRecord]:
    """The runs drawn behind the chosen ones: listed, of the same backbones and test images."""
    here = {_ground(known[name].record) for name in picked}
    rest = (known[name].record for name in names if name not in picked)
    return [r for r in rest if _ground(r) in here and accurate(r.metrics)]


def _ground(record: RunRecord) -> tuple:
    return record.spec.model, record.spec.data, record.data.get("test_hash")


def followed(session: Session = st.session_state) -> None:
    """A click on a point chooses its run or lets it go; a box lists the runs inside it below."""
    selection, names = session[SCATTER]["selection"], session["scatter-names"]
    data = (p.get("customdata") for p in selection["points"])
    hit = list(dict.fromkeys(names[d[0]] for d in data if d and d[0] in names))
    if not hit:
        return
    if selection.get("box"):
        session["boxed"] = hit
        return
    now = list(session["runs"])
    session["runs"] = [n for n in now if n != hit[0]] if hit[0] in now else [*now, hit[0]][:MOST]
    if hit[0] not in now and len(now) >= MOST:
        session["compare-full"] = True


def tell_full() -> None:
    """Say, once, that a clicked run was not added as the selection is full."""
    if st.session_state.pop("compare-full", False):
        st.toast(f"At most {MOST} runs are compared: let one go first.", icon=":material/block:")


def unlike_banner(records: Sequence[RunRecord]) -> bool:
    """Warn that a ranking would not be fair; True when it is not."""
    names = comparable.unlike(records)
    if names:
        st.warning(
            f"**Not like for like.** These runs differ in: {', '.join(names)}. "
            "So no ranking is given.",
            icon=":material/balance:",
        )
    return bool(names)
