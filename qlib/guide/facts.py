"""The numbers of a run by name, for texts that quote them (see `qlib.guide.lessons`)."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from qlib.core.records import InvalidSpec, RunRecord
from qlib.noise.profile import STAGES, LayerNoise, NoiseProfile

Rows = Sequence[Mapping[str, Any]]
T = TypeVar("T")
HALF = 0.5  # steps: the reach for which theory gives step²/12
EVEN = 0.02  # a smaller change of the error is neither help nor harm
TENSORS = ("weight", "input", "left", "right", "output")


class Numbers:
    """Base of groups of numbers that texts quote by attribute name.

    Raises:
        InvalidSpec: when one is read that this run does not have; the sentence names it.
    """

    def __init__(self, owner: str, found: Mapping[str, Any]) -> None:
        self._owner, self._found = owner, found

    if not TYPE_CHECKING:  # type checkers know the declared names alone

        def __getattr__(self, name: str) -> Any:
            if name not in _declared(type(self)):
                raise AttributeError(f"{type(self).__name__} has no {name!r}")
            found = self._found.get(name)
            if found is None:
                raise InvalidSpec(f"The number {name!r} of {self._owner} is not known here.")
            return found


@cache
def _declared(cls: type) -> frozenset[str]:
    return frozenset(n for c in cls.__mro__ for n in vars(c).get("__annotations__", {}))


class Named(Generic[T]):
    """A mapping of names to things of one kind.

    Raises:
        InvalidSpec: when one is asked for that is not there.
    """

    def __init__(self, kind: str, found: Mapping[str, T]) -> None:
        self._kind, self._found = kind, found

    def __getitem__(self, name: str) -> T:
        if name not in self._found:
            raise InvalidSpec(f"This run has no {self._kind} {name!r}.")
        return self._found[name]


class TensorFacts(Numbers):
    """Numbers of one tensor.

    A row of ``layers.csv``; of a tensor with a stored histogram also what that tells.

    ``outlier_ratio``, ``low`` and ``high`` (smallest and largest value) are from the histogram.
    """

    bits: float
    params: float
    channels: float
    scale: float
    zero_point: float
    clipped: float  # share of the values, 0 to 1, as `flipped`
    flipped: float
    mse: float
    mse_nearest: float
    rmse_step: float
    sqnr_db: float
    local_sqnr_db: float
    acc_sqnr_db: float
    acc_mse: float
    acc_mse_test: float
    acc_mse_nearest: float
    outlier_ratio: float
    low: float
    high: float


class LayerFacts(Numbers):
    """The tensors of one layer."""

    weight: TensorFacts
    input: TensorFacts
    left: TensorFacts
    right: TensorFacts
    output: TensorFacts


class WorstFacts(Numbers):
    """Names of the layers with the largest error: alone, in the whole network, by sensitivity.

    ``kl``: of the last one, in nats.
    """

    local: str
    accumulated: str
    profile: str
    kl: float


class ProfileFacts(Numbers):
    """Top-1 (%) and KL (nats) with nothing, weights, activations, all quantized."""

    in_float: float
    weights: float
    inputs: float
    both: float
    kl_in_float: float
    kl_weights: float
    kl_inputs: float
    kl_both: float


class WidthFacts(Numbers):
    """What a network of many widths does at one pair of them; ``drop``: float minus top-1."""

    top1: float
    top1_low: float
    top1_high: float
    agreement: float
    lost: float
    gained: float
    kl: float
    drop: float
    weight_mb: float
    gbops: float


class UnitsFacts(Numbers):
    """Units that can be switched, each alone at the lowest width ``bits``: KL in nats.

    ``worst`` does most (``kl``), ``least`` least (``least_kl``), all together ``sum``.
    """

    n: int
    bits: int
    worst: str
    kl: float
    least: str
    least_kl: float
    sum: float


class NoisyFacts(Numbers):
    """What noise does to one layer at some bits; ``…_test``: on held-out rows.

    ``rounding`` in step²/12; ``closed_form`` and ``linear_search`` are reaches in steps; ``left``
    and ``half``: share of the output's error that is left at the first of them and at half a step;
    ``plain``, ``clip``, ``shift``, ``noise``: % of the output's energy.
    """

    rounding: float
    clipped: float
    closed_form: float
    linear_search: float
    left: float
    left_test: float
    half: float
    half_test: float
    plain: float
    plain_test: float
    clip: float
    clip_test: float
    shift: float
    shift_test: float
    noise: float
    noise_test: float


class CountFacts(Numbers):
    """Layers by noise of half a step on held-out rows; ``none``: the search chose no noise."""

    of: int
    helped: int
    hurt: int
    none: int


class AtBits(Numbers, Generic[T]):
    """Values by bit-width, for each width that was measured."""

    b2: T
    b3: T
    b4: T
    b5: T
    b6: T
    b7: T
    b8: T


class NoiseFacts(AtBits[NoisyFacts]):
    """Effect of noise on the step's layer, and as ``noise["NAME"]`` on another."""

    count: AtBits[CountFacts]
    layers: Named[AtBits[NoisyFacts]]

    def __getitem__(self, layer: str) -> AtBits[NoisyFacts]:
        return self.layers[layer]


class Facts(LayerFacts):
    """All numbers of one run: those of its metrics, and of the step's layer its tensors.

    ``drop`` is float minus top-1, ``won`` top-1 minus nearest, both in points; ``bits`` is "W4A4".
    ``runs``: the same of further runs that a step speaks of, by the names that it gives them.
    """

    top1: float
    top1_low: float
    top1_high: float
    top1_float: float
    top1_nearest: float
    agreement: float
    lost: int
    gained: int
    n: int
    kl: float
    weight_mb: float
    gbops: float
    stored_mb: float
    drop: float
    won: float
    seconds: float
    bits: str
    weight_bits: int
    act_bits: int
    method: str
    model: str
    layers: Named[LayerFacts]
    worst: WorstFacts
    profile: ProfileFacts
    widths: Named[WidthFacts]
    units: UnitsFacts
    noise: NoiseFacts
    runs: Named["Facts"]

    def beside(self, runs: "Mapping[str, Facts]") -> "Facts":
        """The same facts with further runs to compare with."""
        return Facts(self._owner, {**self._found, "runs": Named("other run", runs)})


def of(
    record: RunRecord,
    *,
    layer: str = "",
    hist: Mapping[str, Any] | None = None,
    profile: Rows = (),
    noise: NoiseProfile | None = None,
) -> Facts:
    """All facts of one run; ``record`` with its rows of layers.

    ``hist``: tensors as `qlib.store.tensors.load` gives them; ``profile``: rows of a sensitivity
    run; ``noise``: the noise analysis that serves the run.
    """
    m, spec = record.metrics, record.spec
    layers = _layers(record.layers, hist or {})
    counts = {name: int(m[name]) for name in ("lost", "gained", "n") if name in m}
    own = {
        **m,
        **counts,
        **({"drop": m["top1_float"] - m["top1"]} if "top1_float" in m else {}),
        **({"won": m["top1"] - m["top1_nearest"]} if "top1_nearest" in m else {}),
        "seconds": record.seconds["total"],
        "bits": f"W{spec.weight_bits}A{spec.act_bits}",
        "weight_bits": spec.weight_bits,
        "act_bits": spec.act_bits,
        "method": spec.method,
        "model": spec.network,
        "layers": Named("layer", {n: LayerFacts(n, tensors) for n, tensors in layers.items()}),
        "worst": WorstFacts("the worst layer", _worst(record.layers, profile)),
        "profile": ProfileFacts("the sensitivity run", _whole(profile)),
        "widths": Named("pair of widths", _widths(record.bit_widths, m.get("top1_float"))),
        "units": UnitsFacts("the units", _units(record.blocks)),
        "noise": NoiseFacts("the noise analysis", _noise(noise, layer) if noise else {}),
        **layers.get(layer, {}),
    }
    return Facts("this run", own).beside({})


def _layers(rows: Rows, hist: Mapping[str, Any]) -> dict[str, dict[str, TensorFacts]]:
    """Layer name → tensor → its row with what the histograms add."""
    found: dict[str, dict[str, TensorFacts]] = {}
    for row in rows:
        layer, tensor = row["layer"], row["tensor"]
        if tensor in TENSORS:
            name = f"{layer}.{tensor}"
            told = TensorFacts(name, {**row, **_counts(hist.get(name))})
            found.setdefault(layer, {})[tensor] = told
    return found


def _counts(found: Any) -> dict[str, float]:
    if found is None:
        return {}
    low, high = float(found.percentiles[0]), float(found.percentiles[-1])
    return {"outlier_ratio": found.outlier_ratio, "low": low, "high": high}


def _widths(rows: Rows, whole: float | None) -> dict[str, WidthFacts]:
    """``W8A3`` → what a network of many widths does there; ``whole``: accuracy in float."""
    if whole is None:
        return {}
    named = {f"W{int(r['weight_bits'])}A{int(r['act_bits'])}": r for r in rows}
    return {
        name: WidthFacts(name, {**row, "drop": whole - row["top1"]}) for name, row in named.items()
    }


def _units(rows: Rows) -> dict[str, Any]:
    """At the lowest width of a network of many: the unit that alone does most, and all together."""
    several = {r["unit"] for r in rows if sum(r["unit"] == o["unit"] for o in rows) > 1}
    own = [r for r in rows if r["unit"] in several]
    if not own:
        return {}
    lowest = min(r["bits"] for r in own)
    low = [r for r in own if r["bits"] == lowest]
    worst, least = (pick(low, key=lambda r: r["kl"]) for pick in (max, min))
    return {
        "n": len(low), "bits": int(lowest), "sum": sum(r["kl"] for r in low),
        "worst": worst["unit"], "kl": worst["kl"], "least": least["unit"], "least_kl": least["kl"],
    }  # fmt: skip


def _worst(rows: Rows, profile: Rows) -> dict[str, Any]:
    told = [r for r in rows if r["tensor"] == "output"]
    alone = [r for r in profile if (r["mode"], r["split"]) == ("alone", "both")]
    hardest = max(alone, key=lambda r: r["kl"], default={})
    return {
        "local": _lowest(told, "local_sqnr_db"),
        "accumulated": _lowest(told, "acc_sqnr_db"),
        "profile": hardest.get("layer"),
        "kl": hardest.get("kl"),
    }


def _lowest(rows: Iterable[Mapping[str, Any]], column: str) -> str | None:
    known = [r for r in rows if r.get(column) is not None]
    return min(known, key=lambda r: r[column])["layer"] if known else None


def _whole(profile: Rows) -> dict[str, float]:
    """top-1 (and ``kl_…``) with nothing, weights, activations and all quantized."""
    names = {"none": "in_float", "weights": "weights", "inputs": "inputs", "both": "both"}
    found: dict[str, float] = {}
    for row in profile:
        if row["mode"] == "all" and row["split"] in names:
            name = names[row["split"]]
            found |= {name: row["top1"], f"kl_{name}": row["kl"]}
    return found


def _noise(profile: NoiseProfile, layer: str) -> dict[str, Any]:
    """By layer and bits, by bits for the own layer, and counts over all layers."""
    found: dict[str, dict[str, NoisyFacts]] = {}
    for one in profile.layers:
        bits = f"b{one.bits}"
        told = NoisyFacts(f"the noise in {one.layer} at {one.bits} bits", _noisy(one))
        found.setdefault(one.layer, {})[bits] = told
    counts = {f"b{b}": CountFacts("the noise analysis", _counted(profile, b)) for b in profile.bits}
    by_layer = {name: AtBits(f"the noise in {name}", at) for name, at in found.items()}
    whole = {"count": AtBits("the noise analysis", counts), "layers": Named("layer", by_layer)}
    return {**found.get(layer, {}), **whole}


def _noisy(one: LayerNoise) -> dict[str, float]:
    numbers = ("rounding", "clipped", "closed_form", "linear_search")
    found = {name: getattr(one, name) for name in numbers}
    for end, images, column in (("", "calib", 0), ("_test", "test", 1)):
        found |= {f"left{end}": one.left(one.closed_form, images)}
        found |= {f"half{end}": one.left(HALF, images)}
        stages = zip(STAGES, 100 * one.stages[:, column], strict=True)
        found |= {f"{stage}{end}": float(value) for stage, value in stages}
    return found


def _counted(profile: NoiseProfile, bits: int) -> dict[str, int]:
    """How many layers noise of half a step helps and hurts on held-out rows."""
    here = [one for one in profile.layers if one.bits == bits]
    halves = [one.left(HALF, "test") for one in here]
    return {
        "of": len(here),
        "helped": sum(share < 1 - EVEN for share in halves),
        "hurt": sum(share > 1 + EVEN for share in halves),
        "none": sum(one.closed_form == 0 for one in here),
    }
