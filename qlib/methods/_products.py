"""What the layers of a float network multiply, on a sample of rows, and how far rounding bends it.

A linear layer, a convolution and an attention product are one thing here: y = x·wᵀ + bias in
groups of rows. A convolution's rows are unfolded patches; an attention product has no weight, its
right operand stands in for it, and every head of every image is a group of its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qlib.calibration import Calibration
from qlib.methods._gptq import as_rows, operand
from qlib.model import QuantModel
from qlib.points import QuantLayer
from qlib.records import Event
from qlib.trace import removing

WITH_GRADIENTS = 8  # images at a time, where their activations are kept for a backward pass
ROOM = 2**22  # numbers that the candidates of one step may fill
UNFOLDED = 2**23  # numbers in the patches of the images that one batch gives to a convolution


@dataclass
class Sums:
    """What a loss needs to know of outputs o and of their errors e: Σo², Σo·e and Σe²."""

    size: Tensor
    product: Tensor
    error: Tensor

    def over_all(self) -> "Sums":
        """The same with everything but the candidates, the first axis, added up."""
        size, product, error = (t.flatten(t.dim() - 2) for t in self._even())
        return Sums(size.sum(-1), product.sum(-1), error.sum(-1))

    def _even(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.size.expand_as(self.error), self.product.expand_as(self.error), self.error

    def loss(self, kind: str) -> Tensor:
        """``"mse"``: Σe². ``"cosine"``: 1 − cos(o, o − e), without the cancellation at cos ≈ 1."""
        if kind == "mse":
            return self.error
        size, product, error = self._even()
        other = (size - 2 * product + error).clamp(min=0)  # Σ of the rounded outputs squared
        norm = (size * other).clamp(min=torch.finfo(error.dtype).tiny)
        cosine = (size - product) / norm.sqrt()
        apart = (size * error - product.square()).clamp(min=0) / norm  # 1 − cos²
        return torch.where(cosine > 0, apart / (1 + cosine.clamp(min=0)), 1 - cosine)


@dataclass
class Product:
    """Sampled rows of one layer.

    Attributes:
        x: (groups, n, d) float left operand or input.
        w: (groups, out, d) float weight, or right operand transposed.
        bias: (groups, 1, out) or None.
        importance: (groups, n, out) what each squared error weighs; None for 1. Only Σe² counts
            it, and a cosine makes no sense with it.
    """

    x: Tensor
    w: Tensor
    bias: Tensor | None = None
    importance: Tensor | None = None

    def outputs(self) -> Tensor:
        """(groups, n, out) of the float layer."""
        y = self.x @ self.w.transpose(1, 2)
        return y if self.bias is None else y + self.bias

    def of_weights(self, x_hat: Tensor) -> Callable[[Tensor], Sums]:
        """Sums (k, groups, out) as a function of k weights (k, groups, out, d); ``x_hat`` stays.

        With ŵ = w − δ the error is e = (x − x̂)·wᵀ + x̂·δᵀ. Its square needs x̂ only as x̂ᵀx̂, so that
        a candidate costs d² for each output, whatever the number of rows.
        """
        o, x_t = self.outputs(), x_hat.transpose(1, 2)
        rest = (self.x - x_hat) @ self.w.transpose(1, 2)
        size = o.square().sum(1).double()
        if self.importance is not None:

            def weighed(w_hat: Tensor) -> Sums:
                e = rest + x_hat @ (self.w - w_hat).transpose(-1, -2)
                error = torch.einsum("kgno,gno->kgo", e.square_(), self.importance).double()
                return Sums(size, torch.zeros_like(size), error)

            return weighed
        gram, to_rest, to_o = x_t @ x_hat, (x_t @ rest).mT, (x_t @ o).mT
        fixed, along = rest.square().sum(1), (o * rest).sum(1)

        def sums(w_hat: Tensor) -> Sums:
            delta = self.w - w_hat
            error = ((delta @ gram + 2 * to_rest) * delta).sum(-1) + fixed
            product = (delta * to_o).sum(-1) + along
            return Sums(size, product.double(), error.double().clamp(min=0))

        return sums

    def of_inputs(self, w_hat: Tensor) -> Callable[[Tensor], Sums]:
        """Sums (k,) as a function of k inputs (k, groups, n, d); ``w_hat`` stays.

        With x̂ = x − δ the error is e = x·(w − ŵ)ᵀ + δ·ŵᵀ. Where outputs outnumber inputs, ŵ is
        replaced by its triangular factor: ‖δ·ŵᵀ‖ = ‖δ·rᵀ‖ for ŵ = qr.
        """
        o = self.outputs()
        rest = self.x @ (self.w - w_hat).transpose(1, 2)
        size = o.square().sum().double()
        if self.importance is not None:

            def weighed(x_hat: Tensor) -> Sums:
                e = rest + (self.x - x_hat) @ w_hat.transpose(1, 2)
                error = torch.einsum("kgno,gno->k", e.square_(), self.importance).double()
                return Sums(size, torch.zeros_like(size), error)

            return weighed
        wide = w_hat.shape[1] > w_hat.shape[2]
        short = torch.linalg.qr(w_hat, mode="r").R if wide else w_hat
        to_rest, to_o = rest @ w_hat, o @ w_hat
        fixed, along = rest.square().sum(), (o * rest).sum()

        def sums(x_hat: Tensor) -> Sums:
            delta = self.x - x_hat
            error = (delta @ short.transpose(1, 2)).flatten(1).square().sum(1)
            error = error + 2 * (delta * to_rest).flatten(1).sum(1) + fixed
            product = (delta * to_o).flatten(1).sum(1) + along
            return Sums(size, product.double(), error.double().clamp(min=0))

        return sums


def in_parts(call: Callable[[Tensor], Tensor], tried: Tensor, numel: int) -> Tensor:
    """``call`` on as many candidates at a time as fit in `ROOM`, ``numel`` numbers each."""
    return torch.cat([call(part) for part in tried.split(max(1, ROOM // max(1, numel)))])


# --- collecting


def products(
    model: QuantModel, data: Calibration, rows: int, *, gradients: bool = False
) -> dict[str, Product]:
    """About ``rows`` random rows of every layer from one pass of the float network.

    Args:
        gradients: also what the squared error of each sampled output weighs: the squared gradient
            of the cross-entropy to a label drawn from the network's own prediction, whose mean is
            the diagonal of the true Fisher matrix. The same pass gives those of all layers.
    """
    found: dict[str, list[_Sampled]] = {name: [] for name in model.layers}
    quota, step = rows, min(data.batch, WITH_GRADIENTS) if gradients else data.batch
    hooks = [
        layer.register_forward_hook(
            lambda m, args, y, kept=found[name]: kept.append(_sampled(m, args, y, quota, data))
        )
        for name, layer in model.layers.items()
    ]
    with removing(hooks), model.quantized(weights=False, inputs=False):
        for start in range(0, len(data.images), step):
            images = data.images[start : start + step]
            quota = -(-rows * len(images) // len(data.images))
            with torch.set_grad_enabled(gradients):
                logits = model(images.detach().requires_grad_(gradients))
                if gradients:
                    _backward(logits, data.generator)
            data.report(Event("calibrate", "", start, len(data.images), note="rows of layers"))
    return {name: _joined(model.layers[name], kept) for name, kept in found.items()}


def _backward(logits: Tensor, generator: torch.Generator) -> None:
    """Gradients reach the hooks of outputs; no parameter has one, so nothing else is written."""
    labels = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)
    nn.functional.cross_entropy(logits, labels[:, 0], reduction="sum").backward()


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
        self.take = self.rows_of = None  # lets go of the whole tensors


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
    each = y[0, 0].numel() * layer.weight[0].numel() * layer.layer.groups
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
    x = torch.cat([p.x for p in parts], axis)
    given = [p.importance for p in parts if p.importance is not None]
    importance = torch.cat(given, axis) if len(given) == len(parts) else None
    if not isinstance(layer, QuantLayer):
        return Product(x, torch.cat([p.w for p in parts]), None, importance)
    groups = len(x)
    bias = None if layer.bias is None else layer.bias.detach().reshape(groups, 1, -1)
    return Product(x, as_rows(layer.weight.detach(), groups), bias, importance)


def each(model: QuantModel, found: dict[str, Product]) -> Iterator[tuple[int, str, Product]]:
    """Layers in order of execution, each given away so that memory falls as the search goes on."""
    for i, name in enumerate(model.layers):
        yield i, name, found.pop(name)
