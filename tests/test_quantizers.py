"""Quantizers: soft rounding against its formulas, and what every quantizer must do."""

import math

import pytest
import torch
from torch import Tensor

from qlib.core.registry import discover
from qlib.core.scheme import PER_CHANNEL, PER_TENSOR, Granularity, Scheme
from qlib.observers.minmax import MinMax
from qlib.observers.mse import Mse
from qlib.quantizers.base import Quantizer
from qlib.quantizers.soft_round import SoftRound
from qlib.quantizers.uniform import Uniform

GRIDS = {
    "tensor": Scheme(4, granularity=PER_TENSOR),
    "channel": Scheme(3, granularity=PER_CHANNEL),
    "group": Scheme(2, granularity=Granularity("group", 6)),
    "symmetric": Scheme(4, symmetric=True, granularity=PER_CHANNEL),
}


def weights(seed: int = 0) -> Tensor:
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def soft(weight: Tensor, scheme: Scheme, observer: object = MinMax()) -> SoftRound:
    return SoftRound.from_nearest(Uniform.fit(weight, scheme, observer), weight)


def on_step_one(values: list[float], scheme: Scheme | None = None) -> SoftRound:
    """Soft rounding of single numbers on the grid of whole numbers."""
    scheme = scheme or Scheme(4, symmetric=True)
    made = SoftRound(torch.tensor(1.0), torch.tensor(0.0), scheme)
    made.start(torch.tensor(values))
    return made


def clipped(weight: Tensor, nearest: Quantizer) -> Tensor:
    """The float weight, cut at the ends of the grid."""
    split = nearest.scheme.granularity.split(weight)
    ends = [torch.as_tensor(end) * nearest.scale for end in (nearest.low, nearest.high)]
    return torch.minimum(torch.maximum(split, ends[0]), ends[1]).reshape(weight.shape)


def equal_but_for_ties(one: Tensor, two: Tensor, weight: Tensor, nearest: Quantizer) -> bool:
    """Halves go to even in nearest rounding and up in soft rounding."""
    ratio = nearest.scheme.granularity.split(weight) / nearest.scale
    tie = ((ratio - ratio.floor() - 0.5).abs() < 1e-5).reshape(weight.shape)
    return torch.equal(one[~tie], two[~tie]) and float(tie.double().mean()) < 0.05


# --- soft rounding


def test_start_values_by_hand() -> None:
    made = on_step_one([0.25, 0.5, -0.75, -2.5, 0.0, 1.0 - 1e-7])
    want = [-0.88730, 0.0, -0.88730, 0.0]
    assert made.up[:4].tolist() == pytest.approx(want, abs=1e-5)
    # at the ends the formula gives ±2.39790; a little inside, so that the gradient lives
    assert made.up[4:].tolist() == pytest.approx([-2.39790, 2.39790], abs=2e-3)
    assert (made.up.abs() < 2.39790).all()
    assert made.floor.tolist() == [0, 0, -1, -3, 0, 0]  # true floor, also below zero
    assert made.h()[:4].tolist() == pytest.approx([0.25, 0.5, 0.25, 0.5], abs=1e-6)


def test_steepest_slope_of_h_is_three_tenths() -> None:
    made = on_step_one([0.5])
    up = made.up = torch.nn.Parameter(torch.linspace(-4, 4, 8001, dtype=torch.float64))
    slope = torch.autograd.grad(made.h().sum(), up)[0]
    assert float(slope.max()) == pytest.approx(0.3, abs=1e-6)
    assert float(up.detach()[slope.argmax()]) == pytest.approx(0, abs=1e-3)
    assert made.h().min() == 0
    assert made.h().max() == 1


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("observer", [MinMax(), Mse()], ids=["minmax", "mse"])
def test_soft_weight_starts_as_the_clipped_float_weight(grid: str, observer: object) -> None:
    weight = weights()
    made = soft(weight, GRIDS[grid], observer)
    step = float(made.scale.max())
    # weights on the grid start 1e-4 of a step away from it, so that they can move
    torch.testing.assert_close(made(weight), clipped(weight, made), rtol=0, atol=1.2e-4 * step)
    inner = made(weight) - clipped(weight, made)
    assert float(inner.abs().median()) < 1e-5


@pytest.mark.parametrize("grid", GRIDS)
def test_gradient_is_that_of_finite_differences(grid: str) -> None:
    weight = weights()
    made = soft(weight, GRIDS[grid], Mse()).double()
    made.floor, made.scale.data = made.floor.double(), made.scale.data.double()
    push = torch.randn(weight.shape, dtype=torch.float64,
                       generator=torch.Generator().manual_seed(5))  # fmt: skip
    up = made.up.requires_grad_()
    (made(weight) * push).sum().backward()
    got, eps = up.grad.clone(), 1e-6
    with torch.no_grad():
        start = up.clone()
        up += eps
        above = made(weight) * push
        up.copy_(start - eps)
        below = made(weight) * push
    want = ((above - below) / (2 * eps)).reshape(got.shape)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    assert (got == 0).any()  # clipped weights
    assert (got != 0).float().mean() > 0.5


@pytest.mark.parametrize("beta", [20.0, 7.5, 2.0])
def test_push_is_the_gradient_of_the_penalty(beta: float) -> None:
    made = soft(weights(), GRIDS["channel"])
    made.up.data += torch.randn(made.up.shape, generator=torch.Generator().manual_seed(1)) * 2
    up = made.up.requires_grad_()
    (0.03 * made.penalty(beta)).backward()
    want = up.grad.clone()
    up.grad = torch.full_like(up, 0.25)  # what the reconstruction error left there
    made.add_penalty_grad(beta, 0.03)
    torch.testing.assert_close(up.grad - 0.25, want, rtol=1e-4, atol=1e-6)
    assert want.abs().max() > 0


def test_penalty_is_a_sum_over_weights() -> None:
    made = on_step_one([0.5, 0.5, 0.25])
    for beta in (2.0, 5.0):
        want = 1 + 1 + (1 - 0.5**beta)
        assert float(made.penalty(beta)) == pytest.approx(want, abs=1e-5)
    made.harden()
    assert made.penalty(2.0) is None


def test_hard_rule_is_up_where_v_is_not_negative() -> None:
    made = on_step_one([0.3] * 5)
    made.up.data = torch.tensor([-2.0, -1e-4, 0.0, 1e-4, 2.0])
    made.harden()
    assert made(torch.empty(5)).tolist() == [0, 0, 1, 1, 1]
    assert made.codes(torch.empty(5)).tolist() == [0, 0, 1, 1, 1]
    assert made.learnable() == {}
    made.harden()  # once more changes nothing
    assert made(torch.empty(5)).tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("grid", GRIDS)
def test_hardened_codes_are_floor_or_one_more(grid: str) -> None:
    weight, scheme = weights(), GRIDS[grid]
    made = soft(weight, scheme, Mse())
    made.up.data += torch.randn(made.up.shape, generator=torch.Generator().manual_seed(2))
    made.harden()
    codes = made.codes(weight)
    split = scheme.granularity.split(weight)
    low = ((split / made.scale).floor() + made.zero_point).clamp(scheme.qmin, scheme.qmax)
    gap = codes - low.reshape(weight.shape)
    assert set(gap.unique().tolist()) == {0, 1}
    assert codes.min() >= scheme.qmin
    assert codes.max() <= scheme.qmax
    values = (scheme.granularity.split(codes) - made.zero_point) * made.scale
    torch.testing.assert_close(made(weight), values.reshape(weight.shape))
    # rounding to nearest once more on the same grid changes nothing
    again = Uniform(made.scale, made.zero_point, scheme)
    assert torch.equal(again.codes(made(weight)), codes)


@pytest.mark.parametrize("grid", GRIDS)
def test_hardened_at_once_is_nearest(grid: str) -> None:
    weight = weights()
    nearest = Uniform.fit(weight, GRIDS[grid], MinMax())
    made = SoftRound.from_nearest(nearest, weight)
    made.harden()
    assert equal_but_for_ties(made.codes(weight), nearest.codes(weight), weight, nearest)


def test_gradient_is_zero_where_the_grid_ends() -> None:
    made = on_step_one([7.4, 9.0, -8.3, 3.4])  # codes −8 … 7: 7 + h is clipped, −9 + h too
    up = made.up.requires_grad_()
    made(torch.empty(4)).sum().backward()
    zeta_minus_gamma, sigma = 1.2, float(torch.sigmoid(up.detach()[3]))
    assert up.grad[:3].tolist() == [0, 0, 0]
    assert float(up.grad[3]) == pytest.approx(zeta_minus_gamma * sigma * (1 - sigma), rel=1e-5)


# --- what all have in common


FITTED = [name for name, owner in discover("quantizers").items() if owner.fits_alone]


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_quantizer_keeps_its_promises(name: str, grid: str) -> None:
    cls, weight, scheme = discover("quantizers")[name], weights(), GRIDS[grid]
    assert cls.title
    made = cls.fit(weight, scheme, MinMax())
    assert made.scale.shape == scheme.granularity.scale_shape(weight)
    assert not any(p.requires_grad for p in made.parameters())
    made(weight)
    made.harden()
    y, codes = made(weight), made.codes(weight)
    assert y.shape == codes.shape == weight.shape
    assert torch.equal(codes, codes.round())
    assert scheme.qmin <= float(codes.min())
    assert float(codes.max()) <= scheme.qmax
    nearest = Uniform.fit(weight, scheme, MinMax())
    assert equal_but_for_ties(codes, nearest.codes(weight), weight, nearest)
    split = scheme.granularity.split
    torch.testing.assert_close(split(y), (split(codes) - made.zero_point) * made.scale)
    if scheme.granularity.kind != "group":  # what is partly quantized, activations, has no groups
        keep = (torch.arange(weight.numel()) % 2).float().reshape(weight.shape)
        torch.testing.assert_close(made.partly(weight, keep), torch.where(keep == 1, y, weight))
    assert torch.equal(made.partly(weight, None), y)


def test_scale_that_is_learned_stays_positive() -> None:
    made = Uniform.fit(weights(), GRIDS["channel"], MinMax())
    made.scale.data[0], made.scale.data[1] = -0.5, 0.0
    made.keep_positive()
    assert float(made.scale[0]) == -0.5  # not being learned: left alone
    made.scale.requires_grad_(True)
    made.keep_positive()
    assert float(made.scale.detach()[0]) == 0.5
    assert 0 < float(made.scale.detach()[1]) < 1e-6


def test_state_is_saved_with_scale_zero_point_and_rounding() -> None:
    made = soft(weights(), GRIDS["channel"])
    assert {"scale", "zero_point", "up", "floor"} <= set(made.state_dict())
    assert math.prod(made.scale.shape) == 6


@pytest.mark.parametrize("symmetric", [True, False])
def test_soft_rounding_and_its_gradient_are_those_of_the_formula(symmetric: bool) -> None:
    """Also where weights lie below the grid, above it, or on its last level."""
    weight = torch.tensor([[-9.7, -8.2, -0.4, 0.3, 2.6, 6.9, 7.0, 7.4, 19.1]])
    scheme = Scheme(4, symmetric=symmetric)
    zero = torch.tensor(0.0 if symmetric else 8.0)
    soft = SoftRound.from_nearest(Uniform(torch.tensor(1.0), zero, scheme), weight)
    soft.up.requires_grad_(True)
    up = soft.up.detach().clone().requires_grad_(True)
    h = (torch.sigmoid(up) * 1.2 - 0.1).clamp(0, 1)
    plain = (weight.floor() + h).clamp(scheme.qmin - zero, scheme.qmax - zero)
    pull = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(soft(weight), plain)
    (found,) = torch.autograd.grad(soft(weight), soft.up, pull)
    (want,) = torch.autograd.grad(plain, up, pull)
    torch.testing.assert_close(found, want)
