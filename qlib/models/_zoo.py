"""The three digits networks before training. Plumbing: imported late, needs torch and timm."""

from collections.abc import Callable
from functools import partial

from torch import nn

from qlib.core.paths import ASSETS
from qlib.core.preprocess import Preprocess

FOLDER = ASSETS / "zoo"
# mean and deviation of all pixels of the training part, scaled to [0, 1]
PREPROCESS = Preprocess(input_size=(1, 8, 8), mean=(0.305,), std=(0.376,))


def vit() -> nn.Module:
    """A small vision transformer on 4x4 patches of 2x2 pixels."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=8,
        patch_size=2,
        in_chans=1,
        num_classes=10,
        embed_dim=48,
        depth=6,
        num_heads=3,
    )


def resnet() -> nn.Module:
    """A small ResNet with projections where the width changes, as in the ImageNet networks."""
    from qlib.models._resnet import SmallResNet

    return SmallResNet(2, (8, 16, 32), channels=1, projected=True)


def mobilenet() -> nn.Module:
    """A small MobileNetV2 (arXiv 1801.04381): depth-wise convolutions and ReLU6."""
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet

    stages = [["ds_r1_k3_s1_c16"], ["ir_r2_k3_s2_e4_c24"], ["ir_r3_k3_s2_e4_c40"]]
    net = EfficientNet(
        decode_arch_def(stages),
        num_classes=10,
        num_features=160,
        in_chans=1,
        stem_size=16,
        act_layer=partial(nn.ReLU6, inplace=False),
    )
    stem = net.conv_stem
    if isinstance(stem, nn.Conv2d):
        stem.stride = (1, 1)  # made for large images, the class halves them at once
    return net


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "digits-vit": vit,
    "digits-resnet": resnet,
    "digits-mobilenet": mobilenet,
}
