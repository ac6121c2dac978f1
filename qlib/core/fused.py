"""Compiled loops for what learning does to every element, in one pass over memory, on a CPU.

PyTorch takes a pass for each operation, and passes over tensors that no cache holds are what
learning costs beside the network's own products. The loops are in `qlib.core._kernels`. Wherever
one is used there is a plain way beside it, which says what is computed and is taken if it does not
fit.
"""

import math
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

THREADS = 4  # a loop runs on one thread; faster where one or two were measured, more share passes
LEVELS = 256  # that codes of one byte can tell apart


@cache
def kernels() -> ModuleType:
    """The module of compiled loops, loaded when first asked for.

    Raises:
        ImportError, RuntimeError: they cannot be compiled, or what was compiled cannot be kept.
    """
    from qlib.core import _kernels

    return _kernels


@cache
def compiled() -> bool:
    """Whether the compiled loops (`kernels`) can be used on this machine."""
    try:
        kernels()
    except (ImportError, RuntimeError):
        return False
    return True


def runs(*tensors: Tensor) -> bool:
    """Whether the loops take these tensors: float32 on the CPU, and few threads."""
    return (
        all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)
        and torch.get_num_threads() <= THREADS
        and compiled()
    )


def fits(x: Tensor, scale: Tensor) -> bool:
    """Whether the loops can round ``x``: as `runs`, and one grid for the whole tensor."""
    return scale.numel() == 1 and runs(x, scale)


def whole_rows(x: Tensor, scale: Tensor) -> bool:
    """The same where ``scale`` has an element for all that follows in some first dimensions."""
    first = 0
    while first < scale.dim() and scale.shape[first] == x.shape[first]:
        first += 1
    rows = scale.numel() == x.shape[:first].numel() or scale.numel() == 1
    return rows and x.is_contiguous() and runs(x, scale)


def rows_fit(x: Tensor, *others: Tensor) -> bool:
    """The same for tensors of images; they must be whole rows in the same order in all."""
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return dense and all(x.stride() == y.stride() for y in others) and runs(x, *others)


class Function(torch.autograd.Function):
    """One tensor out, whose gradient `backward` turns into one for each argument of `forward`."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] -- torch's stub takes any number of outputs
        raise NotImplementedError


class Loop(Function):
    """A compiled loop with its gradient; `fits` says whether it can take the place of formulas."""

    @staticmethod
    def fits(*args: Any, **more: Any) -> bool:
        """Can the loop run on these arguments, and is a gradient asked for that it has?"""
        raise NotImplementedError


def run(loop: type[Loop], *args: Any, plain: Callable[[], Tensor]) -> Tensor:
    """``plain()``, the formula that says what is computed, or the loop's result where it fits.

    The one place where a choice between the two is made. (Operators of `torch.library` would
    choose by themselves, but each call costs about 0.1 ms more, a third of a small unit's step.)
    """
    return loop.apply(*args) if torch.is_grad_enabled() and loop.fits(*args) else plain()


class FakeQuantizeFn(Loop):
    """What `qlib.core.functional.fake_quantize` computes.

    ``zero``: a zero-point that the ends follow. Only what is clipped depends on it.
    """

    @staticmethod
    def fits(x, scale, low, high, keep, zero=None):
        return fits(x, scale)

    @staticmethod
    def forward(ctx, x, scale, low, high, keep, zero=None):
        y, ctx.grid = torch.empty_like(x), _numbers(scale, low, high)
        x, keep = _like(x, y), None if keep is None else _like(keep, y)
        kernels().round_to(_flat(x), _flat(keep), _flat(y), *ctx.grid)
        ctx.save_for_backward(x, scale, keep, zero)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, scale, keep, zero = ctx.saved_tensors
        for_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad = _flat(_like(grad, x))
        slope, clipped = kernels().round_back(grad, _flat(x), _flat(keep), _flat(for_x), *ctx.grid)
        for_zero = None if zero is None else zero.new_full(zero.shape, -clipped * float(scale))
        return for_x, scale.new_full(scale.shape, slope), None, None, None, for_zero


class SelectFn(Loop):
    """``y`` where ``keep`` is 1, else ``x``, which gets no gradient."""

    @staticmethod
    def fits(x, y, keep):
        return y.requires_grad and not x.requires_grad and runs(x, y)

    @staticmethod
    def forward(ctx, x, y, keep):
        chosen = torch.empty_like(y)
        keep = _like(keep, chosen)
        given = (_like(y, chosen), _like(x, chosen), keep, chosen)
        kernels().choose(*map(_flat, given))
        ctx.save_for_backward(keep)
        return chosen

    @staticmethod
    def backward(ctx, grad):
        (keep,) = ctx.saved_tensors
        for_y = torch.empty_like(keep, dtype=grad.dtype)
        kernels().choose_back(_flat(_like(grad, for_y)), _flat(keep), _flat(for_y))
        return None, for_y, None


class MixedFakeQuantizeFn(Loop):
    """`FakeQuantizeFn` of rows ``at`` of ``x``, with rows of ``other`` where ``keep`` is 0."""

    @staticmethod
    def fits(x, other, at, scale, low, high, keep):
        learned = scale.requires_grad and keep is not None
        return learned and fits(x, scale) and rows_fit(x, other)

    @staticmethod
    def forward(ctx, x, other, at, scale, low, high, keep):
        y = x.new_empty_strided((len(at), *x.shape[1:]), x.stride())
        ctx.grid, ctx.stride = _numbers(scale, low, high), y.stride()
        rows, at, kept = _rows(x), at.numpy(), _flat(_like(keep, y))
        kernels().mix_rows(rows, _rows(other), at, kept, _flat(y), *ctx.grid)
        ctx.drawn = rows, at, kept
        ctx.save_for_backward(scale)
        return y

    @staticmethod
    def backward(ctx, grad):
        (scale,) = ctx.saved_tensors
        if grad.stride() != ctx.stride:
            grad = grad.new_empty_strided(grad.shape, ctx.stride).copy_(grad)
        slope = kernels().mix_back(_flat(grad), *ctx.drawn, *ctx.grid)
        return None, None, None, scale.new_full(scale.shape, slope), None, None, None


class DivideFn(Loop):
    """`FakeQuantizeFn` of x / by with a grid for each row, see `whole_rows`; x gets no gradient."""

    @staticmethod
    def fits(x, by, scale, low, high):
        learned = by.requires_grad and not x.requires_grad
        return learned and whole_rows(x, scale) and by.is_contiguous()

    @staticmethod
    def forward(ctx, x, by, scale, low, high):
        y, ends = torch.empty_like(x), (torch.as_tensor(e).expand_as(scale) for e in (low, high))
        ctx.grid = tuple(_column(t) for t in (scale, *ends))
        kernels().divide_to(*(_table(t, scale) for t in (x, by, y)), *ctx.grid)
        ctx.save_for_backward(x, by, scale)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, by, scale = ctx.saved_tensors
        for_by, for_scale = torch.empty_like(by), torch.empty_like(scale)
        tables = (_table(t, scale) for t in (grad.contiguous(), x, by, for_by))
        kernels().divide_back(*tables, _column(for_scale), *ctx.grid)
        return None, for_by, for_scale, None, None


class SquaredErrorFn(Loop):
    """share · Σ (x − rows ``at`` of ``target``)²."""

    @staticmethod
    def fits(x, target, at, share):
        return rows_fit(target) and runs(x)

    @staticmethod
    def forward(ctx, x, target, at, share):
        gap = x.new_empty_strided(x.shape, target.stride())
        given = _flat(_like(x, gap)), _rows(target), at.numpy(), _flat(gap)
        ctx.gap, ctx.share = gap, share
        return x.new_full((), kernels().gaps(*given) * share)

    @staticmethod
    def backward(ctx, grad):
        return ctx.gap.mul_(2 * ctx.share * grad), None, None, None


class DistillFn(Loop):
    """share · of what PTMQ compares: three outputs, their mixture, a target."""

    @staticmethod
    def fits(low, middle, high, target, *_):
        return rows_fit(target) and runs(low, middle, high)

    @staticmethod
    def forward(ctx, low, middle, high, target, parts, weights, whole, share):
        slopes = [torch.empty_like(target) for _ in range(3)]
        given = [_flat(_like(x, target)) for x in (low, middle, high, target)]
        numbers = _numbers(*parts), _numbers(*weights), *_numbers(whole)
        total = kernels().distil(*given, *numbers, *map(_flat, slopes))
        ctx.slopes, ctx.share = slopes, share
        return target.new_full((), total * share)

    @staticmethod
    def backward(ctx, grad):
        return *(s.mul_(2 * ctx.share * grad) for s in ctx.slopes), *(None,) * 5


class SoftRoundFn(Loop):
    """base + h(V)·step, see `qlib.quantizers.soft_round`. ``stretch``: ζ and γ."""

    @staticmethod
    def fits(v, base, step, stretch):
        return runs(v, base, step) and v.stride() == base.stride() == step.stride()

    @staticmethod
    def forward(ctx, v, base, step, stretch):
        sigma, ctx.ends = torch.sigmoid(v), _numbers(*stretch)
        y = torch.empty_like(sigma)
        kernels().soften(*map(_flat, (sigma, base, step, y)), *ctx.ends)
        ctx.save_for_backward(sigma, step)
        return y

    @staticmethod
    def backward(ctx, grad):
        sigma, step = ctx.saved_tensors
        for_v = torch.empty_like(sigma)
        kernels().soften_back(*map(_flat, (_like(grad, sigma), sigma, step, for_v)), *ctx.ends)
        return for_v, None, None, None


def add_penalty_grad(v: Tensor, beta: float, weight: float, stretch: tuple) -> bool:
    """Add the gradient of weight · Σ 1 − |2h(V) − 1|^β to V's; False where no loop fits."""
    grad = v.grad
    if grad is None or not runs(v, grad):
        return False
    sigma, ends = torch.sigmoid(v), _numbers(*stretch)
    slope, into = torch.empty_like(sigma), _like(grad, sigma)
    kernels().undecided(_flat(sigma), _flat(slope), *ends)
    slope.pow_(beta - 1)
    kernels().push_back(*map(_flat, (sigma, slope, into)), *ends, *_numbers(2 * beta * weight))
    if into is not grad:
        grad.copy_(into)
    return True


class PowerFn(Loop):
    """Rounding on one power grid whose scale is (reach·stretch)^a/far.

    ``least``, ``tiny``: what stands for 0, see `qlib.quantizers.power`.
    """

    @staticmethod
    def fits(x, reach, stretch, exponent, far, low, high, least, tiny):
        held = reach is not None and fits(x, reach)
        return held and float(high) - float(low) < LEVELS

    @staticmethod
    def forward(ctx, x, reach, stretch, exponent, far, low, high, least, tiny):
        from qlib.core import _powers

        y, a, m = torch.empty_like(x), float(exponent), float(reach) * float(stretch)
        x, bits = _like(x, y), np.float32(least).view(np.int32)
        log_scale = a * math.log2(m) - math.log2(far)
        ctx.grid = *_numbers(a, log_scale), bits, tiny, *_numbers(low, high)
        _powers.bend_to(_flat(x), _flat(y), *ctx.grid)
        ctx.end = m
        ctx.save_for_backward(x, stretch, exponent)
        return y

    @staticmethod
    def backward(ctx, grad):
        from qlib.core import _powers

        x, stretch, exponent = ctx.saved_tensors
        for_x, a, t = torch.empty_like(x), float(exponent), float(stretch)
        arrays = (_flat(_like(grad, x)), _flat(x), _flat(for_x))
        by_log, for_exponent = _powers.bend_back(*arrays, *ctx.grid)
        for_stretch = stretch.new_full(stretch.shape, by_log * a / t)
        for_exponent = exponent.new_full((), for_exponent + by_log * math.log(ctx.end))
        return for_x, None, for_stretch, for_exponent, *(None,) * 5


class RoundFn(Loop):
    """Rounding of free codes on power grids, one row a scale; see `qlib.quantizers.free_power`."""

    @staticmethod
    def fits(latent, reach, exponent, far, low, high):
        if reach is None or not latent.requires_grad:
            return False
        return high - low < LEVELS and whole_rows(latent, reach)

    @staticmethod
    def forward(ctx, latent, reach, exponent, far, low, high):
        from qlib.core import _powers

        y = torch.empty_like(latent)
        ends = _column(reach), _column(far)
        ctx.grid = *ends, float(exponent), *_numbers(low, high)
        _powers.place(_table(latent, reach), _table(y, reach), *ctx.grid)
        ctx.save_for_backward(latent, reach, exponent)
        return y

    @staticmethod
    def backward(ctx, grad):
        from qlib.core import _powers

        latent, reach, exponent = ctx.saved_tensors
        for_latent = torch.empty_like(latent)
        tables = (_table(t, reach) for t in (grad.contiguous(), latent, for_latent))
        for_exponent = _powers.place_back(*tables, *ctx.grid)
        return for_latent, None, exponent.new_full((), for_exponent), None, None, None


def _numbers(*of: Tensor | float) -> tuple[np.float32, ...]:
    return tuple(np.float32(float(x)) for x in of)


def _like(x: Tensor, y: Tensor) -> Tensor:
    """``x`` in the order that the dense tensor ``y`` has in memory."""
    return x if x.stride() == y.stride() else torch.empty_like(y, dtype=x.dtype).copy_(x)


@overload
def _flat(x: Tensor) -> np.ndarray: ...
@overload
def _flat(x: None) -> None: ...
def _flat(x: Tensor | None) -> np.ndarray | None:
    """A dense tensor's numbers in the order of memory, not copied."""
    return None if x is None else x.detach().as_strided((x.numel(),), (1,)).numpy()


def _table(x: Tensor, scale: Tensor) -> np.ndarray:
    """A row for each scale."""
    return x.detach().view(scale.numel(), -1).numpy()


def _column(x: Tensor) -> np.ndarray:
    return x.detach().reshape(-1).numpy()


def _rows(x: Tensor) -> np.ndarray:
    """The same with a row for each image, which lie one after the other."""
    return x.detach().as_strided((len(x), x[0].numel()), (x[0].numel(), 1)).numpy()
