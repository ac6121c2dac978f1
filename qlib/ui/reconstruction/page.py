"""What learned rounding changed in a stored run: its answer, controls and per-layer figures."""

from collections.abc import Mapping
from dataclasses import dataclass

import streamlit as st

from qlib.core.records import BASELINE, InvalidSpec, RunRecord
from qlib.core.rows import LayerRow
from qlib.plots.reconstruction import learned as _learned
from qlib.plots.reconstruction import loss_curve
from qlib.plots.reconstruction.unit_fits import broken, fitted_as, row_of
from qlib.store import Finished
from qlib.ui.shared import address, answers, comparable, context, resolve, state
from qlib.ui.shared.context import View
from qlib.ui.shared.glossary import word

URL = "query-params"
LOOKS = {"log": "log", "smooth": "smooth", "penalty": "penalty"}


@dataclass(frozen=True)
class Shown:
    """What the controls ask for: unit, methods, reference and look.

    ``methods``: the run's own, then those laid over it. ``nearest``: rows of the network rounded
    to nearest, which output errors are compared with on the images ``data``; None: with the same
    layer sent back to nearest. ``look``: how the loss is drawn, keys of `LOOKS`.
    """

    methods: tuple[str, ...]
    nearest: list[LayerRow] | None = None
    data: str = "calib"
    look: tuple[str, ...] = ("log", "penalty")


def begin() -> None:
    """Choose the best learned method where the address names none: nearest learns nothing."""
    asked = address.asked()
    if asked.keys() & {"q", "run"}:
        return
    entries = context.entries()
    choice = resolve.choose(asked | {"q": "best"}, entries, state.titles())
    if choice is not None:
        address.put({"q": choice.spec.method})


def peers(view: View) -> dict[str, Finished]:
    """Comparable runs by method, the view's own first: same conditions and bits."""
    bits = answers.bits_label(view.record)
    by_method = {view.record.spec.method: view.entry}
    for entry in sorted(view.siblings, key=lambda e: e.record.spec.method):
        same = answers.bits_label(entry.record) == bits
        if same and not comparable.unlike([view.record, entry.record]):
            by_method.setdefault(entry.record.spec.method, entry)
    return by_method


def learned(entry: Finished) -> bool:
    """Whether learning moved any weight of a run."""
    try:
        return bool(_learned.moved(_learned.gains(state.layers(entry.folder))))
    except InvalidSpec:
        return False


def changed(view: View, others: Mapping[str, Finished]) -> bool:
    """Whether a run moved weights, or the levels that they are rounded to."""
    if learned(view.entry):
        return True
    nearest = others.get(BASELINE)
    if nearest is None or nearest.key == view.entry.key:
        return False
    rows = state.layers(nearest.folder)
    return _learned.regridded(_learned.gains(view.record.layers, rows))


# ---- nothing learned -------------------------------------------------------------------------


def offer(view: View, others: Mapping[str, Finished]) -> None:
    """Show links to runs that did learn, of the same network, where this one did not."""
    titles = state.titles()
    same = [e for m, e in others.items() if e is not view.entry and learned(e)]
    near = same or [e for e in view.siblings if learned(e)][:4]
    if not near:
        st.info(
            "No stored run of this network learned its rounding yet. Make one with AdaRound, "
            "BRECQ or QDrop.",
            icon=":material/school:",
        )
        st.page_link("pages/3_Run.py", label="Make a run", icon=":material/play_circle:")
        return
    where = "the same bits" if same else "other bits"
    st.info(f"These runs of the same network and {where} did learn:", icon=":material/school:")
    with st.container(horizontal=True):
        for entry in near:
            st.button(
                answers.label(entry.record, titles),
                key=f"r_see_{entry.key}",
                icon=":material/arrow_forward:",
                on_click=_see,
                args=(entry.record,),
            )


def _see(record: RunRecord) -> None:
    bits = answers.bits_label(record)
    address.put({"q": record.spec.method, "b": bits, "run": None})


# ---- controls --------------------------------------------------------------------------------


def controls(view: View, others: Mapping[str, Finished]) -> Shown:
    """Show the row of controls: unit, methods laid over, reference, and how loss is drawn."""
    one, two, three, four = st.columns([9, 10, 10, 10], gap="medium")
    with one:
        _unit(view)
    with two:
        over = _over(view, others)
    with three:
        nearest = _reference(others)
    with four:
        look = st.pills(
            "Loss curve",
            list(LOOKS),
            selection_mode="multi",
            default=["log", "penalty"],
            format_func=LOOKS.__getitem__,
            key="r_look",
            bind=URL,
            help=word("smoothing") + " " + word("penalty"),
        )
    own = view.record.spec.method
    data = "calib" if nearest is None else view.data
    return Shown((own, *over), nearest, data, tuple(look))


def _over(view: View, others: Mapping[str, Finished]) -> list[str]:
    """Methods to lay over the run's own."""
    own, titles = view.record.spec.method, state.titles()
    more = [m for m, e in others.items() if m != own and learned(e)]
    if not more:
        st.pills("Lay over", ["nothing stored"], disabled=True, key="r_none")
        return []
    over = st.pills(
        "Lay over",
        more,
        selection_mode="multi",
        format_func=lambda m: titles.get(m) or m,
        key="r_with",
        bind=URL,
        help="Stored runs of the same network, bits and images, made with other methods.",
    )
    return [m for m in more if m in over]


def _reference(others: Mapping[str, Finished]) -> list[LayerRow] | None:
    """Rows of the network rounded to nearest, or None for the layer alone."""
    options = {"network": "network", "layer": "layer alone"}
    if BASELINE not in others:
        del options["network"]
    picked = st.segmented_control(
        "Nearest rounding of",
        list(options),
        format_func=options.__getitem__,
        default=next(iter(options)),
        required=True,
        key="r_against",
        bind=URL,
        help=word("reference of the output error"),
    )
    return state.layers(others[BASELINE].folder) if picked == "network" else None


def _unit(view: View) -> None:
    """The fitted units; the one that is shown follows from the layer, and picking one sets it."""
    found = units(view)
    names = list(found)
    failed = broken(state.events(view.folder))
    unit = unit_of(view)
    st.session_state["r_unit"] = fitted_as(view.layer, unit, names) or names[0]
    st.selectbox(
        "Unit",
        names,
        key="r_unit",
        format_func=lambda name: f"⚠ {name} (diverged)" if name in failed else name,
        on_change=lambda: context.set_layer(found[st.session_state["r_unit"]]),
        help=word("unit"),
    )


def units(view: View) -> dict[str, str]:
    """What was fitted, in order, with the layer that stands for it: its last one with weights."""
    names = _fitted(view)
    rows = [r for r in view.record.layers if r["tensor"] == "weight"]
    inside = {r["unit"]: r["layer"] for r in rows} | {r["layer"]: r["layer"] for r in rows}
    for name in names:
        if within := [inside[u] for u in row_of(name, _order(view)) if u in inside]:
            inside[name] = within[-1]
    wanted = dict.fromkeys(n for n in names if n in inside) or dict.fromkeys(
        r["unit"] for r in rows
    )
    return {name: inside[name] for name in wanted}


def unit_of(view: View) -> str:
    """The block that holds the chosen layer, or the row of units that it was fitted in."""
    rows = view.record.layers
    unit = next((r["unit"] for r in rows if r["layer"] == view.layer), view.layer)
    order, fitted = _order(view), _fitted(view)
    joined = next((name for name in fitted if unit in row_of(name, order)), "")
    return unit if unit in fitted else joined or unit


def _fitted(view: View) -> list[str]:
    return [f.unit for f in loss_curve.info(state.events(view.folder)).fits]


def _order(view: View) -> list[str]:
    """All units, as the network runs them."""
    return list(dict.fromkeys(r["unit"] for r in view.record.layers))
