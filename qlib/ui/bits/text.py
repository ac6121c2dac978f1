"""What the Bits page says: how low, where it breaks first, one model or many, the chosen widths."""

from collections.abc import Mapping
from typing import Any

from qlib.plots.bits import width_map
from qlib.plots.bits.width_lines import Line
from qlib.ui.bits.view import Shown, Track


def answer(shown: Shown, line: Line | None) -> str:
    """The page's answer: how low the chosen line goes, and what breaks first."""
    title = shown.track.title
    if line is None:
        return f"**{title}** has no measurement with equal bits of weights and activations yet."
    n = f"{int(line_n(shown)):,}"
    one = ", one stored model for all widths," if shown.track.one else ""
    held = line.holds_to
    if held is None:
        sentence = f"With **{title}**{one} {n} test images show a loss at every stored width."
    else:
        sentence = f"With **{title}**{one} {n} test images show no loss down to **{held} bits**"
        sentence += f"{_next(line, shown)}."
    return f"{sentence} {_where(shown.track)}".strip()


def line_n(shown: Shown) -> float:
    """Number of test images of the chosen line."""
    return shown.track.first.record.metrics["n"]


def _next(line: Line, shown: Shown) -> str:
    """What the first width below costs."""
    at = line.first_loss
    if at is None:
        return ", the lowest width that it has" if shown.track.one else ", the lowest one stored"
    drop = shown.track.first.record.metrics["top1_float"] - at.top1
    return f"; {at.bits} bits cost {points(drop)}"


def _where(track: Track) -> str:
    found = width_map.weaker(width_map.info(track.title, track.cells))
    if found is None:
        return ""
    side, bits, low, other = found
    if side == "neither":
        return "Weights and activations break together, as far as these images tell."
    rest = "weights" if side == "activations" else "activations"
    return (
        f"**{side.capitalize()} break first**: with only them at {bits} bits {low:.0f} % are left, "
        f"with only the {rest} there {other:.0f} %."
    )


def points(value: float) -> str:
    """A difference of accuracy as text: ``5.1 points``."""
    shown = f"{value:.1f}" if abs(value) < 10 else f"{value:.0f}"
    return f"{shown} point" if shown == "1.0" else f"{shown} points"


def storage(shown: Shown) -> str:
    """The size in words: one stored model against one for each width, in megabytes."""
    track, many = shown.track, shown.many
    if track.one:
        sentence = f"All {len(track.equal)} widths of {track.title} are **one model of "
        sentence += f"{track.stored_mb:.2f} MB** ({_inside(track)})"
        rivals = [t for t in shown.tracks.values() if not t.one]
        rival = max(rivals, key=lambda t: len(t.equal), default=None)
        if rival is None:
            return f"{sentence}."
        return f"{sentence}; {_each(rival)}."
    sentence = _each(track)
    sentence = sentence[0].upper() + sentence[1:]
    if many is None:
        return f"{sentence}."
    return f"{sentence}; {many.title}: {len(many.equal)} widths in one of {many.stored_mb:.2f} MB."


def _each(track: Track) -> str:
    n = len(track.equal)
    widths = ", ".join(map(str, track.equal))
    return (
        f"{track.title} stores a model for each width: **{n} models, {track.stored_mb:.2f} MB "
        f"together** ({widths} bits)"
    )


def _inside(track: Track) -> str:
    if track.first.record.spec.settings.get("nested"):
        return "integers of the highest width, a rounding bit for each, steps for each width"
    return "float weights, a rounding bit for each, steps for each width"


def chosen(shown: Shown) -> str:
    """The chosen widths in words, under the figures."""
    cell = shown.cell
    if cell is None:
        return f"**{shown.label}** of {shown.track.title} is not measured."
    lost, gained = int(cell["lost"]), int(cell["gained"])
    kl = cell.get("kl")
    return (
        f"**{shown.label}** · {shown.track.title} · top-1 {cell['top1']:.1f} % "
        f"(95 %: {cell['top1_low']:.1f} to {cell['top1_high']:.1f}) · "
        f"{lost} lost, {gained} gained"
        + (f" · KL to float {kl:.2g} nats" if kl is not None else "")
    )


def readout(shown: Shown) -> list[tuple[str, str, str, str]]:
    """(name, value, what it is compared with, term) of the chosen widths."""
    cell = shown.cell
    if cell is None:
        return []
    whole = shown.track.first.record.metrics
    eight = shown.track.cells.get((8, 8))
    return [
        ("Top-1", f"{cell['top1']:.1f} %", _against(cell), "interval"),
        ("Agreement", f"{cell['agreement']:.1f} %", _flips(cell), "agreement"),
        (
            "Weights", f"{cell['weight_mb']:.3f} MB",
            _share(cell["weight_mb"], whole.get("weight_mb_float"), "float"), "size",
        ),
        (
            "Bit-operations", f"{cell['gbops']:.3f} G",
            _share(cell["gbops"], eight["gbops"] if eight else None, "W8A8"), "bops",
        ),
    ]  # fmt: skip


def _against(cell: Mapping[str, Any]) -> str:
    return f"{cell['top1'] - cell['top1_float']:+.1f} points to float".replace("-", "−")


def _flips(cell: Mapping[str, Any]) -> str:
    return f"{int(cell['lost'])} lost, {int(cell['gained'])} gained"


def _share(part: float, whole: float | None, name: str) -> str:
    return f"{100 * part / whole:.0f} % of {name}" if whole else ""


NO_UNITS = (
    "Bits for each unit need a network that can be switched between widths: run PTMQ for this "
    "backbone, with the offer above."
)


def left_out(shown: Shown) -> str:
    """A note on how many runs are not shown, as they cannot be compared."""
    n = shown.left_out
    if not n:
        return ""
    runs = "1 run" if n == 1 else f"{n} runs"
    return f" {runs} made under other conditions (seed, images, policy) not shown."
