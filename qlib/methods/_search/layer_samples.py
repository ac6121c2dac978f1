"""Random rows of what the layers of a float network multiply, from one pass over the images."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from qlib.core.records import Event
from qlib.learning.calibration import Calibration
from qlib.methods._search.obq import as_rows
from qlib.methods._search.operands import operand
from qlib.methods._search.products import Product
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer
from qlib.network.trace import removing

WITH_GRADIENTS = 8  # images at a time, where their activations are kept for a backward pass
UNFOLDED = 2**23  # numbers in the patches of the images that one batch gives to a convolution


def products(
    model: QuantModel,
    data: Calibration,
    rows: int,
    names: Collection[str] = (),
    *,
    gradients: bool = False,
) -> dict[str, Product]:
    """Sampled operands of every layer (or of ``names``), about ``rows`` random rows each.

    Args:
        gradients: also what the squared error of each sampled output weighs: the squared gradient
            of the loss on an answer drawn from the network's own prediction, whose mean is the
            diagonal of the true Fisher matrix (see `qlib.network.answers`). The same pass gives
            those of all layers.
    """
    layers = {name: model.layers[name] for name in names or model.layers}
    samples: dict[str, list[_Sampled]] = {name: [] for name in layers}
    quota, step = rows, min(data.batch, WITH_GRADIENTS) if gradients else data.batch

    def take(kept: list[_Sampled], layer: nn.Module, args: tuple, y: Tensor) -> None:
        kept.append(_sampled(layer, args, y, quota, data))

    hooks = [
        layer.register_forward_hook(partial(take, samples[name])) for name, layer in layers.items()
    ]
    with removing(hooks), model.quantized(weights=False, inputs=False):
        for start in range(0, len(data.images), step):
            images = data.images[start : start + step]
            quota = -(-rows * len(images) // len(data.images))
            with model.gradients() if gradients else torch.no_grad():
                logits = model(images.detach().requires_grad_(gradients))
                if gradients:
                    # reaches the hooks of outputs; no parameter has a gradient to write
                    model.answers.sampled_loss(logits, data.generator).backward()
            data.report(Event("calibrate", "", start, len(data.images), note="rows of layers"))
    return {name: _joined(model.layers[name], kept) for name, kept in samples.items()}


@dataclass
class _Sampled:
    """Some rows of one call, along the second axis of a weight's rows, the first of a product's.

    ``take``: these rows of both operands. ``rows_of``: all rows of a gradient of the output.
    """

    total: int
    wanted: int
    axis: int
    generator: torch.Generator
    take: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    rows_of: Callable[[Tensor], Tensor]
    x: Tensor | None = None
    w: Tensor | None = None
    importance: Tensor | None = None

    def evenly(self) -> Tensor:
        """Every row is as likely as every other. Returns the indices."""
        device = self.generator.device
        at = torch.arange(self.total, device=device)
        if self.total > self.wanted:
            at = torch.randperm(self.total, generator=self.generator, device=device)
            at = at[: self.wanted].sort().values
        self.x, self.w = self.take(at)
        return at

    def weighed(self, gradient: Tensor) -> None:
        """Half of the draws go where squared gradients are: a class token may have them all.

        Rows weigh what a draw is short of them, so that sums over the sample have the mean of sums
        over all rows, ``wanted`` / ``total`` of them.
        """
        squares = self.rows_of(gradient).square()
        energy = squares.transpose(0, self.axis).flatten(1).sum(1)
        if self.total <= self.wanted or not float(energy.sum()) > 0:
            self.importance = squares.index_select(self.axis, self.evenly())
            return
        chance = 0.5 / self.total + 0.5 * energy / energy.sum()
        at = torch.multinomial(chance, self.wanted, replacement=True, generator=self.generator)
        self.x, self.w = self.take(at)
        weight = 1 / (self.total * chance[at])
        shape = [1] * squares.dim()
        shape[self.axis] = -1
        self.importance = squares.index_select(self.axis, at) * weight.reshape(shape)
        del self.take, self.rows_of  # lets go of the whole tensors


def _sampled(layer: nn.Module, args: tuple, y: Tensor, rows: int, data: Calibration) -> _Sampled:
    """Hooked to a layer's forward pass: rows out of what it was called with."""
    x = args[0].detach()
    if not isinstance(layer, QuantLayer):
        a, b = x.flatten(0, -3), args[1].detach().flatten(0, -3)
        wanted = max(1, rows // a.shape[1])
        made = _Sampled(len(a), wanted, 0, data.generator,
                        lambda at: (a[at], b[at].transpose(1, 2)),
                        lambda g: g.flatten(0, -3))  # fmt: skip
    elif layer.kind == "linear":
        flat = x.flatten(0, -2)
        made = _Sampled(len(flat), rows, 1, data.generator,
                        lambda at: (flat[at][None], None),
                        lambda g: g.flatten(0, -2)[None])  # fmt: skip
    else:
        made = _of_conv(layer, x, y, rows, data.generator)
    if y.requires_grad:
        y.register_hook(made.weighed)
    else:
        made.evenly()
    return made


def _of_conv(
    layer: QuantLayer, x: Tensor, y: Tensor, rows: int, generator: torch.Generator
) -> _Sampled:
    each = y[0, 0].numel() * layer.weight[0].numel() * layer.layer.groups  # pyright: ignore[reportOperatorIssue] -- the stub: tensor or module
    few = max(1, UNFOLDED // each)
    images = torch.randperm(len(x), generator=generator, device=x.device)[:few].sort().values
    with torch.no_grad():
        columns = operand(lambda: layer.forward(x[images]))
    groups, _, positions = columns.shape

    def rows_of(gradient: Tensor) -> Tensor:
        split = gradient[images].unflatten(1, (groups, -1)).flatten(3)
        return split.permute(1, 0, 3, 2).flatten(1, 2)

    take = lambda at: (columns[:, :, at].transpose(1, 2), None)  # noqa: E731
    return _Sampled(positions, rows, 1, generator, take, rows_of)


def _joined(layer: nn.Module, parts: list[_Sampled]) -> Product:
    """All calls and batches of a layer: rows of a weight are joined, products are more groups."""
    for part in parts:
        if part.x is None:  # its output leads nowhere
            part.evenly()
    axis = parts[0].axis
    x = torch.cat([p.x for p in parts if p.x is not None], axis)
    given = [p.importance for p in parts if p.importance is not None]
    importance = torch.cat(given, axis) if len(given) == len(parts) else None
    if not isinstance(layer, QuantLayer):
        right = torch.cat([p.w for p in parts if p.w is not None])
        return Product(x, right, None, importance)
    groups = len(x)
    bias = None if layer.bias is None else layer.bias.detach().reshape(groups, 1, -1)
    return Product(x, as_rows(layer.weight.detach(), groups), bias, importance)


def each(model: QuantModel, found: dict[str, Product]) -> Iterator[tuple[int, str, Product]]:
    """Layers in order of execution, each given away so that memory falls as the search goes on."""
    for i, name in enumerate(model.layers):
        yield i, name, found.pop(name)
