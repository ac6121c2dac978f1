"""Tiny networks of every family with random weights, for tests: a few thousand weights each."""

from collections.abc import Callable

import torch
from torch import nn


def _timm(arch: str, **kwargs) -> nn.Module:
    import timm

    return timm.create_model(arch, num_classes=10, **kwargs)


def _vit() -> nn.Module:
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}
    return _timm("vit_tiny_patch16_224", **size, mlp_ratio=2)


def _deit() -> nn.Module:
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return _timm("deit_tiny_distilled_patch16_224", **size, mlp_ratio=2)


def _swin() -> nn.Module:
    size = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16}
    return _timm("swin_tiny_patch4_window7_224", **size, depths=(2, 2), num_heads=(2, 4))


def _swinv2() -> nn.Module:
    size = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16}
    return _timm("swinv2_tiny_window8_256", **size, depths=(1, 2), num_heads=(2, 4))


def _convnext() -> nn.Module:
    return _timm("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))


def _resnet18() -> nn.Module:
    return _timm("resnet18", layers=(1, 2, 1, 1), channels=(8, 16, 24, 32))


def _resnet50() -> nn.Module:
    return _timm("resnet50", layers=(1, 1, 1, 1), channels=(4, 8, 8, 16))


def _regnet(se_ratio: float = 0.0) -> nn.Module:
    from timm.models.regnet import RegNet, RegNetCfg

    config = RegNetCfg(depth=6, w0=8, wa=12.0, wm=2.0, group_size=4, se_ratio=se_ratio)
    return RegNet(config, num_classes=10)


def _regnety() -> nn.Module:
    return _regnet(se_ratio=0.25)


def _by_stages(cls: type, stages: list[list[str]], **kwargs) -> nn.Module:
    from timm.models._efficientnet_builder import decode_arch_def

    return cls(decode_arch_def(stages), num_classes=10, stem_size=8, num_features=32, **kwargs)


def _mobilenetv2() -> nn.Module:
    from timm.models.efficientnet import EfficientNet

    stages = [["ds_r1_k3_s1_c8"], ["ir_r2_k3_s2_e3_c16"], ["ir_r1_k3_s1_e3_c24"]]
    return _by_stages(EfficientNet, stages, act_layer=nn.ReLU6)


def _mobilenetv3() -> nn.Module:
    from timm.models.mobilenetv3 import MobileNetV3

    stages = [
        ["ds_r1_k3_s2_e1_c8_se0.25_nre"],
        ["ir_r2_k5_s2_e3_c16_se0.25"],
        ["cn_r1_k1_s1_c24"],
    ]
    return _by_stages(MobileNetV3, stages, act_layer=nn.Hardswish)


def _mobilenetv4() -> nn.Module:
    from timm.models.mobilenetv3 import MobileNetV3

    stages = [
        ["cn_r1_k3_s2_e1_c8", "cn_r1_k1_s1_e1_c8"],
        ["uir_r1_a5_k5_s2_e3_c16", "uir_r1_a0_k3_s1_e2_c16"],
        ["cn_r1_k1_s1_c24"],
    ]
    return _by_stages(MobileNetV3, stages, act_layer=nn.ReLU)


def _efficientnet() -> nn.Module:
    from timm.models.efficientnet import EfficientNet

    stages = [["ds_r1_k3_s1_e1_c8_se0.25"], ["ir_r2_k5_s2_e3_c16_se0.25"], ["er_r1_k3_s1_e2_c16"]]
    return _by_stages(EfficientNet, stages, act_layer=nn.SiLU)


def _mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=10, img_size=16, patch_size=4, num_blocks=2, embed_dim=16)


def _byobnet() -> nn.Module:
    return _timm("test_byobnet")


def _cifar_resnet() -> nn.Module:
    from qlib.models._resnet import SmallResNet

    return SmallResNet(2, (8, 16, 32))


def _digits(key: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from qlib.models import _zoo

        return _zoo.NETWORKS[key]()

    return make


class OwnBlock(nn.Module):
    """A residual block under a name that nobody knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.ReLU()
        self.two = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.two(self.act(self.one(x)))


def _unknown() -> nn.Module:
    body = nn.Sequential(OwnBlock(8), nn.Sequential(OwnBlock(8), nn.Conv2d(8, 8, 1)), OwnBlock(8))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), body, *head)


def _plain() -> nn.Module:
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


# family -> (maker, input of one image (c, h, w))
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "vit": (_vit, (3, 16, 16)),
    "deit": (_deit, (3, 16, 16)),
    "swin": (_swin, (3, 32, 32)),
    "swinv2": (_swinv2, (3, 32, 32)),
    "convnext": (_convnext, (3, 32, 32)),
    "resnet18": (_resnet18, (3, 32, 32)),
    "resnet50": (_resnet50, (3, 32, 32)),
    "regnetx": (_regnet, (3, 32, 32)),
    "regnety": (_regnety, (3, 32, 32)),
    "mobilenetv2": (_mobilenetv2, (3, 32, 32)),
    "mobilenetv3": (_mobilenetv3, (3, 32, 32)),
    "mobilenetv4": (_mobilenetv4, (3, 32, 32)),
    "efficientnet": (_efficientnet, (3, 32, 32)),
    "mixer": (_mixer, (3, 16, 16)),
    "byobnet": (_byobnet, (3, 32, 32)),
    "cifar-resnet": (_cifar_resnet, (3, 32, 32)),
    "digits-vit": (_digits("digits-vit"), (1, 8, 8)),
    "digits-resnet": (_digits("digits-resnet"), (1, 8, 8)),
    "digits-mobilenet": (_digits("digits-mobilenet"), (1, 8, 8)),
    "unknown": (_unknown, (3, 8, 8)),
    "plain": (_plain, (3, 8, 8)),
}


def tiny(family: str, seed: int = 0) -> nn.Module:
    """The network in eval mode, the same for the same seed, with no weight left at 0 or 1.

    The global random state is left as it was.
    """
    make, _ = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make()
        _enliven(net)
    return net.eval()


def _enliven(net: nn.Module) -> None:
    """Away from the special values of a fresh network: gains 0 or 1, offsets 0, heads 0."""
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
    for name, weight in net.named_parameters():
        if name.endswith("gamma"):  # layer scale, which starts near 0
            nn.init.uniform_(weight, 0.5, 1.5)
        elif not weight.any():
            nn.init.normal_(weight, std=0.1)


def images(family: str, n: int = 2, seed: int = 1) -> torch.Tensor:
    """Random input (n, c, h, w) for `tiny`."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, *FAMILIES[family][1], generator=rng)
