"""What noise before rounding does to one layer's input, and which noise does best.

Paper: NoisyQuant, Liu et al., CVPR 2023, arXiv 2211.16056
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from qlib.methods._search.products import Product, in_parts
from qlib.methods._search.scales import Sides, Stretched, WholeTensor, alternate
from qlib.methods._search.step_grid import StepGrid
from qlib.network.kinds import CONVOLUTIONS
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer
from qlib.quantizers.base import Quantizer
from qlib.quantizers.by_channel import ByChannel
from qlib.quantizers.noisy import denoising_bias, sixteen_bits
from qlib.quantizers.twin_sign import TwinSign
from qlib.quantizers.uniform import Uniform

# of reaches and shifts, (k,) each or one for all: what each pair costs, (k,)
Losses = Callable[[np.ndarray, np.ndarray], np.ndarray]


def cancels(layer: nn.Module) -> bool:
    """Whether a constant can undo what fixed noise on a layer's input adds to its output.

    So it is for linear layers, and for convolutions whose patches neither overlap nor reach into a
    padded border: there each place of a patch can have a number of its own, as if the patches were
    rows of a linear layer. Zero padding cuts noise off at the border, where no constant helps.
    """
    if not isinstance(layer, QuantLayer):
        return False
    conv = layer.layer
    if isinstance(conv, nn.Linear):
        return True
    if not isinstance(conv, CONVOLUTIONS) or type(conv) not in CONVOLUTIONS or conv.groups > 1:
        return False
    padded = conv.padding != "valid" and any(conv.padding)
    apart = tuple(conv.stride) == tuple(conv.kernel_size) and set(conv.dilation) == {1}
    return apart and not padded


def noisy_layers(model: QuantModel) -> list[str]:
    """Layers that can have noise: `cancels`, with a rounded input of their own."""
    rounded = {name for name, point in model.points.items() if point.quantizer is not None}
    return [n for n, layer in model.layers.items() if cancels(layer) and f"{n}.input" in rounded]


@dataclass(frozen=True)
class Rows:
    """A sample of a layer's input, and the one grid that rounds it.

    ``x``: (n, channels); ``grid``: one for all; ``unit``: (channels,) or (), what 1 of ``x`` is in
    the units of the input itself: noise M before ``grid`` is ``unit``·M before the quantizer.
    """

    x: Tensor
    grid: Quantizer
    unit: Tensor

    @classmethod
    def of(cls, x: Tensor, q: Quantizer) -> "Rows":
        """From sampled inputs ``x`` (n, channels) and the quantizer of the layer's input."""
        if isinstance(q, ByChannel):  # as a folded norm would give it
            folded = x / q.ratio + q.scale * q.offset
            return cls(folded, Uniform(q.scale, q.zero_point, q.scheme), q.ratio)
        return cls(x, q, torch.ones_like(q.scale))

    @property
    def weight(self) -> Tensor:
        """(channels,) what a squared error in ``x`` is in the input itself."""
        return self.unit.square().expand(self.x.shape[1])


@dataclass(frozen=True)
class Noise:
    """N = ``unit``·(``shift`` + ``reach``·draw), falsy where that is 0.

    ``left``: the expected error with it, relative to none.
    """

    reach: float = 0.0
    shift: float = 0.0
    left: float = 1.0

    def __bool__(self) -> bool:
        return self.reach != 0 or self.shift != 0


def by_expectation(rows: Rows, most: float, n: int, *, shift: bool = False) -> Noise:
    """The noise with the least expected squared error of the input, over all draws.

    Reaches go up to ``most`` widest steps, n of them evenly, and n more up to as many narrowest
    steps where steps differ; 0 is among them, and taken where nothing is better.
    """
    stairs = StepGrid.of(rows.grid)
    x = rows.x.double().cpu().numpy()
    weight = np.broadcast_to(rows.weight.double().cpu().numpy(), x.shape)
    x, weight, _ = stairs.counted(x.ravel(), weight.ravel())
    losses = lambda reach, c: stairs.sums(x, weight, reach, c)  # noqa: E731
    return _least(losses, stairs, most, n, shift=shift)


@torch.no_grad()
def by_output(
    rows: Rows, product: Product, w_hat: Tensor, most: float, n: int, *, shift: bool = False
) -> Noise:
    """The noise with the least expected squared error of the layer's output, over all draws.

    An input's error has a mean over draws (`StepGrid.drift`), which reaches the output as any error
    does, and around it a scatter, independent from channel to channel, which counts by the squared
    weights of its channel: E‖ŵx̂ − wx‖² = ‖ŵ(x + drift) − wx‖² + Σ_c ‖ŵ_c‖²·Var_c.
    """
    stairs, flat = StepGrid.of(rows.grid), rows.x.double().cpu().numpy().ravel()
    value, _, of = stairs.counted(flat, np.ones_like(flat))
    of = torch.as_tensor(of, device=rows.x.device).reshape(rows.x.shape)
    w_hat = w_hat.reshape(product.w.shape)
    weight = (w_hat[0].square().sum(0) * rows.weight).double()
    amount = torch.zeros(len(value), dtype=weight.dtype, device=weight.device)
    amount.index_add_(0, of.flatten(), weight.expand(of.shape).flatten())
    error = product.of_inputs(w_hat)

    def losses(reach: np.ndarray, c: np.ndarray) -> np.ndarray:
        reach, c = np.broadcast_arrays(reach, c)
        moved, n = value + c[:, None], reach[:, None]
        drift = stairs.drift(moved, n)
        scatter = torch.as_tensor(stairs.mean(moved, n) - drift**2).to(amount)
        table = torch.as_tensor(drift).to(rows.x)
        means = in_parts(
            lambda part: error(product.x + rows.unit * part[:, None, of]).error, table, of.numel()
        )
        return (means + scatter @ amount).cpu().numpy()

    return _least(losses, stairs, most, n, shift=shift)


@torch.no_grad()
def by_trial(rows: Rows, draw: Tensor, most: float, n: int, *, shift: bool = False) -> Noise:
    """The noise that left the least squared error of the input with this one draw, (channels,).

    The paper's linear search (section 3.3): many values stand for the expectation.
    """

    def losses(reach: np.ndarray, c: np.ndarray) -> np.ndarray:
        reach, c = np.broadcast_arrays(reach, c)
        each, shifts = (torch.as_tensor(v).to(draw)[:, None] for v in (reach, c))
        return in_parts(some, each * draw + shifts, rows.x.numel()).cpu().numpy()

    def some(noise: Tensor) -> Tensor:
        moved = rows.x + noise[:, None]
        gap = rows.grid(moved).sub_(moved).square_()
        return (gap.sum(1) @ rows.weight).double()

    return _least(losses, StepGrid.of(rows.grid), most, n, shift=shift)


def _least(losses: Losses, stairs: StepGrid, most: float, n: int, *, shift: bool) -> Noise:
    """The pair with the least loss. A shift is searched without noise, then the reach with it."""
    narrow, wide = stairs.gaps
    share = np.linspace(0, most, n + 1)
    reaches = np.unique(np.concatenate([wide * share, narrow * share]).round(12))
    found = losses(reaches, np.zeros(1))
    plain = max(float(found[0]), np.finfo(np.float64).tiny)
    best = Noise(float(reaches[found.argmin()]), 0.0, float(found.min()) / plain)
    if shift:
        shifts = np.linspace(-wide / 2, wide / 2, n, endpoint=False)
        c = float(shifts[losses(np.zeros(1), shifts).argmin()])
        found = losses(reaches, np.array([c]))
        other = Noise(float(reaches[found.argmin()]), c, float(found.min()) / plain)
        best = other if other.left < best.left else best
    return best


# --- the range that is clipped


@dataclass
class Widened(WholeTensor):
    """The grids whose steps are multiples of those of a quantizer for activations."""

    fitted: Quantizer
    factors: Tensor
    start: Tensor = field(init=False)
    stride: int = 4

    def _grid(self, factor: Tensor) -> Quantizer:
        q = self.fitted
        scale = q.scale * factor
        if isinstance(q, TwinSign):
            return TwinSign.of_step(scale, q.scheme)
        if isinstance(q, ByChannel):
            return ByChannel(scale, q.zero_point, q.ratio, q.offset, q.scheme)
        return Uniform(scale, q.zero_point, q.scheme)


def clipped(product: Product, q: Quantizer, w_hat: Tensor, factors: Tensor) -> Quantizer:
    """The range with the least error of the output under rounded weights; the present one too."""
    rounded = replace(product, w=w_hat.reshape(product.w.shape))
    left = Stretched(q, factors) if type(q) is Uniform else Widened(q, factors)
    sides = Sides(rounded, w_hat.shape, left, None, product.x)
    found, _ = alternate(sides, "mse", 1)
    return q if found is None else found


# --- on integer hardware


def in_16_bits(layer: QuantLayer, w_hat: Tensor, noise: Tensor, rows: Rows) -> float:
    """Round the bias that takes noise off to 16 bits; the layer then adds what that changes.

    Returns:
        how large the change is (root mean square over outputs) beside what rounding the input to
        its widest steps makes of values that are spread evenly.
    """
    exact = denoising_bias(w_hat, layer.bias, noise)
    added = sixteen_bits(exact) - exact
    layer.correct_bias().added.copy_(added)
    energy = (w_hat.flatten(1).square() @ rows.weight).mean() * StepGrid.of(rows.grid).gaps[1] ** 2
    return float(added.square().mean().sqrt() / (energy / 12).sqrt())
