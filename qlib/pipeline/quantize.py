"""What a specification asks for, done to a loaded network: its grids, its method, its tuning."""

from pathlib import Path

from torch import Tensor

from qlib.core.records import Event, InvalidSpec, Report, RunSpec
from qlib.core.registry import discover, lookup
from qlib.core.scheme import PER_CHANNEL, PER_TENSOR, BitPlan, Granularity, Scheme
from qlib.learning import tuning
from qlib.methods.base import methods
from qlib.network.model import QuantModel
from qlib.pipeline.artifacts import save_quantizers
from qlib.pipeline.experiment import Experiment

GROUP = 64  # weights that share a scale when granularity is "group"


def quantize(
    experiment: Experiment, spec: RunSpec, report: Report, folder: Path | None = None
) -> dict[str, Tensor]:
    """Apply the method, then tune; the model is afterwards quantized and switched on.

    Returns:
        logits of the held-out images, (n, classes) each: "float", "nearest" (plain rounding) and
        "quant" (the method, and what is tuned after it).

    Raises:
        InvalidSpec: the method gave up; with a folder, the quantizers of finished units are in it.
    """
    model, plan = experiment.model, bit_plan(experiment.model, spec)
    report(Event("calibrate", note="ranges"))
    methods()["nearest"]().apply(model, plan, experiment.data, report)
    model.switch(weights=True, inputs=True)
    report(Event("evaluate", "float"))
    with model.quantized(weights=False, inputs=False):
        logits = {"float": experiment.predict(experiment.net, "float")}
    logits["quant"] = logits["nearest"] = experiment.predict(model, "nearest")
    if spec.method != "nearest":
        method = methods()[spec.method](**spec.settings)
        try:
            report(Event("calibrate", note=spec.method))
            method.apply(model, plan, experiment.data, report)
        except InvalidSpec:
            if folder is not None:
                save_quantizers(model, folder)
            raise
    tuning.tune(
        experiment.model, experiment.data, report, norms=spec.tune_norms, biases=spec.tune_biases
    )
    if spec.method != "nearest" or spec.tune_norms or spec.tune_biases:
        model.switch(weights=True, inputs=True)
        logits["quant"] = experiment.predict(model, spec.method)
    return logits


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
    allocator = discover("allocators")["same"]()
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
