"""The same bits for all layers, the first and the last apart."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qlib.allocation.base import EDGES, Allocator
from qlib.core.scheme import BitPlan, Scheme

if TYPE_CHECKING:
    from qlib.network.model import QuantModel


@dataclass(frozen=True)
class Same(Allocator):
    """Uniform precision.

    With the ``boundary`` placement the image itself is left as it is (it has 256 levels already),
    as BRECQ and QDrop do.
    """

    title = "same for all"

    def allocate(
        self, model: "QuantModel", weight: Scheme, act: Scheme, *, edge_layers: str = "8-bit"
    ) -> BitPlan:
        if edge_layers not in EDGES:
            raise ValueError(f"edge_layers must be one of {EDGES}; got {edge_layers!r}.")
        names = list(model.weighted())
        edges = {names[0], names[-1]}
        eight = {"8-bit": lambda s: replace(s, bits=8), "same": lambda s: s}.get(edge_layers)
        weights = {name: weight for name in names if name not in edges}
        inputs = {}
        for point in model.points:
            if point.rpartition(".")[0] not in edges:
                inputs[point] = act
        if eight is not None:
            weights |= {name: eight(weight) for name in names if name in edges}
            edge_points = [p for p in model.points if p.rpartition(".")[0] in edges]
            inputs |= {point: eight(act) for point in edge_points}
        if model.placement == "boundary":
            inputs.pop(f"{names[0]}.input", None)
        return BitPlan(weights, inputs, frozenset(edges if edge_layers == "8-bit" else ()))
