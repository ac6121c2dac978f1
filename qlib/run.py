"""One run: a specification in, a record out. The only file where model, data and method meet."""

import hashlib
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from qlib import metrics, recording, switching, tuning, widths
from qlib._artifacts import save_predictions, save_quantizers
from qlib._registry import discover, lookup
from qlib._setup import Setup, device_of, set_up
from qlib.jobs._process import peak_mb
from qlib.model import QuantModel
from qlib.records import Event, Refused, Report, RunRecord, RunSpec, ignore
from qlib.scheme import PER_CHANNEL, PER_TENSOR, BitPlan, Granularity, Scheme
from qlib.sensitivity.units import block_sensitivity
from qlib.specs import checked
from qlib.store import binning

GROUP = 64  # weights that share a scale when granularity is "group"


@dataclass
class Clock:
    """Hands events on and adds up the time spent in each phase."""

    report: Report
    seconds: dict[str, float] = field(default_factory=dict)
    _phase: str = "load"
    _since: float = field(default_factory=time.perf_counter)

    def __call__(self, event: Event) -> None:
        if event.phase != self._phase:
            self.turn(event.phase)
        self.report(event)

    def turn(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def totals(self) -> dict[str, float]:
        self.turn("save")
        named = {k: self.seconds.get(k, 0.0) for k in ("load", "calibrate", "reconstruct")}
        named["evaluate"] = self.seconds.get("evaluate", 0.0)
        return named | {"total": sum(self.seconds.values())}


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
        Refused: wrong input, in one sentence. With a folder, what was finished is in it.
    """
    from qlib import store

    spec = checked(spec)
    if spec.analysis:
        from qlib._analysis import analyse  # stands on this file

        return analyse(spec, report, folder, known)
    clock = Clock(report)
    device = device_of(spec)
    setup = set_up(spec, device, clock)
    logits = quantize(setup, spec, clock, folder)
    found = _measured(setup, logits)
    at_widths, by_width = widths.measured(setup, logits["float"], spec.weight_bits)
    images = setup.data.images[: recording.images_for(setup.model)]
    blocks = block_sensitivity(setup.model, images, clock)
    clock(Event("save"))
    rows, measured = _recorded(setup, clock, folder)
    if folder is not None:
        save_predictions(folder, setup.test, logits | by_width, setup.classes)
        save_quantizers(setup.model, folder)
    record = RunRecord(
        spec=spec,
        metrics=found,
        seconds=clock.totals(),
        peak_mb=peak_of(device),
        layers=rows,
        versions=versions(),
        data=about_data(setup) | measured,
        notes=setup.model.notes,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        widths=at_widths,
        blocks=blocks,
    )
    if folder is not None:
        store.write_record(record, folder)
    return record


def quantize(
    setup: Setup, spec: RunSpec, report: Report, folder: Path | None = None
) -> dict[str, Tensor]:
    """Apply the method, then tune; the model is afterwards quantized and switched on.

    Returns:
        logits of the held-out images, (n, classes) each: "float", "nearest" (plain rounding) and
        "quant" (the method, and what is tuned after it).

    Raises:
        Refused: the method gave up; with a folder, the quantizers of finished units are in it.
    """
    model, plan = setup.model, bit_plan(setup.model, spec)
    report(Event("calibrate", note="ranges"))
    discover("methods")["nearest"]().apply(model, plan, setup.data, report)
    model.switch(weights=True, inputs=True)
    report(Event("evaluate", "float"))
    with model.quantized(weights=False, inputs=False):
        logits = {"float": setup.predict(setup.net, "float")}
    logits["quant"] = logits["nearest"] = setup.predict(model, "nearest")
    if spec.method != "nearest":
        method = discover("methods")[spec.method](**spec.settings)
        try:
            report(Event("calibrate", note=spec.method))
            method.apply(model, plan, setup.data, report)
        except Refused:
            if folder is not None:
                save_quantizers(model, folder)
            raise
    tuning.tune(setup.model, setup.data, report, norms=spec.tune_norms, biases=spec.tune_biases)
    if spec.method != "nearest" or spec.tune_norms or spec.tune_biases:
        model.switch(weights=True, inputs=True)
        logits["quant"] = setup.predict(model, spec.method)
    return logits


def _recorded(
    setup: Setup, report: Report, folder: Path | None
) -> tuple[list[dict[str, object]], dict[str, int]]:
    """The rows of ``layers.csv``, and how many images are behind the errors of outputs.

    With a folder, ``hist.npz`` is in it.
    """
    model, n = setup.model, recording.images_for(setup.model)
    seen = setup.data.histograms(model)
    calib, test = setup.data.images[:n], setup.predict.first(n)
    found = recording.record(model, calib, test, report)
    if folder is not None:
        binning.save(folder, found.samples.values(), found.sampled)
    rows = metrics.layer_rows(model, seen, found.calib, found.test, found.samples)
    return rows, {"errors_n": len(calib), "errors_n_test": len(test)}


def bit_plan(model: QuantModel, spec: RunSpec) -> BitPlan:
    """The grids that a specification asks for; none for the layers that it keeps in float.

    A block's boundary belongs to the block's first layer and stays in float with it, so that a run
    gives what the sensitivity analysis measured (see `qlib.sensitivity.layers.points_of`).

    Raises:
        Refused: a layer to keep is not there; the nearest names are given.
    """
    sharing = {"channel": PER_CHANNEL, "tensor": PER_TENSOR, "group": Granularity("group", GROUP)}
    weight = Scheme(spec.weight_bits, spec.symmetric_weights, granularity=sharing[spec.granularity])
    act = Scheme(spec.act_bits, spec.symmetric_acts)
    allocator = discover("allocators")["same"]()
    plan = allocator.allocate(model, weight, act, edge_layers=spec.edge_layers)
    try:
        kept = {lookup("layer", name, model.layers) for name in spec.keep_float}
    except ValueError as error:
        raise Refused(str(error)) from None
    kept |= {b for b in model.boundaries if model.layers_of(b)[0] in kept}
    return BitPlan(
        {name: scheme for name, scheme in plan.weights.items() if name not in kept},
        {n: scheme for n, scheme in plan.inputs.items() if n.rpartition(".")[0] not in kept},
        plan.fixed,
    )


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "timm", "numpy")},
        "threads": str(torch.get_num_threads()),
    }


def about_data(setup: Setup) -> dict[str, object]:
    """Which images the numbers are about."""
    return {
        "calib_hash": _hash(setup.calib.ids),
        "test_hash": _hash(setup.test.ids),
        "calib_n": len(setup.calib),
        "classes": len(setup.classes),
        "same_source": setup.same_source,
    }


def _measured(setup: Setup, logits: dict[str, Tensor]) -> dict[str, float]:
    found = metrics.accuracy(setup.labels, logits["quant"], logits["float"])
    nearest = metrics.accuracy(setup.labels, logits["nearest"], logits["float"])
    found |= {"top1_nearest": nearest["top1"]} | metrics.costs(setup.model)
    if switching.widths(setup.model):
        found["stored_mb"] = switching.stored_bytes(setup.model) / 1e6
    return found


def peak_of(device: torch.device) -> float:
    """Highest memory so far, 10⁶ bytes: of the GPU where one is used, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return peak_mb()


def _hash(ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
