"""What a network and its images look like before a run is started. No torch: pages show it."""

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from qlib.core.records import BASELINE, RunSpec

# what a preview shows depends on these fields of a specification alone
FIELDS = ("model", "data", "weights", "calib", "calib_data", "calib_choice", "seed", "code",
          "placement", "skip_damaged", "classes", "classes_digest", "output", "task",
          "labels")  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """One held-out picture as the network sees it.

    ``name``: of its file; ``pixels``: (h, w, 3) bytes, normalisation undone; ``label``: "" where it
    has none; ``guess``: the float network's, with its probability from 0 to 1 ("" and 0 where it
    returns no scores of classes).
    """

    name: str
    pixels: np.ndarray
    label: str
    guess: str = ""
    prob: float = 0.0


@dataclass(frozen=True)
class Preview:
    """Network and images of a run, looked at before it is started.

    Attributes:
        pictures: some of the held-out ones.
        counts: class → held-out pictures of it; empty where they have no labels.
        calib, test: pictures that calibrate, and held-out ones.
        prepared: how pictures are prepared, in words.
        task: see `RunRecord.task`.
        outputs: classes that the network tells apart, 0 of an encoder.
        share: of the multiplications that can be quantized, from 0 to 1.
        left_float: what cannot be, dearest first.
        refused: why the run would be refused unless a part in float is allowed (a sentence that is
            open at its end), or "".
        first, last: names of the layers at the ends.
        joined: units that are learned together, as they exchange several tensors.
        notes: what a reader of results should know.
    """

    pictures: tuple[Shown, ...]
    counts: Mapping[str, int]
    calib: int
    test: int
    prepared: str
    task: str
    outputs: int
    share: float
    left_float: tuple[str, ...] = ()
    refused: str = ""
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    joined: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """A dict that JSON can hold; `from_json` reads it back."""
        pictures = [vars(p) | {"pixels": _packed(p.pixels)} for p in self.pictures]
        return asdict(replace(self, pictures=())) | {"pictures": pictures}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Preview":
        """The reverse of `to_json`."""
        pictures = tuple(Shown(**{**p, "pixels": _unpacked(p["pixels"])}) for p in body["pictures"])
        rows = {n: tuple(body[n]) for n in ("left_float", "first", "last", "notes")}
        joined = tuple(map(tuple, body["joined"]))
        return cls(**{**body, **rows, "pictures": pictures, "joined": joined})


def essence(spec: RunSpec) -> RunSpec:
    """The specification with all that its preview does not depend on at the default."""
    return RunSpec(**{name: getattr(spec, name) for name in FIELDS}, method=BASELINE)


def _packed(pixels: np.ndarray) -> list[Any]:
    return [*pixels.shape[:2], base64.b64encode(pixels.tobytes()).decode()]


def _unpacked(packed: list[Any]) -> np.ndarray:
    height, width, text = packed
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 3)
