"""The kinds of unit that are fitted at once: a layer, a block, a stage, the whole network."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer, QuantMatMul, QuantPoint
from qlib.quantizers.base import Learner, Quantizer


@dataclass(kw_only=True)
class Unit(ABC):
    """A part of the network while it is being fitted. Tensors hold all calibration images.

    Attributes:
        name: of the network's unit, the first one where there are several.
        layers: what is inside, in order of execution.
        inputs: what the unit receives when everything before it is quantized (as the walk asked).
        float_inputs, targets: what it receives, and returns, in the float network.
        inputs_by_bits: ``inputs`` at each bit-width, where the walk goes through several.
        boundary: the point that quantizes what enters.
        runs: which of its runs in a pass the tensors are of: all images of the first of these, then
            all of the next one.
        index, of: which unit it is, of how many.
        arithmetic: what layers multiply in while something is learned.
    """

    model: QuantModel
    name: str
    layers: Mapping[str, QuantLayer | QuantMatMul]
    inputs: Tensor
    float_inputs: Tensor
    targets: Tensor
    inputs_by_bits: Mapping[int, Tensor] = field(default_factory=dict)
    boundary: QuantPoint | None = None
    runs: tuple[int, ...] = (0,)
    index: int = 1
    of: int = 1
    arithmetic: torch.dtype = torch.float32

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The unit's output, in the present state of the model."""

    @abstractmethod
    def answers(self, images: Tensor, output: Tensor, run: int = 0) -> Tensor:
        """Logits for some images, with ``output`` in place of the unit's own in one of its runs."""

    @property
    def title(self) -> str:
        """The unit's name for people."""
        return self.name

    def inner_boundaries(self) -> tuple[str, ...]:
        """Units inside whose boundary is inside too."""
        return ()

    @property
    def weighted(self) -> list[QuantLayer]:
        """The layers that have a weight."""
        return [layer for layer in self.layers.values() if isinstance(layer, QuantLayer)]

    @property
    def channels(self) -> int:
        """Output channels: what the reconstruction error is summed over."""
        return self.weighted[-1].weight.shape[0] if self.weighted else self.targets.shape[-1]

    def points(self) -> list[QuantPoint]:
        """Activation points in use inside the unit, its boundary first."""
        boundaries = self.model.boundaries
        inner = [boundaries[name] for name in self.inner_boundaries() if name in boundaries]
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
        """All quantizers of weights and of activations; points without one are left out."""
        points = [layer.weight_point for layer in self.weighted] + self.points()
        return [p.quantizer for p in points if p.quantizer is not None]

    def learners(self) -> list[Learner]:
        """All that can be learned: the quantizers, and corrections of biases if there are any."""
        corrections = [layer.correction for layer in self.weighted if layer.correction is not None]
        return [*self.quantizers(), *corrections]


@dataclass(kw_only=True)
class LayerUnit(Unit):
    """One layer with a weight, and the activation function that alone reads it.

    ``name`` is that of the network's unit around it, ``layer`` its own.
    """

    layer: str
    activation: nn.Module | None = None

    @property
    def title(self) -> str:
        return self.layer

    def __call__(self, x: Tensor) -> Tensor:
        return self.model.partial.run_layer(self.layer, self.activation, x)

    def answers(self, images: Tensor, output: Tensor, run: int = 0) -> Tensor:
        run_again = self.model.partial.rerun_layer
        return run_again(images, self.layer, self.activation, output, run)


@dataclass(kw_only=True)
class BlockUnit(Unit):
    """A unit of the network: a block, or a layer outside of all blocks."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.model.partial.run_unit(self.name, x)

    def answers(self, images: Tensor, output: Tensor, run: int = 0) -> Tensor:
        if self.model.is_sequential:
            return self.model.partial.run_between(self.name, output, None)
        return self.model.partial.rerun(images, self.name, output, run)


@dataclass(kw_only=True)
class StageUnit(Unit):
    """Units in a row that are fitted together (see `qlib.network.stages.spans`)."""

    span: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.span[0]} … {self.span[-1]}" if len(self.span) > 1 else self.name

    def inner_boundaries(self) -> tuple[str, ...]:
        return self.span[1:]

    def __call__(self, x: Tensor) -> Tensor:
        return self.model.partial.run_units(self.span, x)

    def answers(self, images: Tensor, output: Tensor, run: int = 0) -> Tensor:
        if self.model.is_sequential:
            return self.model.partial.run_between(self.span[-1], output, None)
        return self.model.partial.rerun(images, self.span[-1], output, run)


@dataclass(kw_only=True)
class NetworkUnit(Unit):
    """All of the network, from the images to the answers; works where it cannot be cut."""

    @property
    def title(self) -> str:
        return "whole network"

    def inner_boundaries(self) -> tuple[str, ...]:
        return tuple(self.model.units())

    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x)

    def answers(self, images: Tensor, output: Tensor, run: int = 0) -> Tensor:
        return output
