"""What fixed noise does to each linear layer, as data: ``noise.npz`` of a run folder. No torch.

A noise analysis is a run of its own (``RunSpec.analysis`` is ``"noise"``). Its folder has
``run.json``, ``events.jsonl``, ``noise.csv`` (the numbers of `rows`) and ``noise.npz`` (all of
them). Each layer is measured alone at each bit-width, everything else in float.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlib.core.records import BASELINE, InvalidSpec, RunSpec
from qlib.store.arrays import NUMBERS, TEXT, WHOLE, check_array, load_arrays
from qlib.store.disk import writing
from qlib.store.eventlog import events
from qlib.store.runfolder import broken

NOISE = "noise"
FILE = "noise.npz"
IMAGES = 128  # held-out images that an analysis takes rows from, where nobody says otherwise
BITS = range(3, 9)
PHASES = 64  # bins of a rounding cell
REACHES = np.arange(31) / 20  # half-widths of the noise in steps
STAGES = ("plain", "clip", "shift", "noise")
_TEXT: tuple[str, ...] = ("layer", "kind", "block")
_WHOLE: tuple[str, ...] = ("depth", "bits")
_TAKEN = (
    "model", "code", "data", "weights", "calib", "calib_data", "seed", "device", "weight_observer",
    "act_observer", "granularity", "symmetric_weights", "symmetric_acts",
)  # fmt: skip
_HALF, _HELD = np.uint32(0x400), np.uint32(0xFFFFF800)  # 12 binary digits are kept

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerNoise:
    """Noise measurements of one linear layer at one bit-width, everything else in float.

    A layer computes ŵ·(Q(x + N) − N) + b: the noise N is one number for each input channel, uniform
    from −n to n and the same for all rows, and is taken off exactly. Lengths are in steps of the
    grid. S is the number of draws, R that of the reaches n.

    Attributes:
        layer, kind, block: ``blocks.0.mlp.fc1``; ``linear``, or ``conv`` of patches that do not
            overlap; the unit it is in.
        depth: place of the layer among all layers of the network, from 0.
        bits: of the weight and of the input.
        step: of the grid that the specification's observer chose for the input.
        phase: (64,) mass of the calibration values by position in their rounding cell, from −½ to
            ½ step, 0 on a level; sums to 1 over the values that are not clipped.
        clipped: share of the values outside the clipping range: further than half a step beyond
            the outermost levels.
        rounding: mean squared rounding error of the others ÷ (step²/12). Above 1 values crowd at
            the midpoints between levels, and noise helps.
        reaches: (R,) half-widths n of the noise, 0 … 1.5.
        predicted: (R,) expected squared error of the input over all draws, clipping included, ÷
            that at reach 0.
        calib, test: (S, R) squared error of the layer's output ÷ that at reach 0, a row for each
            draw; on calibration rows and on held-out rows.
        normal: (R,) one draw from a normal distribution of the same variance, calibration rows.
        closed_form: the reach with the least ``predicted``; 0 is legal.
        linear_search: the reach with the least error of the input under the first draw.
        stages: (4, 2) squared error of the output ÷ Σ output², after each of `STAGES`: min–max
            range, clip search, mean shift, noise (mean over draws); calibration and held-out.
    """

    layer: str
    kind: str
    block: str
    depth: int
    bits: int
    step: float
    phase: Numbers
    clipped: float
    rounding: float
    reaches: Numbers
    predicted: Numbers
    calib: Numbers
    test: Numbers
    normal: Numbers
    closed_form: float
    linear_search: float
    stages: Numbers

    def left(self, reach: float, images: str = "calib") -> float:
        """Share of the output's error that is left at a reach: mean over draws, interpolated.

        ``images``: ``"calib"`` or ``"test"``. Below 1 the noise helps.
        """
        curve = (self.test if images == "test" else self.calib).mean(0)
        return float(np.interp(reach, self.reaches, curve))


@dataclass(frozen=True, eq=False)
class NoiseProfile:
    """Noise measurements of all layers at all bit-widths, in order of execution, bits ascending.

    ``seeds``: draws of the noise; ``rows``: the most rows of one layer that are behind a number.
    """

    spec: RunSpec
    layers: tuple[LayerNoise, ...]
    seeds: int
    rows: int

    @property
    def names(self) -> tuple[str, ...]:
        """Layers in order of execution."""
        return tuple(dict.fromkeys(layer.layer for layer in self.layers))

    @property
    def bits(self) -> tuple[int, ...]:
        """The measured bit-widths, ascending."""
        return tuple(sorted({layer.bits for layer in self.layers}))

    def at(self, layer: str, bits: int) -> LayerNoise:
        """One layer at one bit-width. Raises KeyError: it was not measured there."""
        for row in self.layers:
            if (row.layer, row.bits) == (layer, bits):
                return row
        raise KeyError(f"{layer} at {bits} bits")


def spec_of(base: RunSpec) -> RunSpec:
    """The specification of a run's noise analysis; one serves all methods and bit-widths.

    Only what decides the grids of a layer alone is taken over; the rest is as in a new
    specification. Look for it with ``store.find(spec_of(run), folders)``.
    """
    kept = {name: getattr(base, name) for name in _TAKEN}
    test = min(base.test or IMAGES, IMAGES)
    return RunSpec(method=BASELINE, analysis=NOISE, test=test, **kept)


def save(folder: Path, profile: NoiseProfile) -> None:
    """Write ``noise.npz``; measured numbers keep about four digits.

    Raises:
        InvalidSpec: the folder cannot be written, or the disk is full.
    """
    columns = {f.name: [getattr(x, f.name) for x in profile.layers] for f in fields(LayerNoise)}
    arrays: dict[str, Any] = {name: np.array(column) for name, column in columns.items()}
    arrays = {n: _short(a) if a.ndim > 1 and n != "reaches" else a for n, a in arrays.items()}
    arrays |= {"seeds": np.array(profile.seeds), "rows": np.array(profile.rows)}
    arrays["spec"] = np.array(json.dumps(profile.spec.to_json()))
    with writing(folder):
        np.savez_compressed(folder / FILE, **arrays)


def load(folder: Path) -> NoiseProfile:
    """The noise analysis of a run folder.

    Raises:
        InvalidSpec: missing, damaged or cut off; the file is named.
    """
    file = folder / FILE
    arrays = load_arrays(file)
    try:
        spec = RunSpec.from_json(json.loads(str(check_array(arrays, "spec", (), TEXT))))
        seeds, rows = (int(check_array(arrays, name, (), WHOLE)) for name in ("seeds", "rows"))
        columns = _checked(arrays, seeds)
    except (ValueError, RecursionError) as error:
        raise InvalidSpec(broken(file, error)) from None
    layers = tuple(_layer(columns, k) for k in range(len(columns["layer"])))
    return NoiseProfile(spec, layers, seeds, rows)


def rows(layers: Iterable[LayerNoise]) -> list[dict[str, Any]]:
    """The rows of ``noise.csv``, one a layer and bit-width, to four digits: all but the curves.

    ``left``, ``left_test``: share of the output's error that is left at the closed-form reach, mean
    over draws; ``left_worst``: held-out, of the worst draw; ``plain`` … ``noise_test``: stages.
    """
    table = []
    for x in layers:
        row = {"layer": x.layer, "unit": x.block, "kind": x.kind, "bits": x.bits}
        numbers = ("step", "clipped", "rounding", "closed_form", "linear_search")
        row |= {name: getattr(x, name) for name in numbers}
        row |= {"left": x.left(x.closed_form), "left_test": x.left(x.closed_form, "test")}
        row["left_worst"] = max(float(np.interp(x.closed_form, x.reaches, y)) for y in x.test)
        for name, (calib, test) in zip(STAGES, x.stages.tolist(), strict=True):
            row |= {name: calib, f"{name}_test": test}
        table.append({n: float(f"{v:.4g}") if type(v) is float else v for n, v in row.items()})
    return table


def partial(folder: Path, start: int = 0) -> list[dict[str, Any]]:
    """What a running, cancelled or crashed analysis has measured so far, read from its events.

    Rows have ``layer``, ``bits``, ``left`` (as in `rows`), and ``index`` and ``of``: how many of
    how many. ``folder``: the job's, or the finished run's; ``start``: the first event looked at.
    """
    layers = []
    for event in events(folder, start):
        word, _, bits = event["note"].partition(" ")
        if event["phase"] == "profile" and word == NOISE and bits.isdigit():
            row = {"layer": event["unit"], "bits": int(bits), "left": event["loss"]}
            layers.append(row | {"index": event["index"], "of": event["of"]})
    return layers


def helped(found: Iterable[Mapping[str, Any]], bits: int, *, n: int = 3) -> list[Mapping[str, Any]]:
    """The rows at ``bits`` whose held-out error every draw lowers, the best on average first."""
    here = [row for row in found if row["bits"] == bits and row["left_worst"] < 1]
    return sorted(here, key=lambda row: row["left_test"])[:n]


def summary(found: Iterable[dict[str, Any]]) -> dict[str, float]:
    """What ``run.json`` tells: how many layers and bit-widths, where none is best, where it helps.

    ``better``: every draw lowers the held-out error; ``best_left``: the least mean over draws.
    """
    found = list(found)
    return {
        "measured": len(found),
        "none": sum(row["closed_form"] == 0 for row in found),
        "better": sum(row["left_worst"] < 1 for row in found),
        "best_left": min((row["left_test"] for row in found), default=1.0),
    }


def _checked(arrays: Mapping[str, np.ndarray], seeds: int) -> dict[str, np.ndarray]:
    """The columns of `LayerNoise`, if they have the shapes that it tells."""
    k = len(check_array(arrays, "layer", (-1,), TEXT))
    r = check_array(arrays, "reaches", (k, -1)).shape[1]
    shapes = dict.fromkeys((f.name for f in fields(LayerNoise)), (k,))
    shapes |= {"phase": (k, PHASES), "stages": (k, len(STAGES), 2)}
    shapes |= dict.fromkeys(("reaches", "predicted", "normal"), (k, r))
    shapes |= dict.fromkeys(("calib", "test"), (k, seeds, r))
    kinds = dict.fromkeys(_TEXT, TEXT) | dict.fromkeys(_WHOLE, WHOLE)
    return {
        name: check_array(arrays, name, shape, kinds.get(name, NUMBERS), gaps=True)
        for name, shape in shapes.items()
    }


def _layer(columns: dict[str, np.ndarray], k: int) -> LayerNoise:
    kinds: dict[str, type] = {**dict.fromkeys(_TEXT, str), **dict.fromkeys(_WHOLE, int)}
    values = {}
    for name, column in columns.items():
        many = column.ndim > 1
        values[name] = column[k].astype(np.float64) if many else kinds.get(name, float)(column[k])
    return LayerNoise(**values)


def _short(x: np.ndarray) -> np.ndarray:
    """float32 to 1 part in 8,000: later digits are chance and would take most of the file."""
    short = np.ascontiguousarray(x, dtype=np.float32)
    return ((short.view(np.uint32) + _HALF) & _HELD).view(np.float32)
