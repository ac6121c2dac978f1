"""Quantizes a loaded network as a specification says: bit plan, method, tuning."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from qlib.core.records import BASELINE, Event, InvalidSpec, Report, RunSpec
from qlib.core.registry import discover, lookup
from qlib.core.scheme import PER_CHANNEL, PER_TENSOR, BitPlan, Granularity, Scheme
from qlib.learning import tuning
from qlib.learning.calibration import Calibration
from qlib.network.model import QuantModel
from qlib.pipeline import quantizer_file
from qlib.pipeline.experiment import Experiment

GROUP = 64  # weights that share a scale when granularity is "group"


def quantize(
    experiment: Experiment,
    spec: RunSpec,
    report: Report,
    folder: Path | None = None,
    plan: BitPlan | None = None,
) -> dict[str, Tensor]:
    """Apply the method of a specification, then tune; the model is left switched on.

    ``plan``: by default `bit_plan`, what the specification asks for.

    Returns:
        logits of the held-out images, (n, classes) each: "float", "nearest" (plain rounding) and
        "quant" (the method, and what is tuned after it).

    Raises:
        InvalidSpec: the method gave up; with a folder, the quantizers of finished units are in it.
    """
    model, plan = experiment.model, plan or bit_plan(experiment.model, spec)
    report(Event("calibrate", note="ranges"))
    plain = replace(spec, method=BASELINE, settings={}, tune_norms=False, tune_biases=0)
    apply(model, experiment.data, plain, plan, report)
    report(Event("evaluate", "float"))
    with model.quantized(weights=False, inputs=False):
        logits = {"float": experiment.predict(experiment.net, "float")}
    logits["quant"] = logits[BASELINE] = experiment.predict(model, BASELINE)
    if spec.method != BASELINE or spec.tune_norms or spec.tune_biases:
        report(Event("calibrate", note=spec.method))
        try:
            apply(model, experiment.data, spec, plan, report)
        except InvalidSpec:
            if folder is not None:
                quantizer_file.save(model, folder / quantizer_file.FILE)
            raise
        logits["quant"] = experiment.predict(model, spec.method)
    return logits


def apply(
    model: QuantModel, data: Calibration, spec: RunSpec, plan: BitPlan, report: Report
) -> None:
    """Apply the method of a checked specification, then its tuning; the model is left switched on.

    Raises:
        InvalidSpec: the method gave up.
    """
    method = discover("methods")[spec.method](**spec.settings)
    method.apply(model, plan, data, report)
    tuning.tune(model, data, report, norms=spec.tune_norms, biases=spec.tune_biases)
    model.switch(weights=True, inputs=True)


def bit_plan(model: QuantModel, spec: RunSpec) -> BitPlan:
    """The grids that a specification asks for; none for the layers that it keeps in float.

    A block's boundary belongs to the block's first layer and stays in float with it, so that a run
    gives what the sensitivity analysis measured (see `qlib.sensitivity.layers.points_of`).

    Raises:
        InvalidSpec: a layer to keep is not there; the nearest names are given.
    """
    sharing = {"channel": PER_CHANNEL, "tensor": PER_TENSOR, "group": Granularity("group", GROUP)}
    weight = Scheme(spec.weight_bits, spec.symmetric_weights, granularity=sharing[spec.granularity])
    act = Scheme(spec.act_bits, spec.symmetric_acts)
    allocator = discover("allocators")[spec.allocator]()
    plan = allocator.allocate(model, weight, act, edge_layers=spec.edge_layers)
    try:
        kept = {lookup("layer", name, model.layers) for name in spec.keep_float}
    except ValueError as error:
        raise InvalidSpec(str(error)) from None
    kept |= {b for b in model.boundaries if model.layers_of(b)[0] in kept}
    return BitPlan(
        {name: scheme for name, scheme in plan.weights.items() if name not in kept},
        {n: scheme for n, scheme in plan.inputs.items() if n.rpartition(".")[0] not in kept},
        plan.fixed,
    )


def bits_of(plan: BitPlan, model: QuantModel) -> dict[str, int | None]:
    """The bits of every quantization point, as `RunRecord.plan` keeps them; None: float."""
    points = [*(f"{name}.weight" for name in model.weighted()), *model.points]
    return {name: plan.bits.get(name) for name in points}
