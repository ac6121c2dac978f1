"""What a layer multiplies, on a sample of rows, and how far rounding bends the outcome.

A linear layer, a convolution and an attention product are one thing here: y = x·wᵀ + bias in
groups of rows. A convolution's rows are unfolded patches; an attention product has no weight, its
right operand stands in for it, and every head of every image is a group of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ROOM = 2**22  # numbers that the candidates of one step may fill


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
