"""The Start page's stored demo runs: controls, table, and notes on missing ones."""

from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from qlib import store
from qlib.core.records import BASELINE, RunRecord, network_name
from qlib.core.scores import accurate
from qlib.ui.shared import address, context, per_width, resolve, state
from qlib.ui.shared.address import Session
from qlib.ui.shared.answers import bits_label, interval
from qlib.ui.shared.glossary import word
from qlib.ui.shared.per_width import at_other, is_other
from qlib.ui.shared.resolve import Choice
from qlib.ui.shared.state import Shelf

REBUILD = "python -m benchmarks.demo"
BEST_NOTE = (
    "Best: of the learned methods' stored runs at these bits the one that is right most often on "
    "these very images (if equal: with the lower KL). On other images another may be."
)


def same_bits(entries: Sequence[store.Finished]) -> list[store.Finished]:
    """The runs whose weights and activations have equal bits, which this page shows."""
    return [e for e in entries if e.record.spec.weight_bits == e.record.spec.act_bits]


def accurate_ones(entries: Sequence[store.Finished]) -> list[store.Finished]:
    """The runs that have an accuracy, which this page is about; others are on Compare."""
    return [e for e in entries if accurate(e.record.metrics)]


def choose(entries: Sequence[store.Finished]) -> Choice | None:
    """The run that the address asks for, or the nearest one of `same_bits`; None without any.

    ``entries`` here and below: as `spread.entries` gives them.
    """
    titles = state.titles()
    whole = resolve.choose(address.asked(), entries, titles)
    fits = resolve.choose(whole.params, same_bits(entries), titles) if whole else None
    if whole is None or fits is None:
        return None
    spec = whole.spec
    if fits.params == whole.params and spec.weight_bits == spec.act_bits:
        return whole
    return Choice(fits.entry, (*whole.notes, *fits.notes))


def comparable(entries: Sequence[store.Finished], shown: store.Finished) -> list[RunRecord]:
    """One run per method and width of the shown run's backbone, all on its test images."""
    record = shown.record
    by_method: dict[tuple[str, int], RunRecord] = {}
    others = same_bits(entries)
    own = [e for e in others if e.folder == shown.folder]  # one network: its line is of it alone
    for other in (shown, *own, *others):
        its = other.record
        same = its.spec.model == record.spec.model
        if same and its.data.get("test_hash") == record.data.get("test_hash"):
            by_method.setdefault((its.spec.method, its.spec.weight_bits), its)
    return list(by_method.values())


def controls(entries: Sequence[store.Finished], choice: Choice) -> None:
    """Show backbone, bits and method in one row, under the same keys as the context bar's."""
    one, two, three = st.columns([11, 9, 9])
    now, here = choice.params, same_bits(entries)
    of_model = [e for e in here if e.record.spec.model == now["m"]]
    with one:
        _backbone(resolve.models(here), now["m"])
    with two:
        one = [e for e in of_model if e.folder == choice.entry.folder]  # a network of many widths
        widths = resolve.widths(one if len(one) > 1 else [e for e in of_model if not is_other(e)])
        bits = {label: label.split("A")[1] for label in widths}
        _choice("Bits of weights and activations", bits, "b", now["b"], word("bits"))
    with three:
        methods = _methods(comparable(here, choice.entry), now)
        _choice("Method", methods, "q", now["q"], f"{word('nearest rounding')} {BEST_NOTE}")


def _methods(runs: Sequence[RunRecord], now: Mapping[str, str]) -> dict[str, str]:
    """The baseline, the best learned method at these bits, the one that is looked at.

    And the network of many widths, where there is one and room for it.
    """
    titles, best = state.titles(), resolve.best(runs, now["b"])
    shown = {BASELINE: "Round to nearest", best: f"Best: {titles.get(best, best)}"}
    shown.setdefault(now["q"], "")
    many = [r.spec.method for r in runs if r.bit_widths and r.spec.method not in shown]
    if len(shown) < 3:
        shown |= dict.fromkeys(many[:1], "")
    if len(shown) > 2:  # three stand in a row only while their names are short
        shown[BASELINE] = "Nearest"
    return {key: name or titles.get(key, key) for key, name in shown.items()}


def _backbone(models: list[str], now: str) -> None:
    """Side by side while the names fit into a column, else in a list."""
    names = {m: network_name(m) for m in models}
    if sum(len(name) + 4 for name in names.values()) <= 52:
        _choice("Backbone", names, "m", now, "The trained network.")
        return
    st.session_state["m"] = now
    st.selectbox(
        "Backbone", models, key="m", on_change=_picked, args=("m",),
        help="The trained network.", format_func=names.__getitem__,
    )  # fmt: skip


def two_lines(records: Sequence[RunRecord], method: str, shown: RunRecord) -> list[RunRecord]:
    """The baseline's runs, and those of ``method`` or else of the best one at the shown bits."""
    if method == BASELINE:
        method = resolve.best(records, bits_label(shown))
    # a network of many widths is a line by itself
    return [r for r in records if r.spec.method in (BASELINE, method) and not at_other(r)]


def _choice(name: str, options: Mapping[str, str], key: str, now: str, help: str) -> None:
    st.session_state[key] = now
    st.segmented_control(
        name,
        list(options),
        required=True,
        format_func=lambda option: options.get(option, option),
        key=key,
        on_change=_picked,
        args=(key,),
        help=help,
    )


def _picked(key: str) -> None:
    change(key, st.session_state[key])


def change(key: str, value: str) -> None:
    """Change one key of the address; runs of many widths count at each of them."""
    context.change(key, value, per_width.entries(context.entries()))


def follow_click(session: Session = st.session_state) -> None:
    """Choose the bits of a clicked point of the accuracy figure; a click beside does nothing."""
    points = session["bits-figure"]["selection"]["points"]
    if points and points[0].get("customdata"):
        bits = int(points[0]["customdata"][0])
        change("b", f"W{bits}A{bits}")


def as_settings(record: RunRecord) -> dict[str, str]:
    """The address parameters that fill the Run page's form with this run's choice."""
    spec = record.spec
    bits = {"w": str(spec.weight_bits), "a": str(spec.act_bits)}
    title = state.titles().get(spec.method, spec.method)
    return {"model": spec.model, "data": spec.data, "method": title} | bits


def table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row per run, most bits first."""
    titles = state.titles()
    order = sorted(records, key=lambda r: (-r.spec.weight_bits, r.spec.method != BASELINE))
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
    """Show that demo runs are missing or unreadable, and how to get them back."""
    warn_broken(shelf)
    st.info(
        f"There are no stored runs to show in `{shelf.folder}`. Build them again with the command "
        "below (some minutes), or start with a run of your own.",
        icon=":material/inventory_2:",
    )
    st.code(REBUILD, language="bash")
    st.page_link("pages/3_Run.py", label="Make a run", icon=":material/play_circle:")


def warn_broken(shelf: Shelf) -> None:
    """Show the name of every demo run that cannot be read."""
    if shelf.broken:
        lines = "\n".join(f"- {e.problem}" for e in shelf.broken)
        st.warning(
            f"Some stored runs cannot be read:\n{lines}\n\nRebuild them: `{REBUILD}`",
            icon=":material/heart_broken:",
        )
