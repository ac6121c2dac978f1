"""The stored demo runs as the Start page shows them: its controls, pictures and table."""

from collections.abc import MutableMapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from qlib import store
from qlib.plots import prediction_strip
from qlib.plots.prediction_strip import PredictionStrip
from qlib.records import Refused, RunRecord
from qlib.ui import state
from qlib.ui.answers import interval
from qlib.ui.state import Shelf
from qlib.ui.words import word

URL = "query-params"
FIRST_BITS = 2  # where the first look already shows that something was lost
REBUILD = "python -m benchmarks.demo"
STRIP_NOTE = (
    "Three of the pictures stay right longest, three fall early; the accuracy is of all images."
)

Grid = dict[tuple[str, str, int], store.Entry]


def grid(shelf: Shelf) -> Grid:
    """(model, method, bits) → run, of the runs whose weights and activations have equal bits."""
    same = [e for e in reversed(shelf.good) if e.record.spec.weight_bits == e.record.spec.act_bits]
    return {(s.model, s.method, s.weight_bits): e for e in same if (s := e.record.spec)}


def of_model(grid: Grid, model: str) -> list[store.Entry]:
    return [e for (m, _, _), e in grid.items() if m == model]


def controls(grid: Grid) -> tuple[RunRecord, str]:
    """Backbone, bits and method in one row; the chosen run and its method."""
    one, two, three = st.columns([11, 9, 8])
    with one:
        models = sorted({m for m, _, _ in grid}, key=lambda m: (m != "digits-vit", m))
        model = _backbone(models)
    with two:
        widths = sorted({b for m, _, b in grid if m == model}, reverse=True)
        start = FIRST_BITS if FIRST_BITS in widths else widths[0]
        bits = _choice("Bits of weights and activations", widths, "b", start, word("bits"))
    with three:
        ways = {"nearest": "Round to nearest", "best": "Best stored"}
        way = _choice("Method", list(ways), "q", "nearest", word("nearest"), ways.get)
    here = {q: e.record for (m, q, b), e in grid.items() if (m, b) == (model, bits)}
    if way == "nearest" and "nearest" in here:
        return here["nearest"], "nearest"
    learned = [q for q in here if q != "nearest"] or list(here)
    best = max(learned, key=lambda q: here[q].metrics["top1"])
    return here[best], best


def _backbone(models: list[str]) -> str:
    """Side by side while the names fit into a column, else in a list."""
    if sum(len(m) + 4 for m in models) <= 52:
        return _choice("Backbone", models, "m", models[0], "The trained network.")
    return st.selectbox("Backbone", models, key="m", bind=URL, help="The trained network.")


def two_lines(records: Sequence[RunRecord], method: str) -> list[RunRecord]:
    """The baseline's runs, and those of ``method`` or else of the best learned one."""
    if method == "nearest":
        means: dict[str, list[float]] = {}
        for r in records:
            means.setdefault(r.spec.method, []).append(r.metrics["top1"])
        learned = {q: sum(v) / len(v) for q, v in means.items() if q != "nearest"}
        method = max(learned, key=learned.__getitem__, default="nearest")
    return [r for r in records if r.spec.method in ("nearest", method)]


def _choice(name: str, options: list, key: str, default, help: str, show=str):
    picked = st.segmented_control(
        name,
        options,
        default=default,
        required=True,
        format_func=show,
        key=key,
        bind=URL,
        help=help,
    )
    return default if picked is None else picked


def follow_click(session: MutableMapping[str, Any] = st.session_state) -> None:
    """A click on a point of the accuracy figure sets the bits; a click beside them, nothing."""
    points = session["bits-figure"]["selection"]["points"]
    if points and points[0].get("customdata"):
        session["b"] = int(points[0]["customdata"][0])


def strip(shelf: Shelf, record: RunRecord) -> PredictionStrip:
    """The same pictures for every run of a model, with this run's guesses.

    Raises:
        Refused: the run's predictions are missing or damaged.
    """
    chosen, pictures = _pictures(shelf, record)
    entry = next(e for e in shelf.good if e.key == record.spec.key)
    spec = record.spec
    how = state.titles().get(spec.method, spec.method)
    how = "rounded to nearest" if spec.method == "nearest" else how
    setting = f"{spec.weight_bits} bits, {how}"
    return prediction_strip.info(state.preds(entry.folder), chosen, pictures, setting=setting)


def _pictures(shelf: Shelf, record: RunRecord) -> tuple[tuple[int, ...], dict[int, np.ndarray]]:
    """Positions and pixels, from all readable runs of the same model on the same test images."""
    runs, pictures = [], {}
    for entry in shelf.good:
        other = entry.record
        same = other.spec.model == record.spec.model
        if not same or other.data.get("test_hash") != record.data.get("test_hash"):
            continue
        try:
            arrays = state.preds(entry.folder)
        except Refused:
            if entry.key == record.spec.key:
                raise
            continue
        runs.append(arrays)
        places = arrays["thumb_index"]
        pictures |= {int(i): p for i, p in zip(places, arrays["thumbs"], strict=True)}
    return prediction_strip.choose(runs, pictures), pictures


def as_settings(record: RunRecord) -> dict[str, str]:
    """The address parameters that fill the Run page's form with this run's choice."""
    spec = record.spec
    bits = {"w": str(spec.weight_bits), "a": str(spec.act_bits)}
    title = state.titles().get(spec.method, spec.method)
    return {"model": spec.model, "data": spec.data, "method": title} | bits


def table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row per run, most bits first."""
    titles = state.titles()
    order = sorted(records, key=lambda r: (-r.spec.weight_bits, r.spec.method != "nearest"))
    rows = [
        {
            "Method": titles.get(r.spec.method, r.spec.method),
            "Bits": r.spec.weight_bits,
            "Top-1": r.metrics["top1"],
            "95 % interval": interval(r),
            "Float": r.metrics["top1_float"],
            "Agreement": r.metrics["agreement"],
            "Lost": int(r.metrics["lost"]),
            "Gained": int(r.metrics["gained"]),
            "Weights": r.metrics["weight_mb"],
            "Time": r.seconds["total"],
        }
        for r in order
    ]
    return pd.DataFrame(rows)


def columns() -> dict:
    """Units and definitions of the table's columns."""
    number = st.column_config.NumberColumn
    return {
        "Top-1": number(format="%.1f %%", help=word("top-1")),
        "95 % interval": st.column_config.TextColumn(help=word("interval")),
        "Float": number(format="%.1f %%", help=word("float model")),
        "Agreement": number(format="%.1f %%", help=word("agreement")),
        "Lost": number(help=word("lost")),
        "Gained": number(help=word("lost")),
        "Weights": number(format="%.3f MB", help=word("size")),
        "Time": number(format="%.1f s", help=word("time")),
    }


def explain_missing(shelf: Shelf) -> None:
    """No demo runs, or none that can be read: what it is and how to get them back."""
    warn_broken(shelf)
    st.info(
        f"There are no stored runs to show in `{shelf.folder}`. Build them again with the command "
        "below (some minutes), or start with a run of your own.",
        icon=":material/inventory_2:",
    )
    st.code(REBUILD, language="bash")
    st.page_link("pages/3_Run.py", label="Make a run", icon=":material/play_circle:")


def warn_broken(shelf: Shelf) -> None:
    """Names every demo run that cannot be read."""
    if shelf.broken:
        lines = "\n".join(f"- {e.problem}" for e in shelf.broken)
        st.warning(
            f"Some stored runs cannot be read:\n{lines}\n\nRebuild them: `{REBUILD}`",
            icon=":material/heart_broken:",
        )
