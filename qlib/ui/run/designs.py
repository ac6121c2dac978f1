"""The picker *Start from a method and change*, which fills *Your own* with a method's design."""

from dataclasses import asdict
from typing import Any

import streamlit as st

from qlib.core.registry import discover
from qlib.ui.shared import forms

KEY = "from"


def known() -> dict[str, Any]:
    """Named methods that are points of the design space, at their defaults."""
    owners = {key: owner for key, owner in discover("methods").items() if not owner.open_design}
    found = {key: owner().design() for key, owner in owners.items()}
    return {key: design for key, design in found.items() if design is not None}


def start_from(method: str) -> None:
    """Show a picker of designs above the fields, where the method's fields are a design."""
    owners = discover("methods")
    if not owners[method].open_design:
        return
    picked = st.selectbox(
        "Start from",
        _plain_first(method),
        format_func=lambda key: owners[key].title,
        key=KEY,
        on_change=_fill,
        args=(method,),
        help="Fills all fields below with this method's choices, which you may then change. "
        "Unchanged, the result is the method's own to the last bit.",
    )
    title, changed = owners[picked].title, _changed(method, asdict(known()[picked]))
    if changed:
        st.caption(f"Differs from {title} in: {', '.join(changed)}.")
    else:
        st.caption(f"All choices are {title}'s so far.")


def _plain_first(method: str) -> list[str]:
    """The named methods, first the one whose design the fields' defaults are."""
    plain, named = asdict(discover("methods")[method]().design()), known()
    return sorted(named, key=lambda key: asdict(named[key]) != plain)


def _fill(method: str) -> None:
    for name, value in asdict(known()[st.session_state[KEY]]).items():
        st.session_state[f"{method}.{name}"] = value


def _changed(method: str, start: dict) -> list[str]:
    """Fields that say something else now, in words."""
    now = {name: st.session_state.get(f"{method}.{name}", value) for name, value in start.items()}
    return [forms.label(name).lower() for name, value in start.items() if now[name] != value]
