"""What pages read: runs and the files in their folders, cached until they change; never torch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from qlib import store
from qlib.core.records import RunRecord
from qlib.core.registry import discover
from qlib.core.rows import LayerRow
from qlib.ui.shared import address

if TYPE_CHECKING:
    from qlib.core.records import RunSpec
    from qlib.noise.profile import NoiseProfile
    from qlib.store.tensors import TensorHist


@dataclass(frozen=True)
class Shelf:
    """The readable and the broken runs of one folder; ``source``: ``demo`` or ``own``."""

    source: str
    folder: Path
    entries: tuple[store.Entry, ...]

    @property
    def good(self) -> tuple[store.Finished, ...]:
        """The readable quantization runs."""
        return tuple(e for e in _finished(self.entries) if not e.record.spec.analysis)

    @property
    def analyses(self) -> tuple[store.Finished, ...]:
        """The readable analyses, of whatever kind."""
        return tuple(e for e in _finished(self.entries) if e.record.spec.analysis)

    @property
    def broken(self) -> tuple[store.Entry, ...]:
        """The folders that cannot be read."""
        return tuple(e for e in self.entries if not isinstance(e, store.Finished))

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """The records of the readable quantization runs."""
        return tuple(e.record for e in self.good)


def _finished(entries: Iterable[store.Entry]) -> list[store.Finished]:
    return [e for e in entries if isinstance(e, store.Finished)]


def demo() -> Shelf:
    """The shelf of stored runs that come with the project."""
    folder = store.demo_dir()
    return Shelf("demo", folder, _entries(str(folder), store.stamp(folder)))


def own() -> Shelf:
    """The shelf of runs made here."""
    folder = store.runs_dir()
    return Shelf("own", folder, _entries(str(folder), store.stamp(folder)))


@st.cache_resource(max_entries=8, show_spinner=False)
def _entries(folder: str, stamp: str) -> tuple[store.Entry, ...]:
    return tuple(store.list_runs(Path(folder)))


def everything() -> dict[str, store.Finished]:
    """All readable quantization runs by key; an own run hides a demo run of the same key."""
    return {e.key: e for shelf in (demo(), own()) for e in shelf.good}


def problem_of(key: str | None) -> str:
    """Why the run of this key cannot be read; "" where it can, or there is none."""
    broken = {e.key: e.problem for shelf in (demo(), own()) for e in shelf.broken}
    return broken.get(key or "", "")


def analyses() -> dict[str, store.Finished]:
    """The sensitivity runs by what they analyse: look up ``profile.base_of(run.spec).key``.

    Noise analyses serve many runs each: see `noise_of`.
    """
    folders = (store.demo_dir(), store.runs_dir())
    return _analyses(tuple((str(folder), store.stamp(folder)) for folder in folders))


@st.cache_resource(max_entries=4, show_spinner=False)
def _analyses(folders: tuple[tuple[str, str], ...]) -> dict[str, store.Finished]:
    from qlib.sensitivity import profile

    known = [e for folder, stamp in folders for e in _finished(_entries(folder, stamp))]
    found = [e for e in known if e.record.spec.analysis == profile.SENSITIVITY]
    return {profile.base_of(e.record.spec).key: e for e in found}


def noise_of(spec: "RunSpec") -> store.Finished | None:
    """The finished noise analysis that serves a run, own ones first."""
    from qlib.noise import profile as noise_profile

    key = noise_profile.spec_of(spec).key
    return next((e for s in (own(), demo()) for e in s.analyses if e.key == key), None)


# ---- files of one run folder -----------------------------------------------------------------


def record(folder: Path) -> RunRecord:
    """A run's record with its rows of ``layers.csv``; read only.

    Raises:
        InvalidSpec: missing or damaged; the file is named.
    """
    return _read(folder, "layers.csv", store.load)


def layers(folder: Path) -> list[LayerRow]:
    """The rows of ``layers.csv``. Raises as `record`."""
    return record(folder).layers


def preds(folder: Path) -> dict[str, np.ndarray]:
    """The stored predictions of a run; read only. Raises as `record`."""
    return _read(folder, "preds.npz", store.load_preds)


def hist(folder: Path) -> "dict[str, TensorHist]":
    """The binned tensors of a run by name; read only. Raises as `record`."""
    from qlib.store import tensors

    return _read(folder, "hist.npz", tensors.load)


def events(folder: Path) -> list[dict[str, Any]]:
    """The events of a run; empty where none were stored."""
    return _read(folder, "events.jsonl", store.events)


def profile(folder: Path) -> list[dict[str, Any]]:
    """The rows of a sensitivity run. Raises as `record`."""
    from qlib.sensitivity import profile as files

    return _read(folder, "profile.csv", files.load)


def noise(folder: Path) -> "NoiseProfile":
    """The noise analysis of each layer. Raises as `record`."""
    from qlib.noise import profile as files

    return _read(folder, files.FILE, files.load)


def _read(folder: Path, name: str, load: Callable[[Path], Any]) -> Any:
    try:
        stamp = (folder / name).stat().st_mtime_ns
    except OSError:  # the reader says what is wrong
        stamp = 0
    return _stored(name, str(folder), stamp, load)


@st.cache_resource(max_entries=256, show_spinner=False)
def _stored(name: str, folder: str, stamp: int, _load: Callable[[Path], Any]) -> Any:
    return _load(Path(folder))


# ---- how it is shown -------------------------------------------------------------------------


@st.cache_resource(show_spinner=False)
def titles() -> dict[str, str]:
    """Method key to the name its field writes: ``brecq`` → ``BRECQ``."""
    return {key: owner.title for key, owner in discover("methods").items()}


def dark() -> bool:
    """Whether the page is shown dark: figures flip their neutral colours."""
    return st.context.theme.type == "dark"


def presenting() -> bool:
    """Whether the view is shown to a room: larger figures, no small print."""
    return address.switched_on(address.PRESENT)
