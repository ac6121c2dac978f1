"""Runs an analysis (sensitivity, noise) of a network and makes its record."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qlib import store
from qlib.core.records import Event, Report, RunRecord, RunSpec
from qlib.pipeline import noise_analysis as _run_noise
from qlib.pipeline import sensitivity_analysis as _run_sensitivity
from qlib.pipeline.doubts import doubts_of
from qlib.pipeline.experiment import Experiment, device_of, load_experiment
from qlib.pipeline.picture_note import sentences
from qlib.pipeline.provenance import Clock, about_data, peak_of, versions
from qlib.sensitivity import profile

# (experiment, spec, report, folder, known runs folders) -> the record's fields that are its own
Kind = Callable[[Experiment, RunSpec, Report, Path | None, Sequence[Path]], dict[str, Any]]
KINDS: dict[str, Kind] = {
    "sensitivity": _run_sensitivity.measured,
    "noise": _run_noise.measured,
}


def analyse(spec: RunSpec, report: Report, folder: Path | None, known: Sequence[Path]) -> RunRecord:
    """Measure a checked specification with ``analysis`` set; see `qlib.pipeline.run.run`."""
    clock, device = Clock(report), device_of(spec)
    experiment = load_experiment(replace(spec, test=spec.test or profile.IMAGES), device, clock)
    found = KINDS[spec.analysis](experiment, spec, clock, folder, known)
    doubts = []
    if "top1_float" in found["metrics"]:
        doubts = doubts_of(experiment, experiment.predict(experiment.net, "float"))
    clock(Event("save"))
    about = {"profile_rows": len(found["layers"])}
    pictures = experiment.pictures
    notes = found.pop("notes", experiment.model.notes) + sentences(pictures)
    fields = {
        "seconds": clock.totals() | {"profile": clock.seconds["profile"]},
        "peak_mb": peak_of(device),
        "versions": versions(),
        "data": about_data(experiment) | about | found.pop("data", {}),
        "notes": notes,
        "pictures": pictures,
        "doubts": doubts,
        "task": experiment.task,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    record = RunRecord(spec, **(fields | found))
    if folder is not None:
        store.write_record(record, folder)
    return record
