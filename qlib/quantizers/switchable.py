"""Several grids for one tensor, one of them in use: for networks that switch their bit-width.

It needs several fitted ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, Self

import torch
from torch import Tensor, nn

from qlib.core.scheme import Scheme
from qlib.quantizers.base import Learner, Quantizer, State, restored


def _of_chosen(name: str) -> Any:
    """A property that the chosen quantizer answers."""
    return property(attrgetter(f"chosen.{name}"))


class Switchable(Quantizer):
    """A quantizer for each of several bit-widths, of which one is in use.

    Choosing touches no tensor. The lowest width is chosen at first.
    """

    title = "one grid for each bit-width"
    fits_alone = False
    scheme: Scheme = _of_chosen("scheme")
    scale: nn.Parameter = _of_chosen("scale")
    zero_point: Tensor = _of_chosen("zero_point")
    low: Tensor | float = _of_chosen("low")
    high: Tensor | float = _of_chosen("high")
    mixed: bool = _of_chosen("mixed")
    grids: int = _of_chosen("grids")

    def __init__(self, grids: Mapping[int, Quantizer]) -> None:
        Learner.__init__(self)  # grid and scheme are the chosen width's
        self._of = {bits: grids[bits] for bits in sorted(grids)}
        self.members = nn.ModuleList(self._of.values())
        self.bits = min(self._of)

    @property
    def bit_widths(self) -> tuple[int, ...]:
        """The bit-widths there are, ascending."""
        return tuple(self._of)

    def set_bits(self, bits: int) -> Self:
        """Use the quantizer of one bit-width. Raises KeyError: there is no such width."""
        if bits not in self._of:
            raise KeyError(bits)
        self.bits = bits
        return self

    def at(self, bits: int) -> Quantizer:
        """The quantizer of one width."""
        return self._of[bits]

    @property
    def chosen(self) -> Quantizer:
        """The quantizer in use."""
        return self._of[self.bits]

    def forward(self, x: Tensor) -> Tensor:
        return self.chosen(x)

    def codes(self, x: Tensor) -> Tensor:
        return self.chosen.codes(x)

    def nearest(self, x: Tensor) -> Tensor:
        return self.chosen.nearest(x)

    def values(self, codes: Tensor) -> Tensor:
        return self.chosen.values(codes)

    def partly(self, x: Tensor, keep: Tensor | None) -> Tensor:
        return self.chosen.partly(x, keep)

    def partly_rows(self, x: Tensor, other: Tensor, at: Tensor, keep: Tensor | None) -> Tensor:
        return self.chosen.partly_rows(x, other, at, keep)

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        """The scales of all widths; those of a width that was not drawn get no gradient."""
        return {"act_scale": [q.scale for q in self._of.values()]}

    @torch.no_grad()
    def keep_positive(self) -> None:
        for q in self._of.values():
            q.keep_positive()

    def state(self, weight: Tensor | None = None) -> State:
        """The grids of all widths as one, their tensors stacked: (widths, …) each."""
        every = _stacked([q.as_grid().state() for q in self._of.values()])
        options = {"bits": self.bits, "widths": list(self._of)}
        return State(self.key(), self.scheme, options=options, parts={"each": every})

    @classmethod
    def from_state(cls, state: State, weight: Tensor | None = None) -> "Switchable":
        return cls(stored_grids(state)).set_bits(state.options["bits"])


def stored_grids(state: State) -> dict[int, Quantizer]:
    """Rebuild the grids of a stored quantizer for several widths."""
    widths, every = state.options["widths"], state.parts["each"]
    return {bits: restored(_taken(every, i, bits)) for i, bits in enumerate(widths)}


def _stacked(states: Sequence[State]) -> State:
    """Alike states as one. Options are the first one's, as is the scheme but for its bits."""
    first = states[0]
    tensors = {n: torch.stack([s.tensors[n] for s in states]) for n in first.tensors}
    parts = {n: _stacked([s.parts[n] for s in states]) for n in first.parts}
    return replace(first, tensors=tensors, parts=parts)


def _taken(state: State, place: int, bits: int) -> State:
    """One of the states that were stacked."""
    tensors = {n: t[place] for n, t in state.tensors.items()}
    parts = {n: _taken(part, place, bits) for n, part in state.parts.items()}
    return replace(state, scheme=replace(state.scheme, bits=bits), tensors=tensors, parts=parts)
