"""Where in the network the chosen runs go wrong: the error of each layer's output, overlaid."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from qlib.core.records import InvalidSpec
from qlib.plots.layers import damage, layer_profile
from qlib.plots.layers.damage import Profile
from qlib.store import Finished
from qlib.ui.compare.ranking import names
from qlib.ui.shared import export, frame, state

VIEW = "layer_sqnr"


def profiles(entries: Sequence[Finished]) -> tuple[list[Profile], list[str]]:
    """A profile for each run whose layer outputs were measured, and why others have none.

    Only runs of the first one's network share an axis.
    """
    made: list[Profile] = []
    missing: list[str] = []
    called = names([e.record for e in entries], state.titles())
    for entry in entries:
        spec, name = entry.record.spec, called[entry.record.spec.key]
        try:
            rows = state.layers(entry.folder)
        except InvalidSpec as error:
            missing.append(str(error))
            continue
        n = int(entry.record.metrics["n"])
        found = damage.compared(
            rows, "accumulated", "sqnr", method=spec.method, title=name, n=n, kept=spec.keep_float
        )
        layers = [v.layer for v in found.values]
        if not found.known:
            missing.append(f"{name} has not measured the outputs of its layers; run it again.")
        elif made and layers != [v.layer for v in made[0].values]:
            missing.append(f"{name} is of another network.")
        else:
            made.append(found)
    return made, missing


def show(entries: Sequence[Finished], *, dark: bool, large: bool) -> None:
    """Show the overlaid errors of each layer's output, or why there are none."""
    found, missing = profiles(entries)
    if not found:
        st.info(
            "These runs have no error per layer to overlay: they were made before that was "
            "measured, or cannot be read. Run them again to see it.",
            icon=":material/layers_clear:",
        )
        return
    info = layer_profile.info(found)
    figure = layer_profile.figure(info, dark=dark, large=large)
    records = [e.record for e in entries]
    st.plotly_chart(
        figure, key=VIEW, config=export.config(VIEW, records), alt=layer_profile.alt(info)
    )
    export.menu(VIEW, figure, table(found), records, alt=layer_profile.alt(info))
    frame.data_table("SQNR of every layer's output (dB)", table(found))
    if missing:
        st.caption(" ".join(missing))


def table(found: Sequence[Profile]) -> pd.DataFrame:
    """One row per layer, one column per run: SQNR of the layer's output in dB."""
    columns: dict[str, list[Any]] = {"Layer": [v.layer for v in found[0].values]}
    for profile in found:
        columns[profile.title] = [v.value for v in profile.values]
    return pd.DataFrame(columns)
