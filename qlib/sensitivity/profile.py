"""Sensitivity profiles as data: specification, rows, ranking of layers. No torch.

A profile is a run of its own (``RunSpec.analysis``). Its folder has ``run.json``, ``events.jsonl``
and ``profile.csv``, one row a measurement:

| column | meaning |
|---|---|
| mode | ``all``: the whole network; ``only``: one layer alone is quantized; ``but``: all but one |
| split | what of it: ``weights``, ``inputs``, ``both``; mode ``all`` also has ``none``: float |
| layer, unit, kind | the layer that is meant; empty in mode ``all`` |
| kl | mean over images of KL(float ‖ this), nats; ``kl_a``, ``kl_b``: of every other image |
| top1, top1_low, top1_high | %, with the 95 % Wilson interval |
| agreement | % of images with the float network's answer |
| sqnr_db | of the logits; infinite where they are equal |
| n, data | images, and which: ``test`` |

In mode ``but`` the others are quantized in the same split: ``but weights`` has every weight but
this layer's quantized and all activations float, so it is to be held against ``all weights``. What
a layer has not got has no row: products have no weights, float layers have nothing. A tensor that
is quantized once for a whole block (its boundary) is an input of the block's first layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlib import store
from qlib.core.records import InvalidSpec, RunSpec
from qlib.store.eventlog import events
from qlib.store.runfolder import PROFILE, broken

SENSITIVITY = "sensitivity"
IMAGES = 128  # held-out images that a profile measures, where nobody says otherwise
PARTS = ("weights", "inputs", "both")
COLUMNS = (
    "mode", "split", "layer", "unit", "kind", "kl", "kl_a", "kl_b", "top1", "top1_low",
    "top1_high", "agreement", "sqnr_db", "n", "data",
)  # fmt: skip
WORST = 3  # layers whose order two halves of the images should agree on

Row = Mapping[str, Any]


def spec_of(base: RunSpec) -> RunSpec:
    """The specification of a run's profile: on `IMAGES` held-out images, or as few as the run."""
    return replace(base, analysis=SENSITIVITY, test=min(base.test or IMAGES, IMAGES))


def base_of(spec: RunSpec) -> RunSpec:
    """The run that a profile is of, measured on all images: the way back from `spec_of`.

    How many images are measured changes no quantizer and is not known to a profile. So compare
    ``base_of(profile).key`` with ``base_of(run).key``, which forgets it on both sides.
    """
    return replace(spec, analysis="", test=None)


def bases(spec: RunSpec, folders: Iterable[Path]) -> list[store.Finished]:
    """Finished runs with the quantizers that a profile needs, the very run first."""
    wanted, found = base_of(spec), []
    for folder in folders:
        if (exact := store.find(wanted, [folder])) is not None:
            found.append(exact)
            continue
        known = store.list_runs(folder)
        readable = (entry for entry in known if isinstance(entry, store.Finished))
        runs = (entry for entry in readable if not entry.record.spec.analysis)
        found += [entry for entry in runs if base_of(entry.record.spec) == wanted]
    return found


def load(folder: Path) -> list[Row]:
    """The rows of a finished profile: texts, numbers, a whole ``n``.

    Raises:
        InvalidSpec: the folder is no profile, or a file of it is missing, truncated or damaged.
    """
    record = store.load(folder)
    if record.spec.analysis != SENSITIVITY:
        raise InvalidSpec(
            f"{folder.name} is no sensitivity run; choose one, or measure its layers."
        )
    if record.layers and set(COLUMNS) - set(record.layers[0]):
        raise InvalidSpec(broken(folder / PROFILE, ValueError("columns are missing")))
    return list(record.layers)


def partial(folder: Path, start: int = 0) -> list[Row]:
    """What a running, cancelled or crashed job has measured so far, read from its events.

    Rows have ``mode``, ``split``, ``layer`` and ``kl`` (the other columns are None), and ``index``
    and ``of``: how many of how many. ``folder``: the job's, or the finished run's. ``start``: the
    number of the first event that is looked at.
    """
    rows = []
    for event in events(folder, start):
        mode, _, split = event["note"].partition(" ")
        if event["phase"] == "profile" and not event["steps"] and split:
            row = {"mode": mode, "split": split, "layer": event["unit"], "kl": event["loss"]}
            place = {"index": event["index"], "of": event["of"]}
            rows.append(dict.fromkeys(COLUMNS) | row | place)
    return rows


def worst(
    rows: Iterable[Row], n: int = WORST, *, column: str = "kl", split: str = "both"
) -> list[str]:
    """The layers that harm most when they alone are quantized, the worst first."""
    alone = [row for row in rows if (row["mode"], row["split"]) == ("alone", split)]
    known = [row for row in alone if row.get(column) is not None]
    return [row["layer"] for row in sorted(known, key=lambda row: -row[column])[:n]]


def stable(rows: Sequence[Row], n: int = WORST, *, split: str = "both") -> bool:
    """Whether both halves of the images name the same ``n`` worst layers, in whatever order.

    Where they do not, more images are needed before a ranking is believed.
    """
    one, other = (set(worst(rows, n, column=name, split=split)) for name in ("kl_a", "kl_b"))
    return one == other


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """What ``run.json`` tells of a profile beside the accuracy of the whole network."""
    one, other = (set(worst(rows, column=name)) for name in ("kl_a", "kl_b"))
    return {"worst_shared": len(one & other), "worst_of": min(WORST, max(len(one), len(other)))}
