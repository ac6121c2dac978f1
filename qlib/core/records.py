"""Plain data that crosses every layer: specification, events and result of a run. No torch."""

import hashlib
import json
import re
from dataclasses import MISSING, asdict, dataclass, field, fields
from types import NoneType
from typing import Annotated, Any, Protocol

from qlib.core import params
from qlib.core.checks import Among, Scalar, check, check_fields, plain
from qlib.core.params import param
from qlib.core.preprocess import Preprocess
from qlib.core.rows import (
    METRICS,
    TASKS,
    Coverage,
    Doubt,
    Images,
    LayerRow,
    PictureNote,
    RunData,
    Seconds,
    UnitRow,
    WidthRow,
)

FORMAT = 2  # of run folders; raised whenever an older folder would be read wrongly
BITS = range(2, 9)
BASELINE = "nearest"  # the method that others must beat; its numbers are in every record
GRANULARITIES = ("channel", "tensor", "group")


class InvalidSpec(ValueError):
    """Wrong input; its message says what was wrong, what is allowed and what to do."""


class Cancelled(Exception):
    """Raised by a report callback to stop a run between two steps."""


def network_name(model: str) -> str:
    """The name for people of the network that this key means: see `RunSpec.network`."""
    return model.rpartition("/")[2] if ".py:" in model else model


@dataclass(frozen=True)
class RunSpec:
    """The full specification of a run: all that decides its result. Frozen; JSON both ways.

    ``settings`` holds the method's own fields; `qlib.core.specs.checked` fills in the missing ones.
    ``keep_float`` names layers that stay in float: their weight and their own inputs get no grid.
    ``tune_norms`` and ``tune_biases`` may follow any method: see `qlib.learning.tuning`.
    ``classes``: a file that gives class folders their indices (see `qlib.core.class_order`);
    ``classes_digest``: of its content, filled in by `qlib.core.specs.absolute`.
    ``code``: digest of the file where the network is one's own, filled in by
    `qlib.core.specs.absolute`: changed code is another run.
    A field added later must have a default that means "as before": see `key`.
    """

    model: str
    data: str
    method: str
    weight_bits: int = param(4, "Bits of every weight, edge layers apart.", low=2, high=8)
    act_bits: int = param(4, "Bits of every activation, edge layers apart.", low=2, high=8)
    edge_layers: str = param(
        "8-bit",
        "How the first and the last layers are treated; papers differ.",
        choices=("8-bit", "same", "float"),
    )
    placement: str = param(
        "inputs",
        "Where activations are quantized: at each layer's input, or once where a tensor "
        "enters a block (before it splits into branch and skip).",
        choices=("inputs", "boundary"),
    )
    weight_observer: str = param("mse", "Chooses the clipping range of weights.")
    act_observer: str = param("mse", "Chooses the clipping range of activations.")
    granularity: str = param("channel", "Which weights share one scale.", choices=GRANULARITIES)
    symmetric_weights: bool = param(False, "Weight grid symmetric around zero (zero-point 0).")
    symmetric_acts: bool = param(False, "Activation grid symmetric around zero.")
    weights: str | None = None
    calib: int = param(256, "Unlabelled images that the method may use.", low=1)
    calib_data: str | None = None
    test: int | None = None
    seed: int = param(0, "Seed of everything random in the run.", low=0)
    device: str = param("cpu", "Where tensors live.", choices=("cpu", "cuda"))
    settings: dict[str, Any] = field(default_factory=dict)
    analysis: str = param(
        "",
        "What is measured: the quantized network, its sensitivity layer by layer, or what noise "
        "before rounding does to each layer.",
        choices=("", "sensitivity", "noise"),
    )
    keep_float: tuple[str, ...] = ()
    tune_norms: bool = param(
        False,
        "After the method: bring the mean and spread of each channel back to the float network's "
        "(batch norms tuned, then folded again).",
    )
    tune_biases: int = param(
        0,
        "After the method, and after channels are tuned: steps that tune all biases together "
        "towards the float network's answers.",
        low=0,
        high=100_000,
    )
    calib_choice: str = param(
        "random",
        "Calibration images: drawn at random, as many of each class, shifted by up to an eighth, "
        "shifted and mirrored (photographs only), or noise with their mean and spread.",
        choices=("random", "balanced", "shifted", "mirrored", "noise"),
    )
    precision: str = param(
        "float32",
        "What layers multiply in while something is learned. bfloat16 saves up to a quarter of the "
        "time on processors that have it, less on several threads; results are always measured in "
        "float32.",
        choices=("float32", "bfloat16"),
    )
    allocator: str = param("same", "Says which layer gets how many bits.")
    code: str = ""
    allow_float: bool = param(
        False,
        "Go on where less than half of the multiplications can be quantized, and the rest stays in "
        "float.",
    )
    skip_damaged: bool = param(
        False,
        "Go on without pictures that cannot be read, and count them; otherwise the first ones are "
        "named and nothing is run.",
    )
    classes: str | None = None
    classes_digest: str = ""
    output: str = param(
        "",
        "Which output is quantized for, where the network returns several: its name or number; "
        "empty: the network returns one tensor.",
    )
    task: str = param(
        "auto",
        "What the network returns: scores of classes, or features of an encoder without a "
        "classifier (compared with the float ones; no accuracy). auto: see the run's notes.",
        choices=("auto", "classes", "features"),
    )
    labels: str = param(
        "given",
        "Labels of the test images: those of their class folders, or none; without labels the "
        "float network's answers are the reference (agreement and KL, no accuracy).",
        choices=("given", "none"),
    )

    @property
    def key(self) -> str:
        """The run's name, unique and safe as a file name: ``digits-vit_brecq_W4A4_1f2e3d4c5b``.

        Only fields away from their default are hashed, so a field added later changes no key.
        """
        settings = {name: value for name, value in asdict(self).items() if value != _DEFAULTS[name]}
        body = json.dumps(settings, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(body.encode()).hexdigest()[:10]
        model = re.sub(r"[^A-Za-z0-9.-]+", "-", self.network).strip("-")
        recipe = f"{self.method}_{self.analysis}" if self.analysis else self.method
        return f"{model}_{recipe}_W{self.weight_bits}A{self.act_bits}_{digest}"

    @property
    def network(self) -> str:
        """The network's name for people: of one's own file without the folder that it lies in."""
        return network_name(self.model)

    @property
    def images(self) -> str:
        """The test images' name for people: of a folder or file without where it lies."""
        kind, colon, path = self.data.partition(":")
        return kind + colon + path.rstrip("/").rpartition("/")[2]

    def to_json(self) -> dict[str, Any]:
        """The specification as a dict that JSON can hold; `from_json` reads it back."""
        return asdict(self) | {"keep_float": list(self.keep_float)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "RunSpec":
        """Read a stored specification; fields of a newer version are refused, not dropped.

        Raises:
            InvalidSpec: unknown or missing fields, or values of a wrong type or outside limits.
        """
        names = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - names) if isinstance(data, dict) else []
        if unknown:
            words = plain(", ".join(unknown)[:200])
            raise InvalidSpec(f"This run specification has unknown fields: {words}.")
        try:
            check(dict[str, Any], data, "it")
            check_fields(cls, data)
            check(dict[str, Scalar], data.get("settings", {}), "settings")
            values: dict[str, Any] = {**data, "keep_float": tuple(data.get("keep_float", ()))}
            spec = cls(**values)
            if spec.test is not None:
                check(Images, spec.test, "test")
            params.check(spec)
        except ValueError as error:
            words = plain(str(error)).rstrip(".")
            raise InvalidSpec(f"This run specification cannot be used: {words}.") from None
        return spec


# what each field says when nobody says anything; MISSING for those that must be said
_DEFAULTS = {
    f.name: f.default_factory() if f.default_factory is not MISSING else f.default
    for f in fields(RunSpec)
}


@dataclass(frozen=True)
class Event:
    """One thing that happened during a run. ``loss`` may be a 0-d tensor: read it with float().

    ``unit``/``index``/``of`` name the unit and its place; ``step``/``steps`` count inside it.
    ``soft``: some of a unit's steps tell how many of its weights have a soft rounding in each of
    20 even bins from 0 to 1; ``flipped``: the same steps tell the share of its weights (0 to 1)
    whose code is not the nearest one.
    """

    phase: str  # one of `PHASES`
    unit: str = ""
    index: int = 0
    of: int = 0
    step: int = 0
    steps: int = 0
    loss: Any = None
    penalty: Any = None
    note: str = ""
    soft: Any = None
    flipped: Any = None


PHASES = ("load", "calibrate", "reconstruct", "evaluate", "profile", "save")


class Report(Protocol):
    """Called often (every optimisation step): must be quick; raising `Cancelled` stops the run."""

    def __call__(self, event: Event) -> None: ...


def ignore(event: Event) -> None:
    """A report callback that does nothing."""


def check_format(body: Any, what: str, advice: str) -> None:
    """Check that a stored JSON object has this version's format.

    Raises:
        InvalidSpec: it is of an earlier version (``advice`` says what to do), or of none.
    """
    version = body.get("format") if isinstance(body, dict) else None
    if type(version) is int and 0 < version < FORMAT:
        raise InvalidSpec(
            f"This {what} comes from an earlier version (format {version}, and this version reads "
            f"format {FORMAT}); {advice}."
        )
    if type(version) is not int or version != FORMAT:
        said = version if isinstance(version, (int, NoneType)) else type(version).__name__
        raise InvalidSpec(
            f"This {what} has format {str(said)[:20]}, and this version reads format {FORMAT}."
        )


@dataclass(frozen=True)
class RunRecord:
    """The result of a finished run, as stored in ``run.json``.

    ``metrics``: percentages from 0 to 100: top1, top1_low, top1_high (Wilson, 95 %), top1_float,
    top1_nearest, agreement (with float), lost, gained (images), n, weight_mb, gbops, kl (nats).
    ``task``: ``classes`` (labelled images: accuracy), ``unlabelled`` (agreement with float and KL)
    or ``features`` (similarity to float, and k-NN accuracy where there are labels); the metrics of
    the last two are other ones, see `qlib.core.rows.METRICS`.
    ``layers``: one dict per quantized tensor (see `qlib.measure.metrics.layer_rows`); of an
    analysis, one per measurement (see `qlib.sensitivity.profile`); ``metrics`` is then shorter.
    ``bit_widths``, ``blocks``: of a network whose bit-width can be switched, one dict per measured
    combination of widths, and one per unit and width (see `qlib.pipeline.bit_widths`); else empty.
    ``pictures``: what was done to the pictures; ``doubts``: reasons not to believe the numbers.
    ``plan``: quantization point (``LAYER.weight``, ``LAYER.input``, …) → the bits that the
    allocator gave it, None where it stays in float; empty where nothing was quantized.
    ``coverage``: share of the multiplications that are quantized, and what is not; None in
    analyses.
    """

    spec: RunSpec
    metrics: dict[str, float]
    seconds: dict[str, float]
    peak_mb: float
    status: str = "done"  # done
    layers: list[LayerRow] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    data: RunData = field(default_factory=RunData)
    notes: list[str] = field(default_factory=list)
    created: str = ""
    bit_widths: list[WidthRow] = field(default_factory=list)
    blocks: list[UnitRow] = field(default_factory=list)
    plan: dict[str, int | None] = field(default_factory=dict)  # point → bits; None: float
    coverage: Coverage | None = None
    pictures: PictureNote = field(default_factory=PictureNote)
    doubts: list[Doubt] = field(default_factory=list)
    task: Annotated[str, Among(TASKS)] = "classes"

    @property
    def prepared(self) -> str:
        """How images were prepared for the network, in words; "" in records that do not say."""
        row = self.data.get("preprocess")
        return Preprocess(**row).words if row else ""  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """The record as a dict for ``run.json``; ``layers`` live in ``layers.csv`` beside it."""
        body = asdict(self) | {"format": FORMAT}
        del body["layers"]
        return body

    @classmethod
    def from_json(cls, body: dict[str, Any], layers: list[LayerRow] | None = None) -> "RunRecord":
        """Read a stored record; every value is checked for its type and limits.

        Raises:
            InvalidSpec: another format version, a field that is missing or wrong, or not a run
                record at all.
        """
        check_format(body, "run folder", "make the run again to see it")
        names = {f.name for f in fields(cls)} - {"layers"}
        kept = {name: value for name, value in body.items() if name in names}
        try:
            check_fields(cls, kept)
            spec = RunSpec.from_json(body["spec"])
            task = kept.get("task", "classes")
            check(METRICS[spec.analysis, task], kept["metrics"], "metrics")
            check(Seconds, kept["seconds"], "seconds")
        except ValueError as error:
            raise InvalidSpec(
                f"This run folder's run.json is damaged: {str(error).rstrip('.')}; delete the "
                "folder or run again."
            ) from None
        return cls(**kept | {"spec": spec, "layers": layers or []})
