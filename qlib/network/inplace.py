"""Networks that write into tensors which a backward pass still needs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qlib.network.ports import tensors_in


def overwrites_saved(net: nn.Module, images: Tensor) -> bool:
    """Does ``net`` overwrite what gradients of its weights are made from? Tried out.

    So does a block that adds to its own input (``x += f(x)``): PyTorch refuses the backward pass.
    """
    with _weights_learning(net), torch.enable_grad():
        try:
            answers = [t.sum() for t in tensors_in(net(images)) if t.requires_grad]
            if answers:
                torch.stack(answers).sum().backward()
        except RuntimeError as error:
            return "modified by an inplace operation" in str(error)
    return False


@contextmanager
def _weights_learning(net: nn.Module) -> Iterator[None]:
    weights = [p for p in net.parameters() if p.is_floating_point()]
    for p in weights:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in weights:
            p.requires_grad_(False)
            p.grad = None
