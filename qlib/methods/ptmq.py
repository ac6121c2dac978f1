"""One network for many bit-widths: one rounding, a set of steps for each.  Paper: AAAI 2024."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlib.core.catalogue import Look, Variant
from qlib.core.params import param
from qlib.methods.base import Method

if TYPE_CHECKING:
    from qlib.core.records import Report
    from qlib.core.scheme import BitPlan
    from qlib.learning.calibration import Calibration
    from qlib.learning.units import Unit
    from qlib.methods._gradient.multibit_mixer import Groups
    from qlib.network.model import QuantModel


@dataclass(frozen=True)
class PTMQ(Method):
    """Learns one rounding for several bit-widths together, block by block.

    ::

        choose a grid for every bit-width of every tensor
        for each block in order of execution:
            V ← one soft rounding for all widths; inputs x̂_b of the block at every width b
            repeat for ``steps``:
                draw a low, a middle and a high width l, m, h
                mixture ← x̂_l, x̂_m, x̂_h by their shares, elements dropped to the float input
                y_b ← block(mixture) at each of the three; ȳ ← the y_b by their shares
                V, all activation scales ← Adam step on ‖y − ȳ‖² + γ₂‖y_m − y_h‖² + γ₃‖y_l − y_h‖²
                    + λ·Σ(1 − |2h(V) − 1|^β)
            V ← up where h(V) ≥ ½, else down

    Every block's input is carried on at every width: one forward pass over the calibration images
    for each, little beside learning. The paper leaves groups, shares, weights and rates open; the
    defaults were chosen by measurement (`python -m benchmarks.multibit --choices`). Layers whose
    bits are fixed, such as edge layers at 8 bits, are learned like all others.
    """

    title = "PTMQ"
    paper = "Xu et al., AAAI 2024, doi 10.1609/aaai.v38i14.29553"
    promise = "One stored network for many bit-widths: rounding shared, steps apart, switched live."
    cost = "minutes"
    learns = True
    look = Look("blue", "longdash", "hexagram")
    variants = (
        Variant(
            "learned_at", "highest", "naive", "Naive switch",
            look=Look("violet", "dash", "star-square"), contrast=True,
        ),
        Variant("weight_set", "fixed", "w{bits}", "{title}, weights {bits} bits"),
    )  # fmt: skip
    switchable = True
    paper_placement = "boundary"
    paper_settings = {"steps": 5_000, "lr": 1e-3, "act_scale_lr": 4e-3, "quant_prob": 0.5}  # noqa: RUF012

    steps: int = param(500, "Optimisation steps for each block.", low=0, high=100_000)
    lowest: int = param(3, "Lowest bit-width that the network can be switched to.", low=2, high=8)
    highest: int = param(8, "Highest bit-width that it can be switched to.", low=2, high=8)
    middle_from: int = param(5, "First bit-width of the middle group.", low=2, high=9)
    high_from: int = param(7, "First bit-width of the high group.", low=2, high=9)
    weight_set: str = param(
        "per width",
        "Weights with a step for each bit-width, or fixed at the bits of the run.",
        choices=("per width", "fixed"),
    )
    nested: bool = param(False, "Weight steps in powers of two: a switch shifts integers.")
    learned_at: str = param(
        "every width",
        "The widths that are drawn; with the highest alone, the others show a naive switch.",
        choices=("every width", "highest"),
    )
    start: str = param(
        "lowest",
        "The bit-width whose fractions rounding starts from.",
        choices=("lowest", "middle", "highest", "mean"),
    )
    case: str = param(
        "three",
        "How the block's input is mixed: one width; high and middle, with the low one dropped in; "
        "or all three, with the float one dropped in.",
        choices=("one", "two", "three"),
    )
    compared: str = param(
        "mixture",
        "What is held against the float output: the mixture of the outputs at the three widths, or "
        "the output at one of them alone, drawn at each step (without distillation, a third of "
        "the cost).",
        choices=("mixture", "one width"),
    )
    low_share: float = param(0.5, "Share of the low width in the mixture.", low=0.0, high=1.0)
    middle_share: float = param(0.25, "Share of the middle width in it.", low=0.0, high=1.0)
    distil_middle: float = param(0.1, "Weight of the distance of middle to high.", low=0.0)
    distil_low: float = param(0.1, "Weight of the distance of low to high.", low=0.0)
    detach: bool = param(False, "Whether the high width only teaches, without learning from it.")
    quant_prob: float = param(0.5, "Chance that an activation stays quantized.", low=0.0, high=1.0)
    drop_inside: bool = param(True, "Whether activations inside a block drop too, as in QDrop.")
    lr: float = param(1e-2, "Learning rate of the rounding variables.", low=0.0, high=1.0)
    act_scale_lr: float = param(4e-4, "Learning rate of the activation scales.", low=0.0, high=1.0)
    penalty: float = param(0.01, "Weight λ of the term that makes rounding hard.", low=0.0)
    batch: int = param(32, "Images for each step.", low=1, high=1024)

    def bit_widths(self, own: set[int]) -> tuple[int, ...]:
        """Ascending; the run's own bits are always among them."""
        return tuple(sorted({*range(self.lowest, self.highest + 1), *own}))

    def groups(self, bit_widths: tuple[int, ...]) -> "Groups":
        """Low, middle, high; an empty group takes the widths of the one below, or above."""
        if self.learned_at == "highest":
            bit_widths = bit_widths[-1:]
        low = tuple(b for b in bit_widths if b < self.middle_from)
        middle = tuple(b for b in bit_widths if self.middle_from <= b < self.high_from)
        high = tuple(b for b in bit_widths if b >= max(self.middle_from, self.high_from))
        middle = middle or low or high
        return low or middle, middle, high or middle

    @property
    def shares(self) -> tuple[float, float, float]:
        """λ of low, middle and high, summing to 1."""
        low, middle = self.low_share, self.middle_share
        total = max(1.0, low + middle)
        return low / total, middle / total, max(0.0, 1.0 - (low + middle) / total)

    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        from qlib.learning.walk import iter_units
        from qlib.network import switching

        bit_widths = self.bit_widths(_bits(plan))
        per_width = self.weight_set == "per width"
        data.attach_weights(model, plan, bit_widths=bit_widths if per_width else ())
        data.attach_inputs(model, plan, bit_widths=bit_widths)
        if not switching.bit_widths(model):
            bit_widths = ()
        turn = {b: lambda b=b: switching.set_bits(model, b) for b in bit_widths}
        for unit in iter_units(model, data, bit_widths=turn or None):
            self._learn(unit, self.groups(bit_widths or (0,)), data, report)
        if bit_widths:
            switching.set_plan(model, plan.bits)

    def _learn(self, unit: "Unit", groups: "Groups", data: "Calibration", report: "Report") -> None:
        from qlib.learning.reconstruct import FitSettings, Rate, reconstruct
        from qlib.methods._gradient.multibit_mixer import Mixing, mixing

        unit.replace_weights(self._soft)
        mixed = Mixing(
            unit, groups, self.shares, self.case, self.quant_prob, self.distil_middle,
            self.distil_low, self.detach, self.batch, data.generator,
            alone=self.compared == "one width",
        )  # fmt: skip
        rates = {"rounding": Rate(self.lr), "act_scale": Rate(self.act_scale_lr, cosine=True)}
        settings = FitSettings(rates, self.steps, self.batch, penalty=self.penalty)
        with mixing(mixed, drop_inside=self.drop_inside):
            reconstruct(
                unit, settings, generator=data.generator, report=report, objective=mixed.loss
            )

    def _soft(self, fitted, weight):
        from qlib.quantizers.shared_round import SharedRound
        from qlib.quantizers.soft_round import SoftRound
        from qlib.quantizers.switchable import Switchable

        if isinstance(fitted, Switchable):
            return SharedRound.from_nearest(fitted, weight, self.start, self.nested)
        return SoftRound.from_nearest(fitted, weight)


def _bits(plan: "BitPlan") -> set[int]:
    """The run's own bits, of weights and of activations: those that the plan does not fix."""
    weights = {s.bits for n, s in plan.weights.items() if n not in plan.fixed}
    acts = {s.bits for n, s in plan.inputs.items() if n.rpartition(".")[0] not in plan.fixed}
    return weights | acts or {8}
