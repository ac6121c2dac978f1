"""Types of every table row that run folders hold: names, types and limits. No torch.

Each kind of row has one writer and one reader. The reader (`qlib.store.runfolder`) checks types
and limits with `qlib.core.checks`, so whoever is given a row may trust it.
"""

import math
from typing import Annotated, NotRequired, TypedDict

from qlib.core.checks import Among, Between

HUGE = 1e30
Percent = Annotated[float, Between(0, 100)]
Share = Annotated[float, Between(0, 1)]
Cosine = Annotated[float, Between(-1, 1)]
Number = Annotated[float, Between(-HUGE, HUGE)]
Positive = Annotated[float, Between(0, HUGE)]
Cost = Annotated[float, Between(1e-12, HUGE)]  # is drawn on logarithmic axes
Decibels = Annotated[float, Between(-math.inf, math.inf)]  # infinite where nothing differs
Found = Annotated[float, Between(-HUGE, HUGE, gaps=True)]  # NaN where a search found nothing
Count = Annotated[int, Between(0, 10**18)]
Images = Annotated[float, Between(1, 10**9)]
Bits = Annotated[int, Between(1, 32)]
Nats = Annotated[float, Between(-1e-3, HUGE)]  # what rounding leaves of a zero may be negative


class Metrics(TypedDict):
    """`RunRecord.metrics` of a quantized network; see there."""

    top1: Percent
    top1_low: Percent
    top1_high: Percent
    top1_float: Percent
    top1_nearest: Percent
    agreement: Percent
    lost: Positive
    gained: Positive
    n: Images
    kl: Nats
    weight_mb: Cost
    gbops: Cost
    weight_mb_float: NotRequired[Cost]
    stored_mb: NotRequired[Cost]


class UnlabelledMetrics(TypedDict):
    """`RunRecord.metrics` where images have no labels of the network's classes: no accuracy.

    ``agreement`` with the float network's answers, its Wilson 95 % interval, and that of nearest.
    """

    agreement: Percent
    agreement_low: Percent
    agreement_high: Percent
    agreement_nearest: Percent
    n: Images
    kl: Nats
    weight_mb: Cost
    gbops: Cost
    weight_mb_float: NotRequired[Cost]
    stored_mb: NotRequired[Cost]


class FeatureMetrics(TypedDict):
    """`RunRecord.metrics` of a network without classes; see `qlib.measure.features`.

    ``knn`` to ``gained``: only where the images have labels.
    """

    cosine: Cosine
    cosine_low: Cosine
    cosine_high: Cosine
    cosine_p5: Cosine
    cosine_nearest: Cosine
    cka: Share
    cka_nearest: Share
    n: Images
    kl: Nats
    weight_mb: Cost
    gbops: Cost
    weight_mb_float: NotRequired[Cost]
    stored_mb: NotRequired[Cost]
    knn: NotRequired[Percent]
    knn_low: NotRequired[Percent]
    knn_high: NotRequired[Percent]
    knn_float: NotRequired[Percent]
    knn_nearest: NotRequired[Percent]
    knn_k: NotRequired[Positive]
    agreement: NotRequired[Percent]
    lost: NotRequired[Positive]
    gained: NotRequired[Positive]


class ProfileMetrics(TypedDict):
    """`RunRecord.metrics` of a sensitivity run: of the whole network, on the profile's images."""

    top1: Percent
    top1_low: Percent
    top1_high: Percent
    top1_float: Percent
    agreement: Percent
    n: Images
    kl: Nats
    worst_shared: Positive
    worst_of: Positive


class UnlabelledProfileMetrics(TypedDict):
    """As `ProfileMetrics`, without labels; ``agreement`` only where the network tells classes."""

    agreement: NotRequired[Percent]
    n: Images
    kl: Nats
    worst_shared: Positive
    worst_of: Positive


class NoiseMetrics(TypedDict):
    """`RunRecord.metrics` of a noise analysis; see `qlib.noise.profile.summary`."""

    measured: Positive
    none: Positive
    better: Positive
    best_left: Found
    n: Images


class Seconds(TypedDict):
    """`RunRecord.seconds`: what each phase took, and all together."""

    total: Cost
    load: NotRequired[Positive]
    calibrate: NotRequired[Positive]
    reconstruct: NotRequired[Positive]
    evaluate: NotRequired[Positive]
    profile: NotRequired[Positive]


class PreprocessRow(TypedDict):
    """How images were prepared for the network; see `qlib.core.preprocess.Preprocess`."""

    input_size: list[Count]
    mean: list[Number]
    std: list[Number]
    interpolation: str
    crop_pct: Number
    crop_mode: str


class RunData(TypedDict, total=False):
    """`RunRecord.data`: which images the numbers are about.

    ``calib_hash``, ``test_hash``: of the images' names; ``calib_n``: calibration images;
    ``classes``; ``same_source``: calibration images come from the tested data set; ``errors_n``,
    ``errors_n_test``: images behind the errors of layers' outputs; ``profile_rows``: rows of an
    analysis; ``base``: key of the run that an analysis is about; ``preprocess``: how images were
    prepared.
    """

    calib_hash: str
    test_hash: str
    calib_n: Count
    classes: Count
    same_source: bool
    errors_n: Count
    errors_n_test: Count
    profile_rows: Count
    base: str
    preprocess: PreprocessRow


class Coverage(TypedDict):
    """`RunRecord.coverage`: what multiplies on integer grids and what in float.

    ``quantized``: share of the multiply–accumulates whose two operands are quantized; ``float``:
    what is not, dearest first: layers by name, products outside of layers by module and kind.
    """

    quantized: Share
    float: list[str]


class PictureNote(TypedDict, total=False):
    """`RunRecord.pictures`: what was done to the pictures that a run used, and what it left out.

    ``looked_at``: pictures opened, for calibration and for testing; of these ``turned`` upright (by
    EXIF), ``composed`` (transparent ones laid on white), ``sixteen_bit`` (greys scaled by their
    type), ``by_range`` (greys of floats or long integers, scaled by the range that holds them),
    ``first_frame`` (of several). ``skipped``: files that could not be read, the first in
    ``skipped_names``. Not read at all: ``endings`` (files by ending), ``folders`` (hidden, or
    beside training and test folders), ``unnamed`` (class folders that the file of classes does not
    name, with their pictures), ``beside`` (pictures outside class folders, or hidden). ``overlap``:
    test pictures left out because calibration uses the same files. ``order``: what numbers the
    classes: names, numbers, wordnet or file; ``classes``: the first few folders in that order.
    """

    looked_at: Count
    turned: Count
    composed: Count
    sixteen_bit: Count
    by_range: Count
    first_frame: Count
    skipped: Count
    skipped_names: list[str]
    endings: dict[str, Count]
    folders: list[str]
    unnamed: dict[str, Count]
    beside: Count
    overlap: Count
    order: Annotated[str, Among(("names", "numbers", "wordnet", "file"))]
    classes: list[str]


# what may be done to a picture while it is read: counted in a `PictureNote`
CHANGES = ("turned", "composed", "sixteen_bit", "by_range", "first_frame")


class Doubt(TypedDict):
    """A reason not to believe a run's numbers that the run itself noticed; see `RunRecord.doubts`.

    ``name``: what is doubted; ``text``: a sentence with numbers; ``remedy``: what to do.
    ``top1_reordered``: the float network's accuracy under the best other order of classes;
    ``order``: that order, as the lines of a file of classes (``folder,index``).
    """

    name: str
    text: str
    remedy: str
    top1_reordered: NotRequired[Percent]
    order: NotRequired[list[str]]


class WidthRow(TypedDict):
    """One measured combination of bit-widths of a network that can be switched.

    ``top1`` to ``gained`` where there are labels, ``cosine`` to ``knn`` of features: as the run's
    own metrics have them.
    """

    weight_bits: Bits
    act_bits: Bits
    top1: NotRequired[Percent]
    top1_low: NotRequired[Percent]
    top1_high: NotRequired[Percent]
    agreement: NotRequired[Percent]
    lost: NotRequired[Positive]
    gained: NotRequired[Positive]
    cosine: NotRequired[Cosine]
    cka: NotRequired[Share]
    knn: NotRequired[Percent]
    kl: Nats
    weight_mb: Cost
    gbops: Cost


class UnitRow(TypedDict):
    """One unit at one bit-width, quantized alone: its KL in nats, and what it costs."""

    unit: str
    bits: Bits
    kl: Nats
    params: Count
    macs: Count
    weight_bytes: NotRequired[Positive]
    bops: NotRequired[Positive]


class LayerRow(TypedDict):
    """One quantized tensor, or one layer's output; see `qlib.measure.metrics.layer_rows`.

    Outputs have no grid: ``bits`` to ``rmse_step`` are None; all that begins with ``local_`` or
    ``acc_`` is theirs. ``macs``, ``params``: once per layer. ``_test``: on held-out images.
    """

    point: str
    layer: str
    unit: str
    kind: str
    tensor: str
    bits: NotRequired[Bits | None]
    symmetric: NotRequired[bool | None]
    scale: NotRequired[Number | None]
    zero_point: NotRequired[Number | None]
    channels: NotRequired[Count | None]
    macs: NotRequired[Count | None]
    params: NotRequired[Count | None]
    sqnr_db: NotRequired[Decibels | None]
    clipped: NotRequired[Positive | None]
    flipped: NotRequired[Share | None]
    beyond: NotRequired[Share | None]
    mse: NotRequired[Positive | None]
    mse_nearest: NotRequired[Positive | None]
    rmse_step: NotRequired[Positive | None]
    local_mse: NotRequired[Positive | None]
    local_sqnr_db: NotRequired[Decibels | None]
    local_cosine: NotRequired[Number | None]
    acc_mse: NotRequired[Positive | None]
    acc_sqnr_db: NotRequired[Decibels | None]
    acc_cosine: NotRequired[Number | None]
    local_mse_test: NotRequired[Positive | None]
    local_sqnr_db_test: NotRequired[Decibels | None]
    local_cosine_test: NotRequired[Number | None]
    acc_mse_test: NotRequired[Positive | None]
    acc_sqnr_db_test: NotRequired[Decibels | None]
    acc_cosine_test: NotRequired[Number | None]
    acc_mse_nearest: NotRequired[Positive | None]


class ProfileRow(TypedDict):
    """One measurement of a sensitivity profile; see `qlib.sensitivity.profile`."""

    mode: Annotated[str, Among(("all", "alone", "left_out"))]
    split: Annotated[str, Among(("none", "weights", "inputs", "both"))]
    layer: str
    unit: str
    kind: str
    kl: Nats
    kl_a: Nats
    kl_b: Nats | None  # None where there is one image alone
    top1: Percent | None  # None without labels, as its interval
    top1_low: Percent | None
    top1_high: Percent | None
    agreement: Percent | None  # None of features, which are no answers
    sqnr_db: Decibels
    n: Count
    data: str


class NoiseRow(TypedDict):
    """One layer at one bit-width in a noise analysis; see `qlib.noise.profile.rows`."""

    layer: str
    unit: str
    kind: str
    bits: Bits
    step: Positive
    clipped: Found
    rounding: Found
    closed_form: Found
    linear_search: Found
    left: Found
    left_test: Found
    left_worst: Found
    plain: Found
    plain_test: Found
    clip: Found
    clip_test: Found
    shift: Found
    shift_test: Found
    noise: Found
    noise_test: Found


class EventRow(TypedDict):
    """One line of ``events.jsonl``: the fields of `qlib.core.records.Event` that are not empty.

    ``t``: seconds since the log was opened; ``mb``: resident memory in 10⁶ bytes.
    """

    phase: str
    unit: NotRequired[str]
    index: NotRequired[Count]
    of: NotRequired[Count]
    step: NotRequired[Count]
    steps: NotRequired[Count]
    loss: NotRequired[Number | None]
    penalty: NotRequired[Number | None]
    note: NotRequired[str]
    soft: NotRequired[list[Count] | None]
    flipped: NotRequired[Share | None]
    t: NotRequired[Positive]
    mb: NotRequired[Positive]


class JobRow(TypedDict):
    """``job.json`` of a job folder; see `qlib.jobs.queue.Job`."""

    format: Count
    state: Annotated[str, Among(("queued", "running", "done", "failed", "cancelled", "crashed"))]
    message: str
    submitted: Positive
    started: Positive | None
    ended: Positive | None
    pid: Annotated[int, Between(1, 2**31 - 1)] | None
    created: Positive | None


TASKS = ("classes", "unlabelled", "features")  # how a run is judged, see `RunRecord.task`
METRICS = {  # (analysis, task) → what `RunRecord.metrics` has to hold
    ("", "classes"): Metrics,
    ("", "unlabelled"): UnlabelledMetrics,
    ("", "features"): FeatureMetrics,
    ("sensitivity", "classes"): ProfileMetrics,
    ("sensitivity", "unlabelled"): UnlabelledProfileMetrics,
    ("sensitivity", "features"): UnlabelledProfileMetrics,
    **{("noise", task): NoiseMetrics for task in TASKS},
}
TABLES = {"": LayerRow, "sensitivity": ProfileRow, "noise": NoiseRow}
GRID = ("bits",)  # of a `LayerRow`: never None, save for outputs
