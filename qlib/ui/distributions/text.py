"""What a tensor's counts say, in sentences and in a few numbers. Pure text, no widgets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from qlib.plots.distributions import tensor
from qlib.plots.shared.values import number, percent
from qlib.store.tensors import TensorHist

FAR = 3.0  # outlier ratio from which the largest values are called outliers
WASTED = 0.6  # share of the levels that serve 99.8 % of the values, below which few rule the grid


@dataclass(frozen=True)
class Seen:
    """A tensor with its row of ``layers.csv`` (empty where it has none)."""

    hist: TensorHist
    row: Mapping[str, Any]

    @property
    def grids(self) -> int:
        """How many grids the tensor has: one, or one for each channel or group."""
        return max(1, int(self.row.get("channels") or 1))

    @property
    def levels(self) -> int:
        """Number of levels of the tensor's grid."""
        return self.hist.qmax - self.hist.qmin + 1

    @property
    def error(self) -> float:
        """Root mean squared error in steps; the run's own number where it has one."""
        told = self.row.get("rmse_step")
        if isinstance(told, (int, float)) and np.isfinite(told):
            return float(told)
        return tensor.rmse(self.hist) / self.hist.scale


def answer(seen: Seen) -> str:
    """The page's answer: what the counts look like and what rounding does to them (Markdown)."""
    hist = seen.hist
    low, high = (number(float(v), 2) for v in hist.percentiles[[0, -1]])
    if hist.tensor == "output":
        off, spread = tensor.rmse(hist), tensor.spread(hist)
        return (
            f"This output has values from {low} to {high}; in the quantized network they are off "
            f"by {number(off, 2)} (root mean square), **{percent(off / max(spread, 1e-30))} of "
            "their spread**. An output has no grid: it is rounded where the next layer reads it."
        )
    if tensor.kept_float(hist):
        return (
            f"This run left the {tensor.NAMES[hist.tensor]} of this layer **in float**: values "
            f"from {low} to {high}, and nothing is rounded."
        )
    lost = f"{percent(hist.clipped)} of them are clipped" if hist.clipped > 0 else "none is clipped"
    each = f" to each of {seen.grids} channels" if seen.grids > 1 else ""
    first = f"{hist.bits} bits give {seen.levels} levels{each} for values from {low} to {high}"
    return f"{first}; {lost}. {_rule(seen)}"


def _rule(seen: Seen) -> str:
    """Who rules the step: the few far out, or the many."""
    hist, ratio = seen.hist, seen.hist.outlier_ratio
    far = f"The largest is {_times(ratio)} the usual extreme (p99.9)"
    if seen.grids > 1:
        if ratio < FAR:
            return f"{far}: **no outlier rules the grids**, each fits its own channel."
        return f"{far}: **an outlier costs its own channel only**, the others keep their fine step."
    bulk = tensor.bulk_levels(hist)
    few = f"{bulk} of the {seen.levels} levels serve 99.8 % of the values"
    if bulk <= WASTED * seen.levels:
        return f"{far}, so **a few values rule the step**: only {few}."
    if ratio >= FAR:
        kept = "**the few are clipped, the many keep a smaller step**"
        return f"{far}, but the grid ends before it: {kept}."
    few = f"all {seen.levels} levels serve 99.8 % of the values" if bulk == seen.levels else few
    return f"{far}: **no outlier rules this grid**, {few}."


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 10 else f"{ratio:.0f} times"


def hint(seen: Seen) -> str:
    """Advice on what to look for in the tensor's figure (Markdown)."""
    if seen.hist.tensor == "output":
        return (
            "Below the counts: how far values are off in the quantized network. All errors of the "
            "layers before add up here, so there is no saw-tooth left."
        )
    if not tensor.has_grid(seen.hist):
        return "Choose another layer: this one has nothing to round."
    if seen.grids > 1:
        return (
            "Every channel has a step of its own, so the errors below the counts blend. Switch on "
            "*Per channel* to see who reaches how far."
        )
    return (
        "Below the counts, the error at each value: **teeth** inside the range, half a step high, "
        "and a **wall** where values are clipped. 0.29 is what evenly spread values give."
    )


def numbers(seen: Seen) -> list[tuple[str, str, str]]:
    """(name, value, term of the glossary) of the tensor's few numbers."""
    hist = seen.hist
    low, high = (number(float(v), 2) for v in hist.percentiles[[0, -1]])
    facts = [("Range", f"{low} to {high}", "tensor range")]
    if tensor.has_grid(hist):
        used = int((hist.codes > 0).sum())
        about = "≈ " if seen.grids > 1 else ""
        facts += [
            ("Scale (step)", about + number(hist.scale), "scale"),
            ("Zero-point", about + number(hist.zero_point), "zero-point"),
            ("Clipped", percent(hist.clipped), "clipping"),
            ("Levels used", f"{used} of {seen.levels}", "levels"),
            ("Error / step", f"{seen.error:.3f}", "rmse step"),
        ]
    elif hist.tensor == "output":
        off, spread = tensor.rmse(hist), tensor.spread(hist)
        facts += [
            ("Spread", number(spread, 2), "spread"),
            ("Error (RMS)", number(off, 2), "accumulated error"),
        ]
    return [*facts, ("Outlier ratio", f"{hist.outlier_ratio:.1f}", "outlier ratio")]


def table(hists: Mapping[str, Seen]) -> pd.DataFrame:
    """One row for each tensor, as the ladder's table shows it."""
    return pd.DataFrame([_row(seen) for seen in hists.values()])


def _row(seen: Seen) -> dict[str, Any]:
    hist = seen.hist
    p = [float(v) for v in hist.percentiles]
    grid = tensor.has_grid(hist)
    return {
        "Layer": hist.layer,
        "Tensor": hist.tensor,
        "Min": p[0],
        "p0.1": p[1],
        "p25": p[3],
        "Median": p[4],
        "p75": p[5],
        "p99.9": p[7],
        "Max": p[8],
        "Outlier ratio": float(hist.outlier_ratio),
        "Bits": hist.bits if grid else None,
        "Step": hist.scale if grid else None,
        "Clipped (%)": 100 * hist.clipped if grid else None,
        "Error / step": seen.error if grid else None,
    }


def bins(hist: TensorHist) -> pd.DataFrame:
    """Data frame of the stored counts of one tensor, bin by bin."""
    return pd.DataFrame(
        {
            "from": hist.edges[:-1],
            "to": hist.edges[1:],
            "float values": hist.float,
            "after rounding": hist.rounded,
            "mean squared error": hist.mse,
        }
    )
