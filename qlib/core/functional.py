"""The arithmetic of a uniform grid: pure functions of tensors, and their gradients.

q = clamp(⌊x/s⌉ + z, qmin, qmax) and x̂ = (q − z)·s, rounding half to even.
"""

import torch
from torch import Tensor

from qlib.core import fused
from qlib.core.scheme import Scheme

EPS = torch.finfo(torch.float32).eps


def qparams(lo: Tensor, hi: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Scale and zero-point of a clipping range.

    Args:
        lo, hi: ends of the range, any shape; widened to contain zero, so that 0.0 is exact.

    Returns:
        scale (positive; 1 where the range is empty) and zero_point (whole numbers as floats,
        within the integer range), of the same shape.
    """
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    width = 2 * torch.maximum(-lo, hi) if scheme.symmetric else hi - lo
    scale = torch.where(width > 0, width / scheme.steps, torch.ones_like(width))
    scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
    if scheme.symmetric:
        return scale, torch.zeros_like(scale)
    return scale, (-lo / scale).round().clamp(scheme.qmin, scheme.qmax)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Integer codes (as floats) of ``x``; ``scale`` and ``zero_point`` broadcast."""
    return ((x / scale).round() + zero_point).clamp(qmin, qmax)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Real values of integer codes."""
    return (q - zero_point) * scale


def round_ste(x: Tensor) -> Tensor:
    """Round forward, identity backward (straight-through estimator)."""
    return x + (x.round() - x).detach()


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    low: Tensor | float,
    high: Tensor | float,
    *,
    keep: Tensor | None = None,
) -> Tensor:
    """Quantize and dequantize, with gradients for ``x`` and ``scale``.

    Gradients: the straight-through estimator for ``x`` (1 inside the range, 0 where clipped) and
    the learned-step-size rule for ``scale`` (⌊x/s⌉ − x/s inside, the clip end in steps outside;
    Esser et al., ICLR 2020), inside being judged on the rounded value.

    Args:
        low, high: ends of the range in steps from 0.0, that is qmin − z and qmax − z.
        keep: optional mask shaped like ``x`` (see `KeepMask`): where 0, ``x`` passes untouched.
    """
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        given = (x, scale, low, high, keep)
        return fused.run(fused.FakeQuantizeFn, *given, plain=lambda: _FakeQuantize.apply(*given))
    y = clip_((x / scale).round_(), low, high).mul_(scale)
    return mixed(x, y, keep)


def clip_(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Bring ``x``, in place, between two ends that are both tensors or both numbers."""
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        return x.clamp_(low, high)
    return x.clamp_(float(low), float(high))


def mixed(x: Tensor, y: Tensor, keep: Tensor | None) -> Tensor:
    """``y`` where the mask ``keep`` is 1, ``x`` where it is 0; None: ``y`` everywhere."""
    if keep is None:
        return y
    return fused.run(fused.SelectFn, x, y, keep, plain=lambda: torch.lerp(x, y, keep.to(y.dtype)))


class _FakeQuantize(fused.Function):
    """Keeps only x and y, which live anyway: |y − x| ≤ s/2 tells inside from clipped.

    Where an element is not kept y = x, which gives it the identity's gradients.
    """

    @staticmethod
    def forward(ctx, x, scale, low, high, keep):
        y = clip_((x / scale).round_(), low, high).mul_(scale)
        if keep is not None:
            torch.lerp(x, y, keep.to(y.dtype), out=y)
        ctx.save_for_backward(x, y, scale)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y, scale = ctx.saved_tensors
        half = 0.5 * (1 + 1e-5) * scale  # ties are inside, whatever the last bit says
        inside = (y - x).abs_().le_(half)
        grad_scale = None
        if ctx.needs_input_grad[1]:
            # slope of y in s, times s: s·q − x inside, s·q where clipped
            grad_scale = _dot(grad, torch.addcmul(y, inside, x, value=-1), scale) / scale
        for_x = inside.mul_(grad) if ctx.needs_input_grad[0] else None
        return for_x, grad_scale, None, None, None


def _dot(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Σ a·b over everything that shares an element of ``scale``."""
    if scale.numel() == 1 and a.stride() == b.stride():
        order = sorted(range(a.dim()), key=lambda i: -a.stride(i))
        flat = a.permute(order)
        if flat.is_contiguous():  # one pass, nothing written
            return torch.dot(flat.flatten(), b.permute(order).flatten()).reshape(scale.shape)
    return (a * b).sum_to_size(scale.shape)


def take(x: Tensor, at: Tensor) -> Tensor:
    """The images at indices ``at`` (batch,), ``x[at]``, in the same memory format.

    Images are copied as whole rows; indexing a channels-last tensor copies them number by number,
    which takes three times as long.
    """
    if x.is_contiguous():
        return x.flatten(1).index_select(0, at).view(len(at), *x.shape[1:])
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return take(x.permute(0, 2, 3, 1), at).permute(0, 3, 1, 2)
    return x[at]


def mixed_rows(x: Tensor, other: Tensor, at: Tensor, keep: Tensor | None) -> Tensor:
    """Images ``at`` of ``x`` where ``keep`` is 1, of ``other`` where it is 0."""
    y = take(x, at)
    return y if keep is None else mixed(take(other, at), y, keep)


class KeepMask:
    """Random zeros and ones as bytes, one with probability ``keep``, for tensors of any shape.

    A mask is a window at a random place of a pool of draws that is renewed after `USES` windows:
    within a mask all elements are independent, at a small share of the cost of fresh draws.
    """

    USES = 64

    def __init__(self, quant_prob: float, generator: torch.Generator) -> None:
        self.quant_prob, self.generator = quant_prob, generator
        self._pool = torch.empty(0, dtype=torch.uint8)
        self._places: list[float] = []

    def like(self, x: Tensor) -> Tensor | None:
        """A mask with the shape of ``x`` and its order in memory; None means all ones."""
        if self.quant_prob >= 1:
            return None
        n = x.numel()
        if not self._places or 2 * n > len(self._pool):
            self._renew(max(2 * n, len(self._pool), 2**20))
        start = int(self._places.pop() * (len(self._pool) - n))
        stride = torch.empty_like(x, device="meta").stride()  # dense, where x is cut out of another
        return self._pool.as_strided(x.shape, stride, start)

    def rows(self, x: Tensor, n: int) -> Tensor | None:
        """A mask for ``n`` of the images of ``x``, as `take` lays them out."""
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if last else torch.contiguous_format
        return self.like(torch.empty((n, *x.shape[1:]), device="meta", memory_format=order))

    def _renew(self, n: int) -> None:
        device = self.generator.device
        draws = torch.rand(n, generator=self.generator, device=device)
        self._pool = (draws < self.quant_prob).to(torch.uint8)
        places = torch.rand(self.USES, generator=self.generator, device=device)
        self._places = places.tolist()
