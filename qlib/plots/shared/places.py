"""Where layers stand on an axis: names of blocks below it, labels above bars without overlap."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product

WIDTH = 880  # pixels of a main figure's plot area on a screen 1280 wide: labels are spaced for it
CHAR = 6.9  # pixels of a character of the smallest text
LINE = 17  # pixels from one lane of labels to the next
LANES = 6
LARGE = 1.5  # times as wide is text that is read from the last row


@dataclass(frozen=True)
class Block:
    """A run of neighbouring layers of one unit: first and last place, and the unit's name."""

    unit: str
    first: int
    last: int

    @property
    def middle(self) -> float:
        """Place of the middle of the block."""
        return (self.first + self.last) / 2


@dataclass(frozen=True)
class Label:
    """A text above the axis, in one of several rows (lanes).

    A text that starts (or, ``left``: ends) above the place ``at``; lane 0 is the lowest.
    """

    at: float
    text: str
    lane: int
    left: bool = False

    def span(self) -> tuple[float, float]:
        """Pixels from and to, if ``at`` is in pixels."""
        wide = CHAR * len(self.text) + 8
        return (self.at - wide, self.at) if self.left else (self.at, self.at + wide)


def short(layer: str, unit: str) -> str:
    """A layer's name inside its unit: ``blocks.0.attn.qkv`` → ``attn.qkv``; alone: its own."""
    inner = layer.removeprefix(unit).lstrip(".")
    return inner or layer


def blocks(units: Sequence[str]) -> list[Block]:
    """Neighbouring layers of the same unit together, in order."""
    grouped = []
    for unit, places in groupby(range(len(units)), key=units.__getitem__):
        inside = list(places)
        grouped.append(Block(unit, inside[0], inside[-1]))
    return grouped


def names(found: Sequence[Block]) -> list[str]:
    """The blocks' names; the word that all of several layers share is said once, in the axis."""
    head = prefix(found)
    return [b.unit.removeprefix(head) if b.unit != head else b.unit for b in found]


def prefix(found: Sequence[Block]) -> str:
    """``blocks.`` where all units of several layers start with it, else nothing."""
    heads = {b.unit.split(".")[0] for b in found if b.last > b.first and "." in b.unit}
    return heads.pop() + "." if len(heads) == 1 else ""


def ticks(found: Sequence[Block], count: int, width: float = WIDTH) -> tuple[list, list[str]]:
    """Places and names of the blocks below an axis of ``count`` layers.

    A name that would touch the one before goes to a second line, and is left out where that is
    full too: the table below each figure names every layer.
    """
    pixel = width / max(1, count)
    ends = [float("-inf"), float("-inf")]
    places, texts = [], []
    for block, name in zip(found, names(found), strict=True):
        half = CHAR * len(name) / 2 + 3
        middle = (block.middle + 0.5) * pixel
        row = next((r for r in (0, 1) if middle - half >= ends[r]), None)
        if row is None:
            continue
        ends[row] = middle + half
        places.append(block.middle)
        texts.append("<br>" * row + name)
    return places, texts


def lanes(wanted: Sequence[tuple[float, str]], count: int, width: float = WIDTH) -> list[Label]:
    """Distribute labels over rows so that they do not overlap.

    Labels for (place, text) that touch neither each other nor each other's leader lines.

    Each label stands at its leader, a vertical line down to its mark. ``wanted``: most important
    first; where not all find room, the last ones are left out.
    """
    pixel = width / max(1, count)
    for kept in range(len(wanted), 0, -1):
        # from the right: there a label's leader stands before all lower texts, and crosses none
        pixels = sorted((((p + 0.5) * pixel, text) for p, text in wanted[:kept]), reverse=True)
        placed = _search(pixels, (), width)
        if placed is not None:
            return [Label(b.at / pixel - 0.5, b.text, b.lane, b.left) for b in placed]
    return []


def _search(
    rest: Sequence[tuple[float, str]], placed: tuple[Label, ...], width: float
) -> tuple[Label, ...] | None:
    """The first way to place all of ``rest``, low lanes and texts to the right first; or None."""
    if not rest:
        return placed
    (x, text), *others = rest
    for left, lane in product((False, True), range(LANES)):
        label = Label(x, text, lane, left)
        if _fits(label, placed, width):
            found = _search(others, (*placed, label), width)
            if found is not None:
                return found
    return None


def _fits(new: Label, placed: Sequence[Label], width: float) -> bool:
    low, high = new.span()
    inside = low >= 0 and high <= width
    return inside and not any(touch(new, old) for old in placed)


def touch(one: Label, two: Label) -> bool:
    """Whether two labels (in pixels) overlap, or the higher one's leader crosses the lower."""
    if one.lane == two.lane:
        (a, b), (c, d) = one.span(), two.span()
        return a < d and c < b
    low, high = sorted((one, two), key=lambda label: label.lane)
    start, end = low.span()
    return start < high.at < end
