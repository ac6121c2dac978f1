"""Where the tensor of the images stands in what a module is given, and in what it gives back.

A module may be called by position or by keyword, with lists or dictionaries around its tensors,
with constants beside them, and with the images along any axis. A `Port` learns that from two calls
with different images, so that everybody else deals with one tensor, images first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree  # `torch.export` stands on it; there is no public one


class Port:
    """One side of a module: the structure of its arguments, or that of its results.

    Attributes:
        single: does one tensor hold all there is of the images?
        shape: of that tensor for one image; None where there are several.
        copied: is a copy handed on, because somebody writes into it afterwards?
    """

    def __init__(self, few: Any, more: Any, images: int, *, copied: bool = False) -> None:
        """From the same side of two calls; of what follows the images only shapes are kept.

        Args:
            few: for ``images`` images.
            more: for as many others, and then the first of those once more.
        """
        leaves, self._spec = tree.tree_flatten(few)
        others, spec = tree.tree_flatten(more)
        alike, self.copied = self._spec == spec, copied
        pairs = list(zip(leaves, others, strict=False))
        self._leaves = [_told(*pair, images) for pair in pairs] if alike else leaves
        moving = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, _Moving)]
        still = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._at = _same(leaves, moving or still)
        self._lies = self._leaves[moving[0]].lies(*pairs[moving[0]]) if moving else _STILL
        self.single = alike and bool(self._at) and self._lies is not None and not any(
            leaf is _UNCLEAR or (isinstance(leaf, _Moving) and leaf.dtype and i not in self._at)
            for i, leaf in enumerate(self._leaves)
        )  # fmt: skip
        self.shape = tuple(self.read(few, images).shape[1:]) if self.single else None
        bare = isinstance(few, tuple) and len(leaves) == 1 and few[0] is leaves[0]
        self._bare = self.single and self._lies == (0, 1) and not copied and bare

    def like(self, other: "Port") -> bool:
        """Are shapes, and all that does not follow the images, the same?"""
        if self._spec != other._spec or self._at != other._at:
            return False
        return all(_equal(a, b) for a, b in zip(self._leaves, other._leaves, strict=True))

    @property
    def first(self) -> int | None:
        """The place among all leaves of the tensor of the images (the first, if several)."""
        return self._at[0] if self._at else None

    def read(self, value: Any, images: int) -> Tensor:
        """The tensor of the images in ``value``, images first."""
        found = value if isinstance(value, Tensor) else tree.tree_leaves(value)[self._at[0]]
        axis, parts = self._lies
        if axis is None:
            return found.unsqueeze(0).expand(images, *found.shape)
        found = found.movedim(axis, 0) if axis else found
        return found if parts == 1 else found.unflatten(0, (-1, parts))

    def write(self, x: Tensor) -> Any:
        """What the module is given, or gives back, where the tensor of the images is ``x``."""
        leaves = self._filled(len(x), x.device)
        axis, parts = self._lies
        x = x[0] if axis is None else x if parts == 1 else x.flatten(0, 1)
        x = x.movedim(0, axis) if axis else x
        x = x.clone() if self.copied else x
        for i in self._at:
            leaves[i] = x
        return tree.tree_unflatten(leaves, self._spec)

    def arguments(self, x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`write` for what a module is given."""
        return ((x,), {}) if self._bare else self.write(x)  # a step of learning is short

    def blank(self, images: int, device: torch.device) -> Any:
        """A placeholder for all of it; it takes no memory, unless somebody writes into it."""
        return tree.tree_unflatten(self._filled(images, device, solid=self.copied), self._spec)

    def _filled(self, images: int, device: torch.device, *, solid: bool = False) -> list[Any]:
        return [
            leaf.blank(images, device, solid=solid) if isinstance(leaf, _Moving) else leaf
            for leaf in self._leaves
        ]


_UNCLEAR = object()  # a leaf that changes with the images, and is neither a tensor nor a number
_STILL = (None, 1)  # how a tensor lies that is the same for all images
_PLAIN = str | float | bool | complex | slice | torch.Size | torch.dtype | torch.device


@dataclass(frozen=True)
class _Moving:
    """A tensor that follows the images (or a whole number that does: ``dtype`` is None).

    Its sizes for some images, and what every further image adds to them.
    """

    sizes: tuple[int, ...]
    growth: tuple[int, ...]
    dtype: torch.dtype | None
    images: int

    def lies(self, few: Tensor, more: Tensor) -> tuple[int, int] | None:
        """(axis, parts of an image along it), such as windows; None: images do not lie in a row."""
        axes = [i for i, added in enumerate(self.growth) if added]
        if self.dtype is None or len(axes) != 1:
            return None
        axis, parts = axes[0], self.growth[axes[0]]
        if self.sizes[axis] != self.images * parts or (axis and parts > 1):
            return None
        if parts == 1 or few.is_meta or torch.allclose(more[-parts:], few[:parts], 1e-4, 1e-5):
            return axis, parts  # parts of one image lie together
        return None

    def blank(self, images: int, device: torch.device, *, solid: bool = False) -> Tensor | int:
        """Zeros for another number of images."""
        added = images - self.images
        sizes = [a + added * b for a, b in zip(self.sizes, self.growth, strict=True)]
        if self.dtype is None:
            return sizes[0]
        if solid:
            return torch.zeros(sizes, dtype=self.dtype, device=device)
        return torch.zeros((), dtype=self.dtype, device=device).expand(sizes)


def _same(leaves: list[Any], places: list[int]) -> list[int]:
    """The first of some places, and all others where the same tensor stands."""
    return [i for i, leaf in enumerate(leaves) if leaf is leaves[places[0]]] if places else []


def _told(few: Any, more: Any, images: int) -> Any:
    """A leaf that stays what it is, or `_Moving`, or `_UNCLEAR`."""
    if isinstance(few, Tensor) and isinstance(more, Tensor) and few.dim() == more.dim():
        if few.shape == more.shape and (few.is_meta or torch.equal(few, more)):
            return few
        growth = tuple(b - a for a, b in zip(few.shape, more.shape, strict=True))
        return _Moving(tuple(few.shape), growth, few.dtype, images)
    if type(few) is int and type(more) is int:
        return few if few == more else _Moving((few,), (more - few,), None, images)
    return few if _equal(few, more) else _UNCLEAR


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and (one.is_meta or torch.equal(one, other))
    plain = isinstance(one, _Moving | _PLAIN | int)
    return one is other or (plain and type(one) is type(other) and one == other)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested arguments or results, in their order."""
    return [leaf for leaf in tree.tree_leaves(value) if isinstance(leaf, Tensor)]


def leaf(value: Any, place: int) -> Any:
    """What stands at a place of nested arguments or results."""
    return tree.tree_leaves(value)[place]


def replaced(value: Any, place: int, make: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``make(leaf)`` for one leaf, wherever that tensor stands."""
    leaves, spec = tree.tree_flatten(value)
    old, new = leaves[place], make(leaves[place])
    return tree.tree_unflatten([new if leaf is old else leaf for leaf in leaves], spec)


def copy_of(value: Any, *, shapes: bool = False) -> Any:
    """The same structure with copies of its tensors; one that stands there twice is one copy.

    ``shapes``: without values, on the meta device.
    """
    leaves, spec = tree.tree_flatten(value)
    copy = (lambda t: t.detach().to("meta")) if shapes else lambda t: t.detach().clone()
    made = {id(leaf): copy(leaf) for leaf in leaves if isinstance(leaf, Tensor)}
    return tree.tree_unflatten([made.get(id(leaf), leaf) for leaf in leaves], spec)
