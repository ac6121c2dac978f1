"""Three cards that fill the form: a quick look, the app's defaults, the paper's settings."""

import streamlit as st

from qlib.core.params import Param, params
from qlib.core.records import RunSpec
from qlib.core.registry import discover
from qlib.methods.base import Method
from qlib.ui.shared import forms, pickers

QUICK_CALIB = 64
PAPER_CALIB = 1024  # images in the published experiments
QUICK_SHARE = 10  # a quick look does a tenth of the usual steps
SPEC = params(RunSpec)


def quick(owner: type[Method]) -> dict:
    """Small settings of a method: a tenth of the default steps, the rest as it is."""
    return {n: _tenth(p) if _counts_steps(p) else p.default for n, p in params(owner).items()}


def _counts_steps(p: Param) -> bool:
    return p.type is int and "steps" in p.name


def _tenth(p: Param) -> int:
    return max(int(p.low or 0), p.default // QUICK_SHARE)


def standard(owner: type[Method]) -> dict:
    """The defaults of a method's fields."""
    return {n: p.default for n, p in params(owner).items()}


def published(owner: type[Method]) -> dict:
    """A method's settings as its paper gives them."""
    return standard(owner) | owner.paper_settings


def cards() -> None:
    """Show three cards that fill the form for the chosen method."""
    key = method_now()
    owner = discover("methods")[key]
    steps = [n for n, p in params(owner).items() if _counts_steps(p)]
    many = [n for n in steps if n in owner.paper_settings]
    told = ", ".join(f"{owner.paper_settings[n]:,} {forms.label(n).lower()}" for n in many)
    private = "the app's own steps, as the paper's are not public" if steps else "nothing to learn"
    shown = (
        (
            "Quick look",
            ":material/bolt:",
            f"{QUICK_CALIB} calibration images, a tenth of the steps. Under a minute on the "
            "digits networks.",
            (quick(owner), QUICK_CALIB, None),
        ),
        (
            "Standard",
            ":material/check_circle:",
            f"The app's defaults for {owner.title}: a laptop shows the method's strength in "
            f"{owner.cost}.",
            (standard(owner), SPEC["calib"].default, None),
        ),
        (
            "Paper settings",
            ":material/menu_book:",
            f"As published: {told or private}, activations at "
            f"{owner.paper_placement}." + (" Takes long." if steps else ""),
            (published(owner), PAPER_CALIB, owner.paper_placement),
        ),
    )
    for cell, (name, icon, text, filling) in zip(st.columns(3), shown, strict=True):
        with (
            cell,
            st.container(border=True, height="stretch", key=f"preset-{name.split()[0].lower()}"),
        ):
            st.markdown(f"{icon} **{name}**")
            st.caption(text)
            st.button(
                "Use these",
                key=f"use-{name}",
                on_click=_fill,
                args=(key, *filling),
                help=f"Fill the form for {owner.title}; nothing starts yet.",
            )


def method_now() -> str:
    """The method that the form shows now, for the cards above it."""
    methods = discover("methods")
    chosen = st.session_state.get("method")
    by_title = {owner.title: key for key, owner in methods.items()}
    if chosen in methods:
        return chosen
    return by_title.get(st.query_params.get("method", ""), pickers.METHOD)


def _fill(method: str, settings: dict, calib: int, placement: str | None) -> None:
    for name, value in settings.items():
        st.session_state[f"{method}.{name}"] = value
    st.session_state["calib"] = calib
    st.session_state["place"] = placement or SPEC["placement"].default
