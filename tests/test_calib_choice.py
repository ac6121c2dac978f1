"""Which images calibrate a network: balanced, shifted, mirrored, or noise; random as ever."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from qlib.core.records import RunSpec, ignore
from qlib.core.specs import checked
from qlib.datasets._draw import draw_calibration, in_turns
from qlib.datasets.base import Images
from qlib.datasets.digits import Digits
from qlib.datasets.preprocessing.augment import noise, shifted
from qlib.pipeline.experiment import load_experiment

SPEC = RunSpec("digits-resnet", "digits", "nearest", calib=32, test=20)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of(choice: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Calibration images of a run, and the first draw of its method."""
    spec = checked(replace(SPEC, calib_choice=choice, seed=seed))
    setup = load_experiment(spec, torch.device("cpu"), ignore)
    return setup.data.images, torch.rand(4, generator=setup.data.generator)


def test_random_is_as_before_and_keeps_its_key() -> None:
    assert replace(SPEC, calib_choice="random").key == SPEC.key
    assert replace(SPEC, calib_choice="noise").key != SPEC.key
    with pytest.raises(ValueError, match="calib_choice must be one of random, balanced"):
        checked(replace(SPEC, calib_choice="best"))


def test_balanced_counts_differ_by_one_at_most() -> None:
    data = Digits()
    for n in (10, 32, 100):
        counts = Counter(data.calibration(n, 0, balanced=True).labels.tolist())
        assert len(counts) == 10 and max(counts.values()) - min(counts.values()) <= 1
    small, large = (data.calibration(n, 0, balanced=True).ids for n in (8, 32))
    assert list(large[:8]) == list(small)  # one draw is the start of a longer one
    every = data.calibration(1197, 0, balanced=True).ids
    assert len(set(every)) == 1197 and not set(every) & set(data.test().ids)
    assert list(data.calibration(32, 1, balanced=True).ids) != list(large)


def test_a_class_that_is_used_up_is_passed_over() -> None:
    assert in_turns([0, 1, 2, 3, 4], [7, 7, 7, 3, 3]) == [0, 3, 1, 4, 2]
    assert in_turns([4, 2, 0, 1, 3], [5, 5, 5, 5, 1]) == [4, 2, 0, 1, 3]


def test_images_without_classes_cannot_be_balanced() -> None:
    plain = Images(["a", "b", "c"], None, lambda i: None)
    assert len(draw_calibration(plain, 2, 0, "here")) == 2
    with pytest.raises(ValueError, match="The images of here have no classes, so they cannot be"):
        draw_calibration(plain, 2, 0, "here", balanced=True)


def test_shifted_images_are_windows_with_repeated_edges() -> None:
    x = torch.arange(2 * 1 * 16 * 16, dtype=torch.float32).reshape(2, 1, 16, 16)
    x = x.repeat(40, 1, 1, 1)
    moved = shifted(x, draws())
    assert moved.shape == x.shape
    found = set()
    for before, after in zip(x, moved, strict=True):
        gap = int(after[0, 8, 8] - before[0, 8, 8])  # 16 for a row, 1 for a column
        down, right = round(gap / 16), gap - 16 * round(gap / 16)
        rows = np.clip(np.arange(16) + down, 0, 15)
        columns = np.clip(np.arange(16) + right, 0, 15)
        assert torch.equal(after[0], before[0][rows][:, columns])
        assert abs(down) <= 2 and abs(right) <= 2
        found.add((down, right))
    assert len(found) > 15
    assert torch.equal(shifted(x, draws()), moved)


def test_mirrored_turns_about_half() -> None:
    x = torch.zeros(200, 1, 8, 8)
    x[..., :2] = 1
    moved = shifted(x, draws(), mirror=True)
    turned = float((moved[..., 4:].sum((1, 2, 3)) > 0).double().mean())
    assert 0.4 < turned < 0.6
    assert not (shifted(x, draws())[..., 4:] > 0).any()


def test_noise_keeps_mean_and_spread_of_each_channel() -> None:
    x = (
        torch.randn(64, 3, 16, 16, generator=draws(1))
        * torch.tensor([1.0, 5.0, 0.1])[:, None, None]
    )
    x += torch.tensor([0.0, -2.0, 3.0])[:, None, None]
    made = noise(x, draws())
    assert made.shape == x.shape
    for c in range(3):
        assert float(made[:, c].mean()) == pytest.approx(float(x[:, c].mean()), abs=0.1)
        assert float(made[:, c].std()) == pytest.approx(float(x[:, c].std()), rel=0.03)


@pytest.mark.parametrize("choice", ["balanced", "shifted", "mirrored", "noise"])
def test_a_choice_changes_the_images_and_not_the_methods_draws(choice: str) -> None:
    plain, first = images_of("random")
    other, then = images_of(choice)
    assert other.shape == plain.shape and not torch.equal(other, plain)
    assert torch.equal(first, then)
    assert torch.equal(images_of(choice)[0], other)
    assert not torch.equal(images_of(choice, seed=1)[0], other)
