"""The one number that a run is judged by, whatever kind of network and images it has. No torch.

Accuracy where images have labels; k-NN accuracy of features with labels; the features' cosine to
float, or the answers' agreement with float, without labels. A run has one of them, never another's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ABSENT = "–"  # what is shown of a number that a run does not have


@dataclass(frozen=True)
class Score:
    """A number with its 95 % interval and what it is held against; in percent, save the cosine.

    ``reference``: the float network's, None where float is what is compared with; ``nearest``:
    nearest rounding's, None for other widths than the run's own.
    """

    name: str
    term: str
    value: float
    low: float
    high: float
    reference: float | None
    nearest: float | None
    percent: bool = True

    def text(self, value: float | None) -> str:
        """``91.2 %``, ``0.998``, or `ABSENT`."""
        if value is None:
            return ABSENT
        return f"{value:.1f} %" if self.percent else f"{value:.4f}"

    @property
    def interval(self) -> str:
        """``90.1–92.4``."""
        digits = 1 if self.percent else 4
        return f"{self.low:.{digits}f}–{self.high:.{digits}f}"


def score(metrics: Mapping[str, Any]) -> Score | None:
    """The score of a run's metrics; None of an analysis that measures none."""
    m = metrics
    if "top1" in m:
        return _of(m, "Top-1", "top-1", "top1", m.get("top1_float"))
    if "knn_low" in m:
        return _of(m, "k-NN accuracy", "k-NN accuracy", "knn", m.get("knn_float"))
    if "cosine_low" in m:
        return _of(m, "Cosine to float", "cosine of features", "cosine", None, percent=False)
    if "agreement_low" in m:
        return _of(m, "Agreement", "agreement", "agreement", None)
    return None


def accurate(metrics: Mapping[str, Any]) -> bool:
    """Whether a run has an accuracy: a classifier on labelled images."""
    return "top1" in metrics


def _of(
    m: Mapping[str, Any],
    name: str,
    term: str,
    key: str,
    reference: float | None,
    *,
    percent: bool = True,
) -> Score:
    value = float(m[key])
    low, high = m.get(f"{key}_low", value), m.get(f"{key}_high", value)
    return Score(name, term, value, low, high, reference, m.get(f"{key}_nearest"), percent)
