"""The state of a view lives in its address: its keys, their changes, and switches of page.

Streamlit empties the query string when another page is chosen in the navigation. What a person
chose is therefore kept for the session and put back on entering a page; a key that the new
address names itself wins.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

import streamlit as st

Session = MutableMapping[str | int, Any]  # what Streamlit keeps for a visitor; tests give a dict

MODEL, METHOD, BITS, LAYER, DATA, RUN = "m", "q", "b", "layer", "d", "run"
PRESENT, LESSON, STEP, HIDE = "present", "lesson", "step", "hide"
CONTEXT = (MODEL, METHOD, BITS, LAYER, DATA, RUN)  # what is looked at
EVERYWHERE = (PRESENT, LESSON, STEP, HIDE)  # how it is looked at
WITHOUT = {"run", "lesson"}  # pages that look at no stored run: their address stays free of it
_KEPT, _PAGE = "address-kept", "address-page"


def enter(path: str) -> None:
    """Take over the address; call before a page runs. ``path`` is its address (``start``)."""
    session = st.session_state
    kept = dict(session.get(_KEPT, {}))
    keys = EVERYWHERE if path in WITHOUT else (*EVERYWHERE, *CONTEXT)
    if session.get(_PAGE, path) != path:
        if RUN not in st.query_params and {MODEL, METHOD, BITS} & set(st.query_params):
            kept.pop(RUN, None)
        back = {k: v for k, v in kept.items() if k in keys and k not in st.query_params}
        if back:
            st.query_params.update(back)
    session[_PAGE] = path
    now = {k: st.query_params[k] for k in keys if k in st.query_params}
    session[_KEPT] = {k: v for k, v in kept.items() if k not in keys} | now


def forget(*, widgets: bool = False) -> None:
    """Drop the remembered selection; ``widgets``: also what pages' own controls said."""
    session = st.session_state
    kept = session.get(_KEPT, {})
    session[_KEPT] = {k: v for k, v in kept.items() if k == PRESENT}
    for key in [k for k in session if widgets and not str(k).startswith(("address-", "lesson-"))]:
        del session[key]


def page() -> str:
    """The address of the current page."""
    return st.session_state.get(_PAGE, "")


def asked() -> dict[str, str]:
    """The selection in the address: those keys of `CONTEXT` that it has."""
    return {k: st.query_params[k] for k in CONTEXT if st.query_params.get(k)}


def looked_at() -> dict[str, str]:
    """The selection of the address, else of the pages before: keys of `CONTEXT`."""
    kept = st.session_state.get(_KEPT, {})
    return {k: v for k, v in kept.items() if k in CONTEXT} | asked()


def put(values: Mapping[str, str | None]) -> None:
    """Set keys of the address; None takes one out. One entry of the browser's history."""
    for key, value in values.items():
        if value is None and key in st.query_params:
            del st.query_params[key]
    new = {k: v for k, v in values.items() if v is not None and st.query_params.get(k) != v}
    if new:
        st.query_params.update(new)


def switched_on(key: str) -> bool:
    """Whether a switch of the address, such as ``present``, is on: ``1``, ``true`` or ``on``."""
    return st.query_params.get(key, "").lower() in ("1", "true", "on")
