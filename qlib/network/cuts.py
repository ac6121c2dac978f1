"""Where a network can be cut: which units run alone, and which only in a row with others.

Everything is tried out on an example, since only a run can tell what a network's own code hands
from one unit to another: in arguments, in attributes, past the units.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qlib.network.partial_forward import Ends, PartialForward
from qlib.network.ports import Port
from qlib.network.trace import Visit, visits

Span = tuple[str, ...]  # units of the network in a row
Visits = Mapping[str, Sequence[Visit]]


@dataclass
class Cuts:
    """How a network is taken apart.

    Attributes:
        partial: runs of its parts.
        spans: units that run together, in order of execution; most of them are of one unit.
        is_sequential: does one tensor cross from span to span, so that it can be carried on?
        runs: layer or unit → how often a pass runs it, where that is not once.
        notes: what a reader of results should know about it.
    """

    partial: PartialForward
    spans: list[Span]
    is_sequential: bool
    runs: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def find_cuts(net: nn.Module, example: Tensor, units: Sequence[str], layers: Sequence[str]) -> Cuts:
    """Try out where the tensors of an example cross from unit to unit.

    Args:
        example: two or more images (n, c, h, w).
        units: their names, in order of execution; ``layers``: those with weights.
    """
    others = _others(example)
    few, answers = visits(net, example, units, layers)
    more, _ = visits(net, others, units, layers)  # what is kept in attributes is now of these
    ends = {name: _ends(few[name], more[name], len(example)) for name in few}
    trial = _Trial(net, PartialForward(net, units, ends, tuple(example.shape[1:])),
                   few, answers, others)  # fmt: skip
    spans, notes = trial.spans()
    runs = {name: len(calls) for name, calls in few.items() if len(calls) > 1}
    once = not any(unit in runs for span in spans if len(span) == 1 for unit in span)
    sequential = once and trial.carries(spans)
    notes += [_run_again(name, number, ends[name]) for name, number in runs.items()]
    return Cuts(trial.partial, spans, sequential, runs, notes)


def _others(example: Tensor) -> Tensor:
    """Other images, and after them the first of the example once more."""
    return torch.cat([0.9 * example.flip(0).roll(1, -1) + 0.01, example[:1]])


def _ends(few: Sequence[Visit], more: Sequence[Visit], images: int) -> Ends:
    given = [
        Port(a.given, b.given, images, copied=any(v.given_written for v in few))
        for a, b in zip(few, more, strict=False)
    ]
    back = [
        Port(a.back, b.back, images, copied=any(v.back_written for v in few))
        for a, b in zip(few, more, strict=False)
    ]
    alike = all(p.like(given[0]) for p in given) and all(p.like(back[0]) for p in back)
    return Ends(given[0], back[0], len(few) if alike and len(few) == len(more) else 1)


@dataclass
class _Trial:
    """Runs parts of a network on what a whole pass over the example recorded."""

    net: nn.Module
    partial: PartialForward
    seen: Visits
    answers: Any
    others: Tensor
    _known: dict[str, bool] = field(default_factory=dict)  # may a row of units begin here?

    def spans(self) -> tuple[list[Span], list[str]]:
        """The units that run together, and a note on each span of several."""
        units = self.partial.units
        # backwards: what an earlier unit leaves in an attribute must be of the other images still
        alone = {unit: self._runs_alone(unit) for unit in reversed(units)}
        if all(alone.values()):
            return [(unit,) for unit in units], []
        spans, joined = list[Span](), self._joined({u for u in units if not alone[u]})
        for unit in units:
            row = next((row for row in joined if unit in row), (unit,))
            if row[0] == unit:
                spans.append(row)
        self._read_onward(joined, spans)
        return spans, [self._why(row) for row in joined]

    def carries(self, spans: Sequence[Span]) -> bool:
        """Does what a span returns make what enters the next one, or the answer?"""
        self.net(self.others)
        return all(
            self._leads_to(span[-1], following[0] if following else None)
            for span, following in zip(spans, [*spans[1:], None], strict=True)
        )

    def _runs_alone(self, unit: str) -> bool:
        """Does the unit give on the one tensor that entered it what it gave in the network?"""
        ends = self.partial.ends[unit]
        if not (ends.given.single and ends.back.single):
            return False
        return all(
            self._same(lambda v=v: self.partial.run_unit(unit, self._entering(unit, v)),
                       ends.back.read(v.back, self._images))
            for v in self.seen[unit][: ends.runs]
        )  # fmt: skip

    def _joined(self, others: Collection[str]) -> list[Span]:
        """The least rows around units that cannot run alone such that one tensor enters each row,
        and one what comes after it."""
        units, rows = self.partial.units, list[tuple[int, int]]()
        for at, unit in enumerate(units):
            if unit not in others or (rows and at < rows[-1][1]):
                continue
            first, end = at, at + 1
            while first and not self._begins(units[first]):
                first -= 1
            while end < len(units) and not self._begins(units[end]):
                end += 1
            while rows and rows[-1][1] > first:
                first = min(first, rows.pop()[0])
            rows.append((first, end))
        if rows and rows[0][0] == 0 and not self._begins(units[0]):
            self.partial.from_images = units[0]
        return [tuple(units[first:end]) for first, end in rows]

    def _begins(self, unit: str) -> bool:
        """Does the network give its answer where only what enters this unit is of the images?"""
        if unit not in self._known:
            self._known[unit] = self.partial.ends[unit].given.single and self._answers_from(unit)
        return self._known[unit]

    def _answers_from(self, unit: str) -> bool:
        self.net(self.others)  # what earlier units keep in attributes is of other images
        x = self._entering(unit, self.seen[unit][0])
        return self._same(lambda: self.partial.run_on(unit, x, None), self.answers)

    def _read_onward(self, joined: Sequence[Span], spans: Sequence[Span]) -> None:
        """Have results of joined spans read where the next one begins, unless the last unit's own
        are all there is."""
        following = dict(zip(spans, [*spans[1:], None], strict=True))
        self.net(self.others)
        for span in joined:
            last, then = span[-1], following[span]
            own = (
                len(span) > 1 and len(self.seen[last]) == 1 and self.partial.ends[last].back.single
            )
            if not (own and self._leads_to(last, then[0] if then else None)):
                self.partial.onward[last] = then[0] if then else None

    def _leads_to(self, unit: str, following: str | None) -> bool:
        """Is what enters the unit ``following`` (None: the answer) made of this one's output?"""
        if unit in self.partial.onward:
            return True
        if following is not None and not self.partial.ends[following].given.single:
            return False
        output = self.partial.ends[unit].back.read(self.seen[unit][0].back, self._images)
        want = self.answers
        if following is not None:
            want = self._entering(following, self.seen[following][0])
        return self._same(lambda: self.partial.run_between(unit, output, following), want)

    @property
    def _images(self) -> int:
        return len(self.others) - 1

    def _entering(self, unit: str, visit: Visit) -> Tensor:
        return self.partial.ends[unit].given.read(visit.given, self._images)

    def _same(self, call: Any, want: Any) -> bool:
        try:
            got = call()
        except Exception:  # somebody's code on placeholders: it may stumble in any way
            return False
        both = isinstance(got, Tensor) and isinstance(want, Tensor) and got.shape == want.shape
        return both and torch.allclose(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)

    def _why(self, row: Span) -> str:
        several = not all(
            self.partial.ends[u].given.single and self.partial.ends[u].back.single for u in row
        )
        why = "exchange several tensors" if several else "use more than the tensor between them"
        if row == tuple(self.partial.units):
            return f"The network's parts {why}, so it is learned as one unit."
        if len(row) == 1:
            return f"{row[0]} returns more than one tensor and is learned up to the next unit."
        return f"Blocks {row[0]} … {row[-1]} {why} and are learned as one unit."


def _run_again(name: str, number: int, ends: Ends) -> str:
    if ends.runs == number:
        return (
            f"{name} runs {number} times in a pass and is learned from the inputs of all of them."
        )
    return (
        f"{name} runs {number} times in a pass on tensors of different kinds and is learned from "
        "the inputs of the first one."
    )
