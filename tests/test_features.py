"""Likeness of features in closed form and by brute force; what answers mean, in nats."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qlib.measure import features
from qlib.network.answers import Classes, Features, pooled

RNG = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=RNG)


@pytest.mark.parametrize("shape", [(50, 6), (8, 30)])  # more images than features, and fewer
def test_cka_knows_no_rotation_shift_or_scale(shape):
    x = draw(*shape)
    turn = torch.linalg.qr(draw(shape[1], shape[1])).Q
    assert features.cka(x, x) == pytest.approx(1, abs=1e-9)
    assert features.cka(x, 3.5 * x @ turn + draw(shape[1])) == pytest.approx(1, abs=1e-5)
    bent = x.clone()
    bent[:, 0] *= 5
    assert features.cka(x, bent) < 0.99
    assert features.cka(x, bent) == pytest.approx(features.cka(bent, x), abs=1e-9)


def test_cka_of_single_features_is_their_squared_correlation():
    x, y = draw(40, 1), draw(40, 1)
    r = float(torch.corrcoef(torch.cat([x, y], 1).T)[0, 1])
    assert features.cka(x, y) == pytest.approx(r * r, abs=1e-6)


def test_cka_of_constants():
    flat = torch.ones(5, 3)
    assert features.cka(flat, flat) == 1
    assert features.cka(flat, draw(5, 3)) == 0


def test_cosines():
    x = torch.tensor([[3.0, 0], [1, 1], [0, 0], [0, 2]])
    y = torch.tensor([[5.0, 0], [-1, -1], [0, 0], [1, 0]])
    assert features.cosines(x, y).tolist() == pytest.approx([1, -1, 1, 0])


def brute(x: Tensor, labels: list[int], classes: int) -> list[int]:
    """One image, one other at a time."""
    answers = []
    for i in range(len(x)):
        near = sorted(
            ((float(F.cosine_similarity(x[i], x[j], dim=0)), labels[j])
             for j in range(len(x)) if j != i), reverse=True,
        )[:20]  # fmt: skip
        votes = [sum(math.exp(c / 0.07) for c, y in near if y == k) for k in range(classes)]
        answers.append(max(range(classes), key=votes.__getitem__))
    return answers


@pytest.mark.parametrize("n", [2, 9, 60, 300])  # fewer than twenty others, and more than a chunk
def test_neighbours_by_brute_force(n):
    x, labels = draw(n, 4).double(), torch.arange(n) % 3
    votes = features.vote(x, labels, 3)
    assert votes.guess.tolist() == brute(x, labels.tolist(), 3)
    assert votes.shares.sum(1).tolist() == pytest.approx([1] * n)


def test_an_image_does_not_vote_for_itself():
    x = torch.eye(2).repeat(2, 1)  # each has one twin, of another class
    assert features.vote(x, torch.tensor([0, 1, 1, 0]), 2).guess.tolist() == [1, 0, 0, 1]


def test_separate_classes_are_told_apart_and_noise_is_not():
    labels = torch.arange(80) % 4
    apart = features.vote(8 * F.one_hot(labels, 4) + draw(80, 4), labels, 4)
    noise = features.vote(draw(80, 4), labels, 4)
    told = features.neighbour_accuracy(labels, noise, apart)
    assert told["knn_float"] == 100 and told["knn"] < 60 and told["gained"] == 0
    assert told["lost"] == round(80 * (1 - told["knn"] / 100))
    assert told["knn_low"] < told["knn"] < told["knn_high"] and told["knn_k"] == 20


def test_similarity_of_equal_features_and_its_interval():
    x = draw(30, 5)
    same = features.similarity(x, x)
    assert same["cosine"] == same["cosine_low"] == same["cosine_p5"] == pytest.approx(1)
    y = x + 0.5 * draw(30, 5)
    told, each = features.similarity(x, y), features.cosines(x, y)
    half = 1.96 * float(each.std()) / 30**0.5
    assert told["cosine_high"] - told["cosine"] == pytest.approx(half, rel=1e-3)
    assert told["cosine_p5"] < told["cosine"] and told["n"] == 30


# --- what answers mean


def test_divergence_of_features_is_that_of_gaussians():
    from torch.distributions import Independent, Normal, kl_divergence

    f, q = draw(6, 4).double(), draw(6, 4).double()
    answers = Features(2.3)
    gaussian = [Independent(Normal(m, 2.3**0.5), 1) for m in (f, q)]
    want = kl_divergence(*gaussian)
    torch.testing.assert_close(answers.divergences(f, q), want)
    torch.testing.assert_close(answers.divergence_loss(q, f), want.sum())


def test_divergence_of_classes_is_that_of_their_softmax():
    from torch.distributions import Categorical, kl_divergence

    f, q = draw(6, 4).double(), draw(6, 4).double()
    want = kl_divergence(Categorical(logits=f), Categorical(logits=q))
    torch.testing.assert_close(Classes().divergences(f, q), want)
    torch.testing.assert_close(Classes().divergence_loss(q, f), want.sum())


def test_unrelated_features_are_one_nat_away():
    f, q = draw(4000, 8), draw(4000, 8)
    answers = Features.of([f[:1000], f[1000:]])
    assert float(answers.divergences(f, q).mean()) == pytest.approx(1, abs=0.05)
    assert answers == Features.of([f])
    assert Features.of([3 * f]).variance == pytest.approx(9 * answers.variance, rel=1e-4)


@pytest.mark.parametrize(
    ("answers", "shape"), [(Classes(), (5,)), (Features(0.7), (5,)), (Features(0.7), (3, 5))]
)
def test_doubt_is_the_mean_of_the_sampled_fisher_diagonal(answers, shape):
    x = draw(1, *shape).expand(4000, *shape).clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(answers.sampled_loss(x, torch.Generator().manual_seed(1)), x)
    doubt = float(answers.doubt(x[:1].detach()))
    assert float(slope.square().mean()) == pytest.approx(doubt, rel=0.1)


def test_pooling():
    assert torch.equal(pooled(x := draw(2, 3)), x)
    torch.testing.assert_close(pooled(x := draw(2, 7, 3)), x.mean(1))
    torch.testing.assert_close(pooled(x := draw(2, 3, 4, 5)), x.mean((2, 3)))


def test_spread_of_one_image_or_of_a_constant():
    assert Features.of([torch.full((1, 2), 3.0)]).variance == 18
    assert Features.of([torch.zeros(4, 2)]).variance == 1
