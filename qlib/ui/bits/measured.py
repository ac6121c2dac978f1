"""True accuracy from the live network: of an assignment to units, of widths not stored."""

from collections.abc import Mapping

import streamlit as st

from qlib.core.records import InvalidSpec
from qlib.live import missing
from qlib.store import Finished
from qlib.ui.bits.view import Shown
from qlib.ui.shared import live

MEASURED, REFUSED = "b-measured", "b-live-refused"  # session keys
Bits = int | Mapping[str, int]


def switchable(shown: Shown) -> bool:
    """Whether the chosen pair was not measured, but the stored network can be switched to it."""
    known = {b for pair in shown.track.cells for b in pair}
    can = shown.track.one and set(shown.pair) <= known
    return can and shown.cell is None and not missing()


def offer_pair(shown: Shown) -> None:
    """Measure the chosen pair now, where the stored network can be switched to it."""
    if not switchable(shown):
        return
    if not live.wanted():
        st.caption(
            "The stored network can be switched to these widths: turn on *Try it now* below, and "
            "measure them without a new run."
        )
        return
    weights, acts = shown.pair
    offer(shown.entry, shown.label, acts, weights, key="b-measure-pair")


def offer(
    entry: Finished, name: str, bits: Bits, weights: int | None = None, *, key: str = "b-measure"
) -> None:
    """Show a button that measures, or what was measured before; ``name``: of these bits, unique."""
    measured = st.session_state.setdefault(MEASURED, {}).get((entry.key, name))
    if measured is None:
        st.button(
            "Measure on the test images", icon=":material/speed:", key=key, on_click=measure,
            args=(entry, name, bits, weights),
        )  # fmt: skip
    if REFUSED in st.session_state:
        st.warning(st.session_state.pop(REFUSED), icon=":material/power_off:")
    if measured is not None:
        st.markdown(measured)


def measure(entry: Finished, name: str, bits: Bits, weights: int | None = None) -> None:
    """Ask the live network for its accuracy on all test images; remember what it says."""
    try:
        asked = dict(bits) if isinstance(bits, Mapping) else bits
        answer = live.answer(entry, asked, "test", weights)
    except InvalidSpec as error:
        st.session_state[REFUSED] = str(error)
        return
    whole = entry.record.metrics["top1_float"]
    st.session_state.setdefault(MEASURED, {})[entry.key, name] = (
        f"**Top-1 {answer.top1:.1f} %** (95 %: {answer.top1_low:.1f} to {answer.top1_high:.1f}), "
        f"float {whole:.1f} %; measured in {answer.seconds:.1f} s"
    )
