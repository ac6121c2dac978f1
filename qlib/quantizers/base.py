"""The contract of a quantizer: a tensor in, the same tensor rounded to its grid out."""

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qlib.core.functional import dequantize, mixed, qparams, quantize, take
from qlib.core.records import InvalidSpec
from qlib.core.registry import discover
from qlib.core.scheme import Scheme
from qlib.observers.base import Observer


class Learner(nn.Module):
    """A module with parameters that reconstruction can learn; by default it has none."""

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        """Parameters for the optimiser, by role: "act_scale", "weight_scale", "rounding", …"""
        return {}

    def penalty(self, beta: float) -> Tensor | None:
        """The regulariser that drives soft rounding to 0 or 1; None when nothing is soft."""
        return None

    def add_penalty_grad(self, beta: float, weight: float) -> None:
        """Add the gradient of ``weight · penalty(beta)`` to what is learned."""

    def harden(self) -> None:
        """Make every soft choice final."""

    def keep_positive(self) -> None:
        """Bring parameters back into their limits after an optimiser step."""


@dataclass(frozen=True)
class State:
    """The stored form of a quantizer: class key, scheme, tensors and options.

    ``key``: its file in ``qlib/quantizers``; ``options``: plain values (JSON); ``parts``: the
    quantizers that it is built from.
    """

    key: str
    scheme: Scheme
    tensors: dict[str, Tensor] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    parts: "dict[str, State]" = field(default_factory=dict)


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

    @classmethod
    def key(cls) -> str:
        """The registry key of the class: the name of its file."""
        return cls.__module__.rpartition(".")[2]

    def as_grid(self) -> "Quantizer":
        """A quantizer with the same levels, without what was learned for one tensor."""
        return self

    def state(self, weight: Tensor | None = None) -> State:
        """The quantizer's stored form; `from_state` makes an equal quantizer from it.

        By default: what the constructor takes, each found under the attribute of its name, and
        every other registered buffer and parameter. ``scale`` and ``zero_point`` are left out where
        the constructor works them out. ``weight``: the tensor that it was made for, if it is one.
        """
        takes = inspect.signature(type(self)).parameters.keys() - {"scheme"}
        inner = tuple(f"{n}." for n, m in self.named_children() if isinstance(m, Quantizer))
        registered = self.state_dict(keep_vars=True).items()
        made = {"scale", "zero_point"} - takes
        found = {n: t for n, t in registered if n not in made and not n.startswith(inner)}
        found |= {name: getattr(self, name) for name in takes}
        tensors = {n: v.detach() for n, v in found.items() if isinstance(v, Tensor)}
        parts = {n: v.state() for n, v in found.items() if isinstance(v, Quantizer)}
        options = {n: v for n, v in found.items() if n not in tensors and n not in parts}
        return State(self.key(), self.scheme, tensors, options, parts)

    @classmethod
    def from_state(cls, state: State, weight: Tensor | None = None) -> "Quantizer":
        """Rebuild the quantizer that gave this `state`; ``weight`` as there."""
        takes = inspect.signature(cls).parameters
        given: dict[str, Any] = {"scheme": state.scheme, **state.options, **state.tensors}
        given |= {name: restored(part) for name, part in state.parts.items()}
        quantizer = cls(**{name: value for name, value in given.items() if name in takes})
        for name in state.tensors.keys() - takes.keys():
            _put(quantizer, name, state.tensors[name])
        return quantizer


def restored(state: State, weight: Tensor | None = None) -> Quantizer:
    """Rebuild a quantizer of any class from its stored state.

    Raises:
        InvalidSpec: no file of ``qlib/quantizers`` has the key of the state.
    """
    classes = discover("quantizers")
    if state.key not in classes:
        raise InvalidSpec(
            f"There is no quantizer {state.key!r} here, only {', '.join(classes)}; put the file "
            f"{state.key}.py into qlib/quantizers, or quantize the network again."
        )
    return classes[state.key].from_state(state, weight)


def _put(owner: nn.Module, name: str, tensor: Tensor) -> None:
    """Give a module a tensor of its state, also where it holds None or nothing by that name."""
    path, _, name = name.rpartition(".")
    owner = owner.get_submodule(path)
    if name in owner._parameters:
        owner._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    else:
        vars(owner).pop(name, None)
        owner.register_buffer(name, tensor)


Base = Quantizer
