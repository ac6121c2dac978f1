"""The sentence above accuracy over bit-widths, from its numbers."""

from collections.abc import Sequence

from qlib.plots.bits.width_lines import AccuracyBits, Line

CLIFF = 5.0  # points below float from which a loss is called one


def headline(info: AccuracyBits) -> str:
    """The take-away, from the numbers: how far down each method shows no loss."""
    one = [x for x in info.lines if x.one]
    if one:
        return _one_or_many(info, one)
    plain = info.lines[0]
    best = max(info.lines[1:] or info.lines, key=lambda x: (-(x.holds_to or 99), x.mean))
    if plain.holds_to == info.bits[-1]:
        return f"No loss is visible down to {plain.holds_to} bits with {info.n:,} test images"
    if best.holds_to is None and plain.holds_to is None:
        return "Every stored bit-width loses accuracy that these test images can show"
    if plain is best or best.holds_to is None:
        return f"{plain.title}: no visible loss down to {plain.holds_to} bits{_then(info, plain)}"
    start = f"no visible loss down to {plain.holds_to} bits" if plain.holds_to else "loses at once"
    if best.holds_to == plain.holds_to:
        gap, bits = _gap(plain, best)
        return f"{plain.title}: {start}; at {bits} bits {best.title} keeps {gap:.0f} points more"
    return f"{plain.title}: {start}; {best.title}: down to {best.holds_to}"


def _one_or_many(info: AccuracyBits, one: Sequence[Line]) -> str:
    """One stored model for all widths, against the best method with a model for each."""
    mine = next((x for x in one if x.key == info.chosen), max(one, key=lambda x: x.mean))
    told = f"{mine.title}, one model: {_down_to(mine)}"
    many = [x for x in info.lines if not x.one]
    if not many:
        return f"{told}{_then(info, mine)}"
    best = max(many, key=lambda x: (-(x.holds_to or 99), _lowest_shared(x, mine)))
    n, held = len(best.points), best.holds_to
    same = held and mine.holds_to
    end = f"down to {held}" if same else _down_to(best)
    return f"{told}; {best.title}, {n} model{'s' * (n != 1)}: {end}"


def _down_to(line: Line) -> str:
    held = line.holds_to
    return f"no visible loss down to {held} bits" if held else "loses at once"


def _lowest_shared(line: Line, other: Line) -> float:
    """Accuracy at the fewest bits that both have; 0 where they share none."""
    shared = {p.bits for p in other.points}
    found = {p.bits: p.top1 for p in line.points if p.bits in shared}
    return found[min(found)] if found else 0.0


def _then(info: AccuracyBits, line: Line) -> str:
    """What comes below the bits that hold: a cliff only where it is steep."""
    next_ = line.first_loss
    if next_ is None:
        return ""
    drop = info.float_top1 - next_.top1
    return ", then the cliff" if drop >= CLIFF else f"; {drop:.1f} points lost at {next_.bits}"


def _gap(plain: Line, best: Line) -> tuple[float, int]:
    other = {p.bits: p.top1 for p in best.points}
    return max((other[p.bits] - p.top1, p.bits) for p in plain.points if p.bits in other)
