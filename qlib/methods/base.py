"""The contract of a method: title, paper, settings, and how it quantizes a network."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from qlib.core import params
from qlib.core.catalogue import Ingredient, Look, Variant
from qlib.core.registry import discover

if TYPE_CHECKING:  # the app reads a method's fields without loading torch
    from qlib.core.records import Report
    from qlib.core.scheme import BitPlan
    from qlib.learning.calibration import Calibration
    from qlib.methods._gradient.design import Design
    from qlib.network.model import QuantModel


@dataclass(frozen=True)
class Method(ABC):
    """A quantization method. Its hyper-parameters are dataclass fields made with `param`.

    The form on the Run page, the saved record, the contract tests and the README row are made
    from these. Files import what needs torch inside `apply`, so that fields can be read without.
    """

    title: ClassVar[str]  # as the field writes it: "AdaRound"
    paper: ClassVar[str]  # "Nagel et al., ICML 2020, arXiv 2004.10568"
    promise: ClassVar[str]  # one line: what the method does
    cost: ClassVar[str]  # "seconds" or "minutes", on a laptop
    paper_settings: ClassVar[dict[str, Any]] = {}  # fields as published
    paper_placement: ClassVar[str] = "inputs"  # where the paper quantizes activations
    learns: ClassVar[bool] = False  # does it fit units to their float outputs, step by step?
    switchable: ClassVar[bool] = False  # can its network be switched between bit-widths?
    noisy: ClassVar[bool] = False  # does it add noise before rounding?
    open_design: ClassVar[bool] = False  # are its fields the axes of the design space themselves?
    look: ClassVar[Look | None] = None  # how figures draw it; without one its name decides
    variants: ClassVar[tuple[Variant, ...]] = ()  # settings that make a line of their own
    ingredient: ClassVar[Ingredient | None] = None  # its step on the way of learned rounding

    def __post_init__(self) -> None:
        params.check(self)

    @abstractmethod
    def apply(
        self, model: "QuantModel", plan: "BitPlan", data: "Calibration", report: "Report"
    ) -> None:
        """Quantize ``model`` in place as ``plan`` says; afterwards every rounding is hard."""

    def design(self) -> "Design | None":
        """The choices that these settings are a point of; None where they are something else."""
        return None


Base = Method


def methods() -> dict[str, type[Method]]:
    """Every method of this folder by its key, the name of its file."""
    return discover("methods")
