"""Search for the scales of a layer's two operands, in turns, by the error of what they multiply.

Paper: EasyQuant, Wu et al., arXiv 2006.16669
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from qlib.core.functional import clip_
from qlib.methods._search.products import Product, in_parts
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer
from qlib.quantizers.base import Quantizer
from qlib.quantizers.uniform import Uniform


class Grid(Protocol):
    """Candidates for one quantizer, each given by a factor for each row of independent scales.

    ``factors``: (n,) ascending; ``start``: (rows,) the candidate that is there already.
    ``stride``: candidates between two of the first look; the second takes those around the best.
    """

    start: Tensor
    factors: Tensor
    stride: int

    def tried(self, x: Tensor, factors: Tensor) -> Tensor:
        """``x`` on the grids of ``factors`` (k, rows): (k, *x.shape)."""
        ...

    def made(self, factor: Tensor) -> Quantizer:
        """The quantizer of one candidate; ``factor``: (rows,)."""
        ...


class WholeTensor(ABC):
    """A `Grid` with one number for a whole tensor; the grid at 1 is there already.

    Dataclasses that inherit it have ``factors`` and ``start``.
    """

    factors: Tensor

    @abstractmethod
    def _grid(self, factor: Tensor) -> Quantizer:
        """The quantizer of one candidate, or many at once."""

    def __post_init__(self) -> None:
        self.start = torch.ones_like(self.factors[:1])

    def tried(self, x: Tensor, factors: Tensor) -> Tensor:
        """``x`` on the grids of all candidates, (k, *x.shape)."""
        return self._grid(factors.reshape(-1, *(1,) * x.dim()))(x[None])

    def made(self, factor: Tensor) -> Quantizer:
        """The quantizer of one candidate."""
        return self._grid(factor[0])


@dataclass
class Stretched:
    """The uniform grids whose scales are multiples of a fitted one's; the zero-point stays.

    Groups of one channel are stretched together.
    """

    fitted: Quantizer
    factors: Tensor
    start: Tensor = field(init=False)
    stride: int = 4

    def __post_init__(self) -> None:
        shape = self.fitted.scale.shape
        self.start = self.fitted.scale.new_ones(shape[0] if shape else 1)

    def tried(self, x: Tensor, factors: Tensor) -> Tensor:
        """``x`` on the grids of all candidates, (k, *x.shape)."""
        q = self.fitted
        split = q.scheme.granularity.split(x)
        scale = self._scaled(factors, split.dim())
        y = clip_((split / scale).round_(), q.low, q.high).mul_(scale)
        return y.reshape(len(factors), *x.shape)

    def made(self, factor: Tensor) -> Uniform:
        """The quantizer of one candidate."""
        q = self.fitted
        scale = self._scaled(factor[None], q.scale.dim())[0]
        return Uniform(scale.reshape(q.scale.shape), q.zero_point, q.scheme)

    def _scaled(self, factors: Tensor, dims: int) -> Tensor:
        rows = (1,) * dims if self.fitted.scale.dim() == 0 else (-1,) + (1,) * (dims - 1)
        return factors.reshape(len(factors), *rows) * self.fitted.scale


def spread(low: float, high: float, n: int, like: Tensor) -> Tensor:
    """(n,) even factors, both ends among them."""
    return torch.linspace(low, high, n, device=like.device, dtype=like.dtype)


def best(
    factors: Tensor, current: Tensor, loss: Callable[[Tensor], Tensor], stride: int = 4
) -> Tensor:
    """The factor with the least loss for each row; the current one where none is better.

    Args:
        factors: (n,) candidates, ascending.
        current: (rows,) where the search stands.
        loss: of candidates (k, rows), same shape; rows do not depend on each other.

    Every ``stride``-th candidate is tried, then those around each row's best.
    """
    last = len(factors) - 1
    coarse = torch.arange(0, last + 1, stride, device=factors.device)
    coarse = torch.cat([coarse, coarse.new_tensor([last])]).unique()
    found = _least(torch.cat([current[None], factors[coarse, None].expand(-1, len(current))]), loss)
    centre = (factors[:, None] - found).abs().argmin(0)
    around = torch.arange(1 - stride, stride, device=factors.device)
    near = factors[(centre + around[:, None]).clamp(0, last)]
    return _least(torch.cat([found[None], near]), loss)


def _least(tried: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    at = loss(tried).argmin(0, keepdim=True)  # ties go to the first one, which is there already
    return tried.gather(0, at)[0]


@dataclass
class Sides:
    """A layer's two operands and their candidates; None where an operand keeps what it has.

    ``x_hat`` is then what the layer reads: float, or rounded at a boundary before it. ``shape``:
    of the weight, or of the right operand in rows.
    """

    product: Product
    shape: torch.Size
    left: Grid | None
    right: Grid | None
    x_hat: Tensor

    @classmethod
    def of(
        cls, model: QuantModel, name: str, product: Product, left: Grid | None, right: Grid | None
    ) -> "Sides":
        """The operands of a layer; candidates of an operand that it does not own are left out."""
        layer, shape, x_hat = model.layers[name], product.w.shape, product.x
        if isinstance(layer, QuantLayer):
            shape, boundary = layer.weight.shape, model.boundary_of(name)
            if boundary is not None and boundary.quantizer is not None:
                x_hat = boundary.quantizer(x_hat)
        return cls(product, shape, left, right, x_hat)


@torch.no_grad()
def alternate(sides: Sides, kind: str, rounds: int) -> tuple[Quantizer | None, Quantizer | None]:
    """Search right with left fixed and left with right fixed, until nothing moves any more.

    Returns:
        quantizers of the left and of the right operand, None where there were no candidates.
    """
    left = None if sides.left is None else _Place(sides.left, sides.left.start)
    right = None if sides.right is None else _Place(sides.right, sides.right.start)
    x, w = sides.product.x, sides.product.w
    x_hat = sides.x_hat if left is None else left.grid.tried(x, left.at[None])[0]
    w_hat = w if right is None else _rows(sides, right.grid, right.at[None])[0]
    for _ in range(rounds):
        moved = False
        if right is not None:
            moved = right.move(_right_loss(sides, right.grid, x_hat, kind))
            w_hat = _rows(sides, right.grid, right.at[None])[0]
        if left is not None:
            moved = left.move(_left_loss(sides, left.grid, w_hat, kind)) or moved
            x_hat = left.grid.tried(x, left.at[None])[0]
        if not moved:
            break
    return None if left is None else left.made(), None if right is None else right.made()


@dataclass
class _Place:
    """Where the search stands among the candidates of one operand."""

    grid: Grid
    at: Tensor

    def move(self, loss: Callable[[Tensor], Tensor]) -> bool:
        """To the candidates with the least loss. Is anything another one now?"""
        before, self.at = self.at, best(self.grid.factors, self.at, loss, self.grid.stride)
        return not torch.equal(before, self.at)

    def made(self) -> Quantizer:
        return self.grid.made(self.at)


def _rows(sides: Sides, grid: Grid, factors: Tensor) -> Tensor:
    """k right operands as (k, groups, out, d)."""
    w = sides.product.w
    return grid.tried(w.reshape(sides.shape), factors).reshape(len(factors), *w.shape)


def _right_loss(sides: Sides, grid: Grid, x_hat: Tensor, kind: str) -> Callable[[Tensor], Tensor]:
    product = sides.product
    sums = product.of_weights(x_hat)
    each = product.w.numel()
    if product.importance is not None:
        each = max(each, product.importance.numel())

    def some(factors: Tensor) -> Tensor:
        found = sums(_rows(sides, grid, factors))
        if factors.shape[1] == 1:
            return found.over_all().loss(kind)[:, None]
        return found.loss(kind).flatten(1)

    return lambda factors: in_parts(some, factors, each)


def _left_loss(sides: Sides, grid: Grid, w_hat: Tensor, kind: str) -> Callable[[Tensor], Tensor]:
    product = sides.product
    sums = product.of_inputs(w_hat)
    each = max(product.x.numel(), product.x[..., 0].numel() * product.w.shape[1])

    def some(factors: Tensor) -> Tensor:
        return sums(grid.tried(product.x, factors)).loss(kind)[:, None]

    return lambda factors: in_parts(some, factors, each)


# --- where the quantizers of a layer are


def operands(model: QuantModel, name: str) -> tuple[Quantizer | None, Quantizer | None]:
    """The quantizers of a layer's two operands that belong to it alone; None where float."""
    layer = model.layers[name]
    own = [model.points.get(f"{name}.{t}") for t in layer.points()]
    found = [None if point is None else point.quantizer for point in own]
    if isinstance(layer, QuantLayer):
        found.append(layer.weight_point.quantizer)
    return found[0], found[1]


def put(model: QuantModel, name: str, left: Quantizer | None, right: Quantizer | None) -> None:
    """Set the quantizers of a layer's operands; None leaves what is there."""
    layer = model.layers[name]
    if isinstance(layer, QuantLayer):
        if right is not None:
            layer.weight_point.fill(right)
        right_name = None
    else:
        right_name = f"{name}.right"
    left_name = f"{name}.{next(iter(layer.points()))}"
    for point, quantizer in ((left_name, left), (right_name, right)):
        if point is not None and quantizer is not None:
            model.points[point].quantizer = quantizer
