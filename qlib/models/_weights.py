"""Reads weights from a file safely and puts them into a network, or says why not."""

from pathlib import Path
from typing import TYPE_CHECKING

from qlib.core.records import InvalidSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

PICKLES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")
SUFFIXES = (".safetensors", *PICKLES)
WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")


def read_weights(path: str | Path) -> "dict[str, Tensor]":
    """``name -> tensor`` of a weights file, on the CPU. Never runs code from the file.

    Raises:
        InvalidSpec: not there, not a weights file, truncated, or a pickle with more than tensors.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidSpec(
            f"{path} is not a weights file by its name; allowed are {', '.join(SUFFIXES)}. "
            "Save the network's state_dict under such a name."
        )
    if not path.is_file():
        raise InvalidSpec(
            f"There is no weights file {path}; check the path, or put the file there."
        )
    read = _read_safetensors if path.suffix.lower() == ".safetensors" else _read_pickle
    return _unwrapped(path, read(path))


def load_weights(module: "nn.Module", state: "dict[str, Tensor]", name: str, source: str) -> None:
    """Copy ``state`` into ``module``; every name and every shape must match.

    Raises:
        InvalidSpec: another architecture; the first keys that do not fit are named.
    """
    own = module.state_dict()
    # a counter that only training reads, and that some files leave out
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    if missing or unexpected:
        raise InvalidSpec(
            f"The weights in {source} are not of {name}: {_first('missing', missing)}, "
            f"{_first('unexpected', unexpected)}. Choose the model that they were saved from."
        )
    for key, tensor in state.items():
        if tensor.shape != own[key].shape:
            raise InvalidSpec(
                f"The weights in {source} do not fit {name}: {key} has shape "
                f"{tuple(tensor.shape)} in the file and {tuple(own[key].shape)} in the network. "
                "Choose the model that they were saved from."
            )
    module.load_state_dict(state, strict=False)


def _first(what: str, keys: list[str]) -> str:
    if not keys:
        return f"nothing {what}"
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"{what} {keys[0]}{more}"


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidSpec(_damaged(path, error)) from None


def _read_pickle(path: Path) -> object:
    import pickle
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle versions; what cannot be read is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _starts_like_a_pickle(path):
            raise InvalidSpec(
                f"{path} holds Python objects besides tensors, and loading those could run any "
                "code; only plain tensors are read. Save the state_dict as .safetensors instead."
            ) from None
        raise InvalidSpec(_damaged(path, error)) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InvalidSpec(_damaged(path, error)) from None


def _starts_like_a_pickle(path: Path) -> bool:
    """Alone, or in the zip that torch puts around it."""
    with path.open("rb") as file:
        return file.read(2).startswith((b"\x80", b"PK"))


def _damaged(path: Path, error: Exception) -> str:
    reason = (str(error).strip() or "it ends too early").splitlines()[0][:120]
    return f"{path} is damaged or no weights file ({reason}); fetch or save it again."


def _unwrapped(path: Path, content: object) -> "dict[str, Tensor]":
    """The tensors inside a training checkpoint, without the prefix of a parallel wrapper."""
    import torch

    while isinstance(content, dict):
        inner = next((content[k] for k in WRAPPERS if isinstance(content.get(k), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not content:
        raise InvalidSpec(f"{path} holds no state_dict; save the network's state_dict() instead.")
    if not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise InvalidSpec(
            f"{path} holds other things than tensors by name; save the network's state_dict() "
            "instead."
        )
    return {k.removeprefix("module."): v for k, v in content.items()}
