"""Recognises files that hold a network and no plain weights, and says how to get the weights."""

import zipfile
from pathlib import Path

SAVE = "torch.save(net.state_dict(), 'weights.pth')"
PICKLES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")
SUFFIXES = (".safetensors", *PICKLES)

WAYS = {  # a kind of file → what it is, and how to come to a state dict from it
    "torchscript": "a TorchScript archive; open it with torch.jit.load and save its weights: "
    f"{SAVE}",
    "export": "a program of torch.export; save the weights of the network that it was exported "
    f"from: {SAVE}",
    "onnx": "an ONNX graph, whose weights have lost the names of the network's layers; save them "
    f"from the PyTorch network that it was exported from: {SAVE}",
    "keras": "a TensorFlow or Keras file; convert the network to PyTorch first, then save its "
    f"weights: {SAVE}",
    "numpy": "a file of numpy arrays; turn each array into a tensor (torch.from_numpy) under the "
    "name that the network has for it, and torch.save the dictionary of them",
    "pickle": "a Python pickle that torch.save did not write; turn its arrays into tensors under "
    "the network's own names, and torch.save the dictionary of them",
    "engine": f"compiled for one machine; save the weights of the network it was made from: {SAVE}",
}
BY_SUFFIX = {
    ".pt2": "export", ".onnx": "onnx", ".ort": "onnx",
    ".h5": "keras", ".hdf5": "keras", ".keras": "keras", ".pb": "keras", ".tflite": "keras",
    ".npy": "numpy", ".npz": "numpy", ".pkl": "pickle", ".pickle": "pickle", ".joblib": "pickle",
    ".engine": "engine", ".plan": "engine", ".mlmodel": "engine",
}  # fmt: skip
STARTS = {b"\x89HDF\r\n\x1a\n": "keras", b"\x93NUMPY": "numpy"}
EXPORTED = ("archive_format", "serialized_exported_program.json", "model.json")


def other_kind(path: Path) -> str:
    """What a file is that holds no plain weights, and what to do, in words; "" where it may."""
    kind = _by_content(path) if path.is_file() else ""
    return WAYS.get(kind or BY_SUFFIX.get(path.suffix.lower(), ""), "")


def is_zip(path: Path) -> bool:
    """Whether the file begins as a zip archive, in which PyTorch has saved since version 1.6."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def starts_like_a_pickle(path: Path) -> bool:
    """Whether a pickle begins here, alone or in PyTorch's older format."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def _by_content(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    for start, kind in STARTS.items():
        if head.startswith(start):
            return kind
    # a protocol buffer whose first field is a small version number and whose second is a producer
    if head[:1] == b"\x08" and head[2:3] == b"\x12":
        return "onnx"
    return _by_members(path) if head.startswith(b"PK\x03\x04") else ""


def _by_members(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return ""
    names = {member.rpartition("/")[2] for member in members}
    if "constants.pkl" in names:
        return "torchscript"
    if "data.pkl" in names:
        return ""
    if names & set(EXPORTED):
        return "export"
    if members and all(member.endswith(".npy") for member in members):
        return "numpy"
    return "keras" if "model.weights.h5" in names else ""
