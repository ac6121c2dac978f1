"""Iterates over units in order of execution, with their float and their quantized inputs.

Work grows linearly with depth, memory with one boundary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from qlib.core.records import InvalidSpec
from qlib.learning.calibration import Calibration
from qlib.learning.units import BlockUnit, LayerUnit, NetworkUnit, StageUnit, Unit
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer
from qlib.network.stages import Span, spans

_Run = Callable[[Tensor], Tensor]
ONWARD = 16  # images that are carried on at once: between units a pass is what takes most memory


def iter_units(
    model: QuantModel,
    data: Calibration,
    *,
    by: str = "block",
    weights: bool = True,
    inputs: bool = True,
    bit_widths: Mapping[int, Callable[[], None]] | None = None,
) -> Iterator[Unit]:
    """Yield the units in order; what comes before each is quantized as asked.

    While a unit is visited the model is in the state ``weights``, ``inputs``; afterwards the
    unit's output is computed in that state and carried on.

    Args:
        by: "layer", "block", "stage" (see `qlib.network.stages.spans`) or "network".
        bit_widths: bit-widths and what switches the model to each: an input is then carried on for
            every one of them (`Unit.inputs_by_bits`): a forward pass for each unit and width.

    Raises:
        InvalidSpec: the network cannot be cut into such units.
    """
    _check(model, by)
    walk = _Walk(model, data, weights, inputs, bit_widths or {0: lambda: None})
    steps = spans(model, by)
    total = len(model.weighted()) if by == "layer" else len(steps)
    visited = 0
    walk.begin(None if by == "network" else steps[0][0])
    for span, following in zip(steps, [*steps[1:], None], strict=True):
        targets = walk.targets(span, by)
        for unit in walk.units(span, by, targets):
            visited += 1
            unit.index, unit.of, unit.arithmetic = visited, total, data.arithmetic
            with model.quantized(weights=weights, inputs=inputs):
                yield unit
            del unit  # before the next one takes room
        if following is not None:
            walk.advance(span, targets, following[0])


def _check(model: QuantModel, by: str) -> None:
    if by == "stage" and not model.is_sequential:
        raise InvalidSpec(
            "This network's blocks hand more than one tensor on, so they cannot be joined to "
            "stages; choose the unit 'block' or 'network'."
        )


@dataclass
class _Walk:
    """Where the walk stands: what enters the next unit in the float network, and at each width.

    ``switches``: bit-widths and what switches the model to each.
    """

    model: QuantModel
    data: Calibration
    weights: bool
    inputs: bool
    switches: Mapping[int, Callable[[], None]]
    floats: Tensor = field(init=False)
    quants: dict[int, Tensor] = field(init=False)

    def begin(self, start: str | None) -> None:
        """Stand before the unit ``start``; None: before the network itself."""
        self.floats = self.data.images
        if start not in (None, self.model.partial.from_images):
            self.floats = self._reached(start, self._in_float)
        self.quants = dict.fromkeys(self.switches, self.floats)

    def targets(self, span: Span, by: str) -> Tensor:
        """What the units return in the float network."""
        run = self.model.partial
        call = self.model if by == "network" else lambda x: run.run_units(span, x)
        return self._in_float(call, self.floats)

    def units(self, span: Span, by: str, targets: Tensor) -> Iterator[Unit]:
        """The units of the network as one, or each of a unit's layers with weights in turn."""
        inside = [name for unit in span for name in self.model.layers_of(unit)]
        x = next(iter(self.quants.values()))
        if by == "layer":
            yield from self._layers(span, inside, x)
            return
        row = partial(StageUnit, span=span)
        kinds = {"block": BlockUnit, "stage": row, "network": NetworkUnit}
        joined = by == "block" and self.model.partial.joined(span)
        yield (row if joined else kinds[by])(
            model=self.model,
            name=span[0],
            layers={name: self.model.layers[name] for name in inside},
            inputs=x,
            float_inputs=self.floats,
            targets=targets,
            inputs_by_bits=self.quants,
            boundary=None if by == "network" else self.model.boundaries.get(span[0]),
            runs=(0,) if by == "network" else self._runs(span),
        )

    def _runs(self, span: Span) -> tuple[int, ...]:
        """Those runs of a unit in a pass whose tensors are learned from."""
        alone = not self.model.partial.joined(span)
        return tuple(range(self.model.partial.ends[span[0]].runs)) if alone else (0,)

    def _layers(self, span: Span, inside: Sequence[str], x: Tensor) -> Iterator[Unit]:
        """Each layer with a weight; what enters it is worked out from the units' input ``x``."""
        run = self.model.partial
        outer = self._runs(span)
        for layer in inside:
            module, activation = self.model.layers[layer], self.model.activation[layer]
            if not isinstance(module, QuantLayer):
                continue
            inner = run.ends[layer].runs // len(outer) if (layer,) != span else 1
            reach = [partial(run.layer_input, span, layer, run=k) for k in range(max(1, inner))]
            float_inputs = _joined([self._in_float(call, self.floats) for call in reach])
            inputs = _joined([self._quantized(call, x) for call in reach])
            through = partial(run.run_layer, layer, activation)
            targets = self._in_float(through, float_inputs)
            yield LayerUnit(
                model=self.model,
                name=span[0],
                layers={layer: module},
                inputs=inputs,
                float_inputs=float_inputs,
                targets=targets,
                layer=layer,
                activation=activation,
                runs=tuple(u * len(reach) + k for k in range(len(reach)) for u in outer),
            )
            del float_inputs, inputs, targets  # before those of the next layer take room

    def advance(self, span: Span, targets: Tensor, following: str) -> None:
        """Carry both tensors on to the unit ``following``."""
        run, last = self.model.partial, span[-1]
        if self.model.is_sequential:
            onward = lambda x: run.run_between(last, x, following)  # noqa: E731
            self.floats = self._in_float(onward, targets)
            for bits, switch in self.switches.items():
                switch()
                through = lambda x: run.run_units(span, x)  # noqa: E731
                self.quants[bits] = self._quantized(through, self.quants[bits])
                self.quants[bits] = self._in_float(onward, self.quants[bits])
        else:  # run from the images again: slower, never wrong
            self.floats = self._reached(following, self._in_float)
            for bits, switch in self.switches.items():
                switch()
                self.quants[bits] = self._reached(following, self._quantized)

    def _reached(self, unit: str, state: Callable[[_Run, Tensor], Tensor]) -> Tensor:
        """What enters a unit in all its runs, from the images."""
        span = next(span for span in spans(self.model, "block") if span[0] == unit)
        calls = [partial(self.model.partial.run_until, place=unit, run=k) for k in self._runs(span)]
        return _joined([state(call, self.data.images) for call in calls])

    def _in_float(self, call: _Run, x: Tensor) -> Tensor:
        with self.model.quantized(weights=False, inputs=False):
            return _batched(call, x, min(self.data.batch, ONWARD))

    def _quantized(self, call: _Run, x: Tensor) -> Tensor:
        """In the state that the walk was asked for."""
        with self.model.quantized(weights=self.weights, inputs=self.inputs):
            return _batched(call, x, min(self.data.batch, ONWARD))


def _joined(runs: list[Tensor]) -> Tensor:
    return runs[0] if len(runs) == 1 else torch.cat(runs)


@torch.no_grad()
def _batched(call: _Run, x: Tensor, batch: int) -> Tensor:
    """``call`` on batches of ``x``; results in one tensor."""
    first = call(x[:batch])
    if first.data_ptr() == x.data_ptr() and first.shape[1:] == x.shape[1:]:
        return x  # nothing lies between: no copy
    y = first.new_empty((len(x), *first.shape[1:]))
    if first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last):
        y = y.to(memory_format=torch.channels_last)
    y[: len(first)] = first
    for start in range(batch, len(x), batch):
        y[start : start + batch] = call(x[start : start + batch])
    return y
