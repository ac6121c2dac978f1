"""A record's `PictureNote` in sentences, for all who read notes: card, report, command line."""

from collections.abc import Mapping

from qlib.core.rows import PictureNote

DONE = {
    "turned": "turned upright as their camera says (EXIF)",
    "composed": "transparent and laid on white",
    "sixteen_bit": "grey with 16 bits and scaled by their type (0 to 65,535)",
    "by_range": "grey with other numbers and scaled by their range (to 1, 255 or 65,535)",
    "first_frame": "taken by the first of several frames",
}
ORDERS = {
    "names": "by their folders' names",
    "numbers": "by the numbers that are their folders' names",
    "file": "by the given file",
}


def sentences(note: PictureNote) -> list[str]:
    """What a reader of the numbers should know; nothing where nothing was done or left out."""
    return [text for text in (_done(note), _left_out(note), _overlap(note), _order(note)) if text]


def _done(note: PictureNote) -> str:
    counts = [f"{note[kind]:,} were {words}" for kind, words in DONE.items() if note.get(kind)]
    if not counts:
        return ""
    return f"Of the {note.get('looked_at', 0):,} pictures looked at {'; '.join(counts)}."


def _left_out(note: PictureNote) -> str:
    parts = []
    if skipped := note.get("skipped"):
        named = ", ".join(note.get("skipped_names", []))
        parts.append(f"{skipped:,} that cannot be read ({named}{_more(skipped, note)})")
    if endings := note.get("endings"):
        many = sum(endings.values())
        parts.append(f"{_some(many, 'file')} of other endings ({_counted(endings)})")
    if unnamed := note.get("unnamed"):
        parts.append(f"class folders that the file does not name ({_counted(unnamed)})")
    if folders := note.get("folders"):
        parts.append(f"the folders {', '.join(folders)}")
    if beside := note.get("beside"):
        parts.append(f"{_some(beside, 'picture')} beside the class folders or hidden")
    return f"Left out: {'; '.join(parts)}." if parts else ""


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _more(count: int, note: PictureNote) -> str:
    return ", …" if count > len(note.get("skipped_names", [])) else ""


def _counted(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{n:,} {name}" for name, n in most[:8]) + (", …" if len(most) > 8 else "")


def _overlap(note: PictureNote) -> str:
    count = note.get("overlap", 0)
    if not count:
        return ""
    return (
        f"{_some(count, 'test picture')} left out, as calibration uses the same files (by content)."
    )


def _order(note: PictureNote) -> str:
    how = ORDERS.get(note.get("order", ""))
    if not how:
        return ""
    return f"Classes are numbered {how}: {', '.join(note.get('classes', []))}, …"
