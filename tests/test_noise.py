"""The theorem of NoisyQuant: its values, where it turns, and chance itself as judge."""

import numpy as np
import pytest

from qlib.noise.theorem import best_reach, error, gain, helps_below

RNG = np.random.default_rng


@pytest.mark.parametrize("b", [1.0, 0.25, 7.0])
def test_values_of_the_difference(b: float) -> None:
    points = [(0, 0.5), (0, 1), (0, 1.5), (0.2, 0.6), (0.3, 1.5), (0.5, 1)]
    want = [-5 / 12, -2 / 3, -0.75, -0.44 / 3, -0.21, 1 / 12]
    for (x, n), d in zip(points, want, strict=True):
        assert float(gain(x * b, n * b, b)) == pytest.approx(d * b**2, abs=1e-12)


def rounded_error(x: float, noise: np.ndarray, b: float) -> np.ndarray:
    shifted = x + noise
    level = (2 * np.floor(shifted / (2 * b)) + 1) * b
    return (level - noise - x) ** 2


@pytest.mark.parametrize("n", [0.05, 0.3, 0.9, 1.0, 1.4, 1.9, 2.6, 5.3])
@pytest.mark.parametrize("x", [0.0, 0.1, 0.45, 0.8, 1.0, -3.3, 12.7])
def test_chance_agrees_with_every_closed_form(x: float, n: float) -> None:
    b = 0.5
    noise = RNG(7).uniform(-n * b, n * b, 200_000)
    found = rounded_error(x * b, noise, b)
    sigma = found.std() / len(noise) ** 0.5
    assert abs(float(error(x * b, n * b, b)) - found.mean()) < 5 * sigma + 1e-9
    if 0 <= x <= 1 and n <= 2 - x:
        assert float(gain(x * b, n * b, b)) == pytest.approx(
            float(error(x * b, n * b, b)) - (b - x * b) ** 2, abs=1e-12
        )


@pytest.mark.parametrize("n", [0.0, 0.3, 1.0, 2.5, 6.0])
@pytest.mark.parametrize("x", [-7.0, -3.2, -2.0, 0.4, 3.9, 4.1, 9.5])
def test_chance_agrees_where_values_are_clipped(x: float, n: float) -> None:
    b, low, high = 0.5, -1.5, 1.5
    noise = RNG(8).uniform(-n * b, n * b, 200_000)
    level = ((2 * np.floor((x * b + noise) / (2 * b)) + 1) * b).clip(low, high)
    found = (level - noise - x * b) ** 2
    sigma = found.std() / len(noise) ** 0.5
    assert abs(float(error(x * b, n * b, b, low, high)) - found.mean()) < 5 * sigma + 1e-9


def test_noise_helps_below_the_bound_and_only_there() -> None:
    x, n = np.meshgrid(np.linspace(0, 1, 301), np.linspace(0.01, 2, 200))
    inside = n <= 2 - x
    d = gain(x[inside], n[inside])
    bound = helps_below(n[inside])
    clear = np.abs(x[inside] - bound) > 1e-9
    assert np.array_equal((d <= 0)[clear], (x[inside] <= bound)[clear])
    assert (d < 0).any() and (d > 0).any()
    np.testing.assert_allclose(gain(helps_below(1.2), 1.2), 0, atol=1e-12)
    assert helps_below(np.linspace(0.001, 2, 4000)).max() == pytest.approx(4 / 9, abs=1e-6)
    assert float(helps_below(4 / 3)) == pytest.approx(4 / 9)


def test_noise_that_never_crosses_only_hurts() -> None:
    n = np.linspace(0, 0.6, 20)
    np.testing.assert_allclose(gain(0.6, n), n**2 / 3)
    np.testing.assert_allclose(gain(1.0, 0.4), 0.16 / 3)


def test_full_dither_is_the_same_for_every_value() -> None:
    np.testing.assert_allclose(error(np.linspace(-5, 5, 999), 1.0), 1 / 3, atol=1e-12)
    np.testing.assert_allclose(error(np.linspace(-5, 5, 999), 2.0), 1 / 3, atol=1e-12)


def test_uniform_values_gain_nothing_by_full_dither() -> None:
    x = (np.arange(2000) + 0.5) / 2000
    assert float(error(x, 1.0).mean()) == pytest.approx(float(error(x, 0.0).mean()), rel=1e-6)


def test_best_reach() -> None:
    tried = np.arange(201) / 100
    for x, best in ((0.0, 1.5), (0.18, 1.48), (0.27, 1.45), (0.36, 1.40), (0.5, 0.0)):
        assert best_reach([x], [1.0], 1.0, tried) == pytest.approx(best, abs=0.011), x
    assert float(error(0.0, 1.5)) == pytest.approx(0.25)
    assert best_reach([0.0, 1.0], [1e-6, 1.0], 1.0, tried) == 0


@pytest.mark.parametrize(("x", "n"), [(-0.1, 0.5), (1.1, 0.5), (0.5, 1.6), (0.5, -0.1)])
def test_what_the_theorem_does_not_tell_is_refused(x: float, n: float) -> None:
    with pytest.raises(ValueError, match="use error"):
        gain(x, n)
