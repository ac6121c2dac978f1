"""One rounding bit for each weight, shared by several bit-widths with steps of their own.

It needs several fitted ones.
Paper: PTMQ, Xu et al., AAAI 2024 (figure 1: weights and rounding shared, step sizes not)
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from qlib.core.functional import clip_
from qlib.quantizers.base import Quantizer, State
from qlib.quantizers.soft_round import SoftRound, inverse_h
from qlib.quantizers.switchable import Switchable, stored_grids
from qlib.quantizers.uniform import Uniform


class SharedRound(Switchable):
    """ŵ_b = s_b·clamp(⌊w/s_b⌋ + R, low_b, high_b), with one R for all widths b.

    While it is learned R is soft, as in `SoftRound`; hard, it is one bit for each weight, and
    nothing else is kept: the weight of a width is worked out when asked for.

    ``nested``: the steps are s_b = 2^(top − b)·s_top. Then ⌊w/s_b⌋ is the integer of the top width
    shifted right, so that integers and rounding bits are all that a device needs.
    """

    title = "up or down, one choice for all widths"
    up_or_down = True
    rounding: Tensor | None

    def __init__(self, grids: Mapping[int, Quantizer], *, nested: bool = False) -> None:
        super().__init__(grids)
        self.nested = nested
        self.register_buffer("rounding", None)  # R as booleans, once hard

    @classmethod
    def from_nearest(
        cls, fitted: Switchable, weight: Tensor, start: str, nested: bool
    ) -> "SharedRound":
        """Soft rounding of ``weight`` on fitted grids.

        Args:
            start: which width's fraction of w/s_b is R at first: "lowest", "middle", "highest" or
                the "mean" of all.
        """
        grids = _nested(fitted) if nested else {b: fitted.at(b) for b in fitted.bit_widths}
        soft = {b: SoftRound(q.scale, q.zero_point, q.scheme) for b, q in grids.items()}
        quantizer = cls(soft, nested=nested)
        quantizer.bits = fitted.bits
        with torch.no_grad():
            floors = {b: quantizer._floor(weight, b) for b in quantizer.bit_widths}
            fraction = quantizer._fraction(weight, floors, start)
            up = nn.Parameter(inverse_h(fraction), requires_grad=False)
            for b, floor in floors.items():
                soft[b].set_rounding(floor, up)
        return quantizer

    @classmethod
    def of_bits(
        cls, grids: Mapping[int, Quantizer], rounding: Tensor, *, nested: bool
    ) -> "SharedRound":
        """Hard: booleans in the shape of the weight as its granularity splits it."""
        quantizer = cls(grids, nested=nested)
        quantizer.rounding = rounding
        return quantizer

    @property
    def soft(self) -> bool:
        """Whether rounding is still soft, that is being learned."""
        return self.rounding is None

    def forward(self, x: Tensor) -> Tensor:
        if self.rounding is None:
            return self.chosen(x)
        return self._steps(x, self.rounding).mul_(self.scale).reshape(x.shape)

    def codes(self, x: Tensor) -> Tensor:
        if self.rounding is None:
            return self.chosen.codes(x)
        return self._steps(x, self.rounding).add_(self.zero_point).reshape(x.shape)

    def base_codes(self, x: Tensor) -> Tensor:
        """What a device stores of a nested network beside R: the top width's codes, rounded down.

        Whole floats from ``qmin`` to ``qmax`` of that width, same shape.
        """
        top = self.at(self.bit_widths[-1])
        return (self._floor(x, self.bit_widths[-1]) + top.zero_point).reshape(x.shape)

    def soft_values(self) -> Tensor | None:
        return self.chosen.soft_values() if self.soft else None

    def learnable(self) -> dict[str, list[nn.Parameter]]:
        return self.chosen.learnable() if self.soft else {}

    def penalty(self, beta: float) -> Tensor | None:
        return self.chosen.penalty(beta) if self.soft else None

    def add_penalty_grad(self, beta: float, weight: float) -> None:
        self.chosen.add_penalty_grad(beta, weight)

    @torch.no_grad()
    def harden(self) -> None:
        """Make the rounding hard, up where V ≥ 0, and drop what was only needed to learn."""
        chosen = self.chosen
        if self.soft and isinstance(chosen, SoftRound):
            self.rounding = self._up()
            grids = {b: self.at(b).as_grid() for b in self.bit_widths}
            self._of, self.members = grids, nn.ModuleList(grids.values())

    def state(self, weight: Tensor | None = None) -> State:
        """One bit for each weight; nested, also the integers that all widths come from."""
        found = super().state()
        tensors = {"rounding": pack(self._up())}
        if self.nested:
            base = self.base_codes(_given(weight))
            tensors["base"] = base.to(torch.int8 if self.scheme.symmetric else torch.uint8)
        options = found.options | {"nested": self.nested}
        return replace(found, tensors=tensors, options=options)

    @classmethod
    def from_state(cls, state: State, weight: Tensor | None = None) -> "SharedRound":
        """Rebuild it. Raises ValueError: ``weight`` is missing, or not the one that was rounded."""
        weight = _given(weight)
        shape = state.scheme.granularity.split(weight).shape
        rounding, nested = unpack(state.tensors["rounding"], shape), state.options["nested"]
        quantizer = cls.of_bits(stored_grids(state), rounding, nested=nested).set_bits(
            state.options["bits"]
        )
        if nested and not torch.equal(
            quantizer.base_codes(weight), state.tensors["base"].to(weight)
        ):
            raise ValueError("it was rounded from another weight")
        return quantizer

    def _up(self) -> Tensor:
        """R as booleans; while it is soft, what `harden` would make of it."""
        if self.rounding is not None:
            return self.rounding
        chosen = self.chosen
        assert isinstance(chosen, SoftRound)  # as `from_nearest` made it
        return chosen.v >= 0

    def _steps(self, x: Tensor, rounding: Tensor) -> Tensor:
        return clip_(self._floor(x, self.bits).add_(rounding), self.low, self.high)

    def _floor(self, x: Tensor, bits: int) -> Tensor:
        """⌊x/s_b⌋ in steps from 0.0, in the shape of the split; nested: by shifting the top's."""
        q = self.at(self.bit_widths[-1] if self.nested else bits)
        floor = (q.scheme.granularity.split(x) / q.scale).floor_()
        if self.nested:
            clip_(floor, q.low, q.high).div_(2.0 ** (self.bit_widths[-1] - bits)).floor_()
        return floor

    def _fraction(self, x: Tensor, floors: dict[int, Tensor], start: str) -> Tensor:
        """How far above its floor each weight lies, in steps: of one width, or the mean of all."""
        last = len(self.bit_widths) - 1
        one = {"lowest": 0, "middle": last // 2, "highest": last}.get(start)
        of = self.bit_widths if one is None else (self.bit_widths[one],)
        split = self.scheme.granularity.split(x)
        found = [(split / self.at(b).scale - floors[b]).clamp_(0, 1) for b in of]
        return sum(found[1:], found[0]) / len(found)


def pack(rounding: Tensor) -> Tensor:
    """Booleans as bytes, eight in each, (⌈n / 8⌉,)."""
    return torch.from_numpy(np.packbits(rounding.flatten().cpu().numpy()))


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Booleans of ``shape`` from bytes of `pack`. Raises ValueError: not as many as it needs."""
    n = math.prod(shape)
    if packed.shape != (-(-n // 8),):
        raise ValueError(f"{len(packed)} bytes of rounding bits for {n} weights")
    bits = np.unpackbits(packed.cpu().numpy(), count=n).astype(bool)
    return torch.from_numpy(bits).reshape(shape).to(packed.device)


def _given(weight: Tensor | None) -> Tensor:
    if weight is None:
        raise ValueError("a shared rounding is stored and restored beside its weight; give it")
    return weight


def _nested(fitted: Switchable) -> dict[int, Quantizer]:
    """Steps that are powers of two apart, so that the range of the middle width fits."""
    widths = fitted.bit_widths
    middle, top = fitted.at(widths[(len(widths) - 1) // 2]), fitted.at(widths[-1])
    step = middle.scale / 2.0 ** (top.scheme.bits - middle.scheme.bits)
    zero = (-middle.low * step.new_tensor(2.0 ** (top.scheme.bits - middle.scheme.bits))).round()
    made = {}
    for b in widths:
        scheme, ratio = fitted.at(b).scheme, 2.0 ** (top.scheme.bits - b)
        at = zero.new_zeros(zero.shape) if scheme.symmetric else zero / ratio
        made[b] = Uniform(step * ratio, at.floor().clamp(scheme.qmin, scheme.qmax), scheme)
    return made
