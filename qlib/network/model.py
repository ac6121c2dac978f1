"""A copy of a float network that can be quantized: its layers, quantization points and units.

The network is a copy, rewritten exactly (`attention`, `fold`).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from qlib.core.records import InvalidSpec
from qlib.network.answers import Answers, Classes
from qlib.network.attention import MatMul, rewrite_attention
from qlib.network.coverage import OWN, coverage
from qlib.network.cuts import find_cuts
from qlib.network.edges import edges
from qlib.network.fold import fold_batch_norm
from qlib.network.inplace import overwrites_saved
from qlib.network.plain_layers import multiplies_as_it_is, multiplies_by_itself, plain_layers
from qlib.network.points import QuantLayer, QuantMatMul, QuantPoint
from qlib.network.ports import leaf, replaced
from qlib.network.products import expose_products, keep_apart
from qlib.network.replace import float_copy, replace_all
from qlib.network.trace import Call, Trace, trace

PLACEMENTS = ("inputs", "boundary")
# by name: timm has classes of its own beside PyTorch's
_ACTIVATIONS = {"ReLU", "ReLU6", "LeakyReLU", "PReLU", "GELU", "GELUTanh", "QuickGELU"}
_ACTIVATIONS |= {"SiLU", "Swish", "Hardswish", "HardSwish", "Mish"}


class QuantModel(nn.Module):
    """A quantizable copy of a network: its layers in order of execution, its units and points.

    Attributes:
        layers: name → `QuantLayer` or `QuantMatMul`, in order of execution.
        blocks: names of reconstruction blocks, in order of execution.
        points: name → activation point in use: ``LAYER.input``, ``LAYER.left``, ``LAYER.right``,
            ``BLOCK.boundary``.
        macs: layer name → multiply–accumulates for one image, all calls together.
        float_macs: multiply–accumulates for one image outside of ``layers``.
        float_weights: numbers that multiply outside of ``layers``.
        first_layers, last_layers: those that read the images, and those that give the answer.
        partial: runs of parts of it.
        spans: units that are run and learned together, in order of execution: one each, save where
            units exchange several tensors.
        is_sequential: does one tensor cross from span to span, so that it can be carried on?
        overwritten: layers whose output is written into after they have returned it.
        coverage: what multiplies in it, inside of these layers and outside.
        answers: what the outputs mean; scores of classes unless somebody says otherwise.
        notes: what a reader of results should know about the rewriting.
    """

    answers: Answers = Classes()

    def __init__(
        self,
        net: nn.Module,
        example: Tensor,
        blocks: Sequence[str] = (),
        placement: str = "inputs",
    ) -> None:
        """Copy ``net`` (float, any device) and make it quantizable.

        Args:
            example: two or more preprocessed images (n, c, h, w); one pass shows the structure.

        Raises:
            InvalidSpec: the network has no layer that could be quantized.
        """
        super().__init__()
        if placement not in PLACEMENTS:
            raise ValueError(f"placement must be one of {PLACEMENTS}; got {placement!r}.")
        self.placement, self.notes = placement, []
        try:
            self.net, layers = self._wrapped(net, example)
            _check_same(net, self.net, example)
        except ArithmeticError as error:
            self.notes.append(f"{error} What it multiplies outside of layers stays in float.")
            self.net, layers = self._wrapped(net, example, products=False)
        with _by_position(layers.values()):
            seen = trace(self.net, example)
        self._read_structure(seen, layers, blocks, example)
        self.coverage = coverage(self.net, example, self.layers)
        self.float_macs = sum(self.coverage.left_float.values())
        self.float_weights = _float_weights(self.net, self.coverage.left_float)
        self.notes += _told_calls(seen, self.layers)
        self.first_layers, self.last_layers = edges(self.net, self.weighted(), example)
        self.notes += _told_edges(self.first_layers, self.last_layers)
        self.eval()

    def _wrapped(
        self, net: nn.Module, example: Tensor, *, products: bool = True
    ) -> tuple[nn.Module, dict[str, QuantLayer | QuantMatMul]]:
        """A rewritten copy of ``net``, and its layers by name, which are in it already."""
        copied = self._folded(net, example)
        if products:
            expose_products(copied, example, multiplies_by_itself)
        plain = {name: m for name, m in copied.named_modules() if _quantizable(m)}
        layers = {name: _wrapped(module) for name, module in plain.items()}
        replace_all(copied, {module: layers[name] for name, module in plain.items()})
        keep_apart(copied, layers.values())
        return copied, layers

    def _folded(self, net: nn.Module, example: Tensor) -> nn.Module:
        def fresh() -> nn.Module:
            made = float_copy(net)
            notes[:] = plain_layers(made, example)
            made = rewrite_attention(made)
            for module in made.modules():
                if getattr(module, "inplace", False):
                    # captured tensors must stay what they were; the stub lets a module have no
                    # attributes but tensors and modules
                    module.inplace = False  # pyright: ignore[reportArgumentType]
                if isinstance(module, nn.TransformerEncoderLayer):
                    module.activation_relu_or_gelu = 0  # else it reads weights past its layers
                if isinstance(module, nn.TransformerEncoder):
                    module.use_nested_tensor = False  # the same
            return made

        notes: list[str] = []
        try:
            folded = fold_batch_norm(fresh(), example)[0]
        except ArithmeticError as error:
            folded = fresh()
            notes.append(f"{error} They are left unfolded and in float.")
        self.notes += [note for note in notes if note not in self.notes]
        return folded

    def _read_structure(
        self,
        seen: Trace,
        layers: dict[str, QuantLayer | QuantMatMul],
        blocks: Sequence[str],
        example: Tensor,
    ) -> None:
        order = seen.order(set(layers))
        if not order:
            raise InvalidSpec(
                "This network has no convolution, linear layer or attention product that runs, "
                "so there is nothing to quantize; choose another one."
            )
        self.layers = {name: layers[name] for name in order}
        self.blocks = seen.order(set(blocks))
        self.macs = {name: _macs(seen.of(name), len(example)) for name in order}
        self.activation = {name: _follower(seen, name) for name in order}
        self.overwritten = seen.overwritten & set(order)
        if seen.writes_images:
            self.net.register_forward_pre_hook(lambda module, args: (args[0].clone(), *args[1:]))
        cuts = find_cuts(self.net, example, self.units(), list(self.weighted()))
        self.partial, self.spans, self.is_sequential = cuts.partial, cuts.spans, cuts.is_sequential
        self.notes += cuts.notes
        self._saves_copies = seen.writes and overwrites_saved(self.net, example)
        self._place_points(seen)

    def _place_points(self, seen: Trace) -> None:
        entries = {name: self.partial.ends[name].given.first for name in self.blocks}
        places = {name: place for name, place in entries.items() if place is not None}
        self.boundaries = {name: QuantPoint() for name in places if self._bounded}
        self.points: dict[str, QuantPoint] = {}
        entering = list[tuple[Tensor, int]]()
        for name, point in self.boundaries.items():
            call, module = seen.of(name)[0], self.net.get_submodule(name)
            tensor = leaf((call.args, call.kwargs), places[name])
            entering.append((tensor, call.versions[id(tensor)]))
            hook = partial(_through, point, places[name])
            module.register_forward_pre_hook(hook, with_kwargs=True)
        for unit in self.units():
            if unit in self.boundaries:
                self.points[f"{unit}.boundary"] = self.boundaries[unit]
            for name in self.layers_of(unit):
                calls = seen.of(name)
                inside = all(any(call.reads(*t) for t in entering) for call in calls)
                shared = inside and name not in self.boundaries
                for tensor, point in self.layers[name].points().items():
                    if not shared:
                        self.points[f"{name}.{tensor}"] = point

    @property
    def _bounded(self) -> bool:
        return self.placement == "boundary"

    def units(self, by: str = "block") -> list[str]:
        """Names of the units in order of execution.

        ``by="block"``: blocks, and the layers outside of them. ``by="layer"``: layers with weights.
        """
        weighted = [n for n, layer in self.layers.items() if isinstance(layer, QuantLayer)]
        if by == "layer":
            return weighted
        units = []
        for name in self.layers:
            unit = self.unit_of(name)
            if unit not in units:
                units.append(unit)
        return units

    def unit_of(self, layer: str) -> str:
        """The block that holds a layer, or the layer itself."""
        return next((b for b in self.blocks if layer == b or layer.startswith(b + ".")), layer)

    def boundary_of(self, layer: str) -> QuantPoint | None:
        """Name of the boundary whose quantized tensor a layer with a weight reads, if any."""
        if f"{layer}.input" in self.points:
            return None
        return self.boundaries.get(self.unit_of(layer))

    def layers_of(self, unit: str) -> list[str]:
        """Layers of a unit, in order of execution."""
        return [name for name in self.layers if self.unit_of(name) == unit]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def switch(self, *, weights: bool, inputs: bool) -> None:
        """Switch quantization of all filled weight points and activation points on or off."""
        for layer in self.layers.values():
            if isinstance(layer, QuantLayer):
                layer.weight_point.on = weights
        for point in self.points.values():
            point.on = inputs

    @contextmanager
    def quantized(self, *, weights: bool, inputs: bool) -> Iterator[None]:
        """`switch` inside a ``with`` block: the former state comes back, also after an error."""
        points = [layer.weight_point for layer in self.weighted().values()]
        points += list(self.points.values())
        before = [(point, point.on) for point in points]
        self.switch(weights=weights, inputs=inputs)
        try:
            yield
        finally:
            for point, on in before:
                point.on = on

    def weighted(self) -> dict[str, QuantLayer]:
        """The layers that have a weight, by name."""
        return {n: m for n, m in self.layers.items() if isinstance(m, QuantLayer)}

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """Inside a ``with`` block results can be differentiated, whatever writes into tensors."""
        saving = torch.autograd.graph.allow_mutation_on_saved_tensors()
        with torch.enable_grad(), saving if self._saves_copies else nullcontext():
            yield


@torch.no_grad()
def _check_same(net: nn.Module, rewritten: nn.Module, example: Tensor) -> None:
    """Raises:
    ArithmeticError: the rewritten network computes something else, on the example or on noise.
    """
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(1)).to(example)
    copied = float_copy(net) if any(m.training for m in net.modules()) else net
    for images in (example, noise):
        for one, two in zip(
            _tensors(copied(images.clone())), _tensors(rewritten(images.clone())), strict=True
        ):
            gap = (one - two).abs().max()
            if not gap <= 1e-3 * one.abs().max().clamp(min=1e-3):
                raise ArithmeticError(f"Rewriting this network changed its output by {gap:.2g}.")


def _tensors(output: object) -> list[Tensor]:
    leaves = tree_leaves(output)
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]


def _through(
    point: QuantPoint, place: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A hook: one tensor of what enters a module goes through a point."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return (point(args[0]),), kwargs
    return replaced((args, kwargs), place, point)


@contextmanager
def _by_position(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Calls of layers by keyword become calls by position, for good where one was seen inside."""
    asked = set()

    def turn(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if args or not kwargs:
            return None
        asked.add(module)
        return tuple(kwargs.values()), {}

    hooks = {m: m.register_forward_pre_hook(turn, with_kwargs=True) for m in layers}
    try:
        yield
    finally:
        for module, hook in hooks.items():
            if module not in asked:
                hook.remove()


def _quantizable(module: nn.Module) -> bool:
    return isinstance(module, MatMul) or multiplies_as_it_is(module)


def _wrapped(module: nn.Module) -> QuantLayer | QuantMatMul:
    return QuantMatMul(module) if isinstance(module, MatMul) else QuantLayer(module)


def _float_weights(net: nn.Module, left_float: Iterable[str]) -> int:
    """Numbers in the matrices of the modules that multiply in float.

    ``left_float``: their names with the kind of product, see `Coverage`. What torch.jit has
    compiled multiplies in the name of the module around it.
    """
    names = {part.rpartition(" ")[0].removesuffix(OWN) for part in left_float}
    modules = [net.get_submodule(name) for name in names]
    modules += [c for m in modules for c in m.modules() if isinstance(c, torch.jit.ScriptModule)]
    own = {id(p): p.numel() for m in modules for p in m.parameters(recurse=False) if p.dim() > 1}
    return sum(own.values())


def _told_calls(seen: Trace, layers: dict[str, QuantLayer | QuantMatMul]) -> list[str]:
    """A note on layers that run several times: their grids serve all calls."""
    counts = {name: len(seen.of(name)) for name in layers}
    several = [f"{name} ({n} times)" for name, n in counts.items() if n > 1]
    if not several:
        return []
    return [
        "Layers that run more than once for an image have one grid for their weight and one for "
        f"their inputs, whatever the call: {', '.join(several)}."
    ]


def _told_edges(first: list[str], last: list[str]) -> list[str]:
    """A note where more than one layer reads the images, or gives the answer."""
    notes = []
    if len(first) > 1:
        notes.append(f"All layers that read the images are first layers: {', '.join(first)}.")
    if len(last) > 1:
        notes.append(f"All layers that give the answer are last layers: {', '.join(last)}.")
    return notes


def _follower(seen: Trace, name: str) -> nn.Module | None:
    """The activation function that directly follows a layer and alone reads it."""
    output = seen.of(name)[0].output
    readers = [c for c in seen.readers(output) if not isinstance(c.module, nn.Identity)]
    acts = [c.module for c in readers if type(c.module).__name__ in _ACTIVATIONS]
    leaves = [c for c in readers if not any(c.module.children())]
    return acts[0] if len(acts) == 1 and len(leaves) == 1 else None


def _macs(calls: list[Call], batch: int) -> int:
    """Multiply–accumulates of a layer for one image, from the shapes that were seen."""
    total = 0
    for call in calls:
        module, out = call.module, call.output
        if isinstance(module, QuantLayer):
            total += module.macs(call.input, out)
        else:
            total += out.numel() * call.args[0].shape[-1]
    return total // batch
