"""The most memory that a process takes while it quantizes, against what has to be kept."""

import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._steps import Subject, deit, resnet
from qlib.core import fused
from qlib.core.records import ignore
from qlib.core.registry import discover
from qlib.learning.walk import iter_units

SUBJECTS = {
    "cifar10-resnet20, 1,024 images": lambda: resnet(images=1024),
    "DeiT-tiny, 128 images": lambda: deit(images=128, blocks=12),
}
ALLOWED = 400  # MB, beside cached boundaries and three times the model
STEPS = 3
COLUMNS = ("network", "method", "libraries_mb", "boundaries_mb", "model_mb", "taken_mb",
           "allowed_mb", "torch")  # fmt: skip


def row(name: str, method: str, threads: int) -> dict[str, object]:
    """Run a method on one of `SUBJECTS` in this process. Peaks never fall: use a fresh process.

    What Python and its libraries take before anything is loaded is told apart.
    """
    torch.set_num_threads(threads)
    fused.compiled()
    libraries = _peak()
    subject = SUBJECTS[name]()
    model = _megabytes(subject.model.parameters())
    made = discover("methods")[method](steps=STEPS, batch=subject.batch)
    made.apply(subject.model, subject.plan(), subject.calibration(), ignore)
    taken = _peak() - libraries
    kept = _cached(subject, made.design().unit)
    return {
        "network": name,
        "method": method,
        "libraries_mb": round(libraries),
        "boundaries_mb": round(kept),
        "model_mb": round(model),
        "taken_mb": round(taken),
        "allowed_mb": round(kept + 3 * model + ALLOWED),
        "torch": torch.__version__.partition("+")[0],
    }


def summary(rows: Sequence[Mapping[str, str]]) -> list[dict[str, object]]:
    """The rows of the table in words."""
    return [
        {
            "network": row["network"],
            "method": row["method"],
            "MB at most": row["taken_mb"],
            "of these, cached boundaries": row["boundaries_mb"],
            "three times the model, boundaries and 400 MB": row["allowed_mb"],
        }
        for row in rows
    ]


def _cached(subject: Subject, by: str) -> float:
    """Inputs from both networks and targets, of the unit where they are largest."""
    data = subject.calibration()
    found = 0.0
    for unit in iter_units(subject.model, data, by=by, weights=False, inputs=False):
        found = max(found, _megabytes((unit.inputs, unit.inputs, unit.targets)))
    return found


def _megabytes(tensors: Iterable[Tensor]) -> float:
    return sum(t.numel() * t.element_size() for t in tensors) / 1e6


def _peak() -> float:
    """Of this process, in MB. What `resource` tells on Linux is at least what the parent took."""
    status = Path("/proc/self/status")
    if status.exists():
        told = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(told.split()[1]) / 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on macOS in bytes
    return most / (1e6 if sys.platform == "darwin" else 1e3)
