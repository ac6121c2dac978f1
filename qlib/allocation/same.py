"""The same bits for all layers, the first and the last apart."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlib.allocation.base import Allocator
from qlib.core.scheme import BitPlan, Scheme

if TYPE_CHECKING:
    from qlib.network.model import QuantModel


@dataclass(frozen=True)
class Same(Allocator):
    """Uniform precision."""

    title = "same for all"

    def spread(self, model: "QuantModel", weight: Scheme, act: Scheme) -> BitPlan:
        return BitPlan(dict.fromkeys(model.weighted(), weight), dict.fromkeys(model.points, act))
