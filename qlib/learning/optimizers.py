"""Optimisers by name, for the one optimisation loop."""

from collections.abc import Sequence

import torch

OPTIMIZERS = ("adam", "adamw", "adamax", "sgd", "sign-sgd")


class SignSGD(torch.optim.Optimizer):
    """Steps of one size, the learning rate, against the sign of the gradient.

    Bernstein et al., ICML 2018, arXiv 1802.04434
    """

    def __init__(self, params: Sequence[dict], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter by the learning rate against the sign of its gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad.sign(), alpha=-group["lr"])


def optimizer(name: str, groups: Sequence[dict]) -> torch.optim.Optimizer:
    """PyTorch's, with its defaults; ``sgd`` with momentum 0.9.

    Args:
        groups: what is learned and its rate, as PyTorch takes them: ``{"params": …, "lr": …}``.

    Raises:
        ValueError: an unknown name; the known ones are given.
    """
    if name == "adam":
        return torch.optim.Adam(groups, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    if name == "adamax":
        return torch.optim.Adamax(groups)
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9)
    if name == "sign-sgd":
        return SignSGD(groups)
    raise ValueError(f"There is no optimizer {name!r}; there are {', '.join(OPTIMIZERS)}.")
