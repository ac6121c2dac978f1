"""Residual networks for small images, written out with every activation as a module.

Paper: He et al., CVPR 2016, arXiv 1512.03385, section 4.2. Plumbing: imported late, needs torch.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class PadShortcut(nn.Module):
    """Option A of the paper: drop every other pixel, fill up with zero channels. No weights."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, x: Tensor) -> Tensor:
        """Shortcut of ``x`` (n, c, h, w): half the size, more channels."""
        x = x[:, :, :: self.stride, :: self.stride]  # (n, c, h, w) -> (n, c, h/s, w/s)
        side = self.extra // 2
        return F.pad(x, (0, 0, 0, 0, side, self.extra - side))  # -> (n, c + extra, h/s, w/s)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; ``act2`` comes after the sum."""

    def __init__(self, width_in: int, width: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if stride == 1 and width_in == width:
            self.shortcut = nn.Identity()
        elif projected:
            conv = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))
        else:
            self.shortcut = PadShortcut(stride, width - width_in)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Output of the block for ``x`` (n, c, h, w)."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.act2(y + self.shortcut(x))


class SmallResNet(nn.Module):
    """Three stages at full, half and quarter resolution; ``depth`` blocks in each.

    ``projected`` chooses a 1x1 convolution where the width changes (option B) over `PadShortcut`.
    Takes (n, channels, h, w), gives (n, classes).
    """

    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int] = (16, 32, 64),
        *,
        channels: int = 3,
        classes: int = 10,
        projected: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU()
        self.layer1 = _stage(widths[0], widths[0], 1, depth, projected)
        self.layer2 = _stage(widths[0], widths[1], 2, depth, projected)
        self.layer3 = _stage(widths[1], widths[2], 2, depth, projected)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of images ``x`` (n, 3, h, w)."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.flatten(self.pool(x)))


def _stage(width_in: int, width: int, stride: int, depth: int, projected: bool) -> nn.Sequential:
    blocks = [ResidualBlock(width_in, width, stride, projected)]
    blocks += [ResidualBlock(width, width, 1, projected) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)
