"""Image files in class folders: which part calibrates, which part tests, never both."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlib.core.records import InvalidSpec
from qlib.core.rows import CHANGES, PictureNote
from qlib.datasets._archive import open_files
from qlib.datasets._decode import Unreadable
from qlib.datasets._draw import draw_calibration, draw_test, subset
from qlib.datasets._layout import class_of, layout_of
from qlib.datasets.base import File, Images

if TYPE_CHECKING:
    from PIL.Image import Image

NAMED = 10  # damaged files, or folders, that a message names
LOOKED = 2000  # pictures that are opened to find more damaged ones


class Tree:
    """The images below one path, with the class as the first folder.

    ``train/`` beside ``test/`` or ``val/`` is respected, in any case. Without them there is one
    pool: what `calibration` draws leaves the images of `test`, and the other way round.
    """

    def __init__(self, path: Path, index: Callable[[list[str], str], dict[str, int]]) -> None:
        """``index(folders, where)`` gives each class folder its class index."""
        self._files = open_files(path)
        self._layout = layout_of(self._files, strip=not path.is_dir())
        self.where = self._files.where
        self.counts = Counter(
            folder
            for name in [*(self._layout.train or []), *self._layout.test]
            if (folder := class_of(name, self._layout.depth)) is not None
        )
        self.folders = sorted(self.counts)
        self._unnamed: list[str] = []
        self._skip = False
        self._skipped: dict[str, str] = {}  # name -> why it cannot be read
        self._changes: dict[str, tuple[str, ...]] = {}  # what was done to each decoded picture
        self._handed: dict[str, None] = {}
        self._drawn: set[str] = set()
        self._tested: set[str] = set()
        self._number(index(self.folders, self.where))

    def use_classes(self, index_of: Mapping[str, int]) -> None:
        """Number the class folders anew; those without a number are left out from now on.

        Raises:
            InvalidSpec: none of the folders has a number.
        """
        named = {name: index_of[name] for name in self.folders if name in index_of}
        if not named:
            raise InvalidSpec(
                f"The file of classes names none of the folders in {self.where}: it has "
                f"{listed(index_of)}, and there are {listed(self.folders)}; write the folders' "
                "names as they are."
            )
        self._unnamed = [name for name in self.folders if name not in named]
        layout, depth = self._layout, self._layout.depth
        train = layout.train and [n for n in layout.train if class_of(n, depth) in named]
        test = [n for n in layout.test if class_of(n, depth) in named]
        self._layout = replace(layout, train=train, test=test)
        self.folders = sorted(named, key=lambda name: (named[name], name))
        self._number(named)

    def skip_damaged(self) -> bool:
        """From now on pass over files that cannot be read."""
        self._skip = True
        return True

    def calibration(self, n: int, seed: int, *, balanced: bool = False) -> Images:
        """``n`` images that no earlier `test` has handed out; labels may be None.

        Raises:
            InvalidSpec: fewer than ``n`` are there.
        """
        pool = self._test if self._train is None else self._train
        free = pool if self._train is not None else _without(pool, self._tested)
        if self._train is None and self._tested and n > len(free):
            raise InvalidSpec(
                f"{n} calibration images were asked of {self.where}, and {len(free)} are left "
                "after the test images; draw the calibration images first, or fewer."
            )
        drawn = draw_calibration(
            free, n, seed, self.where, balanced=balanced, usable=self._usable(free)
        )
        if self._train is None:
            self._drawn.update(drawn.ids)
        self._handed |= dict.fromkeys(drawn.ids)
        self._refuse_irregular(drawn)
        return drawn

    def test(self, n: int | None) -> Images:
        """All images, or a fixed ``n`` of them, that `calibration` has not drawn.

        Without labels where the images lie in no class folders.

        Raises:
            InvalidSpec: fewer than ``n`` are left.
        """
        free = _without(self._test, self._drawn)
        if not len(free):
            raise InvalidSpec(
                f"All {len(self._test)} images in {self.where} were drawn for calibration, and "
                "none is left to test with; calibrate with fewer, or with other data."
            )
        images = draw_test(free, n, self.where, usable=self._usable(free))
        if not len(images):
            raise InvalidSpec(f"None of the {len(free)} test images in {self.where} can be read.")
        if self._train is None:
            self._tested.update(images.ids)
        self._handed |= dict.fromkeys(images.ids)
        self._refuse_irregular(images)
        return images

    def leave_out(self, images: Images) -> int:
        """Leave the images with the content of these out of `test`; how many there are.

        Only files of a size that occurs in both are read.
        """
        if images.file is None or self._test.file is None:
            return 0
        theirs = [images.file(i) for i in range(len(images))]
        sizes = {file.size for file in theirs if file.size > 0}  # empty ones are all alike
        alike = [
            name for name in self._test.ids
            if name not in self._drawn and self._files.size(name) in sizes
        ]  # fmt: skip
        if not alike:
            return 0
        own = {self._files.size(name) for name in alike}
        contents = {_hash(file) for file in theirs if file.size in own} - {None}
        same = [name for name in alike if _hash(self._file(name)) in contents]
        self._drawn.update(same)
        return len(same)

    def _refuse_irregular(self, images: Images) -> None:
        """Raises:
        InvalidSpec: one of the images is a pipe, a device or the like: known without opening it.
        """
        irregular = self._files.left_out.irregular
        name = next((n for n in images.ids if n in irregular), None)
        if name is not None:
            self._open(name)

    @property
    def note(self) -> PictureNote:
        """What was done to the pictures handed out, and what lies there and is not read."""
        left_out, layout = self._files.left_out, self._layout
        seen = [self._changes[name] for name in self._handed if name in self._changes]
        counts: dict[str, Any] = {kind: sum(kind in done for done in seen) for kind in CHANGES}
        counts |= {
            "skipped": len(self._skipped),
            "skipped_names": list(self._skipped)[:NAMED],
            "endings": {end or "without ending": k for end, k in left_out.endings.items() if k},
            "folders": [*left_out.folders, *layout.unused][:NAMED],
            "unnamed": {name: self.counts[name] for name in self._unnamed[:NAMED]},
            "beside": layout.beside + left_out.hidden,
        }
        return PictureNote(
            looked_at=len(seen), **{name: value for name, value in counts.items() if value}
        )

    # ---- one picture -------------------------------------------------------------------------

    def _number(self, index_of: Mapping[str, int]) -> None:
        """Make the two sets of images with these class indices."""
        self._test = self._images(self._layout.test, index_of)
        train = self._layout.train
        self._train = None if train is None else self._images(train, index_of)

    def _images(self, names: list[str], index_of: Mapping[str, int]) -> Images:
        import numpy as np

        depth = self._layout.depth
        own = [index_of[folder] for n in names if (folder := class_of(n, depth)) is not None]
        labels = np.array(own, np.int64) if len(own) == len(names) else None
        return Images(names, labels, lambda i: self._open(names[i]), lambda i: self._file(names[i]))

    def _file(self, name: str) -> File:
        return File(self._files.size(name), lambda: self._files.read(name))

    def _open(self, name: str) -> "Image":
        """The picture; the first that cannot be read names others, so that all are mended at once.

        Raises:
            InvalidSpec: it cannot be read.
        """
        try:
            return self._decoded(name)
        except Unreadable as error:
            raise self._damaged(name, error) from None

    def _decoded(self, name: str) -> "Image":
        picture = self._files.picture(name)
        self._changes[name] = picture.changes
        return picture.image

    def _usable(self, images: Images) -> Callable[[int], bool] | None:
        """Whether an image can be read; None where none is skipped."""
        return (lambda i: self._why_not(images.ids[i]) is None) if self._skip else None

    def _why_not(self, name: str) -> str | None:
        """Why a picture cannot be read; None where it can."""
        if name not in self._skipped and name not in self._changes:
            try:
                self._decoded(name)
            except Unreadable as error:
                self._skipped[name] = error.reason
        return self._skipped.get(name)

    def _damaged(self, name: str, error: Unreadable) -> InvalidSpec:
        """One sentence on this file and up to nine others of the images handed out."""
        others = [n for n in self._handed if n != name and n not in self._changes][:LOOKED]
        reasons = {name: error.reason}
        for other in others:
            try:
                self._files.picture(other)
            except Unreadable as unreadable:
                reasons[other] = unreadable.reason
            if len(reasons) == NAMED:
                break
        skip = "or go on without such files (--skip-damaged)"
        if len(reasons) == 1:
            return InvalidSpec(f"{str(error).rstrip('.')}, {skip}.")
        named = "; ".join(f"{n} ({reason})" for n, reason in reasons.items())
        first = "the first " if len(reasons) == NAMED else ""
        return InvalidSpec(
            f"{self.where} has pictures that cannot be read, {first}{len(reasons)} of them: "
            f"{named}; repair them or take them out, {skip}."
        )


def listed(names: Mapping[str, int] | list[str], most: int = NAMED) -> str:
    """The first few names, and how many more."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def source_path(name: str) -> Path:
    """The path in a name such as ``folder:PATH``.

    Raises:
        InvalidSpec: nothing after the colon.
    """
    kind, _, path = name.partition(":")
    if not path.strip():
        raise InvalidSpec(
            f"{name!r} names no place; write {kind}:PATH with a folder or a zip file."
        )
    return Path(path.strip()).expanduser()


def _without(images: Images, ids: set[str]) -> Images:
    return subset(images, [i for i, name in enumerate(images.ids) if name not in ids])


def _hash(file: File) -> str | None:
    try:
        return sha256(file.read()).hexdigest()
    except InvalidSpec:  # said where the picture is needed
        return None
