"""What a run leaves beside its record: predictions, small pictures, scales and integer codes."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from qlib.datasets.base import Images
from qlib.network.model import QuantModel
from qlib.quantizers.base import Quantizer
from qlib.quantizers.noisy import Noisy
from qlib.quantizers.shared_round import SharedRound, pack
from qlib.quantizers.switchable import Switchable

PICTURES = 12  # the first test images, and as many more whose answer changed
# two ranges, or their sum; powers of a base; input channels with grids of their own
KINDS = ("unit_shift", "unit_sum", "sign_shift", "per_octave", "ratio", "offset", "column")


def save_predictions(
    folder: Path, images: Images, logits: dict[str, Tensor], classes: tuple[str, ...]
) -> None:
    """``preds.npz``: the five most probable classes of every image, and some small pictures."""
    arrays = {"ids": np.array(images.ids), "labels": np.asarray(images.labels, np.int32)}
    for name, values in logits.items():
        top = values.softmax(1).topk(min(5, values.shape[1]))
        arrays[f"{name}_top5"] = top.indices.numpy().astype(np.int16)
        arrays[f"{name}_prob"] = top.values.numpy().astype(np.float16)
    changed = (logits["float"].argmax(1) != logits["quant"].argmax(1)).nonzero()[:, 0].tolist()
    first = list(range(min(PICTURES, len(images))))
    shown = first + [i for i in changed if i not in first][:PICTURES]
    arrays["thumb_index"] = np.array(shown, dtype=np.int32)
    arrays["thumbs"] = np.stack([_picture(images, i) for i in shown])
    np.savez_compressed(folder / "preds.npz", class_names=np.array(classes), **arrays)


def _picture(images: Images, index: int, side: int = 64) -> np.ndarray:
    """(h, w, 3) bytes, the middle square, at most ``side`` wide; small images keep their pixels."""
    image = images.image(index).convert("RGB")
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    image = image.crop((left, top, left + edge, top + edge))
    return np.asarray(image if edge <= side else image.resize((side, side)))


def save_quantizers(model: QuantModel, folder: Path) -> None:
    """``quantizers.safetensors``: scale and zero-point of every point, codes of every weight.

    With ``POINT.exponent`` where a grid is bent, ``POINT.noise``, what `KINDS` names for others,
    ``LAYER.bias.added`` where a method corrects biases, and for several bit-widths
    ``POINT.widths``, ``.scales``, ``.zero_points``, ``LAYER.weight.rounding`` (8 weights to a byte)
    and ``.base``: all that `qlib.pipeline.restore` needs to compute the same again.
    """
    tensors: dict[str, Tensor] = {}
    for name, layer in model.weighted().items():
        quantizer = layer.weight_point.quantizer
        if quantizer is not None:
            kind = torch.int8 if quantizer.scheme.symmetric else torch.uint8
            tensors[f"{name}.weight.codes"] = quantizer.codes(layer.weight).to(kind)
            tensors |= _grid(f"{name}.weight", quantizer)
            if isinstance(quantizer, SharedRound):
                tensors |= _shared(f"{name}.weight", quantizer, layer.weight, kind)
        if layer.correction is not None:
            tensors[f"{name}.bias.added"] = layer.correction.added
    for name, point in model.points.items():
        if point.quantizer is not None:
            tensors |= _grid(name, point.quantizer)
    ready = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    save_file(ready, folder / "quantizers.safetensors")


def _grid(name: str, quantizer: Quantizer) -> dict[str, Tensor]:
    """What says which value a code stands for; some parts belong to one kind of grid alone."""
    if isinstance(quantizer, Noisy):
        return _grid(name, quantizer.base) | {f"{name}.noise": quantizer.noise}
    parts = ("scale", "zero_point", "exponent", *KINDS)
    found = {
        f"{name}.{part}": getattr(quantizer, part) for part in parts if hasattr(quantizer, part)
    }
    if isinstance(quantizer, Switchable):
        widths = quantizer.bit_widths
        found[f"{name}.widths"] = torch.tensor(widths, dtype=torch.uint8)
        for part in ("scale", "zero_point"):
            every = [getattr(quantizer.at(bits), part) for bits in widths]
            found[f"{name}.{part}s"] = torch.stack([t.detach() for t in every])
    return found


def _shared(
    name: str, quantizer: SharedRound, weight: Tensor, kind: torch.dtype
) -> dict[str, Tensor]:
    """One bit for each weight; with nested steps also the integers that all widths come from."""
    if quantizer.rounding is None:
        raise ValueError(f"The rounding of {name} is still soft; call `harden` before storing it.")
    found = {f"{name}.rounding": pack(quantizer.rounding)}
    if quantizer.nested:
        found[f"{name}.base"] = quantizer.base_codes(weight).to(kind)
    return found
