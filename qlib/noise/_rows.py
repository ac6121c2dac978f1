"""Random rows of what linear layers read, and which layers are linear in that sense."""

from functools import partial

import torch
from torch import Tensor, nn

from qlib.core.records import Event
from qlib.learning.calibration import Calibration
from qlib.network.kinds import CONVOLUTIONS
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer
from qlib.network.trace import removing


def sampled(
    model: QuantModel, data: Calibration, images: Tensor, names: list[str], rows: int
) -> dict[str, Tensor]:
    """(≤ about ``rows``, d) random rows of what each layer reads in the float network."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    share = rows / len(images)

    def keep(name: str, layer: QuantLayer, args: tuple) -> None:
        x = _as_rows(layer, args[0].detach())
        wanted = max(1, round(share * batch))
        if len(x) > wanted:
            order = torch.randperm(len(x), generator=data.generator, device=x.device)
            x = x[order[:wanted]]
        found[name].append(x.float().clone())

    hooks = [model.layers[name].register_forward_pre_hook(partial(keep, name)) for name in names]
    with removing(hooks), model.quantized(weights=False, inputs=False):
        for start in range(0, len(images), data.batch):
            part = images[start : start + data.batch]
            batch = len(part)
            model(part)
            data.report(Event("calibrate", "", start, len(images), note="rows of layers"))
    return {name: torch.cat(parts) for name, parts in found.items()}


def _as_rows(layer: QuantLayer, x: Tensor) -> Tensor:
    """(rows, d) of an input; of a convolution one row for each patch."""
    conv = layer.layer
    if not isinstance(conv, CONVOLUTIONS):
        return x.flatten(0, -2)
    dims = len(conv.kernel_size)
    for axis, (size, stride) in enumerate(zip(conv.kernel_size, conv.stride, strict=True), start=2):
        x = x.unfold(axis, size, stride)
    return x.movedim(1, 1 + dims).flatten(1 + dims).flatten(0, dims)


def fits(layer: QuantLayer) -> bool:
    """Whether a layer is one matrix product that reads a number at most once, without padding."""
    conv = layer.layer
    if isinstance(conv, nn.Linear):
        return True
    if not isinstance(conv, CONVOLUTIONS) or type(conv) not in CONVOLUTIONS or conv.groups > 1:
        return False
    if conv.padding != "valid" and any(conv.padding):
        return False
    reach = zip(conv.kernel_size, conv.dilation, conv.stride, strict=True)
    return all(size <= stride and (size == 1 or gap == 1) for size, gap, stride in reach)
