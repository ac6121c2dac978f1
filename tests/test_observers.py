"""Clipping ranges against exhaustive searches, NumPy and plain loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from qlib.core.functional import qparams
from qlib.core.histogram import Histogram
from qlib.core.registry import discover
from qlib.core.scheme import Scheme
from qlib.observers.entropy import Entropy
from qlib.observers.minmax import MinMax
from qlib.observers.mse import Mse
from qlib.observers.percentile import Percentile

OBSERVERS = discover("observers")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(kind: str, n: int = 1500, seed: int = 0) -> Tensor:
    x = torch.randn(n, generator=rng(seed))
    u = torch.rand(n, generator=rng(seed + 1)) - 0.5
    return {
        "normal": x,
        "relu": x.clamp(min=0),
        "laplace": -u.sign() * torch.log1p(-2 * u.abs().clamp(max=0.4999)),
        "uniform": u * 2 + 0.3,
        "outlier": torch.cat([x[:-1], torch.tensor([25.0])]),
        "gelu": torch.nn.functional.gelu(2 * x),
        "negative": -x.abs() - 0.5,
        "skewed": x.exp() - 1,
    }[kind]


def error(x: Tensor, scale: float, zero: float, scheme: Scheme, power: float = 2.4) -> float:
    q = ((x / scale).round() + zero).clamp(scheme.qmin, scheme.qmax)
    return float(((q - zero) * scale - x).abs().double().pow(power).mean())


def chosen_error(x: Tensor, scheme: Scheme, power: float = 2.4) -> float:
    lo, hi = Mse(power=power).find_range(x[None], scheme)
    scale, zero = qparams(lo[0], hi[0], scheme)
    return error(x, float(scale), float(zero), scheme, power)


def exhaustive(x: Tensor, scheme: Scheme, power: float = 2.4) -> float:
    """The papers' search: 100 widths, each with every zero-point."""
    lo, hi = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    if scheme.symmetric:
        width, zeros = 2 * max(-lo, hi), [0]
    elif lo == 0 or hi == 0:  # values of one sign keep zero at an end
        width, zeros = hi - lo, [0 if lo == 0 else scheme.qmax]
    else:
        width, zeros = hi - lo, range(scheme.qmax + 1)
    steps = scheme.qmax - scheme.qmin
    scales = [width * i / 100 / steps for i in range(1, 101)]
    return min(error(x, s, z, scheme, power) for s, z in itertools.product(scales, zeros))


KINDS = ["normal", "relu", "laplace", "uniform", "outlier", "gelu", "negative", "skewed"]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_close_to_the_exhaustive_search(kind: str, bits: int) -> None:
    x, scheme = sample(kind), Scheme(bits)
    assert chosen_error(x, scheme) <= 1.02 * exhaustive(x, scheme)


@pytest.mark.parametrize("kind", ["gelu", "outlier", "relu"])
def test_mse_is_close_to_the_exhaustive_search_at_8_bits(kind: str) -> None:
    x, scheme = sample(kind, 200), Scheme(8)
    assert chosen_error(x, scheme) <= 1.02 * exhaustive(x, scheme)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("restricted", [False, True])
def test_mse_is_close_to_the_exhaustive_symmetric_search(
    kind: str, bits: int, restricted: bool
) -> None:
    x, scheme = sample(kind), Scheme(bits, symmetric=True, restricted=restricted)
    assert chosen_error(x, scheme) <= 1.02 * exhaustive(x, scheme)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_mse_minimises_the_power_that_it_is_given(power: float) -> None:
    x, scheme = sample("laplace"), Scheme(3)
    assert chosen_error(x, scheme, power) <= 1.02 * exhaustive(x, scheme, power)


def test_mse_of_a_few_weights() -> None:
    """As many values as levels or fewer: tiny rows such as depth-wise kernels."""
    for seed in range(20):
        x = torch.randn(9, generator=rng(seed))
        for bits in (2, 4):
            scheme = Scheme(bits)
            bound = 1.02 * exhaustive(x, scheme) + 1e-5
            assert chosen_error(x, scheme) <= bound, (seed, bits)


def test_mse_symmetric_range_is_centred_and_kept_by_qparams() -> None:
    x, scheme = sample("skewed"), Scheme(4, symmetric=True)
    lo, hi = Mse().find_range(x[None], scheme)
    assert float(lo) == -float(hi)
    scale, zero = qparams(lo, hi, scheme)
    torch.testing.assert_close(scale, (hi - lo) / 15)
    assert float(zero) == 0


@pytest.mark.parametrize("percent", [99.0, 99.9, 90.0, 60.0])
def test_percentile_is_numpys(percent: float) -> None:
    x = sample("laplace", 1013)
    lo, hi = Percentile(percent=percent).find_range(x[None], Scheme(8))
    for got, share in ((lo, 100 - percent), (hi, percent)):
        want = np.percentile(x.double().numpy(), share, method="inverted_cdf")
        assert float(got) == pytest.approx(float(want), rel=1e-6)


def test_percentile_100_keeps_all_and_mirrors() -> None:
    x = sample("skewed", 1013)
    lo, hi = Percentile(percent=100.0).find_range(x[None], Scheme(8))
    assert (float(lo), float(hi)) == (float(x.min()), float(x.max()))
    low, high = Percentile(percent=97.0).find_range(x[None], Scheme(8))
    mirrored_low, mirrored_high = Percentile(percent=97.0).find_range(-x[None], Scheme(8))
    assert (float(low), float(high)) == (-float(mirrored_high), -float(mirrored_low))


def test_minmax_keeps_everything() -> None:
    x = torch.tensor([[-2.0, 5.0, 1.0], [1.0, 2.0, 3.0], [-3.0, -2.0, -1.0]])
    lo, hi = MinMax().find_range(x, Scheme(4))
    assert lo.tolist() == [-2, 0, -3]
    assert hi.tolist() == [5, 3, 0]


def divergence(mass: list[float], share: float, lo: float, hi: float, steps: int) -> float:
    """KL(P ‖ Q) in nats of one width, bin by bin; places are shares of the full range."""
    bins, zero = len(mass), -lo / (hi - lo)
    low, high = zero * (1 - share), zero + (1 - zero) * share
    centres = [(i + 0.5) / bins for i in range(bins)]
    inside = [low <= c <= high for c in centres]
    first, last = inside.index(True), bins - 1 - inside[::-1].index(True)
    p = [m if here else 0.0 for m, here in zip(mass, inside, strict=True)]
    p[first] += sum(m for m, c in zip(mass, centres, strict=True) if c < low)
    p[last] += sum(m for m, c in zip(mass, centres, strict=True) if c > high)
    levels: dict[int, list[int]] = {}
    for i in range(bins):
        if inside[i] and mass[i] > 0:
            levels.setdefault(round((centres[i] - low) / (high - low) * steps), []).append(i)
    q = [0.0] * bins
    for members in levels.values():
        for i in members:
            q[i] = sum(mass[j] for j in members) / len(members)
    total = sum(q) or 1.0
    terms = ((a, b / total) for a, b in zip(p, q, strict=True) if a > 0)
    return sum(a * math.log(a / max(b, 1e-12)) for a, b in terms)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("kind", ["normal", "relu", "outlier", "skewed", "negative"])
def test_entropy_is_the_plain_loops(kind: str, bits: int) -> None:
    bins, k = 64, 16
    x, scheme = sample(kind, 3000), Scheme(bits)
    observer = Entropy(bins=bins, candidates=k)
    got = [float(v) for v in observer.find_range(x[None], scheme)]
    lo, hi = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    at = ((x - lo) / (hi - lo) * bins).long().clamp(0, bins - 1)
    mass = (torch.bincount(at, minlength=bins).double() / len(x)).tolist()
    found = [divergence(mass, (i + 1) / k, lo, hi, scheme.steps) for i in range(k)]
    share = (got[1] - got[0]) / (hi - lo)
    index = round(share * k) - 1
    assert share == pytest.approx((index + 1) / k, rel=1e-4)  # one of the widths that exist
    assert got[0] == pytest.approx(lo * share, rel=1e-4)
    assert found[index] <= min(found) + 1e-4
    assert max(found) - min(found) > 0.01  # the choice mattered


def test_entropy_clips_an_outlier_and_is_centred_when_symmetric() -> None:
    x = sample("outlier", 3000)[None]
    _, hi = Entropy().find_range(x, Scheme(4))
    assert float(hi) < 15
    lo, hi = Entropy().find_range(x, Scheme(4, symmetric=True))
    assert float(lo) == -float(hi)


# --- what all have in common


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", OBSERVERS)
def test_rows_at_once_are_the_rows_one_by_one(name: str, symmetric: bool) -> None:
    rows = torch.stack([sample(kind, 300) for kind in KINDS])
    observer, scheme = OBSERVERS[name](), Scheme(4, symmetric)
    lo, hi = observer.find_range(rows, scheme)
    assert lo.shape == hi.shape == (len(rows),)
    assert (lo <= 0).all()
    assert (hi >= 0).all()
    for i, row in enumerate(rows):
        one = observer.find_range(row[None], scheme)
        torch.testing.assert_close(torch.stack([lo[i], hi[i]]), torch.cat(one), msg=KINDS[i])


@pytest.mark.parametrize("name", OBSERVERS)
def test_counts_are_repetitions(name: str) -> None:
    x = sample("gelu", 400)
    times = torch.randint(1, 6, (400,), generator=rng(9))
    observer, scheme = OBSERVERS[name](), Scheme(4)
    counted = observer.find_range(x[None], scheme, times.float()[None])
    repeated = observer.find_range(x.repeat_interleave(times)[None], scheme)
    torch.testing.assert_close(torch.cat(counted), torch.cat(repeated), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_histogram_gives_almost_the_range_of_the_values(name: str) -> None:
    x = sample("gelu", 20_000)
    seen = Histogram()
    seen.update(x)
    values, counts = seen.values()
    for scheme in (Scheme(4), Scheme(4, symmetric=True)):
        observer = OBSERVERS[name]()
        low, high = observer.find_range(values, scheme, counts)
        lo, hi = observer.find_range(x[None], scheme)
        width = float(x.max() - x.min())
        if name == "mse":  # several ranges may be as good: compare what they are good for
            made = [qparams(a[0], b[0], scheme) for a, b in ((low, high), (lo, hi))]
            one, two = (error(x, float(s), float(z), scheme) for s, z in made)
            assert one <= 1.01 * two
        else:
            near = {"entropy": 0.1}.get(name, 0.03) * width  # entropies differ little: broad
            assert abs(float(low - lo)) < near
            assert abs(float(high - hi)) < near


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
def test_rows_of_one_value_give_a_usable_range(name: str, value: float) -> None:
    x = torch.full((2, 30), value)
    for scheme in (Scheme(4), Scheme(2), Scheme(4, symmetric=True)):
        lo, hi = OBSERVERS[name]().find_range(x, scheme)
        scale, zero = qparams(lo, hi, scheme)
        assert torch.isfinite(scale).all()
        assert (scale > 0).all()
        if name == "minmax":
            q = ((x[0] / scale[0]).round() + zero[0]).clamp(scheme.qmin, scheme.qmax)
            assert ((q - zero[0]) * scale[0] - x[0]).abs().max() <= scale[0] / 2 * 1.001


@pytest.mark.parametrize("name", OBSERVERS)
def test_input_is_not_changed(name: str) -> None:
    x = sample("gelu", 300)[None]
    before = x.clone()
    OBSERVERS[name]().find_range(x, Scheme(4))
    assert torch.equal(x, before)
