"""Finds the reconstruction blocks of any network by its structure."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# class names that mean "one residual or transformer block" wherever they occur; they spare a
# block that holds a row of smaller parts from being cut up
BLOCK_NAMES = frozenset(
    (
        "Block",
        "BasicBlock",
        "Bottleneck",
        "BottleneckBlock",
        "ConvNeXtBlock",
        "DepthwiseSeparableConv",
        "EdgeResidual",
        "EncoderBlock",
        "InvertedResidual",
        "MixerBlock",
        "MobileAttention",
        "ResidualBlock",
        "SwinTransformerBlock",
        "SwinTransformerV2Block",
        "TransformerEncoderLayer",
        "UniversalInvertedResidual",
    )
)


def find_blocks(module: "nn.Module") -> tuple[str, ...]:
    """Names of the reconstruction blocks, in the order in which they run.

    A block holds at least two convolutions or linear layers, and blocks never nest. First rule:
    the class has a well-known name. Second rule, for any other network: the innermost items of a
    row (an ``nn.Sequential``, a ``ModuleList``, or a module with nothing but children of one
    class), where the items are modules with a forward of their own. Convolutions and linear
    layers outside of all blocks (stem, downsampling, head) are units by themselves; a network
    without blocks, such as a plain chain of layers, gives ``()``.
    """
    return tuple(_blocks(module, "", in_row=False))


def _blocks(module: "nn.Module", name: str, in_row: bool) -> list[str]:
    enough = _weight_layers(module) >= 2
    if name and enough and type(module).__name__ in BLOCK_NAMES:
        return [name]
    row = _is_row(module)
    inner = []
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        inner += _blocks(child, full, in_row=row)
    if inner:
        return inner
    return [name] if in_row and enough and not _from_torch(module) else []


def _weight_layers(module: "nn.Module") -> int:
    from qlib.network.kinds import WEIGHTED

    return sum(isinstance(m, WEIGHTED) for m in module.modules())


def _is_row(module: "nn.Module") -> bool:
    from torch import nn

    if isinstance(module, nn.Sequential | nn.ModuleList):
        return True
    kinds = {type(child) for child in module.children()}
    return len(kinds) == 1 and len(list(module.children())) > 1


def _from_torch(module: "nn.Module") -> bool:
    """Plain ``torch.nn`` containers and layers: grouping, not a block."""
    return type(module).__module__.startswith("torch.")
