"""The contract of a quantizer: a tensor in, the same tensor on the grid out."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from qlib.core.functional import dequantize, mixed, qparams, quantize, take
from qlib.core.scheme import Scheme
from qlib.observers.base import Observer


class Learner(nn.Module):
    """Something that the reconstruction loop can learn. By default there is nothing to do."""

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        """What an optimiser may move, by role: "act_scale", "weight_scale", "rounding", …"""
        return {}

    def penalty(self, beta: float) -> Tensor | None:
        """A term that pushes soft choices to hard ones; None when there is nothing soft."""
        return None

    def add_penalty_grad(self, beta: float, weight: float) -> None:
        """Add the gradient of ``weight · penalty(beta)`` to what is learned."""

    def harden(self) -> None:
        """Make every soft choice final."""

    def keep_positive(self) -> None:
        """After an optimiser step: bring what left its limits back, such as a scale below 0."""


class Quantizer(Learner, ABC):
    """A grid (scale, zero-point) and a way to round onto it.

    ``scale`` and ``zero_point`` have the shape that broadcasts against the tensor as
    ``scheme.granularity.split`` gives it.
    """

    title: ClassVar[str]
    fits_alone: ClassVar[bool] = True  # can `fit` make one from a tensor and an observer alone?
    up_or_down: ClassVar[bool] = False  # is a hard code always ⌊x/s⌋ or one more (inside the grid)?
    zero_point: Tensor
    mixed: bool = False  # do elements that share a scale have levels of their own all the same?

    def __init__(self, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        self.scale = nn.Parameter(scale.detach().clone(), requires_grad=False)
        self.register_buffer("zero_point", zero_point.detach().clone())
        low, high = scheme.qmin - self.zero_point, scheme.qmax - self.zero_point
        single = low.dim() == 0  # plain numbers spare the device a wait at every use
        self.low: Tensor | float = float(low) if single else low
        self.high: Tensor | float = float(high) if single else high

    @classmethod
    def fit(cls, x: Tensor, scheme: Scheme, observer: Observer) -> "Quantizer":
        """A quantizer for tensors like ``x``, with the range that ``observer`` chooses."""
        lo, hi = observer.find_range(scheme.granularity.rows(x), scheme)
        shape = scheme.granularity.scale_shape(x)
        return cls.of_range(lo.reshape(shape), hi.reshape(shape), scheme)

    @classmethod
    def of_range(cls, lo: Tensor, hi: Tensor, scheme: Scheme) -> "Quantizer":
        """A quantizer with a given clipping range, already in the scale's shape."""
        return cls(*qparams(lo, hi, scheme), scheme)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``x`` on the grid, same shape."""

    def partly(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """``x`` on the grid where ``keep`` is 1, untouched where it is 0; None: everywhere."""
        return mixed(x, type(self).forward(self, x), keep)

    def partly_rows(self, x: Tensor, other: Tensor, at: Tensor, keep: Tensor | None) -> Tensor:
        """Images ``at`` of ``x`` on the grid where ``keep`` is 1, of ``other`` where it is 0."""
        y = self(take(x, at))
        return y if keep is None else mixed(take(other, at), y, keep)

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of ``x``, as whole floats, same shape."""
        return self.nearest(x)

    def nearest(self, x: Tensor) -> Tensor:
        """The codes that plain rounding to this grid gives, whatever was learned; same shape."""
        split = self.scheme.granularity.split(x)
        q = quantize(split, self.scale, self.zero_point, self.scheme.qmin, self.scheme.qmax)
        return q.reshape(x.shape)

    @property
    def grids(self) -> int:
        """How many different sets of levels there are."""
        return self.scale.numel()

    def freeze(self, mask: Tensor, weight: Tensor) -> None:
        """Learn nothing where ``mask`` is True: there ``weight`` stays at its nearest code."""

    def soft_values(self) -> Tensor | None:
        """How far each soft choice is decided, in [0, 1]; None when there is nothing soft."""
        return None

    def values(self, codes: Tensor) -> Tensor:
        """Real values of integer codes, same shape."""
        split = self.scheme.granularity.split(codes)
        return dequantize(split, self.scale, self.zero_point).reshape(codes.shape)

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        return {"act_scale": [self.scale]}

    @torch.no_grad()
    def keep_positive(self) -> None:
        """A scale that is being learned stays positive."""
        if self.scale.requires_grad:
            self.scale.abs_().clamp_(min=1e-8)


Base = Quantizer
