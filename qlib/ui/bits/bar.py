"""The Bits page's bar: backbone, line, bits of weights and of activations, steps, and Play."""

import time
from collections.abc import Sequence

import streamlit as st

from qlib.core.records import network_name
from qlib.plots.bits.width_map import Pair
from qlib.store import Finished
from qlib.ui.bits import view
from qlib.ui.bits.view import Shown
from qlib.ui.shared import address, bar, resolve
from qlib.ui.shared.glossary import word

URL = "query-params"
TOGETHER = "b_same"  # whether both sliders move as one
PLAYING, PLAYED = "b-playing", "b-played"  # session keys: whether Play runs, when it last moved
EVERY = 1.2  # seconds that Play shows a width
SIDES = {"w": "Weight bits", "a": "Activation bits"}


def draw(shown: Shown, known: Sequence[Finished]) -> None:
    """Draw the whole bar in the sidebar, with chip, link and Present. ``known``: all runs."""
    with st.sidebar, st.container(key="context", gap="small"):
        _network(shown, known)
        with st.container(key="b", gap="xsmall"):
            for cell, side, place in zip(st.columns(2, gap="medium"), "wa", (0, 1), strict=True):
                with cell:
                    _width(shown.pair, side, place)
            st.toggle(
                "Move both together", True, key=TOGETHER, bind=URL,
                help="Off: give weights and activations bits of their own.",
            )  # fmt: skip
            _steps(shown)
        bar.chip(shown.entry)
    params = {"m": shown.model, "b": shown.label}
    at = {k: v for k, v in view.place(shown.track, known).items() if v}
    bar.tools(params | at)


def _network(shown: Shown, known: Sequence[Finished]) -> None:
    st.session_state["m"], st.session_state["q"] = shown.model, shown.track.key
    st.selectbox(
        "Backbone",
        resolve.models(known),
        key="m",
        on_change=_model,
        help="The trained network.",
        format_func=network_name,
    )
    st.selectbox(
        "Method", list(shown.tracks), key="q", format_func=lambda k: shown.tracks[k].title,
        on_change=_line, args=(shown, known), help=word("one model"),
    )  # fmt: skip


def _model() -> None:
    stop()
    for key in ("b_lines", "b-base"):  # begin with what is usual for the other network
        st.session_state.pop(key, None)
    address.put({"m": st.session_state["m"], "run": None, "mix": None})


def _line(shown: Shown, known: Sequence[Finished]) -> None:
    view.take(shown.tracks[st.session_state["q"]], known)


def _width(pair: Pair, side: str, place: int) -> None:
    key = f"bits-{side}"
    st.session_state[key] = pair[place]
    st.select_slider(
        SIDES[side], view.WIDTHS, key=key, on_change=_moved,
        args=(pair, place), help=word("bits"),
    )  # fmt: skip


def _moved(pair: Pair, place: int) -> None:
    stop()
    new = st.session_state[f"bits-{'wa'[place]}"]
    both = st.session_state.get(TOGETHER, True)
    view.go((new, new) if both else (new, pair[1]) if place == 0 else (pair[0], new))


# ---- steps -----------------------------------------------------------------------------------


def ladder(shown: Shown) -> list[int]:
    """The equal widths that the line has, most bits first: those that Play visits."""
    return shown.track.equal


def below(pair: Pair, stations: Sequence[int]) -> int | None:
    """The next station with fewer bits than the pair's largest; None at the end."""
    return next((b for b in stations if b < max(pair)), None)


def above(pair: Pair, stations: Sequence[int]) -> int | None:
    """The next station with more bits than the pair's smallest; None at the top."""
    return next((b for b in reversed(stations) if b > min(pair)), None)


def _steps(shown: Shown) -> None:
    """One width up, Play, one width down. Play goes on by itself until the lowest width."""
    stations = ladder(shown)
    more, fewer = above(shown.pair, stations), below(shown.pair, stations)
    playing = bool(st.session_state.get(PLAYING)) and fewer is not None
    st.session_state[PLAYING] = playing
    one, two, three = st.columns([2, 3, 2], gap="small")
    one.button(
        "", icon=":material/chevron_left:", key="b-more", on_click=_step, args=(more,),
        disabled=more is None, shortcut="Left", width="stretch", help="One width more.",
    )  # fmt: skip
    two.button(
        "Stop" if playing else "Play",
        icon=":material/stop:" if playing else ":material/play_arrow:",
        key="b-run", on_click=stop if playing else start, args=() if playing else (shown,),
        disabled=len(stations) < 2, width="stretch",
        help="From the most to the fewest bits, one width after the other.",
    )  # fmt: skip
    three.button(
        "", icon=":material/chevron_right:", key="b-fewer", on_click=_step, args=(fewer,),
        disabled=fewer is None, shortcut="Right", width="stretch", help="One width fewer.",
    )  # fmt: skip
    watch = st.fragment(tick, run_every=EVERY if playing else None, key="b-play")
    watch(shown.pair, tuple(stations), playing)


def _step(to: int | None) -> None:
    stop()
    if to is not None:
        view.go((to, to))


def start(shown: Shown) -> None:
    """Play from here on; from the top where there is nothing below."""
    stations = ladder(shown)
    if below(shown.pair, stations) is None:
        view.go((stations[0], stations[0]))
    st.session_state[PLAYING], st.session_state[PLAYED] = True, time.monotonic()


def stop() -> None:
    """End Play: the widths no longer advance by themselves."""
    st.session_state[PLAYING] = False


def tick(pair: Pair, stations: Sequence[int], playing: bool) -> None:
    """Advance Play: the next width once each was shown long enough; stops at the end."""
    waited = time.monotonic() - st.session_state.get(PLAYED, 0.0)
    if not playing or not st.session_state.get(PLAYING) or waited < 0.7 * EVERY:
        return
    to = below(pair, stations)
    st.session_state[PLAYED] = time.monotonic()
    st.session_state[PLAYING] = to is not None and below((to, to), stations) is not None
    if to is not None:
        view.go((to, to))
    st.rerun()
