"""What the NoisyQuant page looks at: the noise analysis of a network, and one of its layers."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import streamlit as st

from qlib.core.records import InvalidSpec, RunSpec
from qlib.noise.profile import LayerNoise, NoiseProfile
from qlib.store import Finished
from qlib.store.tensors import TensorHist
from qlib.ui.noisyquant import text as noise_words
from qlib.ui.shared import address, context, resolve, state
from qlib.ui.shared.context import View

AFTER_GELU = "mlp.fc2"  # the layer that the paper's authors found to gain most
REACH, SEEN = "n_reach", "n-seen"
STEP, MOST = 0.05, 1.5  # of the reaches that were measured


@dataclass(frozen=True, eq=False)
class Found:
    """The stored noise analysis for the run of ``view``, if one is finished and readable.

    ``layer``: the one that is shown, "" without any; ``note``: why it is not the sidebar's.
    """

    view: View
    entry: Finished | None = None
    profile: NoiseProfile | None = None
    layer: str = ""
    note: str = ""
    problem: str = ""

    @property
    def spec(self) -> RunSpec:
        """The specification of the run that is looked at."""
        return self.view.record.spec


def begin() -> None:
    """Choose the layer behind the GELU of a middle block where the address names none."""
    asked = address.asked()
    if "layer" in asked:
        return
    choice = resolve.choose(asked, context.entries(), state.titles())
    if choice is None:
        return
    with suppress(InvalidSpec):  # the page tells of a run that cannot be read
        if name := middle(context.layers_of(state.record(choice.entry.folder))):
            address.put({"layer": name})


def middle(names: Sequence[str]) -> str:
    """The layer behind the GELU of a middle block; "" where there is none."""
    found = [name for name in names if name.endswith(AFTER_GELU)]
    return found[(len(found) - 1) // 2] if found else ""


def find(view: View) -> Found:
    """The stored noise analysis of the network that is looked at, and the layer to show of it."""
    entry = state.noise_of(view.record.spec)
    if entry is None:
        return Found(view)
    try:
        profile = state.noise(entry.folder)
    except InvalidSpec as error:
        return Found(view, entry, problem=str(error))
    layer = nearest(view.layer, profile.names, context.layers_of(view.record))
    note = ""
    if layer and layer != view.layer:
        kinds = {row["layer"]: row["kind"] for row in view.record.layers}
        note = noise_words.stand_in(view.layer, layer, str(kinds.get(view.layer, "")))
    return Found(view, entry, profile, layer, note)


def nearest(asked: str, known: Sequence[str], order: Sequence[str]) -> str:
    """The asked layer where it was measured, else the next measured one, else the one before."""
    if asked in known or not known:
        return asked if known else ""
    place = order.index(asked) if asked in order else 0
    later = [name for name in order[place:] if name in known]
    before = [name for name in order[:place] if name in known]
    return (later or before[::-1] or list(known))[0]


def values(found: Found) -> TensorHist | None:
    """The counted values of the layer's input in the run that is looked at, if it stored them."""
    with suppress(InvalidSpec):
        hist = state.hist(found.view.folder).get(f"{found.layer}.input")
        if hist is not None and hist.float.sum() > 0:
            return hist
    return None


# ---- the reach, kept in the address ----------------------------------------------------------


def reach(found: LayerNoise, searched: float) -> float:
    """The reach to show: the address's while layer and bits stay, else the searched one.

    Written into the state of the slider, which is drawn next.
    """
    session, place = st.session_state, (found.layer, found.bits)
    if session.get(SEEN, place) != place:
        st.query_params.pop(REACH, None)
    session[SEEN] = place
    value = _number(st.query_params.get(REACH))
    session[REACH] = on_grid(searched if value is None else value)
    return session[REACH]


def on_grid(value: float) -> float:
    """The nearest reach that the slider has."""
    return round(round(min(MOST, max(0.0, value)) / STEP) * STEP, 2)


def set_reach(value: float) -> None:
    """Choose another reach. For callbacks of the slider and of chart clicks."""
    st.query_params[REACH] = f"{on_grid(value):.2f}"


def clicked_reach(key: str, session=st.session_state) -> None:
    """A click on a mark of the chart ``key`` sets its reach; clicks beside do nothing."""
    points = session[key]["selection"]["points"]
    data = points[0].get("customdata") if points else None
    if data is not None and isinstance(data[0], int | float):
        set_reach(float(data[0]))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value <= MOST else None
