"""What an integer grid looks like: bits, symmetry, range, and who shares one scale. No tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Granularity:
    """Which elements of a tensor share one scale: all, a channel, or a group.

    | kind    | weight (out, in, kh, kw)    | scale                 |
    |---------|-----------------------------|-----------------------|
    | tensor  | everybody                   | ()                    |
    | channel | one output channel (axis 0) | (out, 1, 1, 1)        |
    | group   | up to ``size`` neighbours   | (out, groups, 1)      |

    Groups divide a channel evenly: the largest divisor of its length up to ``size`` is taken.
    """

    kind: str = "tensor"
    size: int = 0

    def split(self, x: "Tensor") -> "Tensor":
        """``x`` in the shape that its scale broadcasts against; a view where possible."""
        if self.kind != "group":
            return x
        length = x[0].numel()
        size = next(n for n in range(min(self.size, length), 0, -1) if length % n == 0)
        return x.reshape(x.shape[0], -1, size)

    def rows(self, x: "Tensor") -> "Tensor":
        """``x`` as (scales, values that share one)."""
        if self.kind == "tensor":
            return x.reshape(1, -1)
        return x.flatten(1) if self.kind == "channel" else self.split(x).flatten(0, 1)

    def scale_shape(self, x: "Tensor") -> tuple[int, ...]:
        """The shape of the scale of a tensor like ``x``."""
        if self.kind == "tensor":
            return ()
        if self.kind == "channel":
            return (x.shape[0],) + (1,) * (x.dim() - 1)
        return (*self.split(x).shape[:2], 1)


PER_TENSOR = Granularity("tensor")
PER_CHANNEL = Granularity("channel")


@dataclass(frozen=True)
class Scheme:
    """The format of an integer grid: bits, symmetry, range, granularity.

    Asymmetric: codes 0 … 2^b − 1 with a zero-point. Symmetric: zero-point 0 and codes
    −2^(b−1) … 2^(b−1) − 1, or without the lowest one when ``restricted``.
    """

    bits: int = 8
    symmetric: bool = False
    restricted: bool = False
    granularity: Granularity = PER_TENSOR

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"Scheme.bits must be in [2, 16]; got {self.bits}.")

    @property
    def qmin(self) -> int:
        """The lowest integer code."""
        if not self.symmetric:
            return 0
        return -(2 ** (self.bits - 1)) + (1 if self.restricted else 0)

    @property
    def qmax(self) -> int:
        """The highest integer code."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    @property
    def steps(self) -> int:
        """Steps between the lowest and the highest code."""
        return self.qmax - self.qmin


@dataclass(frozen=True)
class BitPlan:
    """The grid of each tensor, by name of its quantization point; not named = stays float.

    ``fixed``: names of layers whose grids do not follow the network's bit-width, such as edge
    layers at 8 bits.
    """

    weights: Mapping[str, Scheme] = field(default_factory=dict)
    inputs: Mapping[str, Scheme] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()

    @property
    def bits(self) -> dict[str, int]:
        """Bits of every tensor with a grid, by its point: ``fc.weight``, ``fc.input``, …"""
        weights = {f"{name}.weight": scheme.bits for name, scheme in self.weights.items()}
        return weights | {name: scheme.bits for name, scheme in self.inputs.items()}
