"""Provenance of a record: time, memory, versions, and which images were used."""

import hashlib
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version

import torch

from qlib.core.preprocess import Preprocess
from qlib.core.process import peak_mb
from qlib.core.records import Event, Report
from qlib.core.rows import PreprocessRow, RunData
from qlib.pipeline.experiment import Experiment


@dataclass
class Clock:
    """A report callback that forwards events and adds up the seconds of each phase."""

    report: Report
    seconds: dict[str, float] = field(default_factory=dict)
    _phase: str = "load"
    _since: float = field(default_factory=time.perf_counter)

    def __call__(self, event: Event) -> None:
        if event.phase != self._phase:
            self.turn(event.phase)
        self.report(event)

    def turn(self, phase: str) -> None:
        """End the present phase and begin another."""
        now = time.perf_counter()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def totals(self) -> dict[str, float]:
        """End the last phase; seconds by phase, and ``total``."""
        self.turn("save")
        named = {k: self.seconds.get(k, 0.0) for k in ("load", "calibrate", "reconstruct")}
        named["evaluate"] = self.seconds.get("evaluate", 0.0)
        return named | {"total": sum(self.seconds.values())}


def versions() -> dict[str, str]:
    """Versions of Python and the libraries, and the number of threads."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "timm", "numpy")},
        "threads": str(torch.get_num_threads()),
    }


def about_data(experiment: Experiment) -> RunData:
    """Which images the numbers are about."""
    return {
        "calib_hash": _hash(experiment.calib.ids),
        "test_hash": _hash(experiment.test.ids),
        "calib_n": len(experiment.calib),
        "classes": len(experiment.classes),
        "same_source": experiment.same_source,
        "preprocess": _prepared(experiment.predict.preprocess),
    }


def _prepared(preprocess: Preprocess) -> PreprocessRow:
    """As a record stores it: JSON has lists alone."""
    return {
        "input_size": [*preprocess.input_size],
        "mean": [*preprocess.mean],
        "std": [*preprocess.std],
        "interpolation": preprocess.interpolation,
        "crop_pct": preprocess.crop_pct,
        "crop_mode": preprocess.crop_mode,
    }


def peak_of(device: torch.device) -> float:
    """Highest memory so far, 10⁶ bytes: of the GPU where one is used, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return peak_mb()


def _hash(ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
