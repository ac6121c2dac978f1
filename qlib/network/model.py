"""A copy of a float network that can be quantized: its layers, quantization points and units.

The network is a copy, rewritten exactly (`attention`, `fold`).
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from qlib.core.records import InvalidSpec
from qlib.network.answers import Answers, Classes
from qlib.network.attention import MatMul, rewrite_attention
from qlib.network.coverage import coverage
from qlib.network.fold import fold_batch_norm
from qlib.network.partial_forward import PartialForward
from qlib.network.points import QuantLayer, QuantMatMul, QuantPoint
from qlib.network.products import expose_products, keep_apart
from qlib.network.trace import Call, Trace, trace

PLACEMENTS = ("inputs", "boundary")
LAYERS = (nn.Conv2d, nn.Linear)  # quantized as they are
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
        macs: layer name → multiply–accumulates for one image.
        partial: runs of parts of it.
        walkable: can each unit be run on its input alone?
        is_sequential: moreover, does one tensor cross from unit to unit, so that it can be carried?
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
        seen = trace(self.net, example)
        self._read_structure(seen, layers, blocks, len(example))
        self.coverage = coverage(self.net, example, self.layers)
        self.eval()

    def _wrapped(
        self, net: nn.Module, example: Tensor, *, products: bool = True
    ) -> tuple[nn.Module, dict[str, QuantLayer | QuantMatMul]]:
        """A rewritten copy of ``net``, and its layers by name, which are in it already."""
        copied = self._folded(net, example)
        if products:
            expose_products(copied, example, LAYERS)
        layers = {name: _wrapped(m) for name, m in copied.named_modules() if _quantizable(m)}
        for name, layer in layers.items():
            copied.set_submodule(name, layer)
        keep_apart(copied, layers.values())
        return copied, layers

    def _folded(self, net: nn.Module, example: Tensor) -> nn.Module:
        def fresh() -> nn.Module:
            made = rewrite_attention(copy.deepcopy(net).eval().requires_grad_(False))
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

        try:
            return fold_batch_norm(fresh(), example)[0]
        except ArithmeticError as error:
            note = f"{error} They are left unfolded and in float."
            self.notes += [note] if note not in self.notes else []
            return fresh()

    def _read_structure(
        self,
        seen: Trace,
        layers: dict[str, QuantLayer | QuantMatMul],
        blocks: Sequence[str],
        batch: int,
    ) -> None:
        order = seen.order(set(layers))
        if not order:
            raise InvalidSpec(
                "This network has no convolution, linear layer or attention product that runs, "
                "so there is nothing to quantize; choose another one."
            )
        self.layers = {name: layers[name] for name in order}
        self.blocks = seen.order(set(blocks))
        self.macs = {name: _macs(seen.of(name), batch) for name in order}
        self._refuse_keywords(seen, {*order, *self.units()})
        self.activation = {name: _follower(seen, name) for name in order}
        calls = {name: seen.of(name)[0] for name in self.units()}
        image_shape = tuple(seen.calls[0].input.shape[1:])
        self.partial = PartialForward(self.net, calls, image_shape)
        self.walkable = _one_tensor_each(calls.values(), batch)
        once = all(len(seen.of(name)) == 1 for name in calls)
        self.is_sequential = self.walkable and once and self._carries(calls, seen.output)
        self._place_points(seen, calls)

    def _refuse_keywords(self, seen: Trace, names: set[str]) -> None:
        """Raises:
        InvalidSpec: a layer or a block gets its input by keyword, where no hook finds it.
        """
        named = [call.name for call in seen.calls if call.name in names and not call.args]
        if named:
            raise InvalidSpec(
                f"The network calls its part {named[0]!r} with the input as a keyword argument; "
                "give it as the first argument, such as part(x)."
            )

    def _place_points(self, seen: Trace, calls: dict[str, Call]) -> None:
        self.boundaries = {name: QuantPoint() for name in self.blocks if self._bounded}
        self.points: dict[str, QuantPoint] = {}
        for name, point in self.boundaries.items():
            module = self.net.get_submodule(name)
            module.register_forward_pre_hook(partial(_through, point))
        entering = {id(calls[name].input) for name in self.boundaries}
        for unit in self.units():
            if unit in self.boundaries:
                self.points[f"{unit}.boundary"] = self.boundaries[unit]
            for name in self.layers_of(unit):
                shared = id(seen.of(name)[0].input) in entering and name not in self.boundaries
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

    def _carries(self, calls: dict[str, Call], answers: Tensor) -> bool:
        """Does one tensor cross from unit to unit? Tried out on the example."""
        here = list(calls.values())
        with torch.no_grad():
            try:
                for one, then in zip(here, [*here[1:], None], strict=True):
                    want = answers if then is None else then.input
                    got = self.partial.run_between(one.name, one.output, then and then.name)
                    if not torch.allclose(got, want, rtol=1e-4, atol=1e-5):
                        return False
            except (RuntimeError, ValueError):
                return False
        return True


@torch.no_grad()
def _check_same(net: nn.Module, rewritten: nn.Module, example: Tensor) -> None:
    """Raises:
    ArithmeticError: the rewritten network computes something else, on the example or on noise.
    """
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(1)).to(example)
    copied = copy.deepcopy(net).eval() if net.training else net
    for images in (example, noise):
        for one, two in zip(_tensors(copied(images)), _tensors(rewritten(images)), strict=True):
            gap = (one - two).abs().max()
            if not gap <= 1e-3 * one.abs().max().clamp(min=1e-3):
                raise ArithmeticError(f"Rewriting this network changed its output by {gap:.2g}.")


def _tensors(output: object) -> list[Tensor]:
    leaves = tree_leaves(output)
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]


def _through(point: QuantPoint, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A hook: what enters a module goes through a point."""
    return point(args[0]), *args[1:]


def _one_tensor_each(calls: Iterable[Call], batch: int) -> bool:
    """Do all units take one tensor and return one, with nothing of the images beside it?"""
    extra = [v for c in calls for v in (*c.args[1:], *c.kwargs.values())]
    beside = any(torch.is_tensor(v) and v.shape[:1] == (batch,) for v in extra)
    return not beside and all(
        isinstance(c.input, Tensor) and isinstance(c.output, Tensor) for c in calls
    )


def _quantizable(module: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear | MatMul]:
    return isinstance(module, (*LAYERS, MatMul))


def _wrapped(module: nn.Conv2d | nn.Linear | MatMul) -> QuantLayer | QuantMatMul:
    return QuantMatMul(module) if isinstance(module, MatMul) else QuantLayer(module)


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
            per_output = module.weight[0].numel()
        else:
            per_output = call.args[0].shape[-1]
        total += out.numel() * per_output
    return total // batch
