"""What a unit of a network with many bit-widths is fitted on: mixed inputs, compared outputs.

Paper: PTMQ, Xu et al., AAAI 2024 (multi-bit feature mixer, group-wise distillation loss)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qlib.core.functional import KeepMask
    from qlib.learning.units import Unit
    from qlib.quantizers.base import Quantizer

Groups = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass
class Mixing:
    """One step of PTMQ for a unit: `loss` draws a width from each group and compares three passes.

    Attributes:
        groups: low, middle and high bit-widths; one of each is drawn at every step.
        shares: λ of the three, summing to 1.
        case: "one", "two" or "three": how the unit's input is made, the paper's cases 1 to 3.
        quant_prob: chance that an element comes from the quantized features, not the float one.
        middle, low: γ₂ and γ₃, what the distances of the middle and of the low output to the high
            one weigh beside γ₁ = 1, the distance of their mixture to the float output.
        detach: do these two teach the lower widths alone?
        alone: is the output at one of the drawn widths compared with the float one, and nothing
            else? (What a random width in each step gives without the paper's loss.)
    """

    unit: "Unit"
    groups: Groups
    shares: tuple[float, float, float]
    case: str
    quant_prob: float
    middle: float
    low: float
    detach: bool
    batch: int
    generator: "torch.Generator"
    alone: bool = False
    _masks: "KeepMask" = field(init=False)
    _shared: dict[int, "Tensor | None"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from qlib.core.functional import KeepMask

        self._masks = KeepMask(self.quant_prob, self.generator)

    def loss(self, at: "Tensor") -> "Tensor":
        """Of the calibration images at these indices, a scalar."""
        from qlib.core.functional import take

        self._shared.clear()
        drawn = [self._one(group) for group in self.groups]
        x = self._input(at, drawn)
        if self.alone:
            drawn = [self._one(drawn)] * 3
        outputs = {bits: self._output(bits, x) for bits in dict.fromkeys(drawn)}
        return self._distilled(drawn, outputs, take(self.unit.targets, at))

    def _one(self, choices: Sequence[int]) -> int:
        import torch

        if len(set(choices)) == 1:  # nothing to draw
            return choices[0]
        generator = self.generator
        at = torch.randint(len(choices), (), generator=generator, device=generator.device)
        return choices[int(at)]

    def _input(self, at: "Tensor", drawn: list[int]) -> "Tensor":
        from qlib.core.functional import mixed, take

        low, *others = drawn
        if self.case == "two":
            rest = self._mixture(at, others, self.shares[1:])
            mask = self._masks.like(rest)
            return mixed(rest, self._feature(at, low), mask)
        widths, shares = drawn, self.shares
        if self.case == "one":
            widths, shares = [self._one(drawn)], (1.0,)
        mixture = self._mixture(at, widths, shares)
        mask = self._masks.like(mixture)
        return mixture if mask is None else mixed(take(self.unit.float_inputs, at), mixture, mask)

    def _mixture(self, at: "Tensor", widths: list[int], shares: Sequence[float]) -> "Tensor":
        return _blend(widths, shares, {bits: self._feature(at, bits) for bits in set(widths)})

    def _feature(self, at: "Tensor", bits: int) -> "Tensor":
        """What reaches the unit in the network at ``bits``, quantized where it enters."""
        from qlib.core.functional import take

        x, boundary = take(self.unit.inputs_by_bits[bits], at), self.unit.boundary
        if boundary is None or boundary.quantizer is None:
            return x
        boundary.set_bits(bits)
        return boundary.quantizer(x)

    def _output(self, bits: int, x: "Tensor") -> "Tensor":
        switch(self.unit, bits)
        return self.unit(x)

    def _distilled(
        self, drawn: list[int], outputs: "dict[int, Tensor]", target: "Tensor"
    ) -> "Tensor":
        from qlib.core import fused
        from qlib.learning.objective import share_of, squared_error

        share, (low, middle, high) = share_of(self.unit, self.batch), drawn

        def plain() -> "Tensor":
            total = squared_error(_blend(drawn, self.shares, outputs), target, share)
            teacher = outputs[high].detach() if self.detach else outputs[high]
            for bits, weight in ((middle, self.middle), (low, self.low)):
                if bits != high and weight:
                    total = total + squared_error(outputs[bits], teacher, weight * share)
            return total

        if len(outputs) < 3:
            return plain()
        weights, whole = (self.low, self.middle), not self.detach
        return fused.run(
            fused.DistillFn, *(outputs[bits] for bits in drawn), target, self.shares, weights,
            whole, share, plain=plain,
        )  # fmt: skip

    def dropping(self, point: int, quantizer: "Quantizer") -> "Callable[[Tensor], Tensor]":
        """What a point inside the unit does: the same elements drop in all passes of a step."""

        def partly(x: "Tensor") -> "Tensor":
            if point not in self._shared:
                self._shared[point] = self._masks.like(x)
            return quantizer.partly(x, self._shared[point])

        return partly


def _blend(widths: list[int], shares: Sequence[float], of: "dict[int, Tensor]") -> "Tensor":
    """Σ shareᵢ · tensor of widthᵢ over Σ shareᵢ; exactly that tensor where all are one."""
    weight: dict[int, float] = {}
    for bits, share in zip(widths, shares, strict=True):
        weight[bits] = weight.get(bits, 0.0) + share
    weight = {bits: share for bits, share in weight.items() if share}
    first, *others = weight
    if not others:
        return of[first]
    total = sum(weight.values())
    mixed = of[first] * (weight[first] / total)
    for bits in others:
        mixed = mixed.add(of[bits], alpha=weight[bits] / total)
    return mixed


def switch(unit: "Unit", bits: int) -> None:
    """Turn everything of a unit that has several widths to one of them."""
    for layer in unit.weighted:
        layer.weight_point.set_bits(bits)
    for point in unit.points():
        point.set_bits(bits)


@contextmanager
def mixing(mixed: Mixing, *, drop_inside: bool) -> Iterator[None]:
    """The unit's entry is quantized by `Mixing` itself; inside, points drop if asked to."""
    from qlib.network.points import standing_in

    inner = [p for p in mixed.unit.points() if p is not mixed.unit.boundary]
    filled = [(p, p.quantizer) for p in inner if p.quantizer is not None]
    work = {point: mixed.dropping(i, quantizer) for i, (point, quantizer) in enumerate(filled)}
    if not drop_inside:
        work = {}
    if mixed.unit.boundary is not None:
        work[mixed.unit.boundary] = lambda x: x  # what enters is quantized while it is mixed
    with standing_in(work):
        yield
