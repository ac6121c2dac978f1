"""Sentences and labels made from records: the pages' answers. Pure text, no widgets."""

from collections.abc import Mapping

from qlib.core.records import BASELINE, RunRecord
from qlib.core.scores import ABSENT, accurate, score
from qlib.measure.statistics import exact_paired, loss_told, p_text


def bits_label(record: RunRecord) -> str:
    """The bit-widths of a run as text: ``W4A8``."""
    return f"W{record.spec.weight_bits}A{record.spec.act_bits}"


def label(record: RunRecord, titles: Mapping[str, str]) -> str:
    """A short name of a run for people: ``BRECQ W4A4``."""
    return f"{titles.get(record.spec.method, record.spec.method)} {bits_label(record)}"


def interval(record: RunRecord) -> str:
    """The 95 % interval of a run's score as text: ``93.1–96.7``."""
    found = score(record.metrics)
    return found.interval if found else ABSENT


def start_answer(record: RunRecord, title: str) -> str:
    """What quantization did to this model, in one or two sentences (Markdown)."""
    m, spec = record.metrics, record.spec
    same = spec.weight_bits == spec.act_bits
    bits = f"{spec.weight_bits} bits" if same else bits_label(record)
    how = f"With {title} at {bits}"
    if spec.method == BASELINE:
        levels = f"of {2**spec.weight_bits} levels" if same else "level"
        how = f"Rounded to the nearest {levels} ({bits})"
    if not accurate(m):
        return f"{how}, {_without_accuracy(record)}"
    first = (
        f"{how}, `{spec.network}` is right on **{m['top1']:.1f} %** of {int(m['n']):,} images "
        f"(95 %: {interval(record)})"
    )
    sentence = f"{first}; in float it was {m['top1_float']:.1f} %."
    return f"{sentence} **{_loss(m)}**"


def _without_accuracy(record: RunRecord) -> str:
    """How near to float a run without an accuracy stays."""
    m, model, n = record.metrics, record.spec.network, int(record.metrics["n"])
    if record.task == "unlabelled":
        return (
            f"`{model}` answers like its float model on **{m['agreement']:.1f} %** of {n:,} images "
            f"(95 %: {interval(record)}). There are no labels, so no accuracy."
        )
    told = (
        f"the features of `{model}` have a mean cosine of **{m['cosine']:.4f}** to the float ones "
        f"on {n:,} images (CKA {m['cka']:.4f})."
    )
    if "knn" in m:
        told += (
            f" Their nearest neighbours are right on **{m['knn']:.1f} %** (95 %: "
            f"{interval(record)}); in float on {m['knn_float']:.1f} %."
        )
    return told


def _loss(m: Mapping[str, float]) -> str:
    """What was lost against float: both networks saw the same images, so the paired test tells."""
    lost, gained = int(m["lost"]), int(m["gained"])
    if lost == gained == 0:
        return "Nothing was lost."
    if loss_told(lost, gained):
        return f"It lost {_points(m['top1_float'] - m['top1'])}."
    images = f"{gained} image" if gained == 1 else f"{gained} images"
    found = f"lost {lost}, gained {images}"
    if gained < lost:
        found += f", exact {p_text(exact_paired(lost, gained))}"
    return f"No loss can be told ({found})."


def _points(value: float) -> str:
    shown = f"{value:.1f}" if value < 10 else f"{value:.0f}"
    return f"{shown} point" if shown == "1.0" else f"{shown} points"


def source_line(record: RunRecord) -> str:
    """The small print of every page: where the numbers come from."""
    spec, data = record.spec, record.data
    edges = {"8-bit": "first and last layer 8 bits", "float": "first and last layer in float"}
    shared = (
        "calibrated on other images of the same source"
        if data.get("same_source")
        else "calibrated on images of another source"
    )
    parts = [
        f"{int(record.metrics['n']):,} held-out images of {spec.images}",
        f"{shared} ({data.get('calib_n', spec.calib)} of them)",
        edges.get(spec.edge_layers, "first and last layer like the others"),
        f"activations at {'layer inputs' if spec.placement == 'inputs' else 'block boundaries'}",
        f"seed {spec.seed}",
    ]
    return " · ".join(parts)


def handle(record: RunRecord, titles: Mapping[str, str]) -> str:
    """A run's name in pickers and links: readable, and unique by the end of its key."""
    return f"{label(record, titles)} {record.spec.network} {record.spec.key[-10:-4]}"
