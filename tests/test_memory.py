"""What was freed between tensors that stay goes back to the system."""

import gc
from pathlib import Path

import pytest
import torch

from qlib.learning import memory

STATUS = Path("/proc/self/status")


@pytest.mark.skipif(
    memory._trim() is None or not STATUS.exists(), reason="needs Linux and its usual C library"
)
def test_gaps_between_tensors_that_stay_are_given_back() -> None:
    large, small = [], []
    for _ in range(1000):
        large.append(torch.ones(20_000))  # 80 kB: small enough to lie on the heap
        small.append(torch.ones(16))
    large.clear()
    gc.collect()
    before = resident()
    memory.give_back()
    assert before - resident() > 60  # of 80 MB
    assert all(float(t.sum()) == 16 for t in small)


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_where_a_system_cannot_give_back_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def none(name: object) -> None:
        raise error

    memory._trim.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", none)
    memory.give_back()
    assert memory._trim() is None
    memory._trim.cache_clear()


def resident() -> float:
    """Of this process, in MB."""
    told = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(told.split()[1]) / 1024
