"""What pages read: runs and predictions, cached until the folders change; never torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import streamlit as st

from qlib import store
from qlib._registry import discover
from qlib.records import RunRecord


@dataclass(frozen=True)
class Shelf:
    """The readable and the broken runs of one folder; ``source``: ``demo`` or ``own``."""

    source: str
    folder: Path
    entries: tuple[store.Entry, ...]

    @property
    def good(self) -> tuple[store.Entry, ...]:
        return tuple(e for e in self.entries if e.record)

    @property
    def broken(self) -> tuple[store.Entry, ...]:
        return tuple(e for e in self.entries if not e.record)

    @property
    def records(self) -> tuple[RunRecord, ...]:
        return tuple(e.record for e in self.entries if e.record)


def demo() -> Shelf:
    """The stored runs that come with the project."""
    folder = store.demo_dir()
    return Shelf("demo", folder, _entries(str(folder), store.stamp(folder)))


def own() -> Shelf:
    """The runs made here."""
    folder = store.runs_dir()
    return Shelf("own", folder, _entries(str(folder), store.stamp(folder)))


@st.cache_resource(max_entries=8, show_spinner=False)
def _entries(folder: str, stamp: str) -> tuple[store.Entry, ...]:
    return tuple(store.list_runs(Path(folder)))


def everything() -> dict[str, store.Entry]:
    """All readable runs by key; an own run hides a demo run of the same key."""
    return {e.key: e for shelf in (demo(), own()) for e in shelf.good}


def preds(folder: Path) -> dict[str, np.ndarray]:
    """The stored predictions of a run; read only.

    Raises:
        Refused: missing or damaged; the file is named.
    """
    file = folder / "preds.npz"
    stamp = file.stat().st_mtime_ns if file.exists() else 0
    return _preds(str(folder), stamp)


@st.cache_resource(max_entries=128, show_spinner=False)
def _preds(folder: str, stamp: int) -> dict[str, np.ndarray]:
    return store.load_preds(Path(folder))


@st.cache_resource(show_spinner=False)
def titles() -> dict[str, str]:
    """Method key to the name its field writes: ``brecq`` → ``BRECQ``."""
    return {key: owner.title for key, owner in discover("methods").items()}


def dark() -> bool:
    """Whether the page is shown dark: figures flip their neutral colours."""
    return st.context.theme.type == "dark"
