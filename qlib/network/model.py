"""A float network that can quantize itself: layers, quantization points and units.

The network is a copy, rewritten exactly (`attention`, `fold`).
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qlib.core.records import InvalidSpec
from qlib.network import partial_forward
from qlib.network.attention import MatMul, rewrite_attention
from qlib.network.fold import fold_batch_norm
from qlib.network.points import QuantLayer, QuantMatMul, QuantPoint
from qlib.network.trace import Call, Trace, removing, trace

PLACEMENTS = ("inputs", "boundary")
# by name: timm has classes of its own beside PyTorch's
_ACTIVATIONS = {"ReLU", "ReLU6", "LeakyReLU", "PReLU", "GELU", "GELUTanh", "QuickGELU"}
_ACTIVATIONS |= {"SiLU", "Swish", "Hardswish", "HardSwish", "Mish"}


class QuantModel(nn.Module):
    """The network, its layers in order of execution, its units, its quantization points.

    Attributes:
        layers: name → `QuantLayer` or `QuantMatMul`, in order of execution.
        blocks: names of reconstruction blocks, in order of execution.
        points: name → activation point in use: ``LAYER.input``, ``LAYER.left``, ``LAYER.right``,
            ``BLOCK.boundary``.
        image_shape: (channels, height, width) of what the network takes.
        macs: layer name → multiply–accumulates for one image.
        walkable: can each unit be run on its input alone?
        is_sequential: moreover, does one tensor cross from unit to unit, so that it can be carried?
        notes: what a reader of results should know about the rewriting.
    """

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
        self.net = self._rewritten(net, example)
        layers = {n: m for n, m in self.net.named_modules() if _quantizable(m)}
        for name, module in layers.items():
            wrap = QuantMatMul if isinstance(module, MatMul) else QuantLayer
            self.net.set_submodule(name, wrap(module))
        seen = trace(self.net, example)
        self._read_structure(seen, set(layers), blocks, len(example))
        self.eval()

    def _rewritten(self, net: nn.Module, example: Tensor) -> nn.Module:
        def fresh() -> nn.Module:
            made = rewrite_attention(copy.deepcopy(net).eval().requires_grad_(False))
            for module in made.modules():
                if getattr(module, "inplace", False):
                    module.inplace = False  # captured tensors must stay what they were
            return made

        try:
            return fold_batch_norm(fresh(), example)[0]
        except ArithmeticError as error:
            self.notes.append(f"{error} They are left unfolded and in float.")
            return fresh()

    def _read_structure(
        self, seen: Trace, names: set[str], blocks: Sequence[str], batch: int
    ) -> None:
        order = seen.order(names)
        if not order:
            raise InvalidSpec(
                "This network has no convolution, linear layer or attention product that runs, "
                "so there is nothing to quantize; choose another one."
            )
        self.layers = {name: self.net.get_submodule(name) for name in order}
        self.blocks = seen.order(set(blocks))
        self.macs = {name: _macs(seen.of(name), batch) for name in order}
        self.activation = {name: _follower(seen, name) for name in order}
        self._unit_calls = {name: seen.of(name)[0] for name in self.units()}
        self.unit_shapes = {n: tuple(c.output.shape[1:]) for n, c in self._unit_calls.items()}
        self.is_sequential = self._find_sequential(seen)
        self._place_points(seen)
        self._unit_calls = {  # keep the extra arguments, let go of the tensors
            n: Call(n, c.module, (None, *c.args[1:]), c.kwargs) for n, c in self._unit_calls.items()
        }

    def _place_points(self, seen: Trace) -> None:
        self.boundaries = {name: QuantPoint() for name in self.blocks if self._bounded}
        self.points: dict[str, QuantPoint] = {}
        for name, point in self.boundaries.items():
            module = self.net.get_submodule(name)
            module.register_forward_pre_hook(
                lambda m, args, point=point: (point(args[0]), *args[1:])
            )
        entering = {id(self._unit_calls[name].input) for name in self.boundaries}
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
        """The boundary whose quantized tensor a layer with a weight reads as it is, if any."""
        if f"{layer}.input" in self.points:
            return None
        return self.boundaries.get(self.unit_of(layer))

    def layers_of(self, unit: str) -> list[str]:
        """Layers of a unit, in order of execution."""
        return [name for name in self.layers if self.unit_of(name) == unit]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def call_unit(self, name: str, x: Tensor) -> Tensor:
        """Run one unit on its input, with the extra arguments that the network gave it."""
        call = self._unit_calls[name]
        return self.net.get_submodule(name)(x, *call.args[1:], **call.kwargs)

    def switch(self, *, weights: bool, inputs: bool) -> None:
        """Turn all filled weight points and all filled activation points on or off."""
        for layer in self.layers.values():
            if isinstance(layer, QuantLayer):
                layer.weight_point.on = weights
        for point in self.points.values():
            point.on = inputs

    @contextmanager
    def quantized(self, *, weights: bool, inputs: bool) -> Iterator[None]:
        """`switch` for a while; the former state comes back, also after an error."""
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
        """The layers that have a weight."""
        return {n: m for n, m in self.layers.items() if isinstance(m, QuantLayer)}

    def run_between(self, unit: str, output: Tensor, until: str | None) -> Tensor:
        """Go on from a unit's output to the next unit's input (or to the network's output).

        The network runs with every unit up to ``unit`` replaced by what it would return: a
        placeholder of the right shape, and ``output`` for ``unit`` itself. Only what lies between
        the units is computed, so that boundaries move forward at linear cost.
        """
        returns = {**self.blanks_before(unit, output), unit: output}
        images = partial_forward.blank(output, self.image_shape)
        return partial_forward.resume(self.net, returns, images, until)

    def blanks_before(self, unit: str, like: Tensor) -> dict[str, Tensor]:
        """A placeholder for what each unit before this one returns, for as many images."""
        units = self.units()
        before = units[: units.index(unit)]
        return {name: partial_forward.blank(like, self.unit_shapes[name]) for name in before}

    def run_until(self, images: Tensor, until: str) -> Tensor:
        """Run the network on images as far as the input of a unit or of a layer."""
        return partial_forward.run_until(self.net, images, until)

    def rerun(self, images: Tensor, unit: str, output: Tensor) -> Tensor:
        """The network's output with ``output`` in place of what a unit returns on these images.

        As `run_between` to the end, also where the network is not sequential; costs a whole pass.
        """
        return partial_forward.resume(self.net, {unit: output}, images, None)

    def rerun_layer(
        self, images: Tensor, layer: str, activation: nn.Module | None, output: Tensor
    ) -> Tensor:
        """The network's output with ``output`` in place of what a layer returns.

        Or of what the activation function returns that alone reads the layer.
        """
        seen: list[Tensor] = []

        def layer_done(module: nn.Module, args: tuple, y: Tensor) -> Tensor | None:
            seen.append(y)
            return output if activation is None else None

        def activation_done(module: nn.Module, args: tuple, y: Tensor) -> Tensor | None:
            return output if seen and args[0] is seen[-1] else None

        hooks = [self.layers[layer].register_forward_hook(layer_done)]
        if activation is not None:  # one module may serve several layers
            hooks.append(activation.register_forward_hook(activation_done))
        with removing(hooks):
            return self.net(images)

    def _find_sequential(self, seen: Trace) -> bool:
        """Does one tensor cross from unit to unit? Tried out on the example."""
        calls = [self._unit_calls[name] for name in self.units()]
        self.image_shape = tuple(seen.calls[0].input.shape[1:])
        simple = all(isinstance(c.input, Tensor) and isinstance(c.output, Tensor) for c in calls)
        once = all(len(seen.of(c.name)) == 1 for c in calls)
        batch = len(seen.calls[0].input)
        extra = [v for c in calls for v in (*c.args[1:], *c.kwargs.values())]
        self.walkable = simple and not any(torch.is_tensor(v) and len(v) == batch for v in extra)
        if not self.walkable or not once:
            return False
        with torch.no_grad():
            try:
                for here, there in zip(calls, [*calls[1:], None], strict=True):
                    want = seen.output if there is None else there.input
                    got = self.run_between(here.name, here.output, there.name if there else None)
                    if not torch.allclose(got, want, rtol=1e-4, atol=1e-5):
                        return False
            except (RuntimeError, ValueError):
                return False
        return True


def _quantizable(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, nn.Linear, MatMul))


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
        if isinstance(module, QuantMatMul):
            per_output = call.args[0].shape[-1]
        elif module.kind == "conv":
            per_output = module.weight[0].numel()
        else:
            per_output = module.weight.shape[1]
        total += out.numel() * per_output
    return total // batch
