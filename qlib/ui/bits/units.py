"""A bit-width for each unit: budget, table to edit, predicted damage, and the true one."""

from collections.abc import Mapping, Sequence

import streamlit as st

from qlib.allocation import front
from qlib.core.records import InvalidSpec
from qlib.plots.shared import theme
from qlib.store import Finished
from qlib.ui.bits import measured
from qlib.ui.bits import mix as bits_mix
from qlib.ui.bits.mix import Mix, decode, encode
from qlib.ui.shared import address, export, live, state
from qlib.ui.shared.address import Session
from qlib.ui.shared.glossary import word

URL = "query-params"
MIX = "mix"  # an assignment in the address: a digit for each unit that has several widths
BY = "b_by"
BYS = {"weight_mb": "Size", "gbops": "Bit-operations"}
UNITS = {"weight_mb": "MB", "gbops": "billion bit-operations"}
STEPS = 100  # places of the budget slider, in percent of the way
FRONT, TABLE = "b-front", "b-units"
KL_AT = "Nats: what this unit does alone at these bits, all others in float."


def section(entry: Finished) -> None:
    """Show everything about bits for each unit, for a run that has a table of units."""
    st.subheader("Different bits for different units", anchor=False, help=word("unit"))
    mix = controls(entry)
    if mix is None:
        return
    name = entry.record.spec.key
    (steps, steps_alt), (best, alt) = bits_mix.figures(mix, state.dark(), state.presenting())
    left, right = st.columns([5, 4], gap="medium")
    with left:
        st.plotly_chart(steps, key="b-steps", config=theme.config(f"{name}_units"), alt=steps_alt)
    with right:
        st.plotly_chart(
            best, key=FRONT, on_select=front_clicked, selection_mode="points",
            config=theme.config(f"{name}_front"), alt=alt,
        )  # fmt: skip
    _numbers(mix)
    _table(mix)
    export.menu(
        "bits-of-units", best, bits_mix.table(mix, mix.choice.bits), [entry.record], alt=alt
    )


def controls(entry: Finished) -> Mix | None:
    """Show the budget and what it counts; returns the assignment, the best or the edited one."""
    widths = bits_mix.widths_of(entry.record.blocks)
    one, two, three = st.columns([5, 8, 5], vertical_alignment="bottom", gap="medium")
    with one:
        by = st.segmented_control(
            "Budget in", list(BYS),
            format_func=BYS.__getitem__, default="weight_mb", required=True,
            key=BY, bind=URL, help="What must not be exceeded.",
        )  # fmt: skip
    try:
        choices = bits_mix.front(entry, by or "weight_mb")
    except InvalidSpec as error:
        st.warning(str(error), icon=":material/broken_image:")
        return None
    with two:
        budget = _slider(entry, choices, by)
    asked = st.query_params.get(MIX, "")
    own = decode(asked, widths)
    with three:
        st.button(
            "Best for the budget", icon=":material/undo:", key="b-best", on_click=_forget,
            disabled=own is None, width="stretch", help="Lets go of what was edited by hand.",
        )  # fmt: skip
    if asked and own is None:
        st.info(
            f"The assignment `{asked}` does not fit: this network has {len(widths)} units, and a "
            "digit for each. Shown: the best for the budget.",
            icon=":material/link_off:",
        )
    choice = front.priced(entry.record.blocks, own) if own else None
    return Mix(entry, widths, choice or bits_mix.within(choices, by, budget), by)


def _slider(entry: Finished, choices: Sequence[front.Choice], by: str) -> float:
    """The budget, between the cheapest and the dearest of the best; at first near equal bits."""
    low, high = getattr(choices[0], by), getattr(choices[-1], by)
    if high <= low:
        st.caption("All assignments cost the same.")
        return high
    step = (high - low) / STEPS
    equal = list(bits_mix.equal(entry.record.blocks).values())
    middle = getattr(equal[len(equal) // 2], by)
    first = min(max(-int((low - middle) // step), 1), STEPS)
    place = st.slider(
        "Budget, from the cheapest assignment to the dearest", 0, STEPS, first,
        format="%d %%", key=f"b_budget_{by}", bind=URL, on_change=_forget,
        help="The best assignment that costs no more is looked up at once.",
    )  # fmt: skip
    st.caption(f"At most {low + place * step:.3f} {UNITS[by]}")
    return low + place * step


def _forget() -> None:
    address.put({MIX: None})


def front_clicked(session: Session = st.session_state) -> None:
    """Choose the assignment that was clicked on the front; clicks beside it do nothing."""
    points = session[FRONT]["selection"]["points"]
    data = points[0].get("customdata") if points else None
    if data:
        address.put({MIX: str(data[0])})


# ---- numbers ---------------------------------------------------------------------------------


def _numbers(mix: Mix) -> None:
    """Price and prediction of the assignment, and what it does in truth where that was asked."""
    c = mix.choice
    with st.container(key="b-mix-numbers"):
        cells = st.columns([3, 3, 3, 6], gap="small")
        cells[0].metric("Predicted KL", f"{c.kl:.2g} nats", help=word("predicted KL"))
        cells[1].metric("Weights", f"{c.weight_mb:.3f} MB", help=word("size"))
        cells[2].metric("Bit-operations", f"{c.gbops:.3f} G", help=word("bops"))
        with cells[3]:
            _measure(mix)
    st.caption(f"**The KL is a prediction, not a measurement.** {word('predicted KL')}")


def _measure(mix: Mix) -> None:
    """The true accuracy of the assignment, from the live network."""
    st.caption("True accuracy of this assignment:")
    if live.switch(mix.entry, word("live")):
        measured.offer(mix.entry, mix.code, mix.choice.bits)


# ---- the table -------------------------------------------------------------------------------


def _table(mix: Mix) -> None:
    """The table to edit: another number of bits is looked up and shown at once."""
    key, start = _base(st.session_state, mix)
    whole = bits_mix.table(mix, start)
    shown = whole[whole["Unit"].isin(list(mix.widths))].reset_index(drop=True)
    options = sorted({b for w in mix.widths.values() for b in w}, reverse=True)
    number = st.column_config.NumberColumn
    with st.expander(
        "Edit the bits of each unit", icon=":material/tune:", expanded=True, key="b-edit"
    ):
        st.data_editor(
            shown,
            key=key,
            hide_index=True,
            disabled=[c for c in shown.columns if c != "Bits"],
            height=min(320, 38 + 35 * len(shown)),
            on_change=edited,
            args=(key, tuple(shown["Unit"]), start),
            column_config={
                "Bits": st.column_config.SelectboxColumn(
                    "Bits (click to edit)", options=options, required=True, width=130,
                    help="Weights and activations of the unit.",
                ),
                **{c: number(format="%.2g", help=KL_AT) for c in shown if c.startswith("KL")},
                "Weights": number(format="localized"),
                "Multiplications": number(format="localized", help="of one image"),
            },
            alt="Units with their bits",
        )  # fmt: skip
        fixed = [unit for unit in whole["Unit"] if unit not in mix.widths]
        if fixed:
            st.caption(f"Always the same: {', '.join(f'`{n}`' for n in fixed)}.")


def _base(session: Session, mix: Mix) -> tuple[str, dict[str, int]]:
    """The key of the table and the bits that it starts with.

    A table that is given other data begins anew; so while its own edits say what is chosen, it
    keeps its key and the bits it started with.
    """
    known = session.get("b-base")
    if known and known["code"] == mix.code and list(known["start"]) == list(mix.widths):
        return known["key"], known["start"]
    number = known["number"] + 1 if known else 0
    key, start = f"{TABLE}-{number}", {unit: mix.choice.bits[unit] for unit in mix.widths}
    session["b-base"] = {"number": number, "key": key, "start": start, "code": mix.code}
    return key, start


def edited(
    key: str, units: Sequence[str], start: Mapping[str, int], session: Session = st.session_state
) -> None:
    """Edits of the table become the assignment of the address."""
    bits = dict(start)
    for row, change in session[key]["edited_rows"].items():
        if change.get("Bits") is not None:
            bits[units[int(row)]] = int(change["Bits"])
    code = encode(bits, units)
    session["b-base"]["code"] = code
    address.put({MIX: code})
