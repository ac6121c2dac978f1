"""The parts of the context bar: which run, which layer, which images, and its tools."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import streamlit as st

from qlib.core.records import network_name
from qlib.store import Finished
from qlib.ui.shared import address, linkbar, resolve, state
from qlib.ui.shared.answers import bits_label
from qlib.ui.shared.glossary import word
from qlib.ui.shared.resolve import Choice

DATA = {"test": "Held-out", "calib": "Calibration"}
Changed = Callable[[str], None]  # called with the key of the widget that changed


def run(choice: Choice, known: Sequence[Finished], changed: Changed) -> None:
    """Show pickers of backbone, method and bits; where several runs share these, which one."""
    titles, picked = state.titles(), choice.params
    here = [e for e in known if e.record.spec.model == picked["m"]]
    mine = [e for e in here if e.record.spec.method == picked["q"]]
    models = resolve.models(known)
    _list("m", models, picked["m"], "Backbone", "The trained network.", changed, _bare(models))
    _list(
        "q", resolve.methods(here), picked["q"], "Method", word("nearest rounding"), changed, titles
    )
    widths = resolve.widths(mine)
    if len(widths) > 1:
        st.session_state["b"] = picked["b"]
        help = word("bits")
        st.select_slider("Bits", widths, key="b", on_change=changed, args=("b",), help=help)
    else:
        st.caption(f"Bits: {picked['b']}, the only ones stored for this method.")
    same = [e.key for e in mine if bits_label(e.record) == picked["b"]]
    if len(same) > 1:
        help = "Several runs share backbone, method and bits; their settings differ."
        _list("run", same, choice.entry.key, "Run", help, changed, _names(mine))


def _bare(models: Sequence[str]) -> dict[str, str]:
    """Names for people; where several files have one name, with the folder that each lies in."""
    names = {model: network_name(model) for model in models}
    many = Counter(names.values())
    return {
        model: name if many[name] == 1 else f"{name} ({model.split('/')[-2][:8]})"
        for model, name in names.items()
    }


def _names(entries: Sequence[Finished]) -> dict[str, str]:
    return {e.key: f"{source(e)}, {e.key[-10:-4]}" for e in entries}


def source(entry: Finished) -> str:
    """The origin of a run as text: came with the project, or made here."""
    return "stored run" if entry.folder.parent == state.demo().folder else "own run"


def layer(names: list[str], now: str, changed: Changed, go: Changed) -> None:
    """Show the picker of a layer with steps on and back; ``go`` is called with the new one."""
    place = names.index(now)
    help = "In the order of the network. Type to search."
    _list("layer", names, now, f"Layer {place + 1} of {len(names)}", help, changed)
    back, on = st.columns(2, gap="small")
    for cell, step, name, key in ((back, -1, "Previous", "Left"), (on, 1, "Next", "Right")):
        there = place + step
        cell.button(
            name,
            key=f"layer-{name.lower()}",
            shortcut=key,
            disabled=not 0 <= there < len(names),
            on_click=go,
            args=(names[there % len(names)],),
            width="stretch",
        )


def data(now: str, changed: Changed) -> None:
    """Show the choice of images whose numbers are shown."""
    st.session_state["d"] = now
    st.segmented_control(
        "Images",
        list(DATA),
        key="d",
        format_func=DATA.__getitem__,
        required=True,
        on_change=changed,
        args=("d",),
        help="Calibration images were seen by the method; held-out images were not.",
        width="stretch",
    )


def chip(entry: Finished) -> None:
    """Show where the run comes from: stored or own, when, its images, seed and calibration."""
    record = entry.record
    calib = record.data.get("calib_n", record.spec.calib)
    st.caption(
        f":material/inventory_2: {source(entry)} of {str(record.created)[:10]}, "
        f"{int(record.metrics['n']):,} test images, {calib} to calibrate, seed {record.spec.seed}"
    )


def tools(params: Mapping[str, str]) -> None:
    """Show Copy link, reset, and Present: larger figures and text for a room, no small print.

    ``params``: what the link writes out in full.
    """
    row = {"horizontal": True, "vertical_alignment": "center", "wrap": False}
    with st.sidebar, st.container(key="tools", **row):
        linkbar.draw(params)
        st.session_state["present"] = state.presenting()
        st.toggle("Present", key="present", on_change=_present)


def _present() -> None:
    address.put({address.PRESENT: "1" if st.session_state["present"] else None})


def _list(
    key: str,
    options: list[str],
    now: str,
    name: str,
    help: str,
    changed: Changed,
    shown: Mapping[str, str] | None = None,
) -> None:
    st.session_state[key] = now
    st.selectbox(
        name,
        options,
        key=key,
        format_func=lambda option: (shown or {}).get(option) or option,
        on_change=changed,
        args=(key,),
        help=help,
    )
