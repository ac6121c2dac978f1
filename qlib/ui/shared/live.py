"""The live network on the screens: its switch, its loading progress, and its answers.

PyTorch runs in a process of its own (`qlib.live`), which starts when somebody asks for it and is
shared by all visitors.
"""

import uuid
from collections.abc import Callable, Sequence

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from qlib import live
from qlib.core.records import InvalidSpec
from qlib.live import Answer, Bits, Live
from qlib.store import Finished
from qlib.ui.shared import own_code

ON = "live-on"  # session key: this visitor wants predictions computed now
LOOK = 0.4  # seconds between looks at a network that loads
SOON = 1.5  # seconds that a page waits for a run to load before it shows progress


@st.cache_resource(show_spinner=False)
def shared() -> Live:
    """The one live process of all visitors; not started yet."""
    return Live()


def answer(
    entry: Finished, bits: Bits, images: str | Sequence[int] = "shown", weights: int | None = None
) -> Answer:
    """The live network's answer for a run; starts the process if needed, and waits.

    Args:
        bits: one width, or a width for each unit named (the others: the run's own).
        images: "shown" (the first 12 held-out ones), "test" (all: with their top-1), or positions.

    Raises:
        InvalidSpec: in one sentence, why there is no answer.
    """
    asker = st.session_state.setdefault("live-asker", uuid.uuid4().hex)
    _open(entry)
    return shared().ask(entry.folder, bits, images, weights, asker=asker)


def wanted() -> bool:
    """Whether this visitor has switched the live network on."""
    return bool(st.session_state.get(ON)) and not live.missing()


def switch(
    entry: Finished,
    help: str,
    *,
    turned: Callable[[], Finished] | None = None,
    below: DeltaGenerator | None = None,
) -> bool:
    """Show the switch *Try it now*; true when the run's network is loaded and can be asked.

    While it loads its progress is shown, and the page runs again when it is there. Call it on
    every run of a page. ``turned`` is called when it is switched on and says which run to load
    then, where that is another one; ``below``: where to say what went wrong.
    """
    why = live.missing()
    st.session_state["live"] = on = wanted()
    st.toggle(
        "Try it now",
        key="live",
        disabled=bool(why),
        on_change=_turned,
        args=(entry, turned),
        help=why or help,
    )
    ready, problem = _ready(entry) if on else (False, "")
    loading = on and not ready and not problem
    watch = st.fragment(_watch, run_every=LOOK if loading else None, key="live-progress")
    watch(entry if loading else None)
    if problem:
        with below or st.container():
            failed(entry, problem)
    return ready


def failed(entry: Finished, problem: str) -> None:
    """Show why there is no answer; where the process is gone, offer to start it again."""
    with st.container(horizontal=True, vertical_alignment="center", key="live-failed"):
        st.warning(problem, icon=":material/power_off:")
        if not shared().alive:
            st.button("Start it again", key="live-again", on_click=_start, args=(entry,))


def _open(entry: Finished) -> None:
    """Let the process load a run, and start it where it does not run.

    Raises:
        InvalidSpec: it cannot be started; or it would run code that this visitor may not run.
    """
    own_code.check(entry.record.spec)
    shared().start(entry.folder)


def _ready(entry: Finished) -> tuple[bool, str]:
    """Whether the run is loaded, or why it will not be."""
    network = shared()
    try:
        if network.alive:
            _open(entry)  # another run than before, perhaps
        ready = network.opened(entry.folder, SOON if network.warm else 0.0) is not None
    except InvalidSpec as error:
        return False, str(error)
    refused = st.session_state.pop("live-refused", "The live network does not run.")
    return ready, "" if network.alive else refused


def _turned(entry: Finished, turned: Callable[[], Finished] | None) -> None:
    st.session_state[ON] = st.session_state["live"]
    if st.session_state[ON]:
        _start(turned() if turned else entry)


def _start(entry: Finished) -> None:
    try:
        _open(entry)
    except InvalidSpec as error:
        st.session_state["live-refused"] = str(error)


def _watch(entry: Finished | None) -> None:
    """How far the process is, while it loads."""
    if entry is None:
        return
    try:
        done = shared().opened(entry.folder) is not None
    except InvalidSpec:
        done = True  # the page says why
    stage = shared().stage
    if done or stage is None:
        st.rerun()
    st.progress(stage.done / stage.of, text=f"{stage.text} (step {stage.done + 1} of {stage.of})")
