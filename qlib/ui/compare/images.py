"""Image by image: what each run loses and gains, two runs against each other, and the pictures."""

from collections.abc import Sequence
from itertools import combinations

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from qlib.core.records import InvalidSpec, RunRecord
from qlib.measure import paired
from qlib.measure.paired import Preds
from qlib.measure.statistics import LEVEL, p_text
from qlib.plots.compare import flips_bars
from qlib.plots.compare.flips_bars import FlipsBars
from qlib.store import Finished
from qlib.ui.compare.ranking import Ranking, names, signed
from qlib.ui.shared import export, frame, gallery, state
from qlib.ui.shared.address import Session

FLIPS, SHOWN = "flips", "g"


def predictions(entries: Sequence[Finished]) -> dict[str, Preds]:
    """The predictions of each run by its key; runs without readable ones are reported."""
    by_key: dict[str, Preds] = {}
    for entry in entries:
        try:
            by_key[entry.record.spec.key] = paired.checked(state.preds(entry.folder), entry.key)
        except InvalidSpec as error:
            st.warning(f"No image can be followed: {error}", icon=":material/broken_image:")
    return by_key


def flips(entries: Sequence[Finished], preds: dict[str, Preds]) -> FlipsBars | None:
    """The runs' losses and gains against float; None when no predictions can be read."""
    called = names([e.record for e in entries], state.titles())
    rows = [
        (e.record.spec.key, called[e.record.spec.key],
         paired.against_float(preds[e.record.spec.key]), e.record.metrics["agreement"])
        for e in entries
        if e.record.spec.key in preds
    ]  # fmt: skip
    return flips_bars.info(rows) if rows else None


def flip_frame(info: FlipsBars) -> pd.DataFrame:
    """The numbers of the figure of flips."""
    rows = [
        {"Run": r.title, "Right in both": r.pair.both, "Lost": r.lost, "Gained": r.gained,
         "Wrong in both": r.pair.neither, "Exact p": r.pair.p, "Agreement": r.agreement}
        for r in info.rows
    ]  # fmt: skip
    return pd.DataFrame(rows)


def save(figure: go.Figure, info: FlipsBars, records: Sequence[RunRecord]) -> None:
    """Show the export menu and the data of the figure of flips."""
    numbers = flip_frame(info)
    export.menu(FLIPS, figure, numbers, records, alt=flips_bars.alt(info))
    frame.data_table("Images of each run, by who is right", numbers)


def clicked(session: Session = st.session_state) -> None:
    """A click on a bar of the figure of flips shows that run's pictures."""
    points = session[FLIPS]["selection"]["points"]
    name = session["flip-names"].get(points[0]["customdata"][0]) if points else None
    if name:
        session[SHOWN] = name


def follow(
    picked: Sequence[str], entries: Sequence[Finished], preds: dict[str, Preds], first: str
) -> Finished:
    """Show a picker of a run and its 2×2 table against float; returns the run."""
    by_name = {n: e for n, e in zip(picked, entries, strict=True) if e.record.spec.key in preds}
    st.session_state["flip-names"] = {e.record.spec.key: n for n, e in by_name.items()}
    if st.session_state.get(SHOWN) not in by_name:
        start = next((n for n, e in by_name.items() if e.record.spec.key == first), None)
        st.session_state[SHOWN] = start or next(iter(by_name))
    name = st.selectbox("Follow the images of", list(by_name), key=SHOWN, bind="query-params")
    pair = paired.against_float(preds[by_name[name].record.spec.key])
    st.dataframe(gallery.table(pair), hide_index=True, alt="Images by who is right")
    return by_name[name]


def pictures(entry: Finished, entries: Sequence[Finished], preds: dict[str, Preds]) -> None:
    """The changed pictures of one run; what other runs on the same images have stored helps."""
    hashed, own = entry.record.data.get("test_hash"), preds[entry.record.spec.key]
    keys = [e.record.spec.key for e in entries if e.record.data.get("test_hash") == hashed]
    gallery.show(*gallery.sides(own, gallery.pool([own, *(preds[k] for k in keys if k in preds)])))


# ---- two runs against each other -------------------------------------------------------------


def duel(picked: Sequence[str], entries: Sequence[Finished], preds: dict[str, Preds]) -> None:
    """Show the exact paired test of two chosen runs, in words and numbers."""
    by_name = dict(zip(picked, entries, strict=True))
    one, two = st.columns(2)
    ranked = sorted(picked, key=lambda n: -by_name[n].record.metrics["top1"])
    first = _one_of(one, "Test this run", ranked, "first")
    second = _one_of(two, "against this one", [n for n in ranked if n != first], "second")
    st.markdown(_said(by_name[first], by_name[second], preds))


def _one_of(place, name: str, options: list[str], key: str) -> str:
    """A list whose last choice is forgotten when it is no longer there."""
    if st.session_state.get(key) not in options:
        st.session_state[key] = options[0]
    return place.selectbox(name, options, key=key)


def _said(first: Finished, second: Finished, preds: dict[str, Preds]) -> str:
    a, b = first.record, second.record
    if not {a.spec.key, b.spec.key} <= set(preds):
        return "The predictions of one of them cannot be read, so there is no paired test."
    try:
        pair = paired.between(a, preds[a.spec.key], b, preds[b.spec.key])
    except InvalidSpec as error:
        return str(error)
    low, high = pair.interval
    called = names([a, b], state.titles())
    beyond = "beyond chance" if pair.p < LEVEL else "within chance"
    one, other = called[a.spec.key], called[b.spec.key]
    return (
        f"Of the same {pair.n:,} images, **{pair.first}** are right in {one} alone and "
        f"**{pair.second}** in {other} alone: a difference of {signed(pair.difference)} points "
        f"(95 %: {signed(low)} to {signed(high)}), **{beyond}** "
        f"(exact paired test, two-sided, {p_text(pair.p)})."
    )


def every_pair(ranking: Ranking) -> pd.DataFrame:
    """One row for every two runs, better first, with p before and after Holm's correction."""
    called, rows = names(ranking.records, state.titles()), []
    for one, other in combinations(ranking.records, 2):
        key = one.spec.key, other.spec.key
        pair, (low, high) = ranking.pairs[key], ranking.pairs[key].interval
        rows.append(
            {
                "Run": called[one.spec.key],
                "against": called[other.spec.key],
                "Right alone": pair.first,
                "Other right alone": pair.second,
                "Points": pair.difference,
                "95 % interval": f"{signed(low)} to {signed(high)}",
                "p": pair.p,
                "p, Holm": ranking.raised[key],
            }
        )
    return pd.DataFrame(rows)
