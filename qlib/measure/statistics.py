"""Confidence intervals and exact paired tests for counts of right answers. Pure Python."""

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
LEVEL = 0.05  # a difference is told only when chance alone gives it more rarely than this
HALVINGS = 60  # of an interval of length 2: the ends are found to the last digit


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share, both ends in [0, 1] (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # at the ends the formula gives 0 and 1 but for the last digits
    return 0.0 if hits == 0 else middle - half, 1.0 if hits == n else middle + half


def exact_paired(first: int, second: int) -> float:
    """Two-sided p of McNemar's exact test (McNemar 1947, exact by the binomial distribution).

    ``first`` images are right in the first run alone, ``second`` in the second alone. If the runs
    were equally good, each of these would have fallen to either side like a fair coin; images on
    which both agree say nothing. 1 when there is no such image.
    """
    few, n = min(first, second), first + second
    if 2 * few >= n - 1:  # the two tails meet: also the case of no image at all
        return 1.0
    log_largest = math.lgamma(n + 1) - math.lgamma(few + 1) - math.lgamma(n - few + 1)
    # from the largest term down: each is the one before times i / (n − i + 1), which is below 1
    total = term = 1.0
    for i in range(few, 0, -1):
        term *= i / (n - i + 1)
        total += term
        if term < 1e-17 * total:
            break
    return min(1.0, 2 * math.exp(log_largest - n * math.log(2)) * total)


def loss_told(lost: int, gained: int) -> bool:
    """Whether more images are lost than gained, beyond chance (exact paired test)."""
    return lost > gained and exact_paired(lost, gained) < LEVEL


def paired_difference(first: int, second: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of (first − second) / n, both ends in [−1, 1] (Tango 1998).

    ``first`` and ``second`` of ``n`` pairs are right on one side alone. The ends are the
    differences at which the score statistic of the paired model is ±1.96; at 0 that statistic is
    McNemar's, so the interval and the large-sample test say the same.
    """
    if n == 0:
        return -1.0, 1.0
    middle = (first - second) / n

    def distance(delta: float) -> float:
        return abs(_score(first, second, n, delta)) - Z95

    return _edge(distance, middle, -1.0), _edge(distance, middle, 1.0)


def _edge(distance, inside: float, outside: float) -> float:
    """Where ``distance`` turns positive on the way from ``inside`` to ``outside``."""
    for _ in range(HALVINGS):
        between = (inside + outside) / 2
        inside, outside = (between, outside) if distance(between) < 0 else (inside, between)
    return outside


def _score(first: int, second: int, n: int, delta: float) -> float:
    """Standardised distance of the observed difference from ``delta`` (Tango 1998, section 3).

    ``rare`` is the most likely share of pairs that only the second run gets right, given that the
    true difference is ``delta``: the root of a quadratic.
    """
    b = -first - second + (2 * n - first + second) * delta
    c = -second * delta * (1 - delta)
    rare = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    variance = n * (2 * rare + delta * (1 - delta))
    gap = first - second - n * delta
    if variance <= 0:  # a certain difference, from which nothing strays
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def holm(values: Sequence[float]) -> list[float]:
    """p values of several tests, raised so that 5 % is the chance of any false alarm (Holm 1979).

    Keeps their places.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    raised, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        raised[i] = highest
    return raised


def p_text(p: float) -> str:
    """``p = 0.031``, and ``p < 0.001`` below that: more digits would be no more certain."""
    text = "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
    return text.replace(" ", "\N{NO-BREAK SPACE}")
