"""The contract of a bit allocator: who gets how many bits."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from qlib.core import params
from qlib.core.registry import discover
from qlib.core.scheme import BitPlan, Scheme

if TYPE_CHECKING:
    from qlib.network.model import QuantModel

EDGES = ("8-bit", "same", "float")


@dataclass(frozen=True)
class Allocator(ABC):
    """Decides the bit-width of every layer.

    A run applies it once and keeps the plan (`qlib.core.records.RunRecord.plan`), so that it may
    look at the network as long as it likes: ``model.macs``, its weights, what units it has.
    """

    title: ClassVar[str]

    def __post_init__(self) -> None:
        params.check(self)

    @abstractmethod
    def spread(self, model: "QuantModel", weight: Scheme, act: Scheme) -> BitPlan:
        """The grid of every weight (`QuantModel.weighted`) and activation point (``points``).

        ``weight``, ``act``: the grids that were asked for; change their bits with `replace`.
        """

    def allocate(
        self, model: "QuantModel", weight: Scheme, act: Scheme, *, edge_layers: str = "8-bit"
    ) -> BitPlan:
        """The plan of `spread`, but for the edges.

        With the ``boundary`` placement the image itself is left as it is (it has 256 levels
        already), as BRECQ and QDrop do.

        Args:
            edge_layers: the first and the last layers (all of them where there are several stems or
                heads) at 8 bits, at the ``same`` bits as `spread` says, or in float.
        """
        if edge_layers not in EDGES:
            raise ValueError(f"edge_layers must be one of {EDGES}; got {edge_layers!r}.")
        plan, ends = self.spread(model, weight, act), {*model.first_layers, *model.last_layers}
        edges = ends if edge_layers != "same" else set()
        weights = {n: s for n, s in plan.weights.items() if n not in edges}
        inputs = {p: s for p, s in plan.inputs.items() if p.rpartition(".")[0] not in edges}
        if edge_layers == "8-bit":
            weights |= {n: replace(s, bits=8) for n, s in plan.weights.items() if n in edges}
            inputs |= {p: replace(s, bits=8) for p, s in plan.inputs.items() if p not in inputs}
        if model.placement == "boundary":
            images = {f"{name}.input" for name in model.first_layers}
            inputs = {p: s for p, s in inputs.items() if p not in images}
        return BitPlan(weights, inputs, frozenset(edges if edge_layers == "8-bit" else ()))


Base = Allocator


def allocators() -> dict[str, type[Allocator]]:
    """Every allocator of this folder by its key, the name of its file."""
    return discover("allocators")
