"""The Start page's pictures with guesses, stored by a run or computed now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qlib.core.records import BASELINE, InvalidSpec, RunRecord
from qlib.live import Answer
from qlib.plots.shared import prediction_strip
from qlib.plots.shared.prediction_strip import PredictionStrip
from qlib.store import Finished
from qlib.ui.shared import per_width, state

FIRST = 12  # held-out images shown beside those of the strip; every run stores their pictures
NOTE = "Three of the pictures stay right longest, three fall early; the accuracy is of all images."


@dataclass(frozen=True)
class Pictures:
    """Stored pictures of held-out images: pixels by position, and the six that tell the story."""

    pixels: Mapping[int, np.ndarray]
    chosen: tuple[int, ...]

    @property
    def first(self) -> tuple[int, ...]:
        """The first images there are, whatever the networks guess."""
        return tuple(i for i in range(FIRST) if i in self.pixels)

    @property
    def asked(self) -> tuple[int, ...]:
        """All positions that a live network is asked for."""
        return tuple(sorted({*self.first, *self.chosen}))


def pictures(entries: Sequence[Finished], entry: Finished) -> Pictures:
    """The pictures of a model, shared by all its runs.

    The same for every run of a model on these test images, at every width.

    Raises:
        InvalidSpec: the predictions of ``entry`` are missing or damaged.
    """
    runs, pixels, mine = [], {}, entry.record
    for other in {e.key: e for e in entries}.values():
        its = other.record
        same = its.spec.model == mine.spec.model and its.spec.weight_bits == its.spec.act_bits
        if not same or its.data.get("test_hash") != mine.data.get("test_hash"):
            continue
        try:
            arrays = state.preds(other.folder)
        except InvalidSpec:
            if other.key == entry.key:
                raise
            continue
        runs.append(arrays)
        pixels |= {int(i): p for i, p in zip(arrays["thumb_index"], arrays["thumbs"], strict=True)}
    return Pictures(pixels, prediction_strip.choose(runs, pixels))


def strip(entry: Finished, shown: Pictures, answer: Answer | None = None) -> PredictionStrip:
    """Data of the six pictures with this run's guesses: those of ``answer``, or the stored ones.

    Raises:
        InvalidSpec: the run's predictions are missing or damaged.
    """
    return _strip(entry, shown, shown.chosen, answer)


def first(entry: Finished, shown: Pictures, answer: Answer) -> PredictionStrip:
    """Data of the first held-out images with guesses. Raises as `strip`."""
    return _strip(entry, shown, shown.first, answer)


def _strip(
    entry: Finished, shown: Pictures, places: tuple[int, ...], answer: Answer | None
) -> PredictionStrip:
    preds, setting = state.preds(entry.folder), _setting(entry.record)
    if answer is None:
        side = per_width.side(entry.record, preds)
    else:
        side, preds = "live", preds | _laid_in(preds, answer)
    return prediction_strip.info(preds, places, shown.pixels, setting=setting, side=side)


def _laid_in(preds: Mapping[str, np.ndarray], answer: Answer) -> dict[str, np.ndarray]:
    """The answer as arrays over all held-out images; only the rows asked for mean anything."""
    at = list(answer.images)
    top5 = np.full_like(preds["float_top5"], -1, dtype=np.int32)
    prob = np.zeros(preds["float_prob"].shape, dtype=np.float32)
    top5[at], prob[at] = answer.top5, answer.prob
    return {"live_top5": top5, "live_prob": prob}


def _setting(record: RunRecord) -> str:
    spec = record.spec
    how = state.titles().get(spec.method, spec.method)
    how = "rounded to nearest" if spec.method == BASELINE else how
    return f"{spec.weight_bits} bits, {how}"
