"""Networks of one's own, as somebody would bring them: nothing of timm's. ``own_nets.py:cnn``."""

import torch
from torch import Tensor, nn

CLASSES, SIDE = 10, 8  # as the digits


class Cell(nn.Module):
    """Two convolutions with batch norms around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.norm(self.first(x)).relu())


class Cnn(nn.Module):
    """(n, 1, 8, 8) → (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.cells = nn.Sequential(Cell(8), Cell(8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(self.stem(x).relu()).mean((2, 3)))


class Attention(nn.Module):
    """Two heads, written by hand with matrix products."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )  # (n, heads, tokens, width / heads)
        share = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out((share @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and two linear layers, each around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.up, self.act, self.down = nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(self.act(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """(n, 1, 8, 8) → (n, 10); 16 patches of 2 × 2."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 2, stride=2)
        self.places = nn.Parameter(0.1 * torch.randn(16, 16))
        self.layers = nn.ModuleList([Layer(16), Layer(16)])
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def cnn() -> nn.Module:
    """Alone: images are taken as they are."""
    return Cnn()


def transformer() -> tuple[nn.Module, dict]:
    """With its preprocessing."""
    return Transformer(), {"input_size": (1, SIDE, SIDE), "mean": (0.3,), "std": (0.4,)}


class Encoder(Cnn):
    """(n, 1, 8, 8) → (n, 8): no classifier, ends in a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LayerNorm(8)


class TokenEncoder(Transformer):
    """(n, 1, 8, 8) → (n, 16, 16): tokens."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        for layer in self.layers:
            x = layer(x)
        return x


class Several(Cnn):
    """The scores among other things; what is returned, ``how`` says."""

    def __init__(self, how) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor):
        scores = super().forward(x)
        return self.how(scores, 2 * scores)


def encoder() -> nn.Module:
    """Features (n, 8)."""
    return Encoder()


def tokens() -> nn.Module:
    """Features (n, 16, 16)."""
    return TokenEncoder()


def named() -> nn.Module:
    """A dictionary, as many libraries return one."""
    return Several(lambda scores, other: {"hidden": other, "logits": scores})


def seven() -> nn.Module:
    """A classifier of seven classes."""
    net = Cnn()
    net.head = nn.Linear(8, 7)
    return net
