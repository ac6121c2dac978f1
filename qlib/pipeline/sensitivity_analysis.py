"""Runs a sensitivity analysis: restores the quantizers of the run in question, then measures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qlib import store
from qlib.core.records import Event, InvalidSpec, Report, RunSpec
from qlib.measure.features import cosines
from qlib.network import costs
from qlib.pipeline import quantizer_file
from qlib.pipeline.experiment import Experiment
from qlib.pipeline.quantize import bit_plan, bits_of, quantize
from qlib.sensitivity import profile
from qlib.sensitivity.layers import measure

ALIKE = 0.02  # a probability may be off by this much, on another machine or number of threads
MOST = 0.9  # share of the images that have to be alike


def measured(
    experiment: Experiment,
    spec: RunSpec,
    report: Report,
    folder: Path | None,
    known: Sequence[Path],
) -> dict[str, Any]:
    """The record's fields that only a sensitivity analysis has."""
    report(Event("calibrate", note="ranges"))
    base = _restored(experiment, spec, known)
    if base is None:
        plan = bit_plan(experiment.model, spec)
        quantize(experiment, spec, report, folder, plan)
    bits = base.record.plan if base else bits_of(plan, experiment.model)
    report(Event("profile"))
    images = experiment.predict.first(len(experiment.test))
    rows = measure(experiment.model, images, experiment.labels, report)
    about = {"base": base.key if base else ""}
    return {"layers": rows, "metrics": _summed(experiment, rows), "data": about, "plan": bits}


def _restored(
    experiment: Experiment, spec: RunSpec, known: Sequence[Path]
) -> store.Finished | None:
    """The finished run whose quantizers are in the model now; None if there is none.

    What a run stored is trusted where the network then gives the answers that it gave.
    """
    for entry in profile.bases(spec, known):
        try:
            file = entry.folder / quantizer_file.FILE
            quantizer_file.load(experiment.model, file, entry.record.plan)
            stored = store.load_preds(entry.folder)
        except InvalidSpec:
            continue  # the method is applied again: slower, never wrong
        if _answers_alike(experiment, stored):
            return entry
    return None


def _answers_alike(experiment: Experiment, stored: dict[str, np.ndarray]) -> bool:
    """Do stored and present network agree on the first images that both have seen?"""
    experiment.model.switch(weights=True, inputs=True)
    if "quant_top5" not in stored or experiment.task == "features":
        return _features_alike(experiment, stored)
    with torch.no_grad():
        sure = experiment.model(experiment.predict.first(profile.IMAGES)).softmax(1).max(1)
    here, there = {name: i for i, name in enumerate(experiment.test.ids)}, stored["ids"].tolist()
    pairs = [(here[name], i) for i, name in enumerate(there) if here.get(name, 1e9) < len(sure[0])]
    if not pairs:
        return False
    mine, theirs = (np.array(side) for side in zip(*pairs, strict=True))
    gap = sure.values.cpu().numpy()[mine] - stored["quant_prob"][theirs, 0].astype(float)
    same = sure.indices.cpu().numpy()[mine] == stored["quant_top5"][theirs, 0]
    return bool(((abs(gap) < ALIKE) & same).mean() >= MOST)


def _features_alike(experiment: Experiment, stored: dict[str, np.ndarray]) -> bool:
    """Are the features as far from the float ones as the run stored, image by image?"""
    images = experiment.predict.first(profile.IMAGES)
    read, model = experiment.model.answers.read, experiment.model
    with torch.no_grad():
        now = cosines(read(experiment.net(images)), read(model(images))).cpu().numpy()
    here, there = {name: i for i, name in enumerate(experiment.test.ids)}, stored["ids"].tolist()
    pairs = [(here[name], i) for i, name in enumerate(there) if here.get(name, 1e9) < len(now)]
    if not pairs or "quant_cosine" not in stored:
        return False
    mine, theirs = (np.array(side) for side in zip(*pairs, strict=True))
    return bool((abs(now[mine] - stored["quant_cosine"][theirs]) < ALIKE).mean() >= MOST)


def _summed(experiment: Experiment, rows: Sequence[profile.Row]) -> dict[str, float]:
    """The whole network's numbers, and how many of the worst layers two halves agree on."""
    whole = {row["split"]: row for row in rows if row["mode"] == "all"}
    names = ("top1", "top1_low", "top1_high", "agreement", "n", "kl")
    found = {name: whole["both"][name] for name in names} | {"top1_float": whole["none"]["top1"]}
    found = {name: value for name, value in found.items() if value is not None}
    return found | profile.summary(rows) | costs.costs(experiment.model)
