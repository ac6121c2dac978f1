"""Multiplications are counted as by hand, and whatever is not quantized is named."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qlib
from qlib.core.records import InvalidSpec
from qlib.network.coverage import coverage
from qlib.network.model import QuantModel

WIDTH, TOKENS, CLASSES = 8, 16, 5
IMAGE = 64  # numbers of an 8 × 8 image


class FusedAttention(nn.Module):
    """Patches of 2 × 2, one attention with two heads by PyTorch's fused function, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 2, 2)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.proj(y).mean(1))


class Tied(nn.Module):
    """One convolution under two names, each called once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.first = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.second = self.first
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.second(self.first(x).relu()).mean((2, 3)))


class Signal(nn.Module):
    """Convolutions along one dimension, grouped and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(8, 12, 3, padding=1)
        self.grouped = nn.Conv1d(12, 6, 5, stride=2, padding=2, groups=3)
        self.up = nn.ConvTranspose1d(6, 4, 2, stride=2)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.grouped(self.first(x[:, 0]).relu()).relu()).mean(-1))


class TalkingHeads(nn.Module):
    """Attention whose scores and probabilities are mixed across heads, with `einsum`."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 2, 2)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.before = nn.Parameter(torch.randn(2, 2))
        self.after = nn.Parameter(torch.randn(2, 2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        scores = torch.einsum("bhid,bhjd->bhij", q, k)
        scores = torch.einsum("bhij,hg->bgij", scores, self.before)
        shares = torch.einsum("bhij,hg->bgij", scores.softmax(-1), self.after)
        y = torch.einsum("bhij,bhjd->bihd", shares, v).flatten(2)
        return self.head(y.mean(1))


PATCHES = TOKENS * WIDTH * 4
HEAD = WIDTH * CLASSES
PRODUCTS = 2 * TOKENS * TOKENS * WIDTH  # scores and mixture, both heads together
BY_HAND = {
    FusedAttention: PATCHES + TOKENS * 4 * WIDTH * WIDTH + PRODUCTS + HEAD,
    Tied: IMAGE * WIDTH * 9 + 2 * IMAGE * WIDTH * WIDTH * 9 + HEAD,
    Signal: 8 * 12 * 8 * 3 + 4 * 6 * 4 * 5 + 4 * 6 * 4 * 2 + 4 * CLASSES,
    TalkingHeads: PATCHES + TOKENS * 3 * WIDTH * WIDTH + PRODUCTS + HEAD
    + 2 * TOKENS * TOKENS * 2 * 2,
}  # fmt: skip


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def built(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


@pytest.mark.parametrize("kind", BY_HAND)
def test_multiplications_are_those_counted_by_hand(kind):
    net = built(kind)
    whole = coverage(net, images(), ())
    assert whole.macs == BY_HAND[kind] and sum(whole.left_float.values()) == whole.macs
    q = qlib.quantize(net, images(), "nearest", weight_bits=8, act_bits=8)
    assert q.model.coverage.macs == BY_HAND[kind] == sum(q.model.macs.values())
    assert q.coverage == q.model.coverage.share == 1 and q.model.coverage.left_float == {}


class WithMore(nn.Module):
    """A network, and a recurrent layer that is not quantized."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.net = built(Tied)
        self.memory = nn.LSTM(8, 3 * times, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.memory(x[:, 0])[0].mean((1, 2))[:, None]


def test_what_stays_in_float_is_named_and_counted():
    q = qlib.quantize(WithMore(1).eval(), images(), "nearest", keep_float=["net.stem"])
    recurrent = 8 * 4 * 3 * (8 + 3)  # tokens × gates × hidden × (inputs + hidden)
    assert list(q.model.coverage.left_float.values()) == [recurrent]
    assert q.model.coverage.macs == BY_HAND[Tied] + recurrent
    stem = IMAGE * WIDTH * 9
    assert q.coverage == pytest.approx(1 - (recurrent + stem) / q.model.coverage.macs)


def test_less_than_half_is_refused_unless_it_is_allowed():
    net = WithMore(60).eval()
    with pytest.raises(InvalidSpec, match=r"Only \d+ % of .* memory"):
        qlib.quantize(net, images(), "nearest")
    q = qlib.quantize(net, images(), "nearest", allow_float=True)
    assert 0 < q.coverage < 0.5


def test_every_kind_of_product_is_seen():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.three = nn.Bilinear(3, 4, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = x[:, 0]
            one = torch.mv(x[0], x[0, 0]).sum() + torch.dot(x[0, 0], x[0, 1])
            one = one + torch.addbmm(x.new_zeros(8, 8), x, x).sum()
            return self.three(x[:, :1, :3], x[:, :1, :4]).flatten(1) + one

    net, n = Odd().eval(), 2
    counted = coverage(net, images(n), ())
    assert counted.macs == (64 + 8 + n * 8**3 + n * 3 * 4 * 2) // n


def test_a_wrapped_layer_counts_where_its_own_class_multiplies_otherwise():
    import timm

    net = timm.create_model("tf_efficientnet_b0", pretrained=False, num_classes=CLASSES).eval()
    model = QuantModel(net, torch.randn(2, 3, 32, 32))
    assert model.coverage.share == 1 and sum(model.macs.values()) == model.coverage.macs
