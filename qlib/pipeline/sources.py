"""Opens the images of a run: which calibrate, which test, never the same, and what they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from qlib.core import class_order
from qlib.core.records import InvalidSpec, RunSpec
from qlib.core.rows import PictureNote
from qlib.core.specs import dataset_keys, source_of
from qlib.datasets.base import Dataset, Images

FIRST = 5  # classes whose order a record tells
NAMED = 12  # class folders that a message names


@dataclass(frozen=True)
class Sources:
    """The tested source and the one that calibrates, which may be the same, and what was drawn.

    ``overlap``: test images left out because calibration uses the same files.
    """

    tested: Dataset
    calibrating: Dataset
    calib: Images
    test: Images
    overlap: int

    @property
    def same(self) -> bool:
        """Whether calibration and test images come from one data set."""
        return self.tested is self.calibrating

    def note(self, classes: Sequence[str]) -> PictureNote:
        """What was done to the pictures so far; ``classes``: names by class index."""
        note = self.tested.note
        if not self.same:
            note = _sum(note, self.calibrating.note)
        if "order" in note:
            labels = self.test.labels
            used = sorted(set(labels.tolist())) if labels is not None else range(len(classes))
            note["classes"] = [classes[i] for i in used[:FIRST] if i < len(classes)]
        return note | (PictureNote(overlap=self.overlap) if self.overlap else PictureNote())


def open_sources(spec: RunSpec, label_set: str = "") -> Sources:
    """Open the sources of a checked specification and draw from them, calibration images first.

    ``label_set``: ImageNet's list of classes that the network's head was trained on, if any.

    Raises:
        InvalidSpec: something is missing, changed, or too few.
    """
    tested = _opened(spec.data, spec, label_set)
    if spec.classes:
        tested.use_classes(_index_of(spec))
    apart = spec.calib_data is not None and not _same_place(spec.data, spec.calib_data)
    calibrating = _opened(spec.calib_data or spec.data, spec, label_set) if apart else tested
    balanced = spec.calib_choice == "balanced"
    # first: test images are what is left
    calib = calibrating.calibration(spec.calib, spec.seed, balanced=balanced)
    overlap = tested.leave_out(calib) if apart else 0
    return Sources(tested, calibrating, calib, _held_out(tested, spec), overlap)


def labelled(sources: Sources, spec: RunSpec, outputs: int) -> tuple[Sources, list[str]]:
    """The sources with the labels that the run is judged by, or without any; and notes.

    ``outputs``: classes that the network tells apart; 0 of an encoder.
    """
    images = sources.test
    if spec.labels == "none" and images.labels is not None:
        told = "Labels were left out" if outputs else "Labels were left out, so no k-NN"
        bare = replace(sources, test=replace(images, labels=None))
        return bare, [f"{told}: what is told compares with float alone."]
    if images.labels is None:
        return sources, [
            f"The images of {spec.data} lie in no class folders, so they have no labels: no "
            "accuracy is told, what is told compares with the float network."
        ]
    return sources, list(sources.tested.notes)


def class_names(
    source: Dataset, spec: RunSpec, outputs: int, names: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Class names by output of a network with ``outputs`` of them.

    ``names``: the network's own, where they are known; folders that are none of them are named.

    Raises:
        InvalidSpec: the source has other classes than the network.
    """
    own = source.classes
    if spec.classes and len(own) <= outputs:
        return (*own, *(f"class {i}" for i in range(len(own), outputs)))
    if spec.classes:
        raise InvalidSpec(
            f"The file of classes {spec.classes} gives {own[-1]!r} the index {len(own) - 1}, and "
            f"{spec.model} has {outputs} outputs, numbered from 0 to {outputs - 1}; number the "
            "folders as the network does."
        )
    if len(own) != outputs:
        raise InvalidSpec(
            f"{spec.model} tells {outputs} classes apart, but {spec.data} has {len(own)}"
            f"{_folders(source, names)}; choose images of the task that the network was trained "
            "for, give --classes FILE with the folders in the network's order, compare with the "
            "float network alone (--labels none), or, if it returns features, say --task features."
        )
    return own


def _opened(name: str, spec: RunSpec, label_set: str) -> Dataset:
    source = source_of("datasets", name).for_head(name, label_set)
    if spec.skip_damaged:
        source.skip_damaged()
    return source


def _index_of(spec: RunSpec) -> dict[str, int]:
    """The file of classes, if it is what it was when the run was asked for."""
    file = str(spec.classes)
    if spec.classes_digest and class_order.digest(file) != spec.classes_digest:
        raise InvalidSpec(
            f"{file} has changed since this run was asked for, so that its labels are others; "
            "start a new run."
        )
    return class_order.read(file)


def _same_place(one: str, other: str) -> bool:
    """Whether two keys mean the same source, by whatever spelling or link."""
    if one == other:
        return True
    (kind, _, path), (other_kind, _, other_path) = one.partition(":"), other.partition(":")
    if kind != other_kind or f"{kind}:PATH" not in dataset_keys():
        return False
    try:
        return Path(path.strip()).expanduser().samefile(Path(other_path.strip()).expanduser())
    except OSError:  # said by whoever opens it
        return False


def _held_out(source: Dataset, spec: RunSpec) -> Images:
    """The images that are measured; an analysis makes do with fewer than it asked for."""
    if spec.analysis and spec.test and len(everything := source.test()) < spec.test:
        return everything
    return source.test(spec.test)


def _folders(source: Dataset, names: Sequence[str] | None) -> str:
    """The class folders in words: those that are none of the network's, else the first few."""
    own = source.classes
    if not own or "order" not in source.note:
        return ""
    ours = {name.casefold() for name in names or ()}
    foreign = [name for name in own if name.casefold() not in ours]
    if names and len(foreign) < len(own):
        which = f", of which the network knows all but {_listed(foreign)}" if foreign else ""
        missing = [name for name in names if name.casefold() not in {n.casefold() for n in own}]
        return which + (f" and lacks {_listed(missing)}" if missing else "")
    return f" ({_listed(own)})"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _sum(one: PictureNote, other: PictureNote) -> PictureNote:
    """Counts added, lists joined; the order of classes is that of the first."""
    total: dict[str, Any] = dict(one)
    added: dict[str, Any] = dict(other)
    for name, value in added.items():
        if name in ("order", "classes"):
            continue
        mine = total.get(name)
        if mine is None:
            total[name] = value
        elif isinstance(value, dict):
            total[name] = {k: mine.get(k, 0) + value.get(k, 0) for k in mine | value}
        elif isinstance(value, list):
            total[name] = list(dict.fromkeys([*mine, *value]))
        else:
            total[name] = mine + value
    return cast(PictureNote, total)
