"""Quantizes and measures a network: a specification in, a record out."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor

from qlib import store
from qlib.core.records import BASELINE, Event, Report, RunRecord, RunSpec, ignore
from qlib.core.rows import LayerRow, RunData
from qlib.core.specs import checked
from qlib.measure import metrics, output_errors
from qlib.network import costs, switching
from qlib.pipeline import bit_widths, judging, quantizer_file
from qlib.pipeline.analysis import analyse
from qlib.pipeline.artifacts import save_predictions
from qlib.pipeline.doubts import doubts_of
from qlib.pipeline.experiment import Experiment, device_of, load_experiment
from qlib.pipeline.picture_note import sentences
from qlib.pipeline.provenance import Clock, about_data, peak_of, versions
from qlib.pipeline.quantize import bit_plan, bits_of, quantize
from qlib.sensitivity.units import block_sensitivity
from qlib.store import binning
from qlib.store.disk import writing


def run(
    spec: RunSpec,
    report: Report = ignore,
    folder: Path | None = None,
    known: Sequence[Path] = (),
) -> RunRecord:
    """Quantize a network as ``spec`` says and measure what that did.

    Args:
        report: hears every step; raising `Cancelled` in it stops the run.
        folder: an existing private folder that gets ``run.json``'s companions; None writes nothing.
        known: runs folders where an analysis may find the run that it is about, finished.

    Raises:
        InvalidSpec: wrong input, in one sentence. With a folder, what was finished is in it.
    """
    spec = checked(spec)
    if spec.analysis:
        return analyse(spec, report, folder, known)
    clock = Clock(report)
    device = device_of(spec)
    experiment = load_experiment(spec, device, clock)
    plan = bit_plan(experiment.model, spec)
    logits = quantize(experiment, spec, clock, folder, plan)
    found = _measured(experiment, logits)
    at_widths, by_width = bit_widths.measured(experiment, logits["float"], spec.weight_bits)
    experiment.model.notes += judging.notes(experiment)
    images = experiment.data.images[: output_errors.images_for(experiment.model)]
    blocks = block_sensitivity(experiment.model, images, clock)
    clock(Event("save"))
    rows, measured = _recorded(experiment, clock, folder)
    if folder is not None:
        with writing(folder):
            save_predictions(folder, experiment, logits | by_width)
            quantizer_file.save(experiment.model, folder / quantizer_file.FILE)
    pictures = experiment.pictures
    record = RunRecord(
        spec=spec,
        metrics=found,
        seconds=clock.totals(),
        peak_mb=peak_of(device),
        layers=rows,
        versions=versions(),
        data=about_data(experiment) | measured,
        notes=experiment.model.notes + sentences(pictures),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bit_widths=at_widths,
        blocks=blocks,
        plan=bits_of(plan, experiment.model),
        coverage=costs.coverage(experiment.model),
        pictures=pictures,
        doubts=doubts_of(experiment, logits["float"]),
        task=experiment.task,
    )
    if folder is not None:
        store.write_record(record, folder)
    return record


def _recorded(
    experiment: Experiment, report: Report, folder: Path | None
) -> tuple[list[LayerRow], RunData]:
    """The rows of ``layers.csv``, and how many images are behind the errors of outputs.

    With a folder, ``hist.npz`` is in it.
    """
    model, n = experiment.model, output_errors.images_for(experiment.model)
    seen = experiment.data.histograms(model)
    calib, test = experiment.data.images[:n], experiment.predict.first(n)
    found = output_errors.record(model, calib, test, report)
    if folder is not None:
        binning.save(folder, found.samples.values(), found.sampled)
    rows = metrics.layer_rows(model, seen, found.calib, found.test, found.samples)
    return rows, {"errors_n": len(calib), "errors_n_test": len(test)}


def _measured(experiment: Experiment, logits: dict[str, Tensor]) -> dict[str, float]:
    found = judging.judged(experiment, logits["quant"], logits["float"])
    found |= judging.of_nearest(experiment, logits[BASELINE], logits["float"])
    found |= costs.costs(experiment.model)
    if switching.bit_widths(experiment.model):
        found["stored_mb"] = switching.stored_bytes(experiment.model) / 1e6
    return found
