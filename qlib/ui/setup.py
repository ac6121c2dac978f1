"""The settings of a run as a form: pickers, the method's own fields, presets. Yields a RunSpec."""

import streamlit as st

from qlib import specs
from qlib._params import Param, params
from qlib._registry import discover
from qlib.methods._base import Method
from qlib.records import RunSpec
from qlib.ui import forms, pickers

SPEC = params(RunSpec)
URL = "query-params"
QUICK_CALIB = 64
PAPER_CALIB = 1024  # images in the published experiments
QUICK_SHARE = 10  # a quick look does a tenth of the usual steps


def draft() -> RunSpec:
    """The form; returns what it says, unchecked (see `qlib.specs.checked`)."""
    left, right = st.columns(2, gap="medium")
    with left:
        model, weights = pickers.model()
    with right:
        data = pickers.dataset()
    method = pickers.method()
    left, right = st.columns(2, gap="medium")
    with left:
        weight_bits = pickers.bits("Weight", "w")
    with right:
        act_bits = pickers.bits("Activation", "a")
    owner = discover("methods")[method]
    with _part(f"Settings of {owner.title}", ":material/tune:", "part_method"):
        settings = forms.fields(owner, method)
        if not settings:
            st.caption(f"{owner.title} has nothing to set: it learns nothing.")
    with _part("Images, seed and device", ":material/photo_library:", "part_images"):
        images = _images()
    with _part("Grid and placement", ":material/grid_4x4:", "part_grid"):
        grid = _grid()
    return RunSpec(
        model, data, method, weight_bits, act_bits, weights=weights, settings=settings,
        **images, **grid,
    )  # fmt: skip


def _part(name: str, icon: str, key: str):
    return st.expander(name, icon=icon, key=key)


def _field(name: str, key: str, label: str | None = None):
    return forms.field(SPEC[name], key, name=label)


def _images() -> dict:
    one, two, three = st.columns(3)
    with one:
        calib = _field("calib", "calib", "Calibration images")
        other = st.text_input(
            "Calibration source (optional)",
            key="calib_data",
            bind=URL,
            placeholder="as above",
            help="Calibrate on other images, for example folder:/data/photos. They need no labels.",
        )
    with two:
        test = st.number_input(
            "Held-out test images",
            min_value=1,
            value=None,
            step=100,
            placeholder="all",
            key="test",
            bind=URL,
            help="Fewer are quicker and give a wider interval. Empty: all there are.",
        )
        seed = _field("seed", "seed")
    with three:
        device = _field("device", "device")
    return {
        "calib": calib,
        "calib_data": other.strip() or None,
        "test": int(test) if test else None,
        "seed": seed,
        "device": device,
    }


def _grid() -> dict:
    one, two, three = st.columns(3)
    with one:
        edges = _field("edge_layers", "edge", "First and last layer")
        placement = _field("placement", "place", "Activations are rounded at")
    with two:
        weight = pickers.observer("Weight", "wobs", SPEC["weight_observer"].help)
        act = pickers.observer("Activation", "aobs", SPEC["act_observer"].help)
    with three:
        granularity = _field("granularity", "gran", "One scale per")
        symmetric_weights = _field("symmetric_weights", "wsym", "Symmetric weights")
        symmetric_acts = _field("symmetric_acts", "asym", "Symmetric activations")
    return {
        "edge_layers": edges,
        "placement": placement,
        "weight_observer": weight,
        "act_observer": act,
        "granularity": granularity,
        "symmetric_weights": symmetric_weights,
        "symmetric_acts": symmetric_acts,
    }


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


def presets() -> None:
    """Three cards that fill the form for the chosen method."""
    key = method_now()
    owner = discover("methods")[key]
    steps = [n for n, p in params(owner).items() if _counts_steps(p)]
    many = ", ".join(f"{owner.paper_settings.get(n, 0):,} {forms.label(n).lower()}" for n in steps)
    cards = (
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
            f"As published: {many or 'nothing to learn'}, activations at "
            f"{owner.paper_placement}." + (" Takes long." if many else ""),
            (published(owner), PAPER_CALIB, owner.paper_placement),
        ),
    )
    for cell, (name, icon, text, filling) in zip(st.columns(3), cards, strict=True):
        with cell, st.container(border=True, key=f"preset-{name.split()[0].lower()}"):
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
    """The method that the form shows: the cards above it speak of that one."""
    known = discover("methods")
    chosen = st.session_state.get("method")
    by_title = {owner.title: key for key, owner in known.items()}
    if chosen in known:
        return chosen
    return by_title.get(st.query_params.get("method", ""), pickers.METHOD)


def _fill(method: str, settings: dict, calib: int, placement: str | None) -> None:
    for name, value in settings.items():
        st.session_state[f"{method}.{name}"] = value
    st.session_state["calib"] = calib
    st.session_state["place"] = placement or SPEC["placement"].default


def checked(spec: RunSpec) -> RunSpec:
    """The specification as the job gets it: complete, with absolute paths.

    Raises:
        Refused: one sentence on what is wrong.
    """
    return specs.absolute(specs.checked(spec))
