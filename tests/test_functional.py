"""The arithmetic of a uniform grid: properties, PyTorch's own as oracle, gradients by hand."""

import math

import pytest
import torch
from torch import Tensor

from qlib.core import fused
from qlib.core.functional import KeepMask, fake_quantize, qparams, quantize, round_ste, take
from qlib.core.functional import dequantize as decode
from qlib.core.scheme import PER_CHANNEL, Granularity, Scheme
from qlib.quantizers.uniform import Uniform

SCHEMES = [
    Scheme(bits, symmetric, restricted)
    for bits in (2, 3, 4, 8)
    for symmetric, restricted in ((False, False), (True, False), (True, True))
]
NAMES = [f"{s.bits}-{'sym' if s.symmetric else 'asym'}{'-r' * s.restricted}" for s in SCHEMES]


@pytest.fixture(autouse=True, params=["in one pass", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of this holds with compiled loops and without."""
    if request.param == "plain":
        monkeypatch.setattr(fused, "THREADS", 0)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed))


def grid(x: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scale, zero-point, low, high for the full range of ``x``."""
    scale, zero = qparams(x.min(), x.max(), scheme)
    return scale, zero, scheme.qmin - zero, scheme.qmax - zero


# --- values


@pytest.mark.parametrize("scheme", SCHEMES, ids=NAMES)
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0, 0.4])
def test_error_is_half_a_step_at_most_and_the_result_is_stable(
    scheme: Scheme, shift: float
) -> None:
    x = normal(4000) + shift
    scale, _, low, high = grid(x, scheme)
    y = fake_quantize(x, scale, low, high)
    assert (x - y).abs().max() <= scale * (0.5 + 1e-4)
    assert torch.equal(fake_quantize(y, scale, low, high), y)
    assert len(y.unique()) <= 2**scheme.bits
    assert not fake_quantize(torch.zeros(3), scale, low, high).any()


def test_range_of_one_sign_is_widened_to_hold_zero() -> None:
    scale, zero = qparams(torch.tensor([2.0, -6.0]), torch.tensor([6.0, -2.0]), Scheme(4))
    torch.testing.assert_close(scale, torch.tensor([6 / 15, 6 / 15]))
    assert zero.tolist() == [0, 15]


def test_zero_point_and_scale_of_a_skewed_range() -> None:
    scale, zero = qparams(torch.tensor(-1.0), torch.tensor(3.0), Scheme(3))
    assert float(scale) == pytest.approx(4 / 7)
    assert float(zero) == 2  # 1 / (4/7) = 1.75
    codes = quantize(torch.tensor([-9.0, -1.0, 0.0, 3.0, 9.0]), scale, zero, 0, 7)
    assert codes.tolist() == [0, 0, 2, 7, 7]
    values = decode(codes, scale, zero)
    torch.testing.assert_close(values, torch.tensor([-2.0, -2.0, 0.0, 5.0, 5.0]) * 4 / 7)


def test_empty_range_has_scale_one() -> None:
    for symmetric in (False, True):
        scale, zero = qparams(torch.zeros(()), torch.zeros(()), Scheme(4, symmetric))
        assert (float(scale), float(zero)) == (1.0, 0.0)


def test_symmetric_codes_full_and_restricted() -> None:
    x = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    full, restricted = Scheme(3, True), Scheme(3, True, True)
    assert (full.qmin, full.qmax) == (-4, 3)
    assert (restricted.qmin, restricted.qmax) == (-3, 3)
    scale, zero = qparams(x.min(), x.max(), restricted)
    assert float(scale) == pytest.approx(1 / 3)
    assert quantize(x, scale, zero, -3, 3).tolist() == [-3, -2, 0, 2, 3]
    scale, zero = qparams(x.min(), x.max(), full)
    assert float(scale) == pytest.approx(2 / 7)
    x = torch.tensor([-1.1, -0.5, 0.0, 0.5, 1.1])
    assert quantize(x, scale, zero, -4, 3).tolist() == [-4, -2, 0, 2, 3]


def test_rounding_of_ties_is_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    y = fake_quantize(x, torch.tensor(1.0), -8.0, 7.0)
    assert y.tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_codes_are_those_of_torch_per_tensor(bits: int, symmetric: bool) -> None:
    x, scheme = normal(5000) * 2 + 0.3, Scheme(bits, symmetric)
    scale, zero, low, high = grid(x * 0.6, scheme)  # some values are clipped
    ours = fake_quantize(x, scale, low, high)
    theirs = torch.fake_quantize_per_tensor_affine(
        x, float(scale), int(zero), scheme.qmin, scheme.qmax
    )
    codes = quantize(x, scale, zero, scheme.qmin, scheme.qmax)
    assert torch.equal(codes, (theirs / scale).round() + zero)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert codes.min() == scheme.qmin
    assert codes.max() == scheme.qmax


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_those_of_torch_per_channel(bits: int) -> None:
    x = normal(6, 3, 3, 3) * torch.arange(1, 7).reshape(6, 1, 1, 1)
    scheme = Scheme(bits, granularity=PER_CHANNEL)
    rows = x.flatten(1)
    scale, zero = qparams(rows.amin(1), rows.amax(1), scheme)
    theirs = torch.fake_quantize_per_channel_affine(x, scale, zero.int(), 0, 0, scheme.qmax)
    scale, zero = scale.reshape(6, 1, 1, 1), zero.reshape(6, 1, 1, 1)
    ours = quantize(x, scale, zero, 0, scheme.qmax)
    assert torch.equal(ours, (theirs / scale).round() + zero)
    made = Uniform(scale, zero, scheme)
    torch.testing.assert_close(made(x), theirs, rtol=1e-6, atol=1e-6)
    assert torch.equal(made.codes(x), ours)


def test_groups_are_quantized_one_by_one() -> None:
    scheme = Scheme(3, granularity=Granularity("group", 4))
    x = normal(3, 8, 1, 1)
    assert scheme.granularity.scale_shape(x) == (3, 2, 1)
    rows = scheme.granularity.rows(x)
    assert torch.equal(rows[1], x[0, 4:, 0, 0])
    shape = scheme.granularity.scale_shape(x)
    lo, hi = rows.amin(1).reshape(shape), rows.amax(1).reshape(shape)
    made = Uniform.of_range(lo, hi, scheme)
    y = made(x)
    assert y.shape == made.codes(x).shape == x.shape
    for channel in range(3):
        for start in (0, 4):
            part = [float(v) for v in x[channel, start : start + 4, 0, 0]]
            low, high = min(*part, 0), max(*part, 0)
            step = (high - low) / 7
            zero = round(-low / step)
            want = [(min(max(round(v / step) + zero, 0), 7) - zero) * step for v in part]
            got = y[channel, start : start + 4, 0, 0]
            torch.testing.assert_close(got, torch.tensor(want), rtol=1e-5, atol=1e-5)


def test_groups_divide_a_channel_evenly() -> None:
    x = normal(3, 5, 2, 2)
    assert Granularity("group", 8).scale_shape(x) == (3, 4, 1)  # 5 is the largest divisor
    assert Granularity("group", 10).scale_shape(x) == (3, 2, 1)


def test_bits_outside_the_limits_are_refused() -> None:
    for bits in (1, 17):
        with pytest.raises(ValueError, match=rf"Scheme.bits must be in \[2, 16\]; got {bits}"):
            Scheme(bits)


def test_stochastic_rounding_would_have_twice_the_error() -> None:
    """Mean square error of nearest rounding is s²/12, of a random one s²/6."""
    x = torch.rand(200_000, generator=rng(), dtype=torch.float64) * 15
    error = fake_quantize(x, torch.tensor(1.0).double(), 0.0, 15.0) - x
    assert float(error.square().mean()) == pytest.approx(1 / 12, rel=0.02)
    assert abs(float(error.mean())) < 0.005


# --- gradients


def plain(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The same in autograd's own words: straight through the rounding, true through the clip."""
    ratio = x / scale
    code = ratio.round()
    through = ratio + (code - ratio).detach()
    return torch.where(code < low, low, torch.where(code > high, high, through)) * scale


@pytest.mark.parametrize("shape", [(), (6, 1, 1, 1)], ids=["tensor", "channel"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_plain_autograd(shape: tuple, layout: torch.memory_format) -> None:
    x = normal(6, 3, 4, 5).double().contiguous(memory_format=layout)
    scale = torch.full(shape, 0.21, dtype=torch.float64)
    low, high = torch.full(shape, -3.0).double(), torch.full(shape, 4.0).double()
    push = normal(6, 3, 4, 5, seed=1).double()
    found = []
    for make in (fake_quantize, plain):
        a, s = x.clone().requires_grad_(), scale.clone().requires_grad_()
        y = make(a, s, low, high)
        (y * push).sum().backward()
        found.append((y.detach(), a.grad, s.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert ((found[0][1] == 0).float().mean()) > 0.2  # something was clipped


def test_gradients_by_hand() -> None:
    """Step 0.5, codes 0 … 7, zero-point 2: inside ⌊x/s⌉ − x/s, below −z = −2, above 7 − z = 5."""
    cases = [(0.7, 1.0, 1 - 1.4), (-0.3, 1.0, -1 + 0.6), (-9.0, 0.0, -2.0), (9.0, 0.0, 5.0)]
    for value, slope_x, slope_scale in cases:
        x = torch.tensor([value], requires_grad=True)
        scale = torch.tensor(0.5, requires_grad=True)
        fake_quantize(x, scale, -2.0, 5.0).sum().backward()
        assert float(x.grad) == pytest.approx(slope_x), value
        assert float(scale.grad) == pytest.approx(slope_scale, abs=1e-5), value


def test_gradient_reaches_x_alone_or_scale_alone() -> None:
    x, scale = normal(20), torch.tensor(0.3)
    alone = x.clone().requires_grad_()
    fake_quantize(alone, scale, -4.0, 3.0).sum().backward()
    inside = ((x / scale).round() >= -4) & ((x / scale).round() <= 3)
    assert torch.equal(alone.grad, inside.float())
    free = scale.clone().requires_grad_()
    fake_quantize(x, free, -4.0, 3.0).sum().backward()
    assert free.grad is not None
    assert free.grad.shape == ()


def test_scale_gradient_survives_many_unclipped_values() -> None:
    """A handful of clipped values among a million: no loss of digits in single precision."""
    x = torch.rand(1_000_000, generator=rng()) * 254
    x[:5] = 400.0
    push = normal(1_000_000)
    push[:5] = 4.0
    found = []
    for make, kind in ((fake_quantize, torch.float32), (plain, torch.float64)):
        scale = torch.tensor(1.0, dtype=kind, requires_grad=True)
        low, high = torch.tensor(0.0, dtype=kind), torch.tensor(255.0, dtype=kind)
        (make(x.to(kind), scale, low, high) * push.to(kind)).sum().backward()
        found.append(float(scale.grad))
    assert found[0] == pytest.approx(found[1], abs=5)  # 5100 from the five, ±290 from the others


def test_keep_mask_decides_value_and_gradients() -> None:
    x = normal(200).double()
    keep = (torch.rand(200, generator=rng(5)) < 0.5).double()
    push = normal(200, seed=2).double()
    a = x.clone().requires_grad_()
    s = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    y = fake_quantize(a, s, -2.0, 2.0, keep=keep)
    full = fake_quantize(x, s.detach(), -2.0, 2.0)
    torch.testing.assert_close(y.detach(), torch.where(keep == 1, full, x))
    (y * push).sum().backward()
    kept = keep == 1
    b, t = x.clone().requires_grad_(), s.detach().clone().requires_grad_()
    low, high = torch.tensor(-2.0).double(), torch.tensor(2.0).double()
    (plain(b, t, low, high) * push * keep).sum().backward()
    torch.testing.assert_close(a.grad[kept], b.grad[kept])
    assert torch.equal(a.grad[~kept], push[~kept])  # dropped: the identity
    torch.testing.assert_close(s.grad, t.grad)
    with torch.no_grad():
        again = fake_quantize(x, s, -2.0, 2.0, keep=keep)
    torch.testing.assert_close(again, y.detach())
    assert torch.equal(again[~kept], x[~kept])


def test_round_ste_rounds_and_lets_gradients_through() -> None:
    x = torch.tensor([0.4, 1.6], requires_grad=True)
    y = round_ste(x)
    assert y.tolist() == [0, 2]
    y.sum().backward()
    assert x.grad.tolist() == [1, 1]


# --- random masks


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_share_of_ones_is_binomial(keep: float) -> None:
    masks = KeepMask(keep, rng())
    for _ in range(5):
        mask = masks.like(torch.empty(40, 50, 10))
        bound = 4.5 * math.sqrt(keep * (1 - keep) / mask.numel())
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert abs(float(mask.float().mean()) - keep) < bound


def test_keep_one_draws_nothing_and_keep_zero_drops_all() -> None:
    generator = rng()
    before = generator.get_state()
    assert KeepMask(1.0, generator).like(torch.empty(9)) is None
    assert torch.equal(generator.get_state(), before)
    assert not KeepMask(0.0, generator).like(torch.empty(999)).any()


def test_masks_follow_the_generator_alone() -> None:
    drawn = []
    for seed, global_seed in ((3, 0), (3, 1), (4, 1)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(global_seed)
            masks = KeepMask(0.5, rng(seed))
            drawn.append(torch.stack([masks.like(torch.empty(7, 11)).clone() for _ in range(70)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len(drawn[0].flatten(1).unique(dim=0)) == 70  # and no mask comes twice


def test_mask_has_shape_and_layout_of_any_tensor() -> None:
    masks = KeepMask(0.5, rng())
    image = torch.empty(4, 5, 6, 7).contiguous(memory_format=torch.channels_last)
    assert masks.like(image).stride() == image.stride()
    large = torch.empty(3_000_000)
    assert masks.like(large).shape == large.shape
    # a slice out of a larger tensor, as keys and values are in attention
    for _ in range(200):
        q, k, v = torch.empty(8, 50, 3, 4, 16).permute(2, 0, 3, 1, 4).unbind(0)
        for part in (q, k.transpose(-2, -1), v):
            mask = masks.like(part)
            assert mask.shape == part.shape
            assert 0.4 < float(mask.float().mean()) < 0.6


def test_neighbouring_elements_of_a_mask_are_independent() -> None:
    mask = KeepMask(0.5, rng()).like(torch.empty(100_000)) - 0.5
    assert abs(float((mask[1:] * mask[:-1]).mean())) < 4.5 * 0.25 / math.sqrt(100_000)


# --- images at indices


@pytest.mark.parametrize(
    "shape", [(10, 3), (10, 3, 4), (10, 3, 4, 5), (10, 1, 4, 5), (10, 3, 1, 1)]
)
@pytest.mark.parametrize("layout", ["plain", "channels last", "cut out"])
def test_images_taken_are_those_at_the_indices(shape: tuple[int, ...], layout: str) -> None:
    x = torch.randn(shape)
    if layout == "channels last" and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "cut out":
        x = torch.randn((*shape[:-1], 2 * shape[-1]))[..., ::2]
    at = torch.tensor([3, 3, 0, 9])
    found = take(x, at)
    assert torch.equal(found, x[at])
    if layout != "cut out":
        assert found.is_contiguous() == x.is_contiguous()
    if layout == "channels last" and len(shape) == 4:
        assert found.is_contiguous(memory_format=torch.channels_last)
