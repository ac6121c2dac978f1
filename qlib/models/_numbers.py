"""Turns the tensors of a weights file into float32 weights, or says which of them cannot be."""

from typing import TYPE_CHECKING

from qlib.core.records import InvalidSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

WIDE = 65504  # the largest number of half precision


def check_kind(name: str, tensor: "Tensor", own: "Tensor", source: str) -> None:
    """Check that a tensor of the file can stand where the network has ``own``.

    Raises:
        InvalidSpec: sparse, quantized, without values, or numbers of another kind.
    """
    if odd := _odd_kind(tensor) or _odd_numbers(tensor, own):
        raise InvalidSpec(
            f"The tensor {name} in {source} {odd}; save the float network's state_dict() with "
            "plain floating-point tensors."
        )


def _odd_kind(tensor: "Tensor") -> str:
    import torch

    if tensor.is_nested:
        return "is a nested tensor"
    if tensor.is_quantized:
        return "is quantized, and the float network is needed"
    if tensor.layout != torch.strided:
        return "is sparse, and only tensors with all their values are read"
    if tensor.is_meta:
        return "has a shape and no values (the meta device)"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"is of a type of its own ({type(tensor).__name__})"
    return ""


def _odd_numbers(tensor: "Tensor", own: "Tensor") -> str:
    import torch

    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_complex() != own.is_complex():
        return f"holds complex numbers ({kind}), and the network's are real"
    if (tensor.dtype == torch.bool) != (own.dtype == torch.bool):
        return f"holds {kind} where the network has {str(own.dtype).removeprefix('torch.')}"
    if own.is_floating_point() and not tensor.is_floating_point():
        return f"holds integers ({kind}), which mean nothing without their scales"
    if kind.startswith("float") and tensor.element_size() == 1:
        return f"holds {kind}, which means nothing without its scales"
    return ""


def converted(
    module: "nn.Module", state: "dict[str, Tensor]", source: str
) -> tuple["dict[str, Tensor]", list[str]]:
    """The same tensors in the types of the network, and notes on what was widened or rounded.

    Raises:
        InvalidSpec: values that are NaN or infinite, or too large for float32; the first tensor is
            named.
    """
    own = module.state_dict()
    ready = {name: tensor.to(own[name].dtype) for name, tensor in state.items()}
    _check_finite(module, state, ready, source)
    changed: dict[torch.dtype, list[str]] = {}
    for name, tensor in state.items():
        if own[name].is_floating_point() and tensor.dtype != own[name].dtype:
            changed.setdefault(tensor.dtype, []).append(name)
    return ready, [_widened(names, tensor, own) for tensor, names in changed.items()]


def _check_finite(
    module: "nn.Module", state: "dict[str, Tensor]", ready: "dict[str, Tensor]", source: str
) -> None:
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    own = module.state_dict()
    counts = {
        name: int(tensor.numel() - tensor.isfinite().sum())
        for name, tensor in ready.items()
        if tensor.is_floating_point()
    }
    # a constant of the architecture, such as a mask of minus infinity, is as it should be
    bad = [n for n, k in counts.items() if k and (n in parameters or not ready[n].equal(own[n]))]
    if not bad:
        return
    name, more = (
        bad[0],
        f", and {len(bad) - 1} more tensors have such values" if len(bad) > 1 else "",
    )
    raise InvalidSpec(
        f"The tensor {name} in {source} has {counts[name]:,} of {ready[name].numel():,} values "
        f"that are NaN or infinite{more}{_overflow(state[name])}; take a checkpoint from before "
        "that, or save the weights again in float32."
    )


def _overflow(tensor: "Tensor") -> str:
    import torch

    if bool(tensor.isfinite().all()):
        return " (float32 ends at 3.4e38)"
    if tensor.dtype == torch.float16:
        return f" (half precision ends at {WIDE:,})"
    return ""


def _widened(names: list[str], dtype: "torch.dtype", own: "dict[str, Tensor]") -> str:
    kind, to = (str(d).removeprefix("torch.") for d in (dtype, own[names[0]].dtype))
    how = "rounded" if dtype.itemsize > own[names[0]].dtype.itemsize else "widened"
    tensors = f"{len(names)} tensors were" if len(names) > 1 else f"The tensor {names[0]} was"
    return f"{tensors} {how} from {kind} to {to}."
