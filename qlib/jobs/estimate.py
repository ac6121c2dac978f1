"""Estimated cost of a run, from finished runs of the same network; none where there are none."""

from collections.abc import Sequence
from dataclasses import dataclass

from qlib.core.records import BASELINE, RunRecord, RunSpec
from qlib.methods.base import methods
from qlib.sensitivity.profile import IMAGES

LATEST = 5  # newest runs that an estimate looks at
SPREAD = 1.25  # the machine is not always equally busy
STRANGER = 2.0  # the same, when only runs of other methods are known
TORCH_MB = 550.0  # memory before the first image, on the CPU: what does not grow with them
REST_MB = 1.0  # of a run folder: tables, events, predictions, pictures
WORTH = 0.05  # share of the time from which a knob is worth naming


@dataclass(frozen=True)
class Estimate:
    """Expected time and memory of a run.

    Seconds from low to high, and 10⁶ bytes; None is "not known". ``basis`` says why.

    ``knobs``: what takes most of the time, largest first, as sentences.
    """

    seconds_low: float | None
    seconds_high: float | None
    memory_mb: float | None
    disk_mb: float | None
    basis: str
    knobs: tuple[str, ...] = ()


def estimate(spec: RunSpec, records: Sequence[RunRecord]) -> Estimate:
    """Estimate the cost of a checked specification by scaling what finished runs took.

    Calibration grows with its images, measuring with the test images, reconstruction with steps
    and batch; the number of units is the network's and the method's own, so runs of the same
    method count first, and those of others only with a wider range.
    """
    same_work = (spec.model, spec.device, spec.analysis)
    alike = [r for r in records if (r.spec.model, r.spec.device, r.spec.analysis) == same_work]
    if not alike and spec.analysis == "sensitivity":
        return _from_passes(spec, records)
    if not alike:
        return Estimate(None, None, None, None, _unknown(spec, ""))
    disk = alike[0].metrics.get("weight_mb_float", 0.0) / 4 + REST_MB  # a code is a byte
    same = [r for r in alike if r.spec.method == spec.method and _comparable(spec, r.spec)]
    others = [r for r in alike if _steps(r.spec) and _steps(spec)]
    used = sorted(same or others, key=lambda r: str(r.created), reverse=True)[:LATEST]
    if not used:
        return Estimate(
            None, None, None, disk, _unknown(spec, f" with {_title(spec.method)} or its like")
        )
    spread = SPREAD if same else STRANGER
    phases = [_phases(spec, r, _test_images(spec, r, records)) for r in used]
    totals = [sum(found.values()) for found in phases]
    whose = _title(spec.method) if same else "other methods"
    return Estimate(
        min(totals) / spread,
        max(totals) * spread,
        max(_memory(spec, r) for r in used),
        disk,
        f"Scaled from {len(used)} finished run{'s' * (len(used) > 1)} of {spec.network} with "
        f"{whose}.",
        _knobs(spec, phases[0]),
    )


def _title(method: str) -> str:
    found = methods().get(method)
    return found.title if found else method


def _from_passes(spec: RunSpec, records: Sequence[RunRecord]) -> Estimate:
    """The first analysis of a network: its forward passes, timed by a run whose layers are known.

    Each of L layers in U units needs the units from its own on: (U + 1)/2U of a pass.
    """
    plain = (r for r in records if not r.spec.analysis and r.layers)
    run = next(
        (r for r in plain if (r.spec.model, r.spec.device) == (spec.model, spec.device)), None
    )
    if run is None or not run.seconds.get("evaluate"):
        return Estimate(None, None, None, None, _unknown(spec, ""))
    rows = [row for row in run.layers if row["tensor"] != "output"]
    units = len({row["unit"] for row in rows})
    weights = {row["layer"] for row in rows if row["tensor"] == "weight"}
    inputs = {row["layer"] for row in rows if row["tensor"] != "weight"}
    layers = len(weights) + len(inputs) + len(weights | inputs)
    passes = 4 + 2 * layers * (units + 1) / (2 * units)
    measured = 2 if run.spec.method == BASELINE else 3  # float, nearest, and the method
    images = _test_images(spec, run, records) / max(1.0, run.metrics.get("n", 1))
    seconds = passes * images * run.seconds["evaluate"] / measured
    return Estimate(
        seconds / STRANGER,
        seconds * STRANGER,
        run.peak_mb,
        REST_MB,
        f"About {passes:.0f} passes through {spec.network}, as long as those of a finished run.",
    )


def _unknown(spec: RunSpec, what: str) -> str:
    return (
        f"Not known: there is no finished run of {spec.network}{what} on {spec.device} yet; start "
        "with few steps and few test images to measure it."
    )


def _comparable(spec: RunSpec, old: RunSpec) -> bool:
    """Steps cannot be scaled up from none."""
    return (_steps(spec) > 0) <= (_steps(old) > 0)


def _steps(spec: RunSpec) -> int:
    """Optimisation steps of one unit, all stages of the method together; 0: nothing is learned."""
    names = (name for name in spec.settings if name == "steps" or name.endswith("_steps"))
    return sum(int(spec.settings[name]) for name in names)


def _phases(spec: RunSpec, record: RunRecord, test: float) -> dict[str, float]:
    """Seconds of each phase, as this one run tells them."""
    old, took = record.spec, record.seconds
    work = _steps(spec) / _steps(old) if _steps(old) else 1.0
    batch, old_batch = spec.settings.get("batch"), old.settings.get("batch")
    if batch and old_batch:
        work *= batch / old_batch
    images = test / max(1.0, record.metrics.get("n", 1))
    named = {
        "calibrate": took.get("calibrate", 0.0) * spec.calib / old.calib,
        "reconstruct": took.get("reconstruct", 0.0) * work,
        "evaluate": took.get("evaluate", 0.0) * images,
        "profile": took.get("profile", 0.0) * (1.0 if _few_rows(spec) else images),
    }
    fixed = took.get("total", 0.0) - sum(took.get(name, 0.0) for name in named)
    return {"load": max(0.0, fixed)} | named


def _few_rows(spec: RunSpec) -> bool:
    """A noise analysis looks at as many rows of a layer, however many images they come from."""
    return spec.analysis == "noise"


def _test_images(spec: RunSpec, record: RunRecord, records: Sequence[RunRecord]) -> float:
    """How many the run will measure; when "all" was never counted, as many as the old run did."""
    if spec.test is not None or spec.analysis:
        return spec.test or IMAGES
    whole = (r for r in records if r.spec.data == spec.data and r.spec.test is None)
    return next(whole, record).metrics.get("n", 1)


def _memory(spec: RunSpec, record: RunRecord) -> float:
    """What the images of a unit take grows with them; fewer are not promised to need less."""
    base = TORCH_MB if spec.device == "cpu" else 0.0
    grown = max(1.0, spec.calib / record.spec.calib)
    return base + max(0.0, record.peak_mb - base) * grown


def _knobs(spec: RunSpec, phases: dict[str, float]) -> tuple[str, ...]:
    total = sum(phases.values()) or 1.0
    each = "" if _few_rows(spec) else f": {spec.test or IMAGES} test images each"
    says = {
        "reconstruct": f"reconstruction: {_steps(spec)} steps a unit",
        "evaluate": f"measuring: {spec.test or 'all'} test images",
        "profile": "measuring layer by layer" + each,
        "calibrate": f"calibration: {spec.calib} images",
    }
    shares = sorted(((phases[name] / total, text) for name, text in says.items()), reverse=True)
    return tuple(f"{share:.0%} of the time is {text}." for share, text in shares if share >= WORTH)
