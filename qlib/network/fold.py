"""Exact rewrite: batch normalisation absorbed into the layer before it.

W' = W·γ/√(var + ε) per output channel, b' = β + (b − μ)·γ/√(var + ε). timm's `BatchNormAct2d`
is a batch norm that also drops and activates: these parts stay.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from qlib.network.kinds import CONVOLUTIONS
from qlib.network.own_weight import OutputFirst
from qlib.network.replace import replace_all
from qlib.network.trace import Call, Trace, trace

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_FOLDABLE = (*CONVOLUTIONS, nn.Linear, OutputFirst)


def fold_batch_norm(net: nn.Module, example: Tensor) -> tuple[nn.Module, list[str]]:
    """Fold, in place, every batch norm that directly follows a convolution or a linear layer.

    Args:
        example: a small batch; one forward pass shows which norm follows which layer.

    Returns:
        the network, and the names of the norms that were folded.

    Raises:
        ArithmeticError: the folded network differs from the given one by more than 1e-3 of its
            largest output (a norm that was wrongly taken for the only reader of its layer).
    """
    before = trace(net, example)
    pairs = _pairs(before)
    new = dict[nn.Module, nn.Module]()
    for layer_name, norm_name in pairs:
        layer, norm = net.get_submodule(layer_name), net.get_submodule(norm_name)
        new |= {layer: _fused(layer, norm), norm: _rest(norm)}
    replace_all(net, new)
    net.requires_grad_(False)
    with torch.no_grad():
        gap = (net(example.clone()) - before.output).abs().max()
    if gap > 1e-3 * before.output.abs().max().clamp(min=1e-3):
        raise ArithmeticError(f"Folding batch norms changed the network's output by {gap:.2g}.")
    return net, [norm for _, norm in pairs]


def _pairs(seen: Trace) -> list[tuple[str, str]]:
    """(layer, norm): the norm reads what the layer wrote, nobody else does, both run once."""
    found = []
    for norm in (call for call in seen.calls if isinstance(call.module, _NORMS)):
        makers = [
            call
            for call in seen.calls
            if call.output is norm.input and type(call.module) in _FOLDABLE and _by_channel(call)
        ]
        leaves = [c for c in seen.readers(norm.input) if not any(c.module.children())]
        others = [c for c in leaves if not isinstance(c.module, (nn.Identity, nn.Dropout))]
        alone = all(c.name == norm.name or c.name.startswith(norm.name + ".") for c in others)
        once = len(seen.of(norm.name)) == 1 and all(len(seen.of(m.name)) == 1 for m in makers)
        if len(makers) == 1 and alone and once and norm.module.track_running_stats:
            found.append((makers[0].name, norm.name))
    return found


def _by_channel(call: Call) -> bool:
    """Does a batch norm count as channels what the layer does? Not behind rows of tokens."""
    return not isinstance(call.module, nn.Linear) or call.output.dim() == 2


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module:
    assert isinstance(norm, _NORMS)  # so `_pairs` chose them
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    return fuse_conv_bn_eval(layer, norm)  # pyright: ignore[reportArgumentType] -- duck-typed


def _rest(norm: nn.Module) -> nn.Module:
    """What a norm does besides normalising."""
    parts = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part]
    return nn.Sequential(*parts) if parts else nn.Identity()
