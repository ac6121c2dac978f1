"""Small networks for CIFAR-10: three residual networks and a vision transformer.

Papers: He et al., CVPR 2016, arXiv 1512.03385 (6n+2 layers, option-A shortcuts);
Dosovitskiy et al., ICLR 2021, arXiv 2010.11929.
"""

from typing import ClassVar

from qlib.core.preprocess import Preprocess
from qlib.core.records import InvalidSpec
from qlib.models.base import Built, Model

DEPTHS = {"cifar10-resnet20": 3, "cifar10-resnet32": 5, "cifar10-resnet56": 9}
VIT = "cifar10-vit"
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# the two ways of normalising that the published weights were trained with
RESNET_INPUT = Preprocess((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
VIT_INPUT = Preprocess((3, 32, 32), (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))


class Cifar(Model):
    """Networks for CIFAR-10: the architectures are here, the weights come from a file."""

    title: ClassVar[str] = "CIFAR-10 networks (weights from a file)"

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """Keys of the architectures."""
        return (*DEPTHS, VIT)

    def build(self, name: str, weights: str | None) -> Built:
        """See `Model.build`; ``weights`` are required."""
        if weights is None:
            raise InvalidSpec(
                f"{name} comes without weights: give a .safetensors or .pth file of its "
                "state_dict (--weights FILE), or choose a digits network, which has its own."
            )
        from qlib.models._weights import load_weights

        net = _vit() if name == VIT else _resnet(DEPTHS[name])
        notes = load_weights(net, weights, name)
        preprocess = VIT_INPUT if name == VIT else RESNET_INPUT
        return Built(net.eval(), preprocess, classes=10, notes=notes, names=CLASSES)


def _resnet(depth: int):
    from qlib.models._resnet import SmallResNet

    return SmallResNet(depth)


def _vit():
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32,
        patch_size=4,
        num_classes=10,
        embed_dim=128,
        depth=4,
        num_heads=4,
        mlp_ratio=2,
    )
