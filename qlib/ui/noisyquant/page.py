"""The NoisyQuant page: its controls, the fragment that follows them, and what stands below."""

import streamlit as st

from qlib.core import catalogue
from qlib.noise.profile import NoiseProfile
from qlib.plots.noise import curves
from qlib.ui.noisyquant import data, figures, measure, text
from qlib.ui.noisyquant import saved as noise_saved
from qlib.ui.noisyquant.data import Found
from qlib.ui.noisyquant.figures import Ask, Shown
from qlib.ui.shared import frame, state
from qlib.ui.shared.glossary import word

URL = "query-params"
QUESTION = "When does adding noise remove error?"
FIRST_BITS = 6
SCATTER = {"same": "this reach", "own": "its own best"}


def screen(found: Found, profile: NoiseProfile) -> None:
    """Draw everything that follows the page's own controls, in a fragment of its own.

    A move of the slider draws this part again, not the sidebar; a click that changes the layer
    changes the address, so the whole page runs then.
    """
    st.fragment(_screen, key="n-screen")(found, profile, st.query_params.get("layer"))


def _screen(found: Found, profile: NoiseProfile, layer: str | None) -> None:
    if st.query_params.get("layer") != layer:
        st.rerun()
    head = st.container()
    if found.note:
        st.info(found.note, icon=":material/alt_route:")
    shown = Shown(found, profile, _controls(found, profile))
    with head:
        frame.head(QUESTION, _answer(shown))
    _notes(shown)
    left, right = st.columns(2, gap="medium")
    with left:
        saved: list[noise_saved.Saved | None] = [figures.cell(shown)]
    with right:
        saved.append(figures.curves(shown))
    with st.container(key="n-numbers"):
        st.markdown(figures.effect_line(shown))
    left, right = st.columns(2, gap="medium")
    with left:
        saved.append(figures.scatter(shown))
    with right:
        saved.append(figures.histogram(shown))
    with st.container(key="n-tricks-part"):
        st.subheader("What each trick adds", anchor=False)
        left, right = st.columns([5, 4], gap="medium")
        with left:
            saved.append(figures.tricks(shown))
        with right:
            st.markdown(text.CAUTION)
            _run_link(shown)
    noise_saved.leave([s for s in saved if s], shown.layer, found.view.record)


def _answer(shown: Shown) -> str:
    ask = shown.ask
    flips = text.flips(shown.profile, shown.found.layer, ask.reach, ask.draw, shown.images)
    return f"{text.answer(shown.layer, shown.images)} {flips}"


def _notes(shown: Shown) -> None:
    """What to expect of this network, and what the sidebar's choice has to do with it."""
    said = text.without_attention(r["kind"] for r in shown.found.view.record.layers)
    if said:
        st.info(said, icon=":material/info:")


def missing(found: Found) -> None:
    """Draw the head of the page where nothing is measured yet."""
    frame.head(
        QUESTION,
        "Where a layer's values crowd midway between two levels: there, fixed noise before "
        "rounding, taken off again behind, costs less than rounding alone. Where they sit on "
        f"levels it only hurts. `{found.spec.network}` has to be measured to tell.",
    )


def nothing(found: Found) -> None:
    """Draw the head of the page for a network without a layer that noise could be added to."""
    frame.head(
        QUESTION, f"In `{found.spec.network}` there is no layer that noise could be added to."
    )
    st.info(
        "Fixed noise can be taken off again behind linear layers and 1×1 convolutions, as a change "
        "of their bias. Choose a backbone that has some, such as a vision transformer.",
        icon=":material/inventory_2:",
    )


# ---- controls --------------------------------------------------------------------------------


def _controls(found: Found, profile: NoiseProfile) -> Ask:
    """Bits, reach, how the noise is drawn, and the reach of the other layers: one row."""
    one, two, three, four = st.columns([12, 11, 9, 11], gap="small")
    with one:
        bits = _bits(profile)
    layer = profile.at(found.layer, bits)
    searched = curves.searched(layer)
    with two:
        reach = data.reach(layer, searched)
        st.slider(
            f"Reach, ± steps (search {searched:.2f})",
            0.0,
            data.MOST,
            step=data.STEP,
            key=data.REACH,
            format="%.2f",
            on_change=_moved,
            help=word("reach"),
        )
    with three:
        drawn = _drawn(profile)
    with four:
        own = st.segmented_control(
            "Other layers at",
            list(SCATTER),
            format_func=SCATTER.__getitem__,
            default="same",
            required=True,
            key="n_all",
            bind=URL,
            help="In *Who gains*: all layers at the reach of the slider, or each at the one that "
            "its own search chose.",
        )
    return Ask(bits, reach, drawn, own == "own")


def _moved() -> None:
    data.set_reach(st.session_state[data.REACH])


def _bits(profile: NoiseProfile) -> int:
    known = list(profile.bits)
    return st.segmented_control(
        "Bits of this layer",
        known,
        default=FIRST_BITS if FIRST_BITS in known else known[-1],
        required=True,
        key="n_bits",
        bind=URL,
        help="Of its weights and its input; the rest of the network stays in float. All are "
        "measured, so nothing has to run. Method and bits of the sidebar do not count here.",
    )


def _drawn(profile: NoiseProfile) -> str:
    draws = {curves.MEAN: f"uniform, mean of {profile.seeds}"}
    draws |= {str(k + 1): f"uniform, draw {k + 1}" for k in range(profile.seeds)}
    draws[curves.NORMAL] = "normal, one draw"
    return st.selectbox(
        "Noise drawn", list(draws),
        format_func=draws.__getitem__, key="n_draw", bind=URL,
        help=word("noise draw"), filter_mode=None,
    )  # fmt: skip


def _run_link(shown: Shown) -> None:
    """The Run page with its form filled in."""
    spec, bits = shown.found.spec, str(shown.ask.bits)
    method = catalogue.noisy()
    if method is None:
        return
    title = state.titles()[method]
    st.page_link(
        "pages/3_Run.py",
        label=f"Run {title} on this model",
        icon=":material/play_circle:",
        query_params={"model": spec.model, "data": spec.data, "method": title}
        | {"w": bits, "a": bits},
    )
    st.caption("On all linear layers at once; the search chooses a reach for each, 0 included.")


def body(found: Found) -> None:
    """Draw the page's middle: the figures, or why there are none and what can be done."""
    if found.profile is None:
        missing(found)
    elif not found.profile.layers:
        nothing(found)
    else:
        screen(found, found.profile)
    measure.panel(found)
