"""Runs a noise analysis: every linear layer of the float network at all bit-widths."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlib.core.records import Event, Report, RunSpec
from qlib.noise import profile as noise_profile
from qlib.noise import study as noise_study
from qlib.pipeline.experiment import Experiment
from qlib.pipeline.quantize import bit_plan

NAMED = 3  # skipped layers that a note names


def measured(
    experiment: Experiment,
    spec: RunSpec,
    report: Report,
    folder: Path | None,
    known: Sequence[Path],
) -> dict[str, Any]:
    """The record's fields that only a noise analysis has; ``noise.npz`` goes to ``folder``.

    Raises:
        InvalidSpec: the network has no layer that noise could be added to.
    """
    model = experiment.model
    report(Event("calibrate", note="ranges"))
    alike = replace(spec, edge_layers="same", allocator="same")  # all layers at every width
    plans = {
        bits: bit_plan(model, replace(alike, weight_bits=bits, act_bits=bits))
        for bits in noise_profile.BITS
    }
    images = experiment.predict.first(len(experiment.test))
    layers = noise_study.measure(model, experiment.data, images, plans)
    rows = noise_profile.rows(layers)
    if folder is not None:
        most = noise_study.rows_for(model)
        profile = noise_profile.NoiseProfile(spec, tuple(layers), noise_study.SEEDS, most)
        noise_profile.save(folder, profile)
    metrics = noise_profile.summary(rows) | {"n": len(images)}
    return {"layers": rows, "metrics": metrics, "notes": model.notes + _skipped(experiment)}


def _skipped(experiment: Experiment) -> list[str]:
    names = noise_study.skipped(experiment.model)
    if not names:
        return []
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [
        f"Left out of the noise analysis: {', '.join(names[:NAMED])}{more}. Fixed noise cannot be "
        "taken off exactly behind a convolution that pads, overlaps or has groups."
    ]
