"""Streamed histograms against one pass over everything."""

import numpy as np
import pytest
import torch
from torch import Tensor

from qlib.core.histogram import BINS, Histogram


def normal(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def streamed(parts: list[Tensor], limit: int = 2**16) -> Histogram:
    made = Histogram(limit)
    for part in parts:
        made.update(part)
    return made


def cumulated(made: Histogram, at: np.ndarray) -> np.ndarray:
    """Share of the mass at or below each place."""
    values, counts = (t[0].double().numpy() for t in made.values())
    return np.array([counts[values <= a].sum() for a in at])


ORDERS = {
    "one": lambda x: [x],
    "chunks": lambda x: list(x.split(777)),
    "ascending": lambda x: list(x.sort().values.split(500)),
    "descending": lambda x: list(x.sort(descending=True).values.split(500)),
    "outwards": lambda x: list(x[x.abs().argsort()].split(300)),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", ["normal", "relu", "shifted", "far"])
def test_any_order_gives_the_distribution_within_a_bin(order: str, shape: str) -> None:
    x = normal(20_000)
    x = {"normal": x, "relu": x.clamp(min=0), "shifted": x + 7, "far": x * 0.1 - 300}[shape]
    made = streamed(ORDERS[order](x))
    assert made.lo == float(x.min())
    assert made.hi == float(x.max())
    assert float(made.counts.sum()) == len(x)
    width = made.width
    assert BINS * width <= 4.2 * (made.hi - made.lo)
    at = np.linspace(made.lo, made.hi, 50)
    exact = x.double().sort().values.numpy()
    for place, share in zip(at, cumulated(made, at), strict=True):
        low = np.searchsorted(exact, place - width, "left") / len(x)
        high = np.searchsorted(exact, place + width, "right") / len(x)
        assert low - 1e-6 <= share <= high + 1e-6


def test_size_is_bounded_however_much_is_seen() -> None:
    made = Histogram()
    for k in range(60):
        made.update(normal(2000, k) * 1.5**k)
    assert len(made.counts) == BINS
    values, counts = made.values()
    assert values.shape == counts.shape
    assert values.shape[0] == 1
    assert values.shape[1] <= BINS + 2
    assert float(counts.sum()) == pytest.approx(1, abs=1e-5)
    assert float(made.counts.sum()) == 60 * 2000


def test_grows_in_both_directions() -> None:
    made = streamed([torch.linspace(-1, 1, 101)])
    start, end = made.start, made.start + BINS * made.width
    made.update(torch.tensor([100.0]))
    assert made.start == start
    assert made.start + BINS * made.width > 100 > end
    made.update(torch.tensor([-1000.0]))
    assert made.start <= -1000
    assert (made.lo, made.hi) == (-1000, 100)
    values, counts = made.values()
    inner = counts[0, values[0].abs() < 50].sum()
    assert float(inner) == pytest.approx(101 / 103, abs=1e-5)


def test_values_end_at_the_exact_extremes() -> None:
    values, _ = streamed([torch.tensor([-0.123, 0.5, 4.567])]).values()
    assert float(values.min()) == pytest.approx(-0.123, abs=1e-7)
    assert float(values.max()) == pytest.approx(4.567, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e6])
def test_constant_tensor_then_something_else(value: float) -> None:
    made = streamed([torch.full((10,), value)])
    values, _ = made.values()
    assert values.unique().tolist() == [value]
    made.update(torch.tensor([value + 2.0] * 10))
    values, counts = made.values()
    low = float(counts[0, values[0] < value + 1].sum())
    assert low == pytest.approx(0.5, abs=1e-6)


def test_large_batches_are_sampled_evenly_and_extremes_kept() -> None:
    x = torch.rand(4, 8, 30, 30, generator=torch.Generator().manual_seed(1))
    x[2, 3, 4, 5] = 50.0
    made = streamed([x], limit=1000)
    assert made.hi == 50.0
    assert 500 <= float(made.counts.sum()) <= 1000
    values, counts = made.values()
    assert float((values * counts).sum()) == pytest.approx(0.5, abs=0.08)
    # a stride in step with the channels would see one channel alone
    channels = torch.arange(8.0).reshape(1, 8, 1, 1).expand(64, 8, 16, 16)
    for layout in (torch.contiguous_format, torch.channels_last):
        seen = streamed([channels.contiguous(memory_format=layout)], limit=4096)
        assert int((seen.counts > 0).sum()) == 8


def test_layout_in_memory_changes_nothing() -> None:
    x = normal(2 * 6 * 5 * 5).reshape(2, 6, 5, 5)
    one, two = streamed([x]), streamed([x.contiguous(memory_format=torch.channels_last)])
    assert torch.equal(one.counts, two.counts)
