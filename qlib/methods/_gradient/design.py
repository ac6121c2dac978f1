"""The choices that a gradient-based method is made of: every named one is a point of this space.

Study: Yvinec et al., "Gradient-Based Post-Training Quantization: Challenging the Status Quo",
arXiv 2308.07662
"""

from dataclasses import dataclass

from qlib.core import params
from qlib.core.params import param

VARIABLES = ("up-or-down", "window", "free", "shift", "divisors", "power")
UNITS = ("layer", "block", "stage", "network")
INPUTS = ("float", "quantized", "mixed")
ERRORS = ("mse", "l1", "lp", "fisher", "cosine", "kl")
OPTIMIZERS = ("adam", "adamw", "adamax", "sgd", "sign-sgd")
CHOICES = ("all", "random", "undecided", "important")

MOVES = "What is learned"
SEES = "Where, and on what"
SMALL = "What is made small"
HOW = "How"
RATES = "Learning rates"


@dataclass(frozen=True)
class Design:
    """One choice on each axis; the defaults are QDrop's.

    What is learned of a weight: ``up-or-down`` between its two levels (AdaRound's soft variable);
    its code as a number of its own, in a ``window`` around the nearest one or ``free`` over the
    whole grid; a ``shift`` before rounding, with zero-points (AdaQuant's); ``divisors``
    (FlexRound's); codes and exponents of a ``power`` grid (NUPES's).

    Every error is scaled so that a small difference weighs as much, on average, as in the squared
    one; so λ keeps its meaning. ``l1`` and ``lp`` cannot be, and are taken as they are.
    """

    learn: str = param(
        "up-or-down",
        "What is learned of each weight: one of two levels, its code (near the nearest one, or "
        "free), a shift or divisors before rounding, or codes on a power-function grid.",
        choices=VARIABLES, group=MOVES,
    )  # fmt: skip
    window: int = param(
        1, "How many codes a weight may go away from the nearest one.",
        low=1, high=15, group=MOVES, when=("learn", ("window",)),
    )  # fmt: skip
    exponents: str = param(
        "weights", "What exponents make small at the start: the error of weights or of outputs.",
        choices=("weights", "outputs"), group=MOVES, when=("learn", ("power",)),
    )  # fmt: skip
    select: str = param(
        "all",
        "Which weights of a unit are learned; the others stay at the nearest level. Undecided: "
        "near the middle between two levels; important: the unit's error owes most to them.",
        choices=CHOICES, group=MOVES,
    )  # fmt: skip
    share: float = param(
        0.5, "Share of a unit's weights that is learned, drawn at random or by importance.",
        low=0.0, high=1.0, group=MOVES, when=("select", ("random", "important")),
    )  # fmt: skip
    delta: float = param(
        0.25, "How far from the middle between two levels a weight is undecided, in steps.",
        low=0.0, high=0.5, group=MOVES, when=("select", ("undecided",)),
    )  # fmt: skip
    unit: str = param(
        "block",
        "What is fitted at once. A stage is a row of blocks whose outputs have the same shape.",
        choices=UNITS, group=SEES,
    )  # fmt: skip
    inputs: str = param(
        "mixed",
        "A unit is fitted on inputs from the float network, from the quantized units before it, "
        "or on both, mixed element by element, also inside the unit.",
        choices=INPUTS, group=SEES,
    )  # fmt: skip
    quant_prob: float = param(
        0.5, "Chance that an element of mixed activations is the quantized one.",
        low=0.0, high=1.0, group=SEES, when=("inputs", ("mixed",)),
    )  # fmt: skip
    quantize_acts: bool = param(
        True, "Activations are quantized while weights are learned.", group=SEES
    )  # fmt: skip
    batch: int = param(32, "Images for each step.", low=1, high=1024, group=SEES)
    error: str = param(
        "mse",
        "How an output error is weighed: squared, absolute, to the power 2.4, by Fisher "
        "information, by each image's angle, or by the answers' divergence (whole network only).",
        choices=ERRORS, group=SMALL,
    )  # fmt: skip
    penalty: float = param(
        0.01, "Weight λ of the term that makes a choice of up or down hard.",
        low=0.0, group=SMALL, when=("learn", ("up-or-down",)),
    )  # fmt: skip
    beta_schedule: str = param(
        "linear", "How that term's exponent falls over the steps.",
        choices=("linear", "cosine"), group=SMALL, when=("learn", ("up-or-down",)),
    )  # fmt: skip
    steps: int = param(500, "Optimisation steps for each unit.", low=0, high=100_000, group=HOW)
    early_stop_undecided: float = param(
        0.0, "A unit stops early when at most this share of its choices is undecided; 0: never.",
        low=0.0, high=1.0, group=HOW, when=("learn", ("up-or-down",)),
    )  # fmt: skip
    optimizer: str = param(
        "adam", "What turns gradients into steps; each needs rates of its own.",
        choices=OPTIMIZERS, group=HOW,
    )  # fmt: skip
    schedule: str = param(
        "constant", "How the weights' learning rate goes; all other rates fall to 0 by a cosine.",
        choices=("constant", "cosine"), group=HOW,
    )  # fmt: skip
    lr: float = param(
        1e-2, "Learning rate of what is learned of the weights.", low=0.0, high=100.0, group=RATES
    )
    act_scale_lr: float = param(
        4e-4, "Learning rate of activation scales (relative with a shift or a power grid).",
        low=0.0, high=1.0, group=RATES,
    )  # fmt: skip
    weight_scale_lr: float = param(
        0.0, "Learning rate of weight scales (relative with a shift); 0 leaves them.",
        low=0.0, high=1.0, group=RATES, when=("learn", ("window", "free", "shift", "divisors")),
    )  # fmt: skip
    bias_lr: float = param(
        0.0, "Learning rate of the biases; 0 leaves them.", low=0.0, high=1.0, group=RATES
    )
    zero_point_lr: float = param(
        0.0, "Learning rate of zero-points, in steps.",
        low=0.0, high=1.0, group=RATES, when=("learn", ("shift",)),
    )  # fmt: skip
    exponent_lr: float = param(
        0.0, "Learning rate of the exponents.",
        low=0.0, high=1.0, group=RATES, when=("learn", ("power",)),
    )  # fmt: skip

    def __post_init__(self) -> None:
        params.check(self)
        if self.error == "kl" and self.unit != "network":
            raise ValueError(
                f"{type(self).__name__}.error 'kl' compares answers, so it needs unit 'network'; "
                f"got unit {self.unit!r}. Choose that unit, or another error."
            )
