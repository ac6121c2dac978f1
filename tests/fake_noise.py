"""Noise profiles computed with NumPy from made-up activations, so that their truth is known.

Most layers have bell-shaped values, spread evenly over the rounding cells; ``mlp.fc2`` has those
behind a GELU, a peak and a long tail; ``attn.proj`` has a sharp peak that at 4 bits lies between
two levels in odd blocks, so that noise helps, and on a level in even ones, so that it hurts.
Nothing is invented: every curve is measured on the rows. Grids are min–max, the observer's name in
the specification counts for nothing.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from qlib import store
from qlib.core.records import RunRecord, RunSpec
from qlib.noise import profile as noise_profile
from qlib.noise import theorem
from qlib.noise.profile import REACHES, LayerNoise, NoiseProfile

KINDS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
SEEDS, ROWS, WIDTH, OUT = 3, 128, 48, 24


def activations(kind: str, block: int, rng: np.random.Generator) -> np.ndarray:
    """(ROWS, WIDTH) float32 of one kind of layer."""
    x = rng.normal(size=(ROWS, WIDTH)) * (1 + rng.exponential(0.4, WIDTH))
    if kind == "mlp.fc2":
        x = x - 1.5
        x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    if kind == "attn.proj":  # from −2 to 4: a step of 0.4 at 4 bits
        peak = 0.6 if block % 2 else 0.8
        x = np.where(rng.random(x.shape) < 0.7, peak + 0.03 * rng.normal(size=x.shape), x)
        x = x.clip(-2, 4)
        x[0, :2] = -2, 4
    return x.astype(np.float32)


class Grid:
    """An asymmetric uniform grid over a range that holds zero."""

    def __init__(self, lo: float, hi: float, bits: int) -> None:
        self.step = (hi - lo) / (2**bits - 1)
        zero = np.clip(np.rint(-lo / self.step), 0, 2**bits - 1)
        self.low, self.high = -zero, 2**bits - 1 - zero

    def round(self, x: np.ndarray) -> np.ndarray:
        return np.rint(x / self.step).clip(self.low, self.high) * self.step


def layer(name: str, kind: str, depth: int, bits: int, seed: int = 0) -> LayerNoise:
    """One layer measured; the same values at every bit-width."""
    rng = np.random.default_rng((seed, depth))
    sides = [activations(kind, depth // len(KINDS), rng) for _ in range(2)]
    draws = rng.uniform(-1, 1, (SEEDS, WIDTH))
    bell = rng.normal(size=(1, WIDTH)) / np.sqrt(3)
    w = rng.normal(size=(OUT, WIDTH)) / np.sqrt(WIDTH)
    w_hat = np.stack([Grid(min(r.min(), 0), max(r.max(), 0), bits).round(r) for r in w])
    x = sides[0]

    def error(grid: Grid, x: np.ndarray, added: np.ndarray) -> np.ndarray:
        """(k,) Σ error² of the output with (k, WIDTH) added before rounding and taken off."""
        moved = grid.round(x + added[:, None]) - added[:, None]
        return np.square(moved @ w_hat.T - x @ w.T).sum((1, 2))

    def curves(grid: Grid, x: np.ndarray, draws: np.ndarray) -> np.ndarray:
        found = [error(grid, x, REACHES[:, None] * grid.step * draw) for draw in draws]
        return np.array([curve / curve[0] for curve in found])

    def staged(grid: Grid, added: np.ndarray) -> list[float]:
        energy = [np.square(x @ w.T).sum() for x in sides]
        return [error(grid, x, added).mean() / e for x, e in zip(sides, energy, strict=True)]

    shares = np.linspace(1, 0.3, 15)
    grids = [Grid(min(x.min(), 0) * s, max(x.max(), 0) * s, bits) for s in shares]
    none = np.zeros((1, WIDTH))
    best = min(grids, key=lambda g: error(g, x, none)[0])
    shift = min(np.linspace(-0.5, 0.5, 11)[[5, *range(11)]] * best.step,
                key=lambda c: error(best, x, none + c)[0])  # fmt: skip
    moved = theorem.expected((x + shift) / best.step, REACHES, best.low, best.high)
    reach = REACHES[moved.argmin()] * best.step
    grid, u = grids[0], x / grids[0].step
    phase, clipped, rounding = theorem.cells(u, grid.low, grid.high)
    predicted = theorem.expected(u, REACHES, grid.low, grid.high)
    stages = [staged(grid, none), staged(best, none), staged(best, none + shift),
              staged(best, shift + reach * draws)]  # fmt: skip
    return LayerNoise(
        layer=name,
        kind="linear",
        block=name.rsplit(".", 2)[0],
        depth=depth,
        bits=bits,
        step=float(grid.step),
        phase=phase,
        clipped=clipped,
        rounding=rounding,
        reaches=REACHES,
        predicted=predicted / predicted[0],
        calib=curves(grid, x, draws),
        test=curves(grid, sides[1], draws),
        normal=curves(grid, x, bell)[0],
        closed_form=float(REACHES[predicted.argmin()]),
        linear_search=theorem.linear_search(u, draws[0], REACHES, grid.low, grid.high),
        stages=np.array(stages),
    )


@cache
def layers(blocks: int = 4, bits: Sequence[int] = (3, 4, 6)) -> tuple[LayerNoise, ...]:
    """A small transformer: the layers of `fake_runs`, at a few bit-widths."""
    names = [(f"blocks.{b}.{kind}", kind) for b in range(blocks) for kind in KINDS]
    places = [(name, kind, depth) for depth, (name, kind) in enumerate(names)]
    return tuple(layer(*place, b) for place in places for b in bits)


def profile(spec: RunSpec, **kwargs) -> NoiseProfile:
    """The noise analysis of a run ``spec``, whatever its method and bits."""
    return NoiseProfile(noise_profile.spec_of(spec), layers(**kwargs), SEEDS, ROWS)


def write(folder: Path, spec: RunSpec, **kwargs) -> Path:
    """A finished noise analysis of the run ``spec``; returns its folder."""
    made = profile(spec, **kwargs)
    out = folder / made.spec.key
    out.mkdir(parents=True)
    noise_profile.save(out, made)
    rows = noise_profile.rows(made.layers)
    metrics = noise_profile.summary(rows) | {"n": 128}
    data = {"profile_rows": len(rows)}
    record = RunRecord(made.spec, metrics, {"total": 8.0}, 500.0, layers=rows, data=data)
    store.write_record(record, out)
    return out
