"""The theorem behind the noise, live: formula against simulation, and where noise helps."""

from functools import lru_cache

import pandas as pd
import streamlit as st

from qlib.plots.noise import theorem_map
from qlib.plots.noise.theorem_map import LIMIT, Trial
from qlib.ui.noisyquant import figures
from qlib.ui.shared import frame

REACHES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
URL = "query-params"


def section() -> None:
    """Show the theorem: two sliders, the numbers of one place, and the map of all places."""
    with st.container(key="t-box"):
        st.subheader("The theorem, live", anchor=False)
        st.fragment(_section, key="t-theorem")()


def _section() -> None:
    left, right = st.columns([4, 5], gap="medium")
    with left:
        st.markdown(
            "Two neighbouring levels lie at −b and b (b is half a step). A value at distance x "
            "from the boundary between them is rounded with the squared error (b − x)². Add noise "
            "N, uniform from −n to n, round, and take N off again. For x ≤ n ≤ 2b − x the expected "
            "error changes by"
        )
        st.latex(r"D(x, N) = \frac{n^2}{3} - \frac{b}{n}\,(n - x)^2")
        one, two = st.columns(2, gap="medium")
        x = one.slider("x, in b", 0.0, 1.0, 0.2, 0.05, key="t_x", bind=URL)
        n = two.slider("n, in b", 0.0, LIMIT, 1.0, 0.05, key="t_n", bind=URL)
        at = theorem_map.trial(x, n)
        st.markdown(told(at))
    with right:
        figure, alt = theorem_map.figure(at, **figures.look()), theorem_map.alt(at)
        figures.draw("t-map", figure, alt, "noise_theorem")
        frame.data_table("formula and simulation", table(x))


def told(at: Trial) -> str:
    """The numbers of one place in words (Markdown)."""
    if at.n == 0:
        return "Without noise nothing changes: **D = 0**."
    if at.condition:
        how = f"Inside the condition: {at.x:.2f} b ≤ n = {at.n:.2f} b ≤ {2 - at.x:.2f} b."
    elif at.n < at.x:
        how = (
            f"Outside the condition: n = {at.n:.2f} b < x, so the noise never crosses the "
            "boundary; then D = n²/3, and it can only hurt."
        )
    else:
        how = (
            f"Outside the condition: n = {at.n:.2f} b > 2b − x = {2 - at.x:.2f} b, so the noise "
            "reaches a third level. The exact expectation is used instead."
        )
    word = "less" if at.closed < 0 else "more"
    verdict = "and agree" if at.agrees else "and differ by more than chance"
    return (
        f"{how}\n\n"
        f"Formula: **D = {signed(at.closed)} b²**. Simulation of {at.draws:,} draws: "
        f"**{signed(at.drawn)} ± {at.error:.3f} b²** (one standard error), {verdict}. "
        f"So the error is {abs(at.closed):.3f} b² {word} than the {(1 - at.x) ** 2:.3f} b² of "
        "rounding alone."
    )


def signed(value: float) -> str:
    """A number as text with its sign: ``−0.307``."""
    return f"{value:+.3f}".replace("-", "−")


@lru_cache(maxsize=32)
def table(x: float) -> pd.DataFrame:
    """Formula and simulation for one x over several reaches."""
    rows = [theorem_map.trial(x, n) for n in REACHES]
    return pd.DataFrame(
        {"x (b)": r.x, "n (b)": r.n, "in the condition": r.condition, "D, formula (b²)": r.closed,
         "D, simulation (b²)": r.drawn, "standard error": r.error}
        for r in rows
    )  # fmt: skip
