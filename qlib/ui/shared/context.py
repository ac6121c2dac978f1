"""The sidebar's bar with the current selection, shared by all pages: run, layer and data.

The address is the truth (see `qlib.ui.shared.address`): widgets are filled from it and write to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from qlib import store
from qlib.core import catalogue
from qlib.core.records import BASELINE, InvalidSpec, RunRecord
from qlib.sensitivity import profile
from qlib.ui.shared import address, bar, resolve, state
from qlib.ui.shared.address import Session
from qlib.ui.shared.resolve import Choice, entry_for, layers_of

__all__ = [
    "View", "clicked_layer", "entries", "entry_for", "layers_of", "profile_of", "set_bits",
    "set_layer", "view",
]  # fmt: skip

_TOLD = "context-told"  # what the last change could not keep


@dataclass(frozen=True)
class View:
    """The current selection of a page: a run, a layer, and which images.

    ``record`` has its rows of layers where the page asked for them; ``layer`` is one of them, never
    unknown; ``data``: ``test`` or ``calib``; ``siblings``: all quantization runs of the backbone.
    """

    entry: store.Finished
    record: RunRecord
    layer: str
    data: str
    siblings: tuple[store.Finished, ...]

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.entry.folder


def view(*, layers: bool = True, data: bool = False) -> View | None:
    """Draw the bar and return the selection.

    Draw the bar, tell what of the address is not there; None (explained) without any run.

    ``layers``: the page looks at one layer; ``data``: it can show held-out or calibration images.
    """
    known = entries()
    asked = address.asked()
    choice = resolve.choose(asked, known, state.titles())
    if choice is None:
        _none_yet()
        return None
    siblings = tuple(e for e in known if e.record.spec.model == choice.spec.model)
    try:
        record = state.record(choice.entry.folder) if layers else choice.entry.record
        names = layers_of(record) if layers else []
        first = _first_layer(siblings) if layers else None
        problem = ""
    except InvalidSpec as error:
        record, names, first, problem = choice.entry.record, [], None, str(error)
    layer, note = resolve.nearest_layer(asked.get("layer"), names, first) if names else ("", "")
    shown = asked["d"] if asked.get("d") in bar.DATA else "test"
    why = state.problem_of(asked.get("run"))
    tell(why, *choice.notes, note, _images_said(asked.get("d")) if data else "")
    with st.sidebar, st.container(key="context", gap="small"):
        bar.run(choice, known, picked)
        if names:
            bar.layer(names, layer, picked, set_layer)
        if data:
            bar.data(shown, picked)
        bar.chip(choice.entry)
    bar.tools(_link(choice, known, layer=layer, data=shown if data else ""))
    if problem:
        st.error(problem, icon=":material/broken_image:")
        return None
    return View(choice.entry, record, layer, shown, siblings)


def _images_said(asked: str | None) -> str:
    """What to tell of images that the address asks for and that are none."""
    if asked is None or asked in bar.DATA:
        return ""
    return f"There are no images `{asked}` here (test and calib are); shown: held-out."


def _link(
    choice: Choice, known: Sequence[store.Finished], *, layer: str, data: str
) -> dict[str, str]:
    """The whole view as an address writes it, what is shown by default included."""
    plain = resolve.choose(choice.params, known, {})
    key = "" if plain and plain.entry.key == choice.entry.key else choice.entry.key
    said = choice.params | {"layer": layer, "d": data, "run": key}
    return {name: value for name, value in said.items() if value}


def tell(*notes: str) -> None:
    """Show what of the address, or of the last change, is not there; nothing for empty notes."""
    lines = [note for note in (*notes, *st.session_state.pop(_TOLD, ())) if note]
    if lines:
        st.info(" ".join(lines), icon=":material/link_off:")


def _none_yet() -> None:
    broken = [e.problem for shelf in (state.demo(), state.own()) for e in shelf.broken]
    st.info("There is no finished run to look at yet.", icon=":material/inventory_2:")
    for problem in broken[:5]:
        st.caption(problem)
    st.page_link("pages/3_Run.py", label="Make a run", icon=":material/play_circle:")


def entries() -> list[store.Finished]:
    """All readable quantization runs: stored ones first, then the newest."""
    by_key = state.everything()
    stored = {e.key for e in state.demo().good}
    newest = sorted(by_key.values(), key=lambda e: str(e.record.created), reverse=True)
    return sorted(newest, key=lambda e: (e.key not in stored, _special(e.record)))


def _special(record: RunRecord) -> bool:
    """Runs that answer one question of their own come last: layers in float, a naive switch, what
    tuning adds to a method."""
    spec = record.spec
    tuned = spec.tune_norms or spec.tune_biases
    return bool(spec.keep_float or tuned) or catalogue.is_contrast(spec)


def profile_of(record: RunRecord) -> store.Finished | None:
    """The finished sensitivity run of a run, if there is one."""
    return state.analyses().get(profile.base_of(record.spec).key)


def _first_layer(siblings: Sequence[store.Finished]) -> str | None:
    """The same layer for all methods and bits of a backbone: the one that 4 bits hurt most."""
    entry = entry_for(siblings, BASELINE, "W4A4") or siblings[0]
    try:
        return resolve.worst_layer(state.layers(entry.folder))
    except InvalidSpec:
        return None


# ---- changes ---------------------------------------------------------------------------------


def set_layer(name: str) -> None:
    """Choose another layer, on every page. For callbacks of buttons and chart clicks."""
    address.put({"layer": name})


def set_bits(label: str) -> None:
    """Choose other bits (``W4A4``), on every page. For callbacks."""
    change("b", label)


def clicked_layer(key: str, index: int = 0, session: Session = st.session_state) -> None:
    """Choose the layer of a clicked mark.

    A click in the chart ``key``: its point's ``customdata[index]`` names the layer.

    Use as ``on_select``; clicks beside the points, and points without a layer, do nothing.
    """
    points = session[key]["selection"]["points"]
    data = points[0].get("customdata") if points else None
    if data is None:
        return
    name = data if isinstance(data, str) else data[index]
    if name:
        set_layer(name)


def change(key: str, value: str, known: Sequence[store.Finished] | None = None) -> None:
    """Change one key of the address, and with it what does not fit to it any more.

    ``known``: the runs to choose from, where a page offers others than `entries`.
    """
    known, asked = entries() if known is None else known, address.asked()
    if key in ("m", "q", "b") and asked.pop("run", None):
        before = resolve.choose({"run": st.query_params["run"]}, known, state.titles())
        asked = (before.params if before else {}) | asked
    asked[key] = value
    choice = resolve.choose(asked, known, state.titles())
    new: dict[str, str | None] = {key: value}
    if choice is None:  # the last run went while the page was looked at
        address.put(new)
        return
    if key in ("m", "q", "b"):
        new["run"] = None
        new |= {k: v for k, v in choice.params.items() if k in asked}
        st.session_state[_TOLD] = choice.notes
    if key == "m" and asked.get("layer") not in _names(choice):
        new["layer"] = None
    address.put(new)


def _names(choice: Choice) -> list[str]:
    try:
        return layers_of(state.record(choice.entry.folder))
    except InvalidSpec:
        return []


def picked(key: str) -> None:
    """The ``on_change`` callback of a widget that has a key of the address."""
    change(key, st.session_state[key])
