"""Networks that return several tensors: what is asked, what is chosen, and that names stay."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import own_nets
import pytest
import torch
from torch import Tensor

import qlib
from qlib.core.records import InvalidSpec
from qlib.network import outputs

IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(5))
Pair = namedtuple("Pair", "first second")


@dataclass
class Answer:
    """As a library returns it: one field empty."""

    logits: Tensor
    loss: None = None


RETURNED = {
    "tuple": (lambda a, b: (a, b), "0", "'0' of shape (n, 10), '1' of shape (n, 10)"),
    "list": (lambda a, b: [b, a], "1", "'0' of shape (n, 10), '1' of shape (n, 10)"),
    "dict": (lambda a, b: {"x": b, "logits": a}, "logits", "'x' of shape"),
    "one named": (lambda a, b: OrderedDict(logits=a), "logits", "there are 'logits' of shape"),
    "named tuple": (lambda a, b: Pair(b, a), "second", "'first' of shape (n, 10), 'second'"),
    "object": (lambda a, b: Answer(a), "logits", "there are 'logits' of shape (n, 10)"),
    "nested": (
        lambda a, b: {"aux": [b.sum(), (b, a)]},
        "aux.1.1",
        "'aux.0' of shape (), 'aux.1.0' of shape (n, 10), 'aux.1.1'",
    ),
}


def several(how) -> own_nets.Several:
    torch.manual_seed(3)
    return own_nets.Several(how).eval()


@pytest.mark.parametrize("case", RETURNED)
def test_asked_in_one_sentence(case):
    how, _, listed = RETURNED[case]
    with pytest.raises(InvalidSpec) as caught:
        qlib.quantize(several(how), IMAGES, "nearest")
    assert listed in str(caught.value) and "choose the output" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", RETURNED)
def test_chosen_output_is_quantized_as_that_of_the_plain_twin(case, tmp_path):
    """BRECQ learns, so its unit inputs, Fisher weights and walk all see the chosen tensor."""
    how, name, _ = RETURNED[case]
    net = several(how)
    torch.manual_seed(3)
    twin = own_nets.Cnn().eval()
    recipe = {"method": "brecq", "weight_bits": 3, "act_bits": 4, "steps": 3, "batch": 4}
    q = qlib.quantize(net, IMAGES, output=name, **recipe)
    plain = qlib.quantize(twin, IMAGES, **recipe)
    assert torch.equal(q(IMAGES), plain(IMAGES))
    assert list(q.model.layers) == list(plain.model.layers)
    assert type(net(IMAGES)) is type(how(torch.zeros(1), torch.zeros(1)))  # as it was
    q.save(tmp_path / "q.safetensors")
    assert torch.equal(qlib.load(tmp_path / "q.safetensors", several(how))(IMAGES), q(IMAGES))


def test_number_chooses_as_its_text():
    net = several(lambda a, b: (a, b))
    one, other = (qlib.quantize(net, IMAGES, "nearest", output=o) for o in (1, "1"))
    assert torch.equal(one(IMAGES), other(IMAGES))
    assert not torch.equal(one(IMAGES), qlib.quantize(net, IMAGES, "nearest", output=0)(IMAGES))


@pytest.mark.parametrize(
    ("how", "name", "match"),
    [
        (lambda a, b: {"logits": a}, "logit", r"no tensor 'logit'; there are 'logits'"),
        (lambda a, b: a, "0", r"'0' was asked for, but the network returns one tensor"),
        (lambda a, b: (), "0", r"no tensor '0'; there is no tensor in it"),
        (lambda a, b: {"a": a[0]}, "a", r"it has to return class scores"),
        (lambda a, b: {"a": a.argmax(1)}, "a", r"type int64 for 2 images"),
    ],
)
def test_choice_that_is_not_there(how, name, match):
    with pytest.raises(InvalidSpec, match=match):
        qlib.quantize(several(how), IMAGES, "nearest", output=name)


def test_long_lists_are_cut():
    many = {f"layer{i}": torch.zeros(2, 3) for i in range(40)}
    assert outputs.listed(many).endswith("'layer11' of shape (n, 3) and 28 more")


def test_choosing_leaves_the_network_alone():
    net = several(lambda a, b: (a, b))
    twin = outputs.choosing(net, "1")
    assert not net._forward_hooks and twin.head is net.head
    assert [n for n, _ in twin.named_modules()] == [n for n, _ in net.named_modules()]
