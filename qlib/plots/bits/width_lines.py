"""Accuracy by bit-width as lines: one model for each width, or one model that has all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlib.core import catalogue
from qlib.core.records import RunRecord
from qlib.measure.statistics import loss_told


@dataclass(frozen=True)
class Point:
    """One measurement: ``low`` to ``high`` is the 95 % interval of ``top1``, all in percent.

    ``lost`` and ``gained``: images that only the float network or only this one gets right.
    ``size``: weights in MB, ``bops``: billions of bit-operations per image; None where not stored.
    """

    bits: int
    top1: float
    low: float
    high: float
    lost: int
    gained: int
    size: float | None = None
    bops: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the exact paired test shows no loss against the float network."""
        return not loss_told(self.lost, self.gained)


@dataclass(frozen=True)
class Line:
    """One method's points, most bits first.

    ``look``: the name of its style, where it is not the method's; ``one``: all points are of one
    stored model; ``failed``: widths whose run did not finish.
    """

    method: str
    title: str
    points: tuple[Point, ...]
    look: str = ""
    one: bool = False
    failed: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """The identifier of the line, as `line_key` gives it."""
        return self.look or self.method

    @property
    def name(self) -> str:
        """The title, and how many models are stored for it."""
        n = len(self.points)
        if self.one:
            return f"{self.title}: one model, {n} width{'s' * (n != 1)}"
        return f"{self.title}: {n} model{'s' * (n != 1)}"

    @property
    def mean(self) -> float:
        """Accuracy averaged over the bit-widths."""
        return sum(p.top1 for p in self.points) / len(self.points)

    @property
    def holds_to(self) -> int | None:
        """The fewest bits down to which no loss is visible; None when the most bits lose."""
        held = None
        for point in self.points:
            if not point.holds:
                break
            held = point.bits
        return held

    @property
    def first_loss(self) -> Point | None:
        """The point of most bits that shows a loss."""
        return next((p for p in self.points if not p.holds), None)

    def runs(self, bits: Sequence[int]) -> list[list[Point]]:
        """The points in stretches without a missing width; ``bits``: those of the axis."""
        by_bits, stretches = {p.bits: p for p in self.points}, [[]]
        for b in bits:
            if b in by_bits:
                stretches[-1].append(by_bits[b])
            elif stretches[-1]:
                stretches.append([])
        return [stretch for stretch in stretches if stretch]


@dataclass(frozen=True)
class AccuracyBits:
    """Data of the accuracy-over-bits figure: lines, axis, float accuracy and chance.

    What the figure shows; ``bits`` is the axis, most bits first, or what ``cost`` stands for.

    ``current``: the bit-width to point at; ``chosen``: the key of the line that is looked at;
    ``zoom``: the axis of accuracy is cut.
    """

    model: str
    n: int
    float_top1: float
    chance: float | None
    bits: tuple[int, ...]
    lines: tuple[Line, ...]
    current: int | None = None
    cost: str = "bits"
    chosen: str = ""
    zoom: bool = False

    @property
    def floor(self) -> float:
        """Where the accuracy axis begins: 0, or (``zoom``) a little below the lowest interval."""
        lowest = min(p.low for x in self.lines for p in x.points)
        return max(0.0, 5 * (lowest // 5) - 2.5) if self.zoom else 0.0


def line_key(record: RunRecord) -> str:
    """The line that a run belongs to: its method, or what kind of switchable network it is."""
    return catalogue.line(record.spec) if record.bit_widths else record.spec.method


def line_title(record: RunRecord, titles: Mapping[str, str]) -> str:
    """The title of a run's line in legends and sentences."""
    title = titles.get(record.spec.method, record.spec.method)
    return catalogue.line_title(record.spec, title) if record.bit_widths else title


def equal(record: RunRecord) -> dict[int, Mapping[str, Any]]:
    """Bits → measurement, where weights and activations have the same bits."""
    if record.bit_widths:
        rows = (r for r in record.bit_widths if r["weight_bits"] == r["act_bits"])
        return {int(r["act_bits"]): r for r in rows}
    spec = record.spec
    return {spec.weight_bits: record.metrics} if spec.weight_bits == spec.act_bits else {}


def point(bits: int, m: Mapping[str, Any]) -> Point:
    """The point of a measurement at one bit-width.

    Raises:
        KeyError: a number is missing.
    """
    return Point(
        bits, m["top1"], m["top1_low"], m["top1_high"], int(m["lost"]), int(m["gained"]),
        m.get("weight_mb"), m.get("gbops"),
    )  # fmt: skip


def lines_of(
    records: Sequence[RunRecord],
    titles: Mapping[str, str],
    failed: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Line, ...]:
    """Group runs into lines of accuracy over bit-widths.

    The baseline first, then by name; where two runs share line and bits the later one counts.

    ``failed``: line → widths whose run did not finish.
    """
    named: dict[str, RunRecord] = {}
    cells: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        points, key = equal(record), line_key(record)
        if points and (key not in named or record.bit_widths or not named[key].bit_widths):
            whole = {} if record.bit_widths else cells.get(key, {})
            named[key], cells[key] = record, whole | points
    lines = []
    for key in sorted(named, key=catalogue.baseline_first):
        record, of = named[key], cells[key]
        method = record.spec.method
        missed = tuple(b for b in (failed or {}).get(key, ()) if b not in of)
        lines.append(
            Line(
                method,
                line_title(record, titles),
                tuple(point(b, of[b]) for b in sorted(of, reverse=True)),
                key if key != method else "",
                bool(record.bit_widths),
                missed,
            )
        )
    return tuple(lines)
