"""Finds the layers that read the unchanged output of given kinds of module, and their inputs."""

from functools import partial

import torch
from torch import Tensor, nn

from qlib.learning.calibration import Calibration
from qlib.network.model import QuantModel
from qlib.network.trace import removing

GELUS = {"GELU", "GELUTanh", "QuickGELU"}
NORMS = {"LayerNorm", "LayerNormFp32"}
SOFTMAX = {"Softmax"}


@torch.no_grad()
def readers(
    model: QuantModel, images: Tensor, kinds: set[str], *, cut: bool = False
) -> dict[str, str]:
    """Layer → the module whose output is its (left) input, as one float pass over ``images`` shows.

    Args:
        kinds: names of classes; timm has classes of its own beside PyTorch's.
        cut: also where the tokens were put into another order, as Swin's windows do.
    """
    written: dict[tuple, tuple[str, Tensor]] = {}
    writers: dict[str, str] = {}

    def wrote(name: str, module: nn.Module, args: tuple, y: Tensor) -> None:
        written[_place(y)] = name, y  # kept, so that its memory is not given to another

    def reads(name: str, module: nn.Module, args: tuple) -> None:
        if _place(args[0]) in written:
            writers[name] = written[_place(args[0])][0]
        elif cut:
            writers.update((name, norm) for norm, y in written.values() if _tokens_of(y, args[0]))

    hooks = [
        module.register_forward_hook(partial(wrote, name))
        for name, module in model.net.named_modules()
        if type(module).__name__ in kinds
    ]
    hooks += [
        layer.register_forward_pre_hook(partial(reads, name))
        for name, layer in model.layers.items()
    ]
    with removing(hooks), model.quantized(weights=False, inputs=False):
        model(images)
    return writers


def _tokens_of(y: Tensor, x: Tensor) -> bool:
    """Does ``x`` hold the tokens of ``y`` in another order? Every channel tells by its values."""
    if y.numel() != x.numel() or y.shape[-1] != x.shape[-1]:
        return False
    one, two = y.flatten(0, -2), x.flatten(0, -2)
    return torch.equal(one.sort(0).values, two.sort(0).values)


def _place(x: Tensor) -> tuple:
    return x.data_ptr(), tuple(x.shape), x.stride()


@torch.no_grad()
def of_channels(
    model: QuantModel, data: Calibration, names: list[str], rows: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """What each input channel of linear layers holds in the float network.

    Returns:
        by layer, (channels, n) values and how much each weighs: ``rows`` random rows, and the
        exact extremes of all of them with no weight, as `Histogram.values` has them.
    """
    samples: dict[str, list[Tensor]] = {name: [] for name in names}
    ends: dict[str, list[Tensor]] = {name: [] for name in names}

    def seen(name: str, quota: int, module: nn.Module, args: tuple) -> None:
        x = args[0].flatten(0, -2)
        at = torch.randperm(len(x), generator=data.generator, device=x.device)[:quota]
        samples[name].append(x[at])
        ends[name].append(torch.stack(x.aminmax(dim=0)))

    for start in range(0, len(data.images), data.batch):
        images = data.images[start : start + data.batch]
        quota = -(-rows * len(images) // len(data.images))
        hooks = [
            model.layers[name].register_forward_pre_hook(partial(seen, name, quota))
            for name in names
        ]
        with removing(hooks), model.quantized(weights=False, inputs=False):
            model(images)
    return {name: _weighed(samples[name], ends[name]) for name in names}


def _weighed(parts: list[Tensor], ends: list[Tensor]) -> tuple[Tensor, Tensor]:
    rows = torch.cat(parts)
    extremes = torch.stack(torch.cat(ends).aminmax(dim=0))
    values = torch.cat([rows, extremes]).T.contiguous()
    counts = torch.full_like(values, 1 / len(rows))
    counts[:, -2:] = 0
    return values, counts
