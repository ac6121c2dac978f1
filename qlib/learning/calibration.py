"""Calibration images, the ranges they give, and what each unit sees.

Two tensors move forward from unit to unit: the float one and the quantized one. Work grows
linearly with depth, memory with one boundary.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from qlib.core.histogram import Histogram
from qlib.core.records import Event, InvalidSpec, Report, ignore
from qlib.core.scheme import BitPlan, Scheme
from qlib.network import stages
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer, QuantPoint
from qlib.network.trace import removing
from qlib.observers.base import Observer
from qlib.quantizers.base import Learner, Quantizer
from qlib.quantizers.switchable import Switchable
from qlib.quantizers.uniform import Uniform

ONWARD = 16  # images that are carried on at once: between units a pass is what takes most memory


@dataclass
class Unit:
    """One unit while it is being fitted. Tensors hold all calibration images, images first.

    ``inputs``: what the unit receives when everything before it is quantized (as the walk asked);
    ``float_inputs``: the same in the float network; ``targets``: the float network's output.
    ``inputs_by_bits``: the inputs at each bit-width, where the walk goes through several.
    ``span``: the units of a stage, of which ``name`` is the first; ``whole``: all of the network,
    from the images to the answers.
    """

    name: str
    index: int
    of: int
    model: QuantModel
    layers: dict[str, QuantLayer | nn.Module]
    inputs: Tensor
    float_inputs: Tensor
    targets: Tensor
    boundary: QuantPoint | None = None
    activation: nn.Module | None = None
    layer: str | None = None  # set when the unit is one layer inside a block
    inputs_by_bits: Mapping[int, Tensor] = field(default_factory=dict)
    arithmetic: torch.dtype = torch.float32
    span: tuple[str, ...] = ()
    whole: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.whole:
            return self.model(x)
        if self.layer is None:
            return stages.call(self.model, self.span or (self.name,), x)
        y = self.layers[self.layer](x)
        return y if self.activation is None else self.activation(y)

    @property
    def title(self) -> str:
        if self.whole:
            return "whole network"
        several = len(self.span) > 1
        return f"{self.span[0]} … {self.span[-1]}" if several else self.layer or self.name

    @property
    def weighted(self) -> list[QuantLayer]:
        return [layer for layer in self.layers.values() if isinstance(layer, QuantLayer)]

    @property
    def channels(self) -> int:
        """Output channels: what the reconstruction error is summed over."""
        return self.weighted[-1].weight.shape[0] if self.weighted else self.targets.shape[-1]

    def points(self) -> list[QuantPoint]:
        """Activation points in use inside the unit, its boundary first."""
        inside = self.span if self.whole else self.span[1:]
        inner = [self.model.boundaries[name] for name in inside if name in self.model.boundaries]
        inner += [p for layer in self.layers.values() for p in layer.points().values()]
        used = set(map(id, self.model.points.values()))
        points = [p for p in inner if id(p) in used]
        return ([self.boundary] if self.boundary else []) + points

    def replace_weights(self, make: Callable[[Quantizer, Tensor], Quantizer]) -> None:
        """Swap each weight's fitted quantizer for ``make(it, float weight)``; float ones stay."""
        for layer in self.weighted:
            fitted = layer.weight_point.quantizer
            if fitted is not None:
                layer.weight_point.fill(make(fitted, layer.weight))

    def quantizers(self) -> list[Quantizer]:
        """Of weights and of activations, filled ones only."""
        points = [layer.weight_point for layer in self.weighted] + self.points()
        return [p.quantizer for p in points if p.quantizer is not None]

    def learners(self) -> list[Learner]:
        """All that can be learned: the quantizers, and corrections of biases if there are any."""
        corrections = [layer.correction for layer in self.weighted if layer.correction is not None]
        return self.quantizers() + corrections


@dataclass
class Calibration:
    """Unlabelled images that a method may use, and how ranges are chosen from them.

    Args:
        images: (n, c, h, w), preprocessed, on the device of the model.
        generator: all randomness of a method comes from here.
        arithmetic: what layers multiply in while something is learned (see `qlib.network.points`).
    """

    images: Tensor
    generator: torch.Generator
    weight_observer: Observer
    act_observer: Observer
    batch: int = 64
    report: Report = ignore
    arithmetic: torch.dtype = torch.float32
    _histograms: dict[tuple[str, bool], Histogram] = field(default_factory=dict)

    def attach(self, model: QuantModel, plan: BitPlan) -> None:
        """Give every tensor of the plan a nearest-rounding quantizer."""
        self.attach_weights(model, plan)
        self.attach_inputs(model, plan)

    def attach_weights(
        self, model: QuantModel, plan: BitPlan, *, widths: Collection[int] = ()
    ) -> None:
        """Ranges from the weights themselves.

        ``widths``: a grid for each of these bit-widths, save where the plan's bits are fixed.
        """
        for i, (name, layer) in enumerate(model.weighted().items()):
            scheme = plan.weights.get(name)
            layer.correction = None
            fit = lambda s, w=layer.weight: Uniform.fit(w, s, self.weight_observer)  # noqa: E731
            wanted = () if name in plan.fixed else widths
            layer.weight_point.fill(_fitted(scheme, wanted, fit) if scheme else None)
            self.report(Event("calibrate", name, i + 1, len(model.layers), note="weights"))

    @torch.no_grad()
    def attach_inputs(
        self,
        model: QuantModel,
        plan: BitPlan,
        *,
        weights_quantized: bool = False,
        widths: Collection[int] = (),
    ) -> None:
        """Ranges from streamed histograms of the float network's activations.

        ``weights_quantized``: of the network with quantized weights instead (BRECQ's stage two).
        ``widths``: as in `attach_weights`.
        """
        seen = self.histograms(model, weights_quantized=weights_quantized)
        for name, point in model.points.items():
            scheme = plan.inputs.get(name)
            fit = lambda s, seen=seen[name]: self._range(seen, s)  # noqa: E731
            wanted = () if name.rpartition(".")[0] in plan.fixed else widths
            point.quantizer = _fitted(scheme, wanted, fit) if scheme else None

    def _range(self, seen: Histogram, scheme: Scheme) -> Quantizer:
        values, counts = seen.values()
        lo, hi = self.act_observer.find_range(values, scheme, counts)
        device = self.images.device
        return Uniform.of_range(lo[0].to(device), hi[0].to(device), scheme)

    @torch.no_grad()
    def histograms(
        self, model: QuantModel, *, weights_quantized: bool = False
    ) -> dict[str, Histogram]:
        """One histogram for each activation point; float ones are made once and kept."""
        if not weights_quantized and self._histograms:
            return self._histograms
        found = {name: Histogram() for name in model.points}
        hooks = [
            point.register_forward_pre_hook(lambda m, args, h=found[name]: h.update(args[0]))
            for name, point in model.points.items()
        ]
        with removing(hooks), model.quantized(weights=weights_quantized, inputs=False):
            for start in range(0, len(self.images), self.batch):
                model(self.images[start : start + self.batch])
                self.report(Event("calibrate", "", start, len(self.images), note="activations"))
        if not weights_quantized:
            self._histograms = found
        return found

    def iter_units(
        self,
        model: QuantModel,
        *,
        by: str = "block",
        weights: bool = True,
        inputs: bool = True,
        widths: Mapping[int, Callable[[], None]] | None = None,
    ) -> Iterator[Unit]:
        """Visit the units in order; what comes before each is quantized as asked.

        While a unit is visited the model is in the state ``weights``, ``inputs``; afterwards the
        unit's output is computed in that state and carried on.

        ``widths``: bit-widths and what switches the model to each: an input is then carried on for
        every one of them (`Unit.inputs_by_bits`): a forward pass for each unit and width.

        Args:
            by: "layer", "block", "stage" (see `qlib.network.stages.stages`) or "network".

        Raises:
            InvalidSpec: the network cannot be cut into such units.
        """
        if by == "network":
            yield from self._whole(model, weights, inputs)
            return
        _check_walk(model, by)
        steps = stages.stages(model) if by == "stage" else [(name,) for name in model.units()]
        total = len(steps if by == "stage" else model.units(by))
        visited, start = 0, steps[0][0]
        floats = self._each(lambda x: model.run_until(x, start), self.images, model, False, False)
        widths = widths or {0: lambda: None}
        quants = dict.fromkeys(widths, floats)
        for span, onward in zip(steps, [*steps[1:], None], strict=True):
            name, then = span[-1], onward and onward[0]
            call = lambda x, span=span: stages.call(model, span, x)  # noqa: E731
            targets = self._each(call, floats, model, False, False)
            first = next(iter(quants.values()))
            for unit in self._views(model, span, by, floats, first, targets, weights, inputs):
                visited += 1
                unit.index, unit.of, unit.inputs_by_bits = visited, total, quants
                unit.arithmetic = self.arithmetic
                with model.quantized(weights=weights, inputs=inputs):
                    yield unit
                del unit  # before the next one takes room
            del first
            if then is None:
                return
            if model.is_sequential:
                floats = self._run_between(model, name, targets, then)
            else:  # run from the images again: slower, never wrong
                call = lambda x, then=then: model.run_until(x, then)  # noqa: E731
                floats = self._each(call, self.images, model, False, False)
                quants = dict.fromkeys(widths, self.images)
            for bits, switch in widths.items():
                switch()
                quants[bits] = self._each(call, quants[bits], model, weights, inputs)
                if model.is_sequential:
                    quants[bits] = self._run_between(model, name, quants[bits], then)

    def output_gradients(self, model: QuantModel, unit: Unit) -> Tensor:
        """∂L/∂(unit output) in the float network for every image: shaped like ``unit.targets``.

        L is the cross-entropy to a label drawn from the network's own prediction, so that the
        mean square of the gradient is the diagonal of the true Fisher matrix.
        """
        found = torch.empty_like(unit.targets)
        with model.quantized(weights=False, inputs=False), torch.enable_grad():
            for start in range(0, len(found), self.batch):
                part = slice(start, start + self.batch)
                y = unit.targets[part].detach().requires_grad_(True)
                logits = self._answers(model, unit, part, y)
                labels = torch.multinomial(logits.softmax(1), 1, generator=self.generator)
                loss = nn.functional.cross_entropy(logits, labels[:, 0], reduction="sum")
                (found[part],) = torch.autograd.grad(loss, y)
        return found

    def _answers(self, model: QuantModel, unit: Unit, part: slice, y: Tensor) -> Tensor:
        """Logits of some images, with ``y`` in place of what the unit returns."""
        if unit.whole:
            return y
        if unit.layer is not None:
            return model.rerun_layer(self.images[part], unit.layer, unit.activation, y)
        last = unit.span[-1] if unit.span else unit.name
        if model.is_sequential:
            return model.run_between(last, y, None)
        return model.rerun(self.images[part], last, y)

    def _whole(self, model: QuantModel, weights: bool, inputs: bool) -> Iterator[Unit]:
        """All of the network as one unit; needs no cuts, so it works for any network."""
        targets = self._each(model, self.images, model, False, False)
        units = tuple(model.units())
        with model.quantized(weights=weights, inputs=inputs):
            yield Unit(units[0], 1, 1, model, dict(model.layers), self.images, self.images, targets,
                       span=units, whole=True, arithmetic=self.arithmetic)  # fmt: skip

    def _views(
        self,
        model: QuantModel,
        span: tuple[str, ...],
        by: str,
        floats: Tensor,
        quants: Tensor,
        targets: Tensor,
        weights: bool,
        inputs: bool,
    ) -> Iterator[Unit]:
        """The unit itself, or each of its layers with weights in turn."""
        name = span[0]
        layers = {n: model.layers[n] for unit in span for n in model.layers_of(unit)}
        if by != "layer":
            yield Unit(name, 0, 0, model, layers, quants, floats, targets,
                       boundary=model.boundaries.get(name), span=span)  # fmt: skip
            return
        for layer in (n for n, m in layers.items() if isinstance(m, QuantLayer)):
            act = model.activation[layer]
            reach = lambda x, layer=layer: _inner(model, name, layer, x)  # noqa: E731
            float_in = self._each(reach, floats, model, False, False)
            quant_in = self._each(reach, quants, model, weights, inputs)
            apply = lambda x, m=layers[layer], act=act: (act or nn.Identity())(m(x))  # noqa: E731
            target = self._each(apply, float_in, model, False, False)
            yield Unit(name, 0, 0, model, {layer: layers[layer]}, quant_in, float_in, target,
                       activation=act, layer=layer)  # fmt: skip
            del float_in, quant_in, target  # before those of the next layer take room

    @torch.no_grad()
    def _each(self, call, x: Tensor, model: QuantModel, weights: bool, inputs: bool) -> Tensor:
        """``call`` on batches of ``x`` in one state of the model; results in one tensor."""
        with model.quantized(weights=weights, inputs=inputs):
            batch = min(self.batch, ONWARD)
            first = call(x[:batch])
            if first.data_ptr() == x.data_ptr() and first.shape[1:] == x.shape[1:]:
                return x  # nothing lies between: no copy
            y = _empty_like_batch(first, len(x))
            y[: len(first)] = first
            for start in range(batch, len(x), batch):
                y[start : start + batch] = call(x[start : start + batch])
        return y

    def _run_between(self, model: QuantModel, unit: str, x: Tensor, until: str) -> Tensor:
        return self._each(lambda part: model.run_between(unit, part, until), x, model, False, False)


def _check_walk(model: QuantModel, by: str) -> None:
    if not model.walkable:
        raise InvalidSpec(
            "This network's blocks exchange several tensors, so it cannot be reconstructed "
            "block by block; use the method 'nearest'."
        )
    if by == "stage" and not model.is_sequential:
        raise InvalidSpec(
            "This network's blocks hand more than one tensor on, so they cannot be joined to "
            "stages; choose the unit 'block' or 'network'."
        )


def _fitted(
    scheme: Scheme, widths: Collection[int], fit: Callable[[Scheme], Quantizer]
) -> Quantizer:
    """One grid, or one for each of some bit-widths."""
    if not widths:
        return fit(scheme)
    return Switchable({bits: fit(replace(scheme, bits=bits)) for bits in widths})


def _inner(model: QuantModel, unit: str, layer: str, x: Tensor) -> Tensor:
    """The input of a layer inside a unit, given the unit's input."""
    if layer == unit:
        return x
    found: list[Tensor] = []

    class _Stop(Exception):
        pass

    def stop(module: nn.Module, args: tuple) -> None:
        found.append(args[0])
        raise _Stop

    with removing([model.layers[layer].register_forward_pre_hook(stop)]):
        try:
            model.call_unit(unit, x)
        except _Stop:
            return found[0]
    raise RuntimeError(f"{unit} ended before it reached {layer}.")


def _empty_like_batch(first: Tensor, n: int) -> Tensor:
    """Room for ``n`` images laid out like a batch of them (keeps channels-last)."""
    empty = first.new_empty((n, *first.shape[1:]))
    if first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last):
        return empty.to(memory_format=torch.channels_last)
    return empty
