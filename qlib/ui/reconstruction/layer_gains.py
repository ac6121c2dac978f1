"""What learned rounding changed in each layer: the answer of the page, its figures, a table."""

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from qlib.core.records import BASELINE
from qlib.core.rows import LayerRow
from qlib.plots.reconstruction import error_arrows, flips, learned
from qlib.plots.reconstruction.learned import Gain
from qlib.plots.shared import theme
from qlib.store import Finished
from qlib.ui.reconstruction.page import Shown
from qlib.ui.shared import context, export, frame, state
from qlib.ui.shared.context import View
from qlib.ui.shared.glossary import word

RECIPE = """\
from qlib.core.records import BASELINE
from qlib.plots.reconstruction import error_arrows

rows = {{r.spec.method: r.layers for r in records}}
nearest = rows.pop(BASELINE, None)
info = error_arrows.info(rows, nearest=nearest, data={data!r}, titles=titles, layer={layer!r})
print(error_arrows.alt(info))
figure = error_arrows.figure(info)
figure"""


def of(view: View, shown: Shown) -> tuple[Gain, ...]:
    """The changes of the run's layers against the reference that the controls ask for."""
    return learned.gains(view.record.layers, shown.nearest, shown.data)


def answer(found: tuple[Gain, ...], title: str) -> str:
    """What learning did to the weights, to their error and to the output's (Markdown)."""
    share = learned.moved(found)
    weight, output = learned.typical(found)
    if not share and not learned.regridded(found):
        return (
            f"**Nothing was learned in this run**: {title} left every weight at its nearest level. "
            "Choose a method that learns."
        )
    start = f"{title} moved **{learned.percent(share or 0.0)}** of the weights away from nearest"
    if not share:
        start = f"{title} **moved the levels, not the weights**: each sits at its nearest one"
    if weight is None or output is None:
        return f"{start}. What that did to the errors is not stored in this run."
    join = "but" if (weight >= 0.995) != (output >= 0.995) else "and"
    return (
        f"{start}. In a typical layer the weight error {_change(weight)} what nearest "
        f"rounding gives, {join} the output error {_change(output)}."
    )


def _change(ratio: float) -> str:
    if 0.995 <= ratio < 1.005:
        return "**stayed the same**"
    return f"**{'fell' if ratio < 1 else 'grew'} to {_amount(ratio)}**"


def _amount(ratio: float) -> str:
    if abs(ratio - 0.5) < 0.03:
        return "half"
    return f"{ratio:.1f} times" if ratio >= 0.995 else f"{ratio:.2f} times"


def chosen(view: View, found: tuple[Gain, ...]) -> str:
    """The numbers of the chosen layer, for the line below the figures (Markdown)."""
    gain = next((g for g in found if g.layer == view.layer), None)
    if gain is None:
        return f"**`{view.layer}`** has no weights, so nothing is learned in it."
    parts = [f"**`{gain.layer}`**"]
    if gain.flipped is not None:
        moved = f"{learned.percent(gain.flipped)} of {gain.params:,} weights moved"
        if gain.beyond:
            moved += f", {learned.percent(gain.beyond)} past the levels beside them"
        parts.append(moved)
    if gain.weight is not None:
        parts.append(f"weight error **{learned.times(gain.weight)}** nearest's")
    if gain.output is not None:
        parts.append(f"output error **{learned.times(gain.output)}** nearest's")
    return " · ".join(parts)


def _under(shown: Shown, found: tuple[Gain, ...]) -> str:
    images = "held-out images" if shown.data == "test" else "calibration images"
    return f"One mark per layer; output errors on {images}. {_upward(found)}"


def _upward(found: tuple[Gain, ...]) -> str:
    """One sentence on layers whose output got worse; empty when there are none."""
    count = sum(g.output is not None and g.output > 1.005 for g in found)
    if not count:
        return ""
    return (
        f"{count} {'layer has' if count == 1 else 'layers have'} a larger output error: a unit is "
        "fitted as a whole, on inputs that earlier rounding has changed, so single layers may give "
        "up accuracy of their own."
    )


def figures(view: View, shown: Shown, others: Mapping[str, Finished]) -> None:
    """Arrows and bars, one mark a layer; a click on either chooses the layer."""
    titles, dark, large = state.titles(), state.dark(), state.presenting()
    rows = {m: state.layers(others[m].folder) for m in shown.methods}
    arrows = error_arrows.info(
        rows, nearest=shown.nearest, data=shown.data, titles=titles, layer=view.layer
    )
    if arrows.main:
        figure = error_arrows.figure(arrows, dark=dark, large=large)
        st.plotly_chart(
            figure,
            key="r_arrows",
            on_select=lambda: context.clicked_layer("r_arrows"),
            selection_mode="points",
            config=theme.config(f"{view.entry.key}_errors"),
            alt=error_arrows.alt(arrows),
        )
        with st.container(key="r_numbers"):
            st.markdown(chosen(view, of(view, shown)))
            st.caption(_under(shown, arrows.main))
    else:
        figure = None
        st.info(
            "This run was stored without the errors of its layers. Run it again to see them.",
            icon=":material/history:",
        )
    bars = flips.info(rows, titles=titles, layer=view.layer)
    st.plotly_chart(
        flips.figure(bars, dark=dark, large=large),
        key="r_flips",
        on_select=lambda: context.clicked_layer("r_flips"),
        selection_mode="points",
        config=theme.config(f"{view.entry.key}_moved"),
        alt=flips.alt(bars),
    )
    numbers = table(rows, shown, titles)
    with st.container(horizontal=True):
        compared = () if shown.nearest is None else (BASELINE,)
        records = [others[m].record for m in (*shown.methods, *compared)]
        recipe = RECIPE.format(data=shown.data, layer=view.layer)
        alt = error_arrows.alt(arrows)
        export.menu("layers", figure, numbers, records, alt=alt, recipe=recipe)
        frame.data_table("of the layers", numbers, columns())


def table(
    rows: Mapping[str, list[LayerRow]], shown: Shown, titles: Mapping[str, str]
) -> pd.DataFrame:
    """One row per method and layer."""
    return pd.DataFrame(
        {
            "Method": titles.get(method, method),
            "Layer": g.layer,
            "Unit": g.unit,
            "Weights": g.params,
            "Moved": None if g.flipped is None else 100 * g.flipped,
            "Weight error": g.weight,
            "Output error": g.output,
        }
        for method, found in rows.items()
        for g in learned.gains(found, shown.nearest, shown.data)
    )


def columns() -> dict:
    """Units and definitions of the table's columns."""
    number = st.column_config.NumberColumn
    return {
        "Moved": number(format="%.1f %%", help=word("moved")),
        "Weight error": number(format="%.2f×", help=word("error against nearest")),
        "Output error": number(format="%.2f×", help=word("error against nearest")),
    }
