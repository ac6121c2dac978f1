"""The ranking of runs, by paired tests where the images are the same, else by intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from qlib.core.records import InvalidSpec, RunRecord
from qlib.measure import paired
from qlib.measure.paired import Pair, Preds
from qlib.measure.statistics import LEVEL, holm, p_text
from qlib.ui.shared.answers import bits_label, interval

Titles = Mapping[str, str]


@dataclass(frozen=True)
class Ranking:
    """Runs ordered by accuracy, with their pairwise tests.

    Runs by falling accuracy; the `Pair` of every two of them by their keys, better first.

    ``raised``: the pairs' p values, corrected for how many pairs there are (Holm); empty, with a
    sentence in ``why``, when the runs cannot be paired: then their 95 % intervals decide.
    """

    records: tuple[RunRecord, ...]
    pairs: dict[tuple[str, str], Pair] = field(default_factory=dict)
    raised: dict[tuple[str, str], float] = field(default_factory=dict)
    why: str = ""

    @property
    def apart(self) -> dict[tuple[str, str], bool]:
        """Whether two runs differ beyond chance.

        Of the keys of two runs, better first: whether the paired test tells them apart.
        """
        return {keys: p < LEVEL for keys, p in self.raised.items()}

    @property
    def best(self) -> RunRecord:
        """The most accurate run."""
        return self.records[0]

    def told(self, record: RunRecord) -> bool:
        """Whether the best run is ahead of ``record`` beyond chance."""
        if self.why:
            return record.metrics["top1_high"] < self.best.metrics["top1_low"]
        return self.raised[self.best.spec.key, record.spec.key] < LEVEL

    @property
    def level(self) -> tuple[RunRecord, ...]:
        """The best run, then those that these images cannot tell from it."""
        return (self.best, *(r for r in self.records[1:] if not self.told(r)))


def names(records: Sequence[RunRecord], titles: Titles) -> dict[str, str]:
    """A short name for each run that tells it from the others.

    By run key: the method, and of bits, backbone and key what differs; a single run's bits.
    """
    by_key = {r.spec.key: titles.get(r.spec.method, r.spec.method) for r in records}
    for part in (bits_label, lambda r: r.spec.model):
        parts = {r.spec.key: part(r) for r in records}
        if len(set(parts.values())) > 1 or (len(records) == 1 and part is bits_label):
            by_key = {key: f"{by_key[key]} {parts[key]}" for key in by_key}
    if len(set(by_key.values())) < len(by_key):
        by_key = {key: f"{name} {key[-10:-4]}" for key, name in by_key.items()}
    return by_key


def rank(records: Sequence[RunRecord], preds: Mapping[str, Preds]) -> Ranking:
    """Order runs by accuracy and test every two of them.

    ``preds`` by run key; the paired test needs those of every run.
    """
    order = tuple(sorted(records, key=lambda r: (-r.metrics["top1"], -r.metrics["agreement"])))
    if any(r.spec.key not in preds for r in order):
        return Ranking(order, why="the predictions of a run cannot be read")
    pairs = {}
    try:
        for one, other in combinations(order, 2):
            a, b = one.spec.key, other.spec.key
            pairs[a, b] = paired.between(one, preds[a], other, preds[b])
    except InvalidSpec:
        return Ranking(order, why="the test images are not the same")
    raised = holm([pair.p for pair in pairs.values()])
    return Ranking(order, pairs, dict(zip(pairs, raised, strict=True)))


def verdict(ranking: Ranking, titles: Titles) -> str:
    """A sentence on who is ahead.

    Who is ahead, in one line (Markdown); no winner is named where the test tells none.
    """
    if len(ranking.records) == 1:
        return _single(ranking.best, titles)
    level, called = ranking.level, names(ranking.records, titles)
    best, others = called[ranking.best.spec.key], [r for r in ranking.records if r not in level]
    if not others:
        n = len(level)
        images = f"{ranking.best.metrics['n']:,.0f} images"
        told = f"these {images} do not tell the {'two' if n == 2 else n} runs apart"
        return f"**No winner**: {told} ({_by(ranking, level)})."
    if len(level) > 1:
        rest = f"the other {len(others)} are"
        if len(others) == 1:
            rest = f"{called[others[0].spec.key]} is"
        told = _listed(level, called) if len(level) == 2 else f"the best {len(level)}"
        found = f"{told} are not told apart; {rest} behind {best}"
        return f"**No single winner**: {found} ({_by(ranking, others)})."
    if len(others) > 1:
        return f"**{best}** is ahead of the other {len(others)} runs ({_by(ranking, others)})."
    other = called[others[0].spec.key]
    if ranking.why:
        return f"**{best}** is ahead of {other} ({_by(ranking, others)})."
    pair = ranking.pairs[ranking.best.spec.key, others[0].spec.key]
    counts = f"right alone on {pair.first} images, the other on {pair.second}"
    return f"**{best}** is ahead of {other}: {counts} ({_by(ranking, others)})."


def _single(record: RunRecord, titles: Titles) -> str:
    m = record.metrics
    gap = signed(m["top1"] - m["top1_float"])
    name = names([record], titles)[record.spec.key]
    return (
        f"**{name}** is right on {m['top1']:.1f} % ({interval(record)}), "
        f"{gap} points against float. Choose a second run to compare."
    )


def _by(ranking: Ranking, shown: Sequence[RunRecord]) -> str:
    """Which test says so, and how clearly: the p nearest to the limit among the shown runs."""
    if ranking.why:
        return f"by their 95 % intervals, as {ranking.why}"
    found = [
        ranking.raised[ranking.best.spec.key, r.spec.key] for r in shown if r is not ranking.best
    ]
    edge = min(found) if min(found) >= LEVEL else max(found)
    tests = "paired test" if len(found) == 1 else "paired tests"
    tests = f"exact {tests}" if len(ranking.pairs) == 1 else f"{tests}, Holm"  # of all pairs
    if len(found) == 1 or edge == 1:
        return f"{tests}, {p_text(edge)}"
    bound = p_text(edge).replace("=", "≥" if edge >= LEVEL else "≤")
    return f"{tests}, {bound}"


def signed(value: float) -> str:
    """A difference as text: ``+1.2`` or ``−0.5`` with a real minus sign; ``0.0`` has none."""
    text = f"{value:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def _listed(records: Sequence[RunRecord], called: Mapping[str, str]) -> str:
    told = [called[r.spec.key] for r in records]
    return ", ".join(told[:-1]) + " and " + told[-1]
