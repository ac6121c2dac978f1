"""Weights far outside of their tensor: planted ones are named, trained networks have none."""

import pytest
import torch
from helpers_nets import FAMILIES, tiny
from torch import nn

from qlib.measure.outliers import FAR, lines, outlier_tensors


@pytest.fixture
def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(8, 40))


def test_a_planted_weight_is_named_with_its_place(net):
    with torch.no_grad():
        net[3].weight[5, 2] = -1e4
    (outlier,) = outlier_tensors(net)
    assert (outlier.name, outlier.value, outlier.at, outlier.count) == ("3.weight", -1e4, (5, 2), 1)
    rest = net[3].weight.detach().flatten()
    rest = rest[rest.abs() < 1e3].double()
    assert outlier.others == pytest.approx(float(rest.square().mean().sqrt()))
    assert next(lines(net)).startswith("3.weight[5, 2] is -1e+04, where the others of this tensor")


def test_the_farthest_comes_first_and_all_of_one_tensor_count(net):
    with torch.no_grad():
        net[0].weight[1, 1, 1, 1] = 1e3
        net[3].weight[0, :3] = 1e5
    first, second = outlier_tensors(net)
    assert (first.name, first.count, second.name) == ("3.weight", 3, "0.weight")
    assert "(one of 3 such values)" in first.words
    assert len(list(lines(net, most=1))) == 1


def test_the_limit_is_met_exactly(net):
    net = nn.Linear(10, 10, bias=False)
    with torch.no_grad():
        net.weight.fill_(0.5)
        net.weight[3, 3] = 0.5 * FAR
        assert outlier_tensors(net) == []
        net.weight[3, 3] = 0.5 * FAR * 1.01
        assert [o.at for o in outlier_tensors(net)] == [(3, 3)]
        net.weight[3, 3] = torch.nan
        assert outlier_tensors(net) == []
        net.weight.zero_()
        assert outlier_tensors(net) == []


@pytest.mark.parametrize("name", ["digits-vit", "digits-resnet", "digits-mobilenet"])
def test_trained_networks_have_none(name):
    from qlib.models.digits import Digits

    assert outlier_tensors(Digits().build(name, None).module) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_new_networks_have_none(family):
    assert outlier_tensors(tiny(family)) == []
