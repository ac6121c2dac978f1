"""Export of figures, tables and their sources as one HTML file that needs no internet."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from qlib.core.records import RunRecord
from qlib.core.scores import ABSENT, score
from qlib.export.summary import covered
from qlib.plots.shared import theme, untyped

if TYPE_CHECKING:
    import pandas as pd

SIMULATED = (
    "Simulated quantization: values are rounded exactly as in integers, the arithmetic runs in "
    "floating point. Accuracy and size are true; no speed-up is measured."
)


@dataclass(frozen=True)
class Part:
    """One figure with its words and its table; ``alt`` says in words what the figure shows."""

    figure: go.Figure | None
    alt: str = ""
    table: "pd.DataFrame | None" = None


def page(title: str, parts: Sequence[Part], records: Sequence[RunRecord], day: str) -> str:
    """The report as HTML text.

    The whole file. ``day``: when it is written, for the reader; ``records``: the runs shown.

    The browser is told to load nothing from anywhere. All texts are escaped: run folders may come
    from other people.
    """
    dark = any(p.figure is not None and _is_dark(p.figure) for p in parts)
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="badge">{SIMULATED}</p>',
        *(_part(part, place, title) for place, part in enumerate(parts)),
        "<h2>Runs</h2>",
        _runs(records),
        *(_details(record) for record in records),
        f"<footer>Quant Explorer, {html.escape(day)}</footer>",
    ]
    script = f"<script>{get_plotlyjs()}</script>" if any(p.figure for p in parts) else ""
    colors = (theme.ink(dark), theme.paper(dark), theme.faint(dark))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{POLICY}'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
        f"{STYLE % colors}{script}</head><body><main>{''.join(body)}</main></body></html>\n"
    )


def about(record: RunRecord) -> dict:
    """The description of a run that its numbers must carry with them."""
    m, found = record.metrics, score(record.metrics)
    judged = {found.name: found.value, "95 %": [found.low, found.high]} if found else {}
    return {
        "run": record.spec.key,
        "task": record.task,
        "score": judged,
        "spec": record.spec.to_json(),
        "seed": record.spec.seed,
        "plan": record.plan,
        "top1": m.get("top1"),
        "top1_95": [m.get("top1_low"), m.get("top1_high")],
        "n": m.get("n"),
        "data": record.data,
        "pictures": record.pictures,
        "doubts": record.doubts,
        "versions": record.versions,
        "created": record.created,
        "simulated": True,
    }


def _is_dark(figure: go.Figure) -> bool:
    return untyped.layout(figure).font.color == theme.ink(True)


def _part(part: Part, place: int, title: str) -> str:
    made = []
    if part.figure is not None:
        words = html.escape(part.alt, quote=True)
        made.append(
            f'<figure><div id="figure-{place}" role="img" aria-label="{words}"></div>'
            f"<figcaption>{words}</figcaption></figure>{_draw(part.figure, place, title)}"
        )
    if part.table is not None:
        table = part.table.to_html(index=False, border=0, float_format=lambda x: f"{x:.4g}")
        made.append(f"<details><summary>The figure's data</summary>{table}</details>")
    return "".join(made)


def _draw(figure: go.Figure, place: int, title: str) -> str:
    """A script that draws one figure, with buttons for PNG and SVG."""
    body, name = _safe(str(figure.to_json())), _safe(json.dumps(f"{title} {place + 1}"))
    return (
        f"<script>draw({place}, {body}, {name});</script>"
        if place
        else (f"<script>{DRAW}draw(0, {body}, {name});</script>")
    )


def _safe(text: str) -> str:
    """JSON inside a script: a "<" in a string is written as its number."""
    return text.replace("<", "\\u003c")


def _runs(records: Sequence[RunRecord]) -> str:
    head = ("Run", "Score (95 % interval)", "Float", "Agreement", "Lost / gained", "Images",
            "Weights", "Seed", "Time")  # fmt: skip
    rows = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in _row(r))}</tr>" for r in records)
    cells = "".join(f"<th>{c}</th>" for c in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"


def _row(record: RunRecord) -> list[str]:
    m, spec, found = record.metrics, record.spec, score(record.metrics)
    judged = (
        f"{found.name} {found.text(found.value)} ({found.interval})" if found else "? % (? to ?)"
    )
    whole = record.task == "classes"  # all of its numbers have to be there: "?" where one is not
    counts = f"{_n(m, 'lost', 0)} / {_n(m, 'gained', 0)}" if whole or "lost" in m else ABSENT
    return [
        html.escape(spec.key),
        judged,
        found.text(found.reference) if found else "?",
        f"{_n(m, 'agreement')} %" if whole or "agreement" in m else ABSENT,
        counts,
        _n(m, "n", 0),
        f"{_n(m, 'weight_mb', 3)} MB",
        str(spec.seed),
        f"{_n(record.seconds, 'total')} s",
    ]


def _n(numbers: dict, name: str, digits: int = 1) -> str:
    value = numbers.get(name)
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "?"


def _details(record: RunRecord) -> str:
    body = html.escape(json.dumps(about(record), indent=1, default=str))
    doubts = [f"Doubtful: {doubt['text']} {doubt['remedy']}" for doubt in record.doubts]
    lines = [*doubts, *filter(None, [covered(record)]), *record.notes]
    notes = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return (
        f"<details><summary>Specification, versions and data of {html.escape(record.spec.key)}"
        f"</summary><pre>{body}</pre><ul>{notes}</ul></details>"
    )


POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:\">"
)
STYLE = """<style>
body { color: %s; background: %s; font: 16px/1.5 "Source Sans", "Segoe UI", sans-serif; margin: 0; }
main { max-width: 1080px; margin: 2rem auto; padding: 0 1.5rem; }
figure { margin: 1.2rem 0 0.4rem; } figcaption, footer, .badge { color: %s; font-size: 0.92rem; }
table { border-collapse: collapse; font-size: 0.9rem; display: block; overflow-x: auto; }
th, td { text-align: left; padding: 0.25rem 0.7rem; border-bottom: 1px solid #80858C55; }
pre { overflow-x: auto; font-size: 0.85rem; } 
details { margin: 0.5rem 0; } summary { cursor: pointer; }
footer { margin-top: 2rem; }
</style>"""
DRAW = """
function draw(place, figure, name) {
  const save = (format, title) => ({ name: format, title: title, icon: Plotly.Icons.camera,
    click: gd => Plotly.downloadImage(gd, { format: format, scale: 3, filename: name,
      width: gd.offsetWidth, height: gd.offsetHeight }) });
  Plotly.newPlot("figure-" + place, figure.data, figure.layout, { displaylogo: false,
    responsive: true, modeBarButtonsToRemove: ["toImage", "lasso2d", "select2d", "autoScale2d"],
    modeBarButtonsToAdd: [save("png", "Save as PNG"), save("svg", "Save as SVG")] });
}
"""
