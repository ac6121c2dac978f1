"""Staircases: what shifted values are rounded to on average, with chance itself as judge."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from qlib.core.scheme import Scheme
from qlib.methods._search.step_grid import StepGrid
from qlib.noise import theorem
from qlib.observers.minmax import MinMax
from qlib.quantizers.base import Quantizer
from qlib.quantizers.logarithm import Logarithm
from qlib.quantizers.power import Power
from qlib.quantizers.twin_sign import TwinSign
from qlib.quantizers.twin_unit import TwinUnit
from qlib.quantizers.uniform import Uniform


def uniform(bits: int = 3, *, symmetric: bool = False) -> Uniform:
    x = torch.tensor([-0.9, 0.3, 2.1])
    return Uniform.fit(x, Scheme(bits, symmetric), MinMax())


def power() -> Power:
    exponent = torch.nn.Parameter(torch.tensor(0.6), requires_grad=False)
    return Power(torch.tensor(0.2), torch.tensor(0.0), Scheme(4, symmetric=True), exponent)


GRIDS: dict[str, Callable[[], Quantizer]] = {
    "even": uniform,
    "symmetric": lambda: uniform(4, symmetric=True),
    "GELU": lambda: TwinSign.of_step(torch.tensor(4 / 7.5), Scheme(4)),
    "log-sqrt2": lambda: Logarithm(torch.tensor(0.8), torch.tensor(2.0), Scheme(4)),
    "power": power,
    "two bits": lambda: uniform(2),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_staircase_is_the_quantizer(name: str) -> None:
    q, x = GRIDS[name](), torch.linspace(-3, 4, 5001).double()
    made = StepGrid.of(q)
    found = made.levels[np.searchsorted(made.edges, x.numpy(), "right")]
    want = q.values(q.nearest(x)).detach().numpy()
    assert np.abs(found - want).max() < 1e-6
    np.testing.assert_allclose(made.mean(x.numpy(), np.zeros(1)), np.square(want - x.numpy()),
                               rtol=0, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("reach", [0.03, 0.4, 1.7])
def test_mean_and_drift_are_those_of_many_draws(name: str, reach: float) -> None:
    q, made = GRIDS[name](), StepGrid.of(GRIDS[name]())
    x = np.array([-2.0, -0.2, -0.01, 0.0, 0.11, 0.35, 1.0, 3.1])
    draws = np.random.default_rng(0).uniform(-reach, reach, (20_000, 1))
    rounded = q.values(q.nearest(torch.from_numpy(x + draws))).detach().numpy()
    error = rounded - draws - x
    spread = 5 / len(draws) ** 0.5
    for found, each in ((made.mean(x, reach), error**2), (made.drift(x, reach), error)):
        assert (np.abs(found - each.mean(0)) <= spread * each.std(0) + 1e-6).all()


def test_on_even_steps_it_is_the_theorem() -> None:
    q = Uniform(torch.tensor(1.0), torch.tensor(0.0), Scheme(3, symmetric=True))
    x, n = np.linspace(-7, 6, 131)[:, None], np.array([0.0, 0.2, 0.5, 0.9, 2.3])
    want = theorem.error(x + 0.5, n, 0.5, -3.5, 3.5)  # there levels lie at odd halves
    np.testing.assert_allclose(StepGrid.of(q).mean(x, n), want, atol=1e-6)


def test_few_values_stand_for_many() -> None:
    made = StepGrid.of(GRIDS["GELU"]())
    x = np.abs(np.random.default_rng(1).normal(0, 1.5, 50_000)) - 0.17
    weight = np.random.default_rng(2).uniform(0, 1, len(x))
    few, amount, of = made.counted(x, weight)
    assert len(few) < 500
    assert amount.sum() == pytest.approx(weight.sum())
    assert few @ amount == pytest.approx(x @ weight)
    assert np.abs(few[of] - x)[x < made.levels[-1]].max() <= made.gaps[1] / 16 * 1.001
    reach, shift = np.array([0, 0.1, 0.3]), np.array([0, 0.05, -0.1])
    want = [made.mean(x + c, np.full(1, n)) @ weight for n, c in zip(reach, shift, strict=True)]
    np.testing.assert_allclose(made.sums(few, amount, reach, shift), want, rtol=0.02)


def test_levels_that_fall_are_refused() -> None:
    with pytest.raises(ValueError, match="do not rise"):
        StepGrid.of(TwinUnit(torch.tensor(3.0), Scheme(4)))
