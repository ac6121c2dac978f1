"""A finished run's network, loaded to answer: its best classes, at any of its widths."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from qlib import store
from qlib.core.records import Event, InvalidSpec, Report
from qlib.measure.statistics import wilson
from qlib.network import switching
from qlib.pipeline import quantizer_file
from qlib.pipeline.artifacts import PICTURES
from qlib.pipeline.experiment import load_experiment
from qlib.store.runfolder import load_head

ALIKE = 0.02  # a probability may be off by this much, on another machine or number of threads
MOST = 0.9  # share of the images that have to be alike
KEPT = 64  # single prepared images that are kept

Bits = int | Mapping[str, int] | None


class Network:
    """The network of one run folder, its quantizers brought back, and its held-out images.

    Raises:
        InvalidSpec: what the run names is not here any more, or the network does not give the
            answers that the run stored.
    """

    def __init__(self, folder: Path, report: Report) -> None:
        record = load_head(folder)
        self.spec = record.spec
        if record.task != "classes":
            raise InvalidSpec(
                f"{folder.name} has no labels or no classes, so its network cannot be tried out "
                "image by image; choose a run with an accuracy."
            )
        gpu = self.spec.device == "cuda" and torch.cuda.is_available()
        device = torch.device("cuda" if gpu else "cpu")
        experiment = load_experiment(replace(self.spec, device=device.type), device, report)
        self.model, self.predict, self.test = experiment.model, experiment.predict, experiment.test
        self._images: dict[int, Tensor] = {}
        report(Event("load", note="quantizers"))
        quantizer_file.load(self.model, folder / quantizer_file.FILE, record.plan)
        self.plan = quantizer_file.bits(self.model)
        self.model.switch(weights=True, inputs=True)
        self.bit_widths = switching.bit_widths(self.model)
        self.shown = tuple(range(min(PICTURES, len(self.test))))
        self._check(folder)

    @property
    def units(self) -> dict[str, int]:
        """The bit-width that each switchable unit has now."""
        return switching.current_bits(self.model)

    def set_bits(self, bits: Bits, weights: int | None = None) -> None:
        """Switch; units that a mapping leaves out are at the run's own width. Fixed ones stay.

        Raises:
            InvalidSpec: the network has no such width, or no such unit.
        """
        if not self.bit_widths:
            self._own_alone(bits, weights)
            return
        if isinstance(bits, int):
            switching.set_bits(self.model, bits, weights=weights)
            return
        switching.set_plan(self.model, self.plan)
        fixed = set(self.model.units()) - set(self.units)
        if named := {unit: b for unit, b in (bits or {}).items() if unit not in fixed}:
            switching.set_bits(self.model, named)

    def guess(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The best classes of some held-out images and their probabilities, (n, up to 5) each.

        Raises:
            InvalidSpec: there are not so many images.
        """
        outside = [i for i in positions if not 0 <= i < len(self.test)]
        if outside or not positions:
            asked = f"image {outside[0]}" if outside else "no image at all"
            raise InvalidSpec(
                f"It was asked for {asked}; this run has the held-out images 0 to "
                f"{len(self.test) - 1}."
            )
        with torch.no_grad():
            return best(self.model(torch.cat([self._image(i) for i in positions])).cpu())

    def measure(self) -> tuple[tuple[Tensor, Tensor], dict[str, float]]:
        """The guesses for all held-out images; the share that is right, Wilson 95 %, in percent."""
        logits = self.predict(self.model, "live")
        n, right = len(logits), int((logits.argmax(1).numpy() == self.test.labels).sum())
        low, high = wilson(right, n)
        return best(logits), {
            "top1": 100 * right / n,
            "top1_low": 100 * low,
            "top1_high": 100 * high,
        }

    def _own_alone(self, bits: Bits, weights: int | None) -> None:
        """Nothing can be switched: anything but the run's own bits is refused."""
        own = {"weights": self.spec.weight_bits, "bits": self.spec.act_bits}
        asked = {*bits.values()} if isinstance(bits, Mapping) else {bits} - {None}
        if asked - {own["bits"]} or weights not in (None, own["weights"]):
            raise InvalidSpec(
                f"This run holds W{own['weights']}A{own['bits']} alone; choose these bits, or a "
                "run of PTMQ, which holds many bit-widths in one network."
            )

    def _image(self, i: int) -> Tensor:
        if i not in self._images:
            while len(self._images) >= KEPT:
                del self._images[next(iter(self._images))]
            self._images[i] = self.predict.at(i)
        return self._images[i]

    def _check(self, folder: Path) -> None:
        """What a run stored is trusted where the network then gives the answers that it gave."""
        stored, n = store.load_preds(folder), len(self.shown)
        classes, probs = self.guess(self.shown)
        gap = abs(probs[:, 0].numpy() - stored["quant_prob"][:n, 0].astype("float32"))
        same = classes[:, 0].numpy() == stored["quant_top5"][:n, 0]
        ids = [str(name) for name in stored["ids"][:n]]
        if ids != [*map(str, self.test.ids[:n])] or ((gap < ALIKE) & same).mean() < MOST:
            raise InvalidSpec(
                f"The network brought back from {folder.name} does not give the answers that this "
                "run stored (other images, weights or versions); make the run again."
            )


def best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The five most probable classes of each row, best first, and their probabilities."""
    top = logits.float().softmax(1).topk(min(5, logits.shape[1]))
    return top.indices, top.values
