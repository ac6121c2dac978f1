"""One tensor of one run, prepared for its figures: fewer bins, errors in steps, what is clipped."""

import builtins
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qlib.plots.shared import theme
from qlib.store.tensors import Channels, TensorHist

EVEN = 12**-0.5  # 0.289: root mean square of an error spread evenly over one step
NAMES = {
    "weight": "weights",
    "input": "inputs",
    "left": "left inputs",
    "right": "right inputs",
    "boundary": "inputs of the block",
    "output": "outputs",
}


@dataclass(frozen=True)
class Side:
    """One run's view of a tensor, on n bins.

    ``rmse`` (n,): root mean squared error of the values of each bin, NaN where there are none; in
    steps where the tensor has a grid, else in the unit of the values. ``grids``: how many grids
    the tensor has; with more than one, ``hist.scale`` and the levels are those of the median.
    """

    method: str
    title: str
    hist: TensorHist
    grids: int
    edges: np.ndarray
    float: np.ndarray
    rounded: np.ndarray
    rmse: np.ndarray

    @property
    def step(self) -> builtins.float:
        """The unit of the error ``rmse``: the (median) step of the grid, or 1 without a grid."""
        return float(self.hist.scale) if has_grid(self.hist) else 1.0

    @property
    def shared(self) -> bool:
        """Whether all values lie on one grid, so that its levels can be drawn."""
        return has_grid(self.hist) and self.grids == 1

    @property
    def landed(self) -> np.ndarray:
        """Number of values rounded to each level, lowest level first."""
        return self.hist.codes[: self.hist.qmax - self.hist.qmin + 1]


@dataclass(frozen=True)
class Run:
    """A run whose tensor is shown; ``grids`` as in `Side`."""

    method: str
    title: str
    hist: TensorHist
    grids: int = 1


def side(run: Run, bins: int = 256) -> Side:
    """A run's tensor on ``bins`` bins; ``bins`` divides the stored number or is that number."""
    hist = run.hist
    many = len(hist.float) // bins
    counts, rounded = (fewer(a, many) for a in (hist.float, hist.rounded))
    mse = np.where(hist.float > 0, np.nan_to_num(hist.mse), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        rmse = np.sqrt(fewer(mse * hist.float, many) / counts)
    step = float(hist.scale) if has_grid(hist) else 1.0
    if not hist.bits and hist.tensor != "output":  # left in float: there is no error to draw
        rmse = np.full(len(counts), np.nan)
    edges = np.asarray(hist.edges, dtype=np.float64)[::many]
    return Side(
        run.method, run.title, hist, run.grids, edges, counts, rounded, rmse / step
    )  # fmt: skip


def fewer(counts: np.ndarray, many: int) -> np.ndarray:
    """Merge bins: sums of ``many`` neighbours; the length is a multiple of it."""
    return counts.reshape(-1, many).sum(1, dtype=np.float64)


def channels_of(hist: TensorHist) -> Channels:
    """The per-channel counts of a weight.

    Raises:
        ValueError: the tensor has none: only weights do.
    """
    if hist.channels is None:
        raise ValueError("This tensor has no counts of single channels; only weights do.")
    return hist.channels


def has_grid(hist: TensorHist) -> bool:
    """Whether the tensor was put on an integer grid: outputs and what stays in float were not."""
    return hist.bits > 0 and bool(np.isfinite(hist.scale)) and hist.scale > 0


def kept_float(hist: TensorHist) -> bool:
    """Whether a weight or input was left in float by the run."""
    return hist.tensor != "output" and not has_grid(hist)


def rmse(hist: TensorHist) -> float:
    """Root mean squared error of all counted values, in their unit; NaN when none was counted."""
    counted = hist.float.astype(np.float64)
    total = counted.sum()
    squares = (np.where(counted > 0, np.nan_to_num(hist.mse), 0.0) * counted).sum()
    return float(np.sqrt(squares / total)) if total else float("nan")


def spread(hist: TensorHist) -> float:
    """Standard deviation of the float values, from the middles of their bins."""
    middle = (hist.edges[1:] + hist.edges[:-1]) / 2
    weight = hist.float / max(1, hist.float.sum())
    mean = float((middle * weight).sum())
    return float(np.sqrt((weight * (middle - mean) ** 2).sum()))


def outside(hist: TensorHist) -> tuple[float, float]:
    """Shares of values clipped below and above; their sum is exactly ``hist.clipped``.

    How the whole divides is read from the bins, of which the one at each end counts in part.
    """
    if not has_grid(hist) or hist.clipped <= 0:
        return 0.0, 0.0
    first, last = ends(hist)
    running = np.concatenate([[0.0], np.cumsum(hist.float, dtype=np.float64)])
    below, inside = np.interp([first, last], np.asarray(hist.edges, dtype=np.float64), running)
    above = running[-1] - inside
    if below + above <= 0:  # too few to show in an even sample: the ends are exact
        below, above = max(first - hist.percentiles[0], 0.0), hist.percentiles[-1] - last
        above = max(above, 1e-12)
    low = float(hist.clipped * below / (below + above))
    return low, float(hist.clipped) - low


def ends(hist: TensorHist) -> tuple[float, float]:
    """The bounds of clipping: half a step outside the lowest and the highest level."""
    return hist.clip_lo - hist.scale / 2, hist.clip_hi + hist.scale / 2


def colors(sides: Sequence["Side"], dark: bool) -> list[str]:
    """The colour of each run: the accent colour for one, its method's colour for several."""
    return [accent(dark)] if len(sides) == 1 else [theme.style(s.method).color for s in sides]


def dash(sides: Sequence["Side"], one: "Side") -> dict[str, str]:
    """The dash pattern of a run's line, so that overlaid runs differ by more than colour."""
    return {"dash": theme.style(one.method).dash} if len(sides) > 1 else {}


def accent(dark: bool) -> str:
    """The colour of the one run that is shown."""
    return "#8A94FF" if dark else "#3848FA"


def bulk_levels(hist: TensorHist) -> int:
    """How many levels lie between the 0.1st and the 99.9th percentile of the float values."""
    levels, (low, high) = hist.levels, hist.percentiles[[1, 7]]
    half = float(hist.scale) / 2
    return int(((levels >= low - half) & (levels <= high + half)).sum())


def stairs(edges: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of a staircase through counts (``hv`` line): starts and ends at 0; 0 counts stay 0."""
    return edges, np.append(counts, counts[-1] if len(counts) else 0)


def stems(x: np.ndarray, y: np.ndarray, ground: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of one broken line with a stem from ``ground`` up to each point."""
    gap = np.full(len(x), np.nan)
    base = np.full(len(x), ground)
    return np.stack([x, x, gap], 1).ravel(), np.stack([base, y, gap], 1).ravel()


def marked(counts: np.ndarray, log: bool) -> np.ndarray:
    """Heights of marks; on a logarithmic axis empty bins get none."""
    return np.where(counts > 0, counts, np.nan) if log else counts


def floored(counts: np.ndarray, log: bool) -> np.ndarray:
    """Counts fit for a count axis: on a logarithmic one empty bins lie below what is shown."""
    return np.where(counts > 0, counts, GROUND) if log else counts


GROUND = 0.5  # below one value: the bottom of a logarithmic count axis


def count_axis(most: float, log: bool, what: str = "values") -> dict:
    """Settings of an axis of counts up to ``most``; a logarithmic one starts below one value."""
    if not log:
        return {"title": f"count of {what}", "range": [0, 1.12 * most], "type": "linear"}
    top = np.log10(max(most, 10)) * 1.12
    title = f"count of {what}, log scale"
    dtick = 1 if top < 5 else 2
    return {
        "title": title, "type": "log", "range": [np.log10(0.6), top], "dtick": dtick,
        "exponentformat": "SI", "showexponent": "all",
    }  # fmt: skip


def name_of(hist: TensorHist) -> str:
    """The tensor's name for people: ``weights of blocks.0.mlp.fc1``."""
    return f"{NAMES.get(hist.tensor, hist.tensor)} of {hist.layer}"


def most(sides: Sequence[Side], what: str) -> float:
    """The largest count of an array of the sides."""
    return max(float(getattr(s, what).max(initial=0)) for s in sides)
