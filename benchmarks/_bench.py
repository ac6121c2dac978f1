"""A network and its images, loaded once and quantized again and again, as runs of their own would.

A run of its own loads, asks the float network and rounds to nearest before it learns anything, and
records every layer afterwards. Here a result costs what it learns and one look at the test images.
"""

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor

from qlib.core.records import RunSpec, ignore
from qlib.core.registry import discover
from qlib.core.specs import checked
from qlib.learning.tuning import tune
from qlib.measure import metrics
from qlib.pipeline.experiment import device_of, load_experiment
from qlib.pipeline.provenance import Clock
from qlib.pipeline.quantize import bit_plan

# fields of a specification that decide what is loaded
LOADED = ("model", "data", "weights", "calib", "calib_data", "test", "seed", "device", "placement")


class Bench:
    """A loaded network and its images, for all specifications with the same `LOADED` fields."""

    def __init__(self, spec: RunSpec) -> None:
        self.loaded = _loaded(spec)
        self.experiment = load_experiment(spec, device_of(spec), ignore)
        with self.experiment.model.quantized(weights=False, inputs=False):
            self.reference = self.experiment.predict(self.experiment.net, "float")
        self._nearest: dict[str, float] = {}

    def fits(self, spec: RunSpec) -> bool:
        """Whether ``spec`` can be measured here, without loading anything."""
        return _loaded(spec) == self.loaded

    def quantize(self, spec: RunSpec) -> dict[str, float]:
        """Apply the method of ``spec``, and what is tuned after it; the model is then switched on.

        Returns:
            seconds in each phase: "calibrate", "reconstruct".
        """
        spec, experiment, clock = checked(spec), self.experiment, Clock(ignore)
        data, model = experiment.data, experiment.model
        data.generator.manual_seed(spec.seed)
        data.report = clock
        data.arithmetic = getattr(torch, spec.precision)
        observers = discover("observers")
        data.weight_observer = observers[spec.weight_observer]()
        data.act_observer = observers[spec.act_observer]()
        clock.turn("calibrate")
        method = discover("methods")[spec.method](**spec.settings)
        method.apply(model, bit_plan(model, spec), data, clock)
        tune(model, data, clock, norms=spec.tune_norms, biases=spec.tune_biases)
        clock.turn("")
        model.switch(weights=True, inputs=True)
        return {phase: clock.seconds.get(phase, 0.0) for phase in ("calibrate", "reconstruct")}

    def answers(self) -> Tensor:
        """Logits of the test images in the model's present state, (n, classes)."""
        return self.experiment.predict(self.experiment.model, "")

    def accuracy(self) -> dict[str, float]:
        """Accuracy of the model in its present state: see `qlib.measure.metrics.accuracy`."""
        return metrics.accuracy(self.experiment.labelled(), self.answers(), self.reference)

    def measured(self, spec: RunSpec) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Quantize by ``spec`` and measure: accuracy, with "top1_nearest", and seconds."""
        plain = replace(checked(spec), method="nearest", settings={}, tune_norms=False,
                        tune_biases=0)  # fmt: skip
        if plain.key not in self._nearest:
            self.quantize(plain)
            self._nearest[plain.key] = self.accuracy()["top1"]
        seconds = self.quantize(spec)
        return self.accuracy() | {"top1_nearest": self._nearest[plain.key]}, seconds


def _loaded(spec: RunSpec) -> dict[str, object]:
    return {f.name: getattr(spec, f.name) for f in fields(spec) if f.name in LOADED}
