"""Compiled loops give what plain functions give, and step aside where they cannot run."""

import builtins
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from qlib.core import functional, fused
from qlib.core.functional import KeepMask, fake_quantize, mixed, take
from qlib.core.scheme import PER_CHANNEL, Granularity, Scheme
from qlib.learning import objective
from qlib.methods._gradient.multibit_mixer import Mixing
from qlib.observers.minmax import MinMax
from qlib.quantizers import power, shifted, soft_round
from qlib.quantizers.flex_round import FlexRound
from qlib.quantizers.free_power import FreePower
from qlib.quantizers.uniform import Uniform

pytestmark = pytest.mark.skipif(not fused.compiled(), reason="numba is not there")
GRID = (0.3, -3.0, 4.0)  # scale, low, high


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=rng(seed))


def image(*shape: int) -> Tensor:
    return draw(*shape).contiguous(memory_format=torch.channels_last)


def odd() -> Tensor:
    """Values that are clipped, on ties, zero and tiny, and many that are nothing special."""
    x = draw(5000) * 0.8
    x[:8] = torch.tensor([0.0, 0.15, -0.15, 0.45, 1.35, -1.05, 1e30, 1e-30])
    return x


TENSORS = {
    "values": odd,
    "one value": lambda: draw(1)[0],
    "none": lambda: draw(0, 3),
    "images": lambda: image(4, 3, 5, 6),
    "one channel": lambda: image(4, 1, 5, 6),
    "turned": lambda: draw(6, 4, 5).transpose(1, 2),
    "part of a tensor": lambda: draw(2, 7, 3, 4, 8).permute(2, 0, 3, 1, 4)[1].transpose(-2, -1),
    "one row for all": lambda: draw(1, 50).expand(40, 50),
}


def pulled(call: Callable[..., Tensor], *of: Tensor) -> list[Tensor]:
    """The result of ``call`` and gradients of a weighed sum of it, for fresh copies of ``of``."""
    free = [x.detach().clone(memory_format=torch.preserve_format) for x in of]
    free = [x.requires_grad_(True) for x in free]
    y = call(*free)
    weights = torch.randn(y.shape, generator=rng(9))
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), free)]


def same(ours: list[Tensor], theirs: list[Tensor], *, exact: int = 0) -> None:
    """Equal: the first ``exact`` to the last bit, others as far as sums in another order are."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape
        if i < exact:
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-4)


# --- rounding on one even grid


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", TENSORS)
def test_rounding_is_the_plain_one_to_the_last_bit(kind: str, masked: bool) -> None:
    x, (s, low, high) = TENSORS[kind](), GRID
    keep = KeepMask(0.5, rng(3)).like(x) if masked else None
    results = [
        pulled(lambda x, s, f=f: f.apply(x, s, low, high, keep), x, torch.tensor(s))
        for f in (fused.FakeQuantizeFn, functional._FakeQuantize)
    ]
    same(*results, exact=2)


def test_gradients_of_any_order_in_memory_are_understood() -> None:
    x, (s, low, high) = draw(6, 8), GRID
    grad = draw(8, 6, seed=4).T
    for f in (fused.FakeQuantizeFn, functional._FakeQuantize):
        free = x.clone().requires_grad_(True)
        y = f.apply(free, torch.tensor(s), low, high, None)
        (found,) = torch.autograd.grad(y, free, grad)
        assert torch.equal(found, grad * ((x / s).round().clamp(low, high) == (x / s).round()))


def test_an_input_that_is_given_gets_no_gradient_and_the_scale_gets_the_same() -> None:
    x, found = odd(), []
    for needed in (True, False):
        s = torch.tensor(0.3, requires_grad=True)
        y = fused.FakeQuantizeFn.apply(x.clone().requires_grad_(needed), s, -3.0, 4.0, None)
        found += torch.autograd.grad((y * draw(5000)).sum(), s)
    torch.testing.assert_close(*found)


def test_what_is_not_a_number_stays_so() -> None:
    x = torch.tensor([float("nan"), 0.4])
    keep = torch.tensor([1, 1], dtype=torch.uint8)
    for mask in (None, keep):
        y = fused.FakeQuantizeFn.apply(x, torch.tensor(0.3), -3.0, 4.0, mask)
        assert y.isnan().tolist() == [True, False]


def test_sums_over_many_values_are_as_exact_as_in_double() -> None:
    x, s = draw(3_000_000), torch.tensor(0.03, requires_grad=True)
    y = fused.FakeQuantizeFn.apply(x, s, -8.0, 7.0, None)
    (found,) = torch.autograd.grad(y.sum(), s)
    ratio = x.double() / s.detach().double()
    steps = (x / s.detach()).round().clamp(-8, 7).double()
    inside = (x / s.detach()).round() == steps
    torch.testing.assert_close(found.double(), (steps - ratio * inside).sum(), rtol=1e-5, atol=0.05)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rows_are_mixed_as_by_the_plain_way(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, other = (draw(9, 3, 4, 5, seed=i).contiguous(memory_format=layout) for i in (1, 2))
    at, results, used = torch.tensor([8, 0, 3, 3, 1, 2, 8, 5, 4, 4, 7]), [], []
    keep = KeepMask(0.5, rng(3)).rows(x, len(at))
    assert keep.stride() == take(x, at).stride()
    apply = fused.MixedFakeQuantizeFn.apply
    monkeypatch.setattr(
        fused.MixedFakeQuantizeFn, "apply", lambda *a: (used.append(1), apply(*a))[1]
    )
    for threads in (fused.THREADS, 0):
        monkeypatch.setattr(fused, "THREADS", threads)
        grid = Uniform(torch.tensor(0.3), torch.tensor(3.0), Scheme(3))
        grid.scale.requires_grad_(True)
        y = grid.partly_rows(x, other, at, keep)
        weights = draw(*y.shape, seed=5)
        results.append([y.detach(), *torch.autograd.grad((y * weights).sum(), grid.scale)])
    same(*results, exact=1)
    assert used == [1]
    kept = torch.where(keep.bool(), results[0][0], take(other, at))
    assert torch.equal(kept, results[0][0])


@pytest.mark.parametrize("kind", TENSORS)
def test_a_learned_zero_point_gets_the_plain_gradient(kind: str) -> None:
    x, low, high = TENSORS[kind](), torch.tensor(-3.0), torch.tensor(4.0)
    none = torch.zeros(())
    ours = pulled(
        lambda x, s, z: fused.FakeQuantizeFn.apply(x, s, low, high, None, z),
        x, torch.tensor(0.3), none,
    )  # fmt: skip
    theirs = pulled(
        lambda x, s, z: shifted._Rounded.apply(x, none, s, z, low, high)[0],
        x, torch.tensor(0.3), none,
    )  # fmt: skip
    same(ours, theirs, exact=2)


# --- rounding on a power grid


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("kind", TENSORS)
def test_power_grids_are_the_plain_ones(
    kind: str, exponent: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, results = TENSORS[kind]().clamp(-100, 100), []
    for threads in (fused.THREADS, 0):
        monkeypatch.setattr(fused, "THREADS", threads)
        grid = power.Power(torch.tensor(0.2), torch.tensor(3.0), Scheme(3), exponent)
        grid.hold_reach()
        call = lambda x, t, a, grid=grid: bent(grid, x, t, a)  # noqa: E731
        results.append(pulled(call, x, torch.tensor(1.1), grid.exponent))
    same(*results)


def bent(grid: power.Power, x: Tensor, stretch: Tensor, exponent: Tensor) -> Tensor:
    """The grid's own forward with its learned numbers replaced."""
    given = {"stretch": stretch, "exponent": exponent}
    return torch.func.functional_call(grid, given, (x,))


@pytest.mark.parametrize("spoilt", ["value", "reach", "exponent"])
def test_what_is_not_a_number_stays_so_on_a_power_grid(spoilt: str) -> None:
    grid = power.Power(torch.tensor(0.2), torch.tensor(0.0), Scheme(3), 0.5)
    grid.hold_reach()
    grid.exponent.requires_grad_(True)
    x = torch.tensor([0.0, 1e9, float("inf"), 2.0])
    target = {"value": x, "reach": grid.reach, "exponent": grid.exponent.data}[spoilt]
    target.fill_(float("nan"))
    assert grid(x).isnan().all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "granularity", [Granularity(), PER_CHANNEL, Granularity("group", size=6)], ids=lambda g: g.kind
)
def test_free_codes_on_power_grids_are_the_plain_ones(
    granularity: Granularity, symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, results = draw(4, 6, 2, 1), []
    scheme = Scheme(3, symmetric, granularity=granularity)
    for threads in (fused.THREADS, 0):
        monkeypatch.setattr(fused, "THREADS", threads)
        exponent = torch.nn.Parameter(torch.tensor(0.6))
        fitted = power.Power.fit(weight, scheme, MinMax(), 0.6)
        free = FreePower.from_nearest(fitted, weight, exponent)
        learned = [free.latent.requires_grad_(True), exponent]
        free.latent.data += draw(*free.latent.shape, seed=3)
        free.keep_positive()
        exponent.data.fill_(0.7)  # the ends stay, so the scale follows
        y = free(weight)
        results.append([y.detach(), *torch.autograd.grad((y * draw(4, 6, 2, 1)).sum(), learned)])
    same(*results)


def test_logarithms_and_powers_are_as_close_as_float32_tells() -> None:
    from qlib.core import _powers

    x = np.exp2(np.linspace(-70, 60, fused.kernels().BLOCK)).astype(np.float32)
    logs, bits = np.empty_like(x), np.empty(len(x), np.int32)
    _powers._logarithms(-x, np.float32(1e-22).view(np.int32), logs, bits)
    np.testing.assert_allclose(logs, np.log2(x.astype(np.float64)), rtol=2e-7, atol=2e-7)
    back = np.empty_like(x)
    _powers._ratios(-x, logs, np.float32(0.5), np.float32(1.5), back, bits)
    np.testing.assert_allclose(back, -np.sqrt(x.astype(np.float64)) / 2**1.5, rtol=3e-6)


# --- divided weights


@pytest.mark.parametrize(
    "granularity", [Granularity(), PER_CHANNEL, Granularity("group", size=6)], ids=lambda g: g.kind
)
@pytest.mark.parametrize("shape", [(4, 12), (4, 6, 2, 1)])
def test_divided_weights_are_the_plain_ones(
    shape: tuple[int, ...], granularity: Granularity, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, scheme, results = draw(*shape), Scheme(3, granularity=granularity), []
    held = draw(*shape, seed=6) > 1
    for threads in (fused.THREADS, 0):
        monkeypatch.setattr(fused, "THREADS", threads)
        flex = FlexRound.from_nearest(Uniform.fit(weight, scheme, MinMax()), weight)
        flex.freeze(held, weight)
        learned = [*flex.factors, flex.scale]
        for i, p in enumerate(learned):
            p.data *= 1 + 0.2 * torch.rand(p.shape, generator=rng(i))
            p.requires_grad_(True)
        y = flex(weight)
        assert ("DivideFn" in str(y.grad_fn.next_functions) + str(y.grad_fn)) == bool(threads)
        results.append(
            [y.detach(), *torch.autograd.grad((y * draw(*shape, seed=7)).sum(), learned)]
        )
    same(*results, exact=1)
    assert not results[0][1][held].any()


# --- soft rounding, and the error of a unit


@pytest.mark.parametrize("turned", [False, True])
def test_soft_rounding_and_its_penalty_are_the_plain_ones(
    turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = draw(6, 5) * 3
    results = []
    for threads in (fused.THREADS, 0):
        monkeypatch.setattr(fused, "THREADS", threads)
        soft = soft_round.SoftRound(
            torch.full((6, 1), 0.3), torch.zeros(6, 1), Scheme(4, granularity=PER_CHANNEL)
        )
        soft.start(weight)
        soft.up.data += draw(6, 5, seed=8) * 2  # some beyond the clamp
        soft.up.requires_grad_(True)
        y = soft(weight)
        (grad,) = torch.autograd.grad(y, soft.up, draw(5, 6, seed=2).T if turned else draw(6, 5))
        kept = grad.clone(memory_format=torch.contiguous_format)
        soft.up.grad = (
            kept.T.clone(memory_format=torch.contiguous_format).T if turned else kept.clone()
        )
        soft.add_penalty_grad(3.7, 0.2)
        results.append([y.detach(), grad, soft.up.grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    expected = pulled(lambda v: 0.2 * penalty(v, 3.7), soft.up)[1]
    pushed = results[0][2] - results[0][1]
    weigh = torch.randn((), generator=rng(9))
    torch.testing.assert_close(pushed * weigh, expected, rtol=1e-4, atol=1e-5)


def penalty(v: Tensor, beta: float) -> Tensor:
    h = (torch.sigmoid(v) * 1.2 - 0.1).clamp(0, 1)
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


@pytest.mark.parametrize("turned", [False, True])
def test_error_of_rows_is_the_plain_one(turned: bool) -> None:
    targets, at = image(9, 3, 4, 5), torch.tensor([8, 0, 3, 3])
    y = draw(4, 3, 4, 5, seed=3)  # in another order than the targets
    y = y if turned else y.contiguous(memory_format=torch.channels_last)
    ours = pulled(lambda y: fused.SquaredErrorFn.apply(y, targets, at, 0.2), y)
    theirs = pulled(lambda y: objective.squared_error(y, take(targets, at), 0.2), y)
    same(ours, theirs)


@pytest.mark.parametrize("detach", [False, True])
def test_distilled_outputs_are_compared_as_by_the_plain_way(
    detach: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = SimpleNamespace(channels=3, targets=image(9, 3, 4, 5))
    mixed = Mixing(
        unit, ((3,), (5,), (8,)), (0.5, 0.3, 0.2), "three", 0.5, 0.7, 0.4, detach, 4, rng()
    )
    target, results = image(4, 3, 4, 5), []
    outputs = [draw(4, 3, 4, 5, seed=1), image(4, 3, 4, 5) * 2, draw(4, 3, 4, 5, seed=3)]
    for threads in (fused.THREADS, 0):
        monkeypatch.setattr(fused, "THREADS", threads)
        call = lambda *of: mixed._distilled([3, 5, 8], dict(zip((3, 5, 8), of)), target)  # noqa: B905, E731
        results.append(pulled(call, *outputs))
    same(*results)


# --- where the loops step aside


def test_loops_are_for_one_grid_in_float32_and_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    x, s = draw(7), torch.tensor(0.3)
    assert fused.fits(x, s)
    assert not fused.fits(x.double(), s)
    assert not fused.fits(x.to("meta"), s)
    assert not fused.fits(x, torch.ones(7))
    images = image(4, 3, 5, 6)
    assert fused.rows_fit(images, images.clone())
    assert not fused.rows_fit(images, images.contiguous())
    assert not fused.rows_fit(images.transpose(0, 1), images.transpose(0, 1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: fused.THREADS + 1)
    assert not fused.fits(x, s)


@pytest.mark.parametrize("error", [ImportError, RuntimeError])
def test_without_a_compiler_all_is_computed_the_plain_way(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = torch.tensor([1, 0, 1], dtype=torch.uint8)
    call = lambda x, s: fake_quantize(x, s, -3.0, 4.0, keep=keep)  # noqa: E731
    with_loops = pulled(call, draw(3), torch.tensor(0.3))
    load = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("numba"):
            raise error("not here")
        return load(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "qlib.core._kernels")
    monkeypatch.delattr("qlib.core._kernels", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    fused.kernels.cache_clear()
    fused.compiled.cache_clear()
    try:
        assert not fused.compiled()
        same(pulled(call, draw(3), torch.tensor(0.3)), with_loops, exact=2)
    finally:
        monkeypatch.undo()
        fused.kernels.cache_clear()
        fused.compiled.cache_clear()
    assert fused.compiled()


@pytest.mark.parametrize("kind", TENSORS)
def test_masks_choose_between_two_tensors(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    y, results = TENSORS[kind](), []
    x, keep = torch.randn(y.shape, generator=rng(1)), KeepMask(0.5, rng()).like(y)
    for threads in (fused.THREADS, 0):
        monkeypatch.setattr(fused, "THREADS", threads)
        results.append(pulled(lambda y: mixed(x, y, keep), y))
        assert torch.equal(mixed(x, y, keep), torch.where(keep.bool(), y, x))
    same(*results, exact=2)
    assert mixed(x, y, None) is y
