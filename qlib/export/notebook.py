"""Export of a view as a notebook that makes it again: specifications, runs, the figure's calls.

Written as nbformat 4.5 by hand: the format is plain JSON, and the app needs no further package.
"""

import json
from collections.abc import Sequence
from pprint import pformat
from typing import TYPE_CHECKING

from qlib.core.records import RunRecord
from qlib.core.scores import score

if TYPE_CHECKING:
    import plotly.graph_objects as go

SETUP = """\
from pathlib import Path

from qlib import RunSpec, store
from qlib.core.registry import discover
from qlib.core.scores import score
from qlib.pipeline.run import run

titles = {key: method.title for key, method in discover("methods").items()}
HERE = Path("notebook-runs")  # finished runs are kept here, so the cells below can be run again"""

RUN = """\
records, folders = [], []
for spec in specs:
    folder = HERE / spec.key
    if not (folder / "run.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        run(spec, folder=folder)
    records.append(store.load(folder))
    folders.append(folder)"""

CHECK = """\
# the same specification and seed give the same numbers; other versions may move the last digits
for record in records:
    here, there = score(record.metrics), expected[record.spec.key]["score"]
    if here:
        digits, unit = (2, " %") if here.percent else (4, "")
        print(f"{record.spec.key}: {here.value:.{digits}f}{unit} here, "
              f"{there:.{digits}f}{unit} in the export")"""

NAME = 'name = lambda spec: f"{titles[spec.method]} W{spec.weight_bits}A{spec.act_bits}"'

# what makes the figure of a view; by the beginning of the view's name
RECIPES = {
    "accuracy_vs_": """\
from qlib.plots.compare import accuracy_vs_size

info = accuracy_vs_size.info(records, cost={cost!r}, titles=titles)
print(accuracy_vs_size.alt(info))
figure = accuracy_vs_size.figure(info)
figure""",
    "flips": f"""\
from qlib.measure import paired
from qlib.plots.compare import flips_bars

{NAME}
preds = [store.load_preds(folder) for folder in folders]
info = flips_bars.info([
    (r.spec.key, name(r.spec), paired.against_float(p), r.metrics["agreement"])
    for r, p in zip(records, preds)
])
print(flips_bars.alt(info))
figure = flips_bars.figure(info)
figure""",
    "layer_sqnr": f"""\
from qlib.plots.layers import damage as _damage, layer_profile

{NAME}
info = layer_profile.info([
    _damage.compared(r.layers, "accumulated", "sqnr", method=r.spec.method, title=name(r.spec))
    for r in records
])
print(layer_profile.alt(info))
figure = layer_profile.figure(info)
figure""",
    "accuracy_over_bits": """\
from qlib.plots.bits import accuracy_bits

info = accuracy_bits.info(records, titles=titles, current=records[0].spec.weight_bits)
print(accuracy_bits.alt(info))
figure = accuracy_bits.figure(info)
figure""",
    "predictions": f"""\
from qlib.plots.shared import prediction_strip

{NAME}
preds = store.load_preds(folders[0])
pictures = dict(zip(map(int, preds["thumb_index"]), preds["thumbs"]))
chosen = prediction_strip.choose([preds], pictures)
info = prediction_strip.info(preds, chosen, pictures, setting=name(specs[0]))
print(prediction_strip.alt(info))
figure = prediction_strip.figure(info)
figure""",
}

DRAWN = """\
import plotly.io

# the figure as it was exported: it holds its own numbers and does not look at the runs above
figure = plotly.io.from_json({body!r})
figure"""

OTHER = """\
# the layers of the first run, worst first
worst = sorted((r for r in records[0].layers if r.get("sqnr_db") is not None),
               key=lambda row: row["sqnr_db"])
for row in worst[:10]:
    print(f"{row['point']}: {row['sqnr_db']:.1f} dB at {row['bits']} bits")"""


def text(
    view: str, records: Sequence[RunRecord], recipe: str = "", figure: "go.Figure | None" = None
) -> str:
    """The text of the ``.ipynb`` file. ``view`` as in `qlib.ui.shared.export.menu`.

    ``recipe``: Python that makes the figure from ``records``, ``folders``, ``specs`` and
    ``titles``, for views that `RECIPES` does not know. Without one, the exported ``figure``
    itself is put into the notebook, and says so.
    """
    cells = [
        _words(_introduction(view, records)),
        _code(SETUP),
        _code(f"SPECS = {pformat([r.spec.to_json() for r in records], sort_dicts=False)}\n"
              "specs = [RunSpec.from_json(spec) for spec in SPECS]"),
        _words(_waiting(records)),
        _code(RUN),
        _code(f"expected = {pformat({r.spec.key: _expected(r) for r in records})}\n\n{CHECK}"),
        _words(f"## The view: {view.replace('_', ' ')}"),
        *(_code(source) for source in _view(view, recipe, figure)),
    ]  # fmt: skip
    numbered = [cell | {"id": f"cell-{i}"} for i, cell in enumerate(cells)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    body = {
        "cells": numbered,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(body, indent=1, ensure_ascii=False) + "\n"


def _view(view: str, recipe: str, figure: "go.Figure | None") -> list[str]:
    """The cells that make the figure."""
    if recipe:
        return [recipe]
    for start, source in RECIPES.items():
        if view.startswith(start):
            return [source.replace("{cost!r}", repr(view.removeprefix(start)))]
    drawn = [DRAWN.replace("{body!r}", repr(figure.to_json()))] if figure is not None else []
    return [OTHER, *drawn]


def _introduction(view: str, records: Sequence[RunRecord]) -> str:
    versions = records[0].versions if records else {}
    made = ", ".join(f"{k} {v}" for k, v in versions.items())
    images = sorted({f"{r.metrics['n']:,.0f} test images" for r in records})
    seeds = sorted({r.spec.seed for r in records})
    return (
        f"# {view.replace('_', ' ').capitalize()}\n\n"
        f"{len(records)} runs of Quant Explorer, made again with its library. "
        "**Simulated quantization**: values are rounded as in integers, the arithmetic runs in "
        "floating point.\n\n"
        f"Stored runs: {', '.join(images)}; seed {', '.join(map(str, seeds))}; made with {made}."
        "\n\nRun it where `qlib` can be imported: in the project's folder, or with that folder on "
        "`PYTHONPATH`. Weights and images that a specification names by path must be there."
    )


def _waiting(records: Sequence[RunRecord]) -> str:
    total = sum(r.seconds.get("total", 0.0) for r in records)
    return f"When they were stored, these runs took {total:.0f} seconds together."


def _expected(record: RunRecord) -> dict:
    m = record.metrics
    found = score(m)
    told = {"score": round(found.value, 6)} if found else {}
    return told | {k: round(m[k], 4) for k in ("top1", "top1_low", "top1_high", "n") if k in m}


def _words(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": source.splitlines(keepends=True)}


def _code(source: str) -> dict:
    lines = source.splitlines(keepends=True)
    return {
        "cell_type": "code", "metadata": {}, "source": lines, "execution_count": None, "outputs": []
    }  # fmt: skip
