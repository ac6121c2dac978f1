"""Intervals and exact tests against SciPy, against hand counts and against brute force."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest

from qlib.core.records import InvalidSpec, RunRecord, RunSpec
from qlib.measure import metrics, paired, statistics
from qlib.measure.paired import Pair

# ---- the exact paired test ------------------------------------------------------------------


def test_exact_paired_is_scipys_on_every_small_table():
    for n in range(1, 60):
        for first in range(n + 1):
            want = binomtest(first, n, 0.5).pvalue
            assert statistics.exact_paired(first, n - first) == pytest.approx(want, rel=1e-12)


def test_exact_paired_by_hand():
    assert statistics.exact_paired(0, 0) == 1.0  # no image tells the runs apart
    assert statistics.exact_paired(5, 5) == 1.0
    assert statistics.exact_paired(5, 0) == 2 / 32  # all heads or all tails in five throws
    assert statistics.exact_paired(8, 1) == pytest.approx(2 * (1 + 9) / 512, rel=1e-14)
    assert statistics.exact_paired(1, 8) == statistics.exact_paired(8, 1)


@pytest.mark.parametrize(
    ("first", "second"), [(700, 800), (1, 4000), (24_600, 25_400), (99_000, 101_500), (0, 9000)]
)
def test_exact_paired_of_many_images(first, second):
    n, few = first + second, min(first, second)
    want = binom.logcdf(few, n, 0.5) + math.log(2)
    found = statistics.exact_paired(first, second)
    if want < -745:  # smaller than any float
        assert found == 0.0
    else:
        assert math.log(found) == pytest.approx(want, rel=1e-8)


def test_exact_paired_agrees_with_whole_numbers():
    """No logarithms: the tail as a fraction of integers."""
    n, few = 1500, 640
    tail = sum(math.comb(n, i) for i in range(few + 1))
    assert statistics.exact_paired(few, n - few) == pytest.approx(tail / 2 ** (n - 1), rel=1e-10)


# ---- the interval of a paired difference ----------------------------------------------------


def likelihood_score(first: int, second: int, n: int, delta: float) -> float:
    """The statistic by a search for the most likely table with this difference."""

    def loss(rare: float) -> float:  # rare: the share that only the second run gets right
        rest = 1 - 2 * rare - delta
        parts = ((first, rare + delta), (second, rare), (n - first - second, rest))
        return -sum(k * math.log(max(q, 1e-300)) for k, q in parts if k)

    low, high = max(0.0, -delta), (1 - delta) / 2
    rare = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
    return (first - second - n * delta) / math.sqrt(n * (2 * rare + delta - delta**2))


@pytest.mark.parametrize("table", [(12, 2, 50), (7, 2, 600), (30, 31, 200), (3, 9, 40), (1, 1, 9)])
def test_interval_ends_are_where_the_score_is_two(table):
    first, second, n = table
    low, high = statistics.paired_difference(first, second, n)
    assert low < (first - second) / n < high
    assert likelihood_score(first, second, n, low) == pytest.approx(statistics.Z95, abs=2e-4)
    assert likelihood_score(first, second, n, high) == pytest.approx(-statistics.Z95, abs=2e-4)


def test_interval_at_the_edge_of_significance_is_mcnemars():
    """(b − c)² / (b + c) = z² exactly when the interval ends at 0."""
    n = 10_000
    for second in (100, 400):
        for first in range(second, 2 * second):
            told = (first - second) ** 2 / (first + second) > statistics.Z95**2
            assert (statistics.paired_difference(first, second, n)[0] > 0) == told


def test_interval_is_mirrored_and_bounded():
    for first, second, n in [(0, 0, 20), (20, 0, 20), (5, 0, 20), (3, 8, 20), (0, 20, 20)]:
        low, high = statistics.paired_difference(first, second, n)
        assert -1 <= low <= (first - second) / n <= high <= 1
        other = statistics.paired_difference(second, first, n)
        assert other == pytest.approx((-high, -low), abs=1e-12)
    assert statistics.paired_difference(0, 0, 0) == (-1.0, 1.0)


def test_interval_covers_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(5)
    n, shares = 300, [0.07, 0.03, 0.90]
    tables = draw.multinomial(n, shares, size=1500)
    inside = 0
    for first, second, _ in tables:
        low, high = statistics.paired_difference(int(first), int(second), n)
        inside += low <= 0.04 <= high
    assert 0.935 < inside / 1500 < 0.965


# ---- several tests at once ------------------------------------------------------------------


def closed(values: list[float]) -> list[float]:
    """Holm's values by testing every set of hypotheses with Bonferroni's rule."""
    places = range(len(values))
    sets = [s for k in range(1, len(values) + 1) for s in combinations(places, k)]
    return [max(min(1.0, len(s) * min(values[j] for j in s)) for s in sets if i in s)
            for i in places]  # fmt: skip


def test_holm_is_the_closed_test():
    draw = np.random.default_rng(1)
    for size in (1, 2, 5, 7):
        values = draw.uniform(0, 0.3, size).tolist()
        assert statistics.holm(values) == pytest.approx(closed(values))
    assert statistics.holm([]) == []
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_p_is_written_no_finer_than_it_is_known():
    values = (0.00004, 0.0312, 0.4567, 1.0)
    said = [statistics.p_text(p).replace("\N{NO-BREAK SPACE}", " ") for p in values]
    assert said == ["p < 0.001", "p = 0.031", "p = 0.46", "p = 1.00"]


def test_metrics_and_statistics_share_one_interval():
    assert metrics.wilson is statistics.wilson


# ---- two runs on the same images ------------------------------------------------------------


def arrays(labels, before, after, ids=None) -> dict[str, np.ndarray]:
    """Predictions of images with these true classes and these first guesses."""
    n = len(labels)
    top = {"float": before, "quant": after}
    made = {f"{k}_top5": np.stack([v, np.full(n, 9)], 1).astype(np.int16) for k, v in top.items()}
    made |= {f"{k}_prob": np.full((n, 2), 0.5, np.float16) for k in top}
    names = [f"i{i}" for i in range(n)] if ids is None else ids
    return made | {
        "ids": np.array(names),
        "labels": np.array(labels),
        "class_names": np.array(list("0123456789")),
    }


LABELS = np.array([0, 1, 2, 3, 4, 5])
ONE = arrays(LABELS, LABELS, np.array([0, 1, 2, 7, 7, 7]))
TWO = arrays(LABELS, LABELS, np.array([0, 7, 7, 7, 7, 5]))


def record(test_hash: str = "t") -> RunRecord:
    return RunRecord(RunSpec("m", "d", "nearest"), {}, {}, 0.0, data={"test_hash": test_hash})


def test_pair_of_two_runs_counts_images():
    pair = paired.between(record(), ONE, record(), TWO)
    assert pair == Pair(both=1, first=2, second=1, neither=2)
    assert (pair.n, pair.p, pair.difference) == (6, 1.0, pytest.approx(100 / 6))
    low, high = pair.interval
    assert -100 <= low < 100 / 6 < high <= 100


def test_pair_is_matched_by_ids_and_not_by_place():
    turn = np.array([3, 1, 5, 0, 2, 4])
    other = {k: v if k == "class_names" else v[turn] for k, v in TWO.items()}
    assert paired.between(record(), ONE, record(), other) == Pair(1, 2, 1, 2)


def test_runs_on_other_images_are_not_paired():
    with pytest.raises(InvalidSpec, match="tested on different images"):
        paired.between(record(), ONE, record("u"), TWO)
    renamed = TWO | {"ids": np.array([f"j{i}" for i in range(6)])}
    with pytest.raises(InvalidSpec, match="name different images"):
        paired.between(record(), ONE, record(), renamed)
    fewer = {k: v[:5] for k, v in TWO.items()}
    with pytest.raises(InvalidSpec, match="name different images"):
        paired.between(record(), ONE, record(), fewer)


def test_lost_and_gained_against_float():
    before = np.array([0, 1, 2, 3, 7, 7])
    after = np.array([0, 1, 7, 7, 4, 7])
    preds = arrays(LABELS, before, after)
    assert paired.against_float(preds) == Pair(both=2, first=2, second=1, neither=1)
    lost, gained = paired.changed(preds)
    assert (lost.tolist(), gained.tolist()) == ([2, 3], [4])


def test_incomplete_predictions_are_named():
    broken = {k: v for k, v in ONE.items() if k != "quant_top5"}
    with pytest.raises(InvalidSpec, match=r"preds\.npz of RUN lacks quant_top5"):
        paired.checked(broken, "RUN")
    with pytest.raises(InvalidSpec, match="unequal length"):
        paired.checked(ONE | {"labels": LABELS[:3]}, "RUN")
    assert paired.checked(ONE, "RUN") is ONE


def test_records_without_a_hash_of_images_are_matched_by_ids():
    old = replace(record(), data={})
    assert paired.between(old, ONE, old, TWO).n == 6
