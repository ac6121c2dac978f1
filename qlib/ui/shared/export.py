"""Exports of a view: picture, data, specification, report, notebook."""

import json
import re
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from streamlit.components.v2 import component

from qlib.core.records import RunRecord
from qlib.export import notebook, report
from qlib.export.report import Part
from qlib.plots.shared import theme, untyped
from qlib.ui.shared.glossary import word


def menu(
    name: str,
    figure: go.Figure | None,
    frame: pd.DataFrame | None,
    records: Sequence[RunRecord],
    *,
    alt: str = "",
    more: Callable[[], Sequence[Part]] = tuple,
    recipe: str = "",
) -> None:
    """Show an "Export" button with everything that this view can be saved as.

    ``name``: the view, unique on its page, e.g. ``accuracy_vs_size``; ``frame``: the figure's
    numbers; ``records``: the runs that it shows; ``alt``: the figure in words. ``more``: further
    parts of the page's report; ``recipe``: Python for the notebook (`qlib.export.notebook.text`).
    Files are made when they are clicked.
    """
    stem = file_name(name, records)
    with st.popover("Export", icon=":material/download:", key=f"export-{name}", type="tertiary"):
        if figure is not None:
            with _row("Figure"):
                only = [Part(figure, alt)]
                _picture(figure, stem, name)
                _button("HTML", lambda: _page(name, only, records), f"{stem}.html", word("offline"))
        if frame is not None:
            with _row("Data"):
                _button("CSV", lambda: csv(frame, records), f"{stem}.csv")
                _button("JSON", lambda: rows(frame, records), f"{stem}.json")
        if records:
            with _row("Runs"):
                parts = lambda: [Part(figure, alt, frame), *more()]  # noqa: E731
                _button("Specification", lambda: specs(records), f"{stem}_spec.json")
                _button("Report", lambda: _page(name, parts(), records), f"{stem}_report.html",
                        word("offline"))  # fmt: skip
                _button("Notebook", lambda: notebook.text(name, records, recipe, figure).encode(),
                        f"{stem}.ipynb", "Makes the runs and the figure again.")  # fmt: skip


def file_name(view: str, records: Sequence[RunRecord]) -> str:
    """File name of an export without its ending.

    ``digits-vit_brecq_W4A4_VIEW_2026-11-20``; what differs between the runs says "several".
    """
    specs = [r.spec for r in records]
    parts = [
        {re.sub(r"[^A-Za-z0-9.-]+", "-", s.model).strip("-") for s in specs},
        {s.method for s in specs},
        {f"W{s.weight_bits}A{s.act_bits}" for s in specs},
    ]
    words = [next(iter(p)) if len(p) == 1 else "several" for p in parts if p]
    view = re.sub(r"[^A-Za-z0-9.-]+", "-", view).strip("-")
    return "_".join([*words, view, date.today().isoformat()])


def config(view: str, records: Sequence[RunRecord], *, box: bool = False) -> dict[str, Any]:
    """The toolbar of a figure whose saved picture is named like the other exports.

    ``box``: points can be chosen by dragging a box.
    """
    settings = theme.config(file_name(view, records))
    if box:
        settings["modeBarButtonsToRemove"] = ["lasso2d", "autoScale2d"]
    return settings


def csv(frame: pd.DataFrame, records: Sequence[RunRecord]) -> bytes:
    """CSV of a table under ``#`` lines that say where the numbers come from."""
    runs = [json.dumps(report.about(r), default=str) for r in records]
    lines = [f"# {report.SIMULATED}", *(f"# {line}" for line in runs)]
    return ("\n".join(lines) + "\n" + frame.to_csv(index=False)).encode()


def rows(frame: pd.DataFrame, records: Sequence[RunRecord]) -> bytes:
    """JSON of a table and the runs that it is about.

    ``{"about": one entry per run, "rows": one object per row}``; NaN becomes null.
    """
    body = json.loads(frame.to_json(orient="records") or "[]")
    about = {"simulated": report.SIMULATED, "runs": [report.about(r) for r in records]}
    return json.dumps({"about": about, "rows": body}, indent=1, default=str).encode()


def specs(records: Sequence[RunRecord]) -> bytes:
    """JSON of the runs' specifications, each beside what it gave."""
    return json.dumps([report.about(r) for r in records], indent=1, default=str).encode()


def _page(view: str, parts: Sequence[Part], records: Sequence[RunRecord]) -> bytes:
    title = view.replace("_", " ").capitalize()
    return report.page(title, parts, records, date.today().isoformat()).encode()


def _row(name: str):
    box = st.container(horizontal=True, vertical_alignment="center", gap="small")
    box.markdown(f":small[:gray[{name}]]", width=54)
    return box


def _button(label: str, make: Callable[[], bytes], file: str, help: str | None = None) -> None:
    st.download_button(
        label, make, file_name=file, on_click="ignore", key=f"save-{file}", type="tertiary",
        help=help,
    )  # fmt: skip


# ---- PNG and SVG: drawn by the browser that shows the figure ---------------------------------

SAVER = """
export default function({ parentElement, data }) {
  const plain = text => (text || "").replace(/<[^>]*>/g, "").trim();
  const find = () => {
    const all = [...document.querySelectorAll(".js-plotly-plot")];
    return all.find(gd => gd._context?.toImageButtonOptions?.filename === data.file)
      || all.find(gd => plain(gd.layout?.title?.text) === plain(data.title));
  };
  for (const button of parentElement.querySelectorAll("button")) {
    button.onclick = () => {
      const gd = find();
      const camera = gd && [...gd.querySelectorAll(".modebar-btn")]
        .find(b => /png|plot as|image/i.test(b.dataset.title || b.ariaLabel || ""));
      if (!camera) { button.textContent = "no figure found"; return; }
      const { toImageButtonOptions: before } = gd._context, paper = gd.layout.paper_bgcolor;
      gd._context.toImageButtonOptions = { ...before, scale: 3, filename: data.file,
        format: button.dataset.format };
      gd.layout.paper_bgcolor = data.paper;
      camera.dispatchEvent(new MouseEvent("click"));  // no bubbling: it would close the menu
      gd.layout.paper_bgcolor = paper;
      setTimeout(() => { gd._context.toImageButtonOptions = before; }, 1500);
    };
  }
}
"""
LOOK = """
div { display: flex; gap: 1rem; font-size: 0.875rem; line-height: 1.6; }
button { all: unset; cursor: pointer; color: var(--st-text-color); font: inherit; }
button:hover, button:focus-visible { color: var(--st-primary-color); text-decoration: underline; }
"""
BUTTONS = (
    '<div><button data-format="png" title="Picture, three times the size">PNG</button>'
    '<button data-format="svg" title="Vector picture">SVG</button></div>'
)
_saver = component("save_picture", html=BUTTONS, css=LOOK, js=SAVER)


def _picture(figure: go.Figure, file: str, name: str) -> None:
    """Two links that press the camera of the figure's own toolbar."""
    layout = untyped.layout(figure)
    dark = layout.font.color == theme.ink(True)
    title = layout.title.text or ""
    data = {"file": file, "title": title, "paper": theme.paper(dark)}
    _saver(data=data, key=f"picture-{name}", width="content")
