"""What was freed between tensors that stay goes back to the system."""

import subprocess
import sys
from pathlib import Path

import pytest

from qlib.learning import memory

STATUS = Path("/proc/self/status")
# in a process of its own: on the heap of one that has run for long, freed memory may lie at the end
# and be returned at once, or small tensors find place in old gaps
GAPS = """
from pathlib import Path
import torch
from qlib.learning import memory

def resident():  # MB
    told = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in x)
    return int(told.split()[1]) / 1024

large, small = [], []
for _ in range(1000):
    large.append(torch.ones(20_000))  # 80 kB: small enough to lie on the heap
    small.append(torch.ones(16))
large.clear()
before = resident()
memory.give_back()
assert all(float(t.sum()) == 16 for t in small)
print(before - resident())
"""


@pytest.mark.skipif(
    memory._trim() is None or not STATUS.exists(), reason="needs Linux and its usual C library"
)
def test_gaps_between_tensors_that_stay_are_given_back() -> None:
    said = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=True)
    assert float(said.stdout) > 60  # of 80 MB


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
