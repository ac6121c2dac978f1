"""Quantize, evaluate, save and load a network of one's own: `quantize` and `load`."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qlib.core.records import InvalidSpec, Report, RunSpec, ignore
from qlib.core.specs import layer_names, recipe_checked
from qlib.learning.calibration import Calibration
from qlib.measure import features, metrics, output_errors
from qlib.network import costs, switching
from qlib.network.answers import Features
from qlib.network.blocks import find_blocks
from qlib.network.model import QuantModel
from qlib.pipeline import own_network, quantizer_file
from qlib.pipeline.experiment import EVAL_BATCH, channels_last, quantizable
from qlib.pipeline.quantize import apply, bit_plan

if TYPE_CHECKING:
    import pandas as pd


@torch.inference_mode(False)  # methods learn, whatever mode the caller is in
def quantize(
    net: nn.Module,
    images: Tensor,
    method: str = "brecq",
    weight_bits: int = 4,
    act_bits: int = 4,
    *,
    edge_layers: str = "8-bit",
    placement: str = "inputs",
    weight_observer: str = "mse",
    act_observer: str = "mse",
    granularity: str = "channel",
    symmetric_weights: bool = False,
    symmetric_acts: bool = False,
    allocator: str = "same",
    keep_float: Sequence[str] | str = (),
    allow_float: bool = False,
    tune_norms: bool = False,
    tune_biases: int = 0,
    output: str | int | None = None,
    task: str = "auto",
    seed: int = 0,
    report: Report = ignore,
    **settings: Any,
) -> "Quantized":
    """Quantize a copy of any image classifier or encoder after training.

    ::

        q = qlib.quantize(net.eval(), images, "brecq", weight_bits=4, act_bits=4, steps=500)
        q.evaluate(test_images, labels)["top1"]
        q.save("net.safetensors")

    Args:
        net: float32; (n, c, h, w) in, class scores (n, classes) out, or features (n, d), tokens
            (n, t, d) or maps (n, d, h, w). Not changed: of a network in training mode a copy in
            eval mode is used (see ``model.notes``).
        images: unlabelled calibration images (n, c, h, w), float32, preprocessed as the network
            expects, on its device; a few hundred are usual.
        method: a key of ``python -m qlib list methods``.
        edge_layers, placement, …, tune_biases: see `qlib.core.records.RunSpec`.
        output: of a network that returns several tensors the name or number of the one to
            quantize for; ``q(x)`` then returns that one.
        task: what the network returns, "classes" or "features"; "auto": features where it has no
            classifier (timm's ``num_classes`` of 0) or returns tokens or maps, else classes.
        seed: of everything random; PyTorch's global state is neither read nor changed.
        report: hears every step (see `qlib.core.records.Event`); raising in it stops the work.
        settings: of the method, such as ``steps=500``; the others have its defaults.

    Raises:
        InvalidSpec: wrong input, in one sentence.
    """
    net, notes = own_network.evaluated(net)
    name = "" if output is None else str(output)
    seen = own_network.check(net, images, output=name, task=task)
    net = seen.net
    spec = recipe_checked(
        RunSpec(
            model=type(net).__name__, data="own images", method=method, weight_bits=weight_bits,
            act_bits=act_bits, edge_layers=edge_layers, placement=placement,
            weight_observer=weight_observer, act_observer=act_observer, granularity=granularity,
            symmetric_weights=symmetric_weights, symmetric_acts=symmetric_acts,
            allocator=allocator, keep_float=layer_names(keep_float), allow_float=allow_float,
            tune_norms=tune_norms,
            tune_biases=tune_biases, seed=seed, calib=len(images), device=images.device.type,
            settings=settings, output=name,
            task="features" if seen.task == "features" else task,
        )
    )  # fmt: skip
    model, data = quantizable(net, images, spec, report, encoder=spec.task == "features")
    model.notes += [*notes, *seen.notes]
    apply(model, data, spec, bit_plan(model, spec), report)
    return Quantized(net, model, spec, data)


@torch.inference_mode(False)
def load(path: str | Path, net: nn.Module) -> "Quantized":
    """Load what `Quantized.save` wrote onto the float network that it was made from.

    Gives the same outputs to the bit; of several outputs the one that was chosen.

    Raises:
        InvalidSpec: the file is missing or damaged, or was made from another network.
    """
    path, (net, notes) = Path(path).expanduser(), own_network.evaluated(net)
    words = _words(path)
    if words.get("network") != _digest(net):
        raise InvalidSpec(
            f"{path} was made from a {words['model']} with other weights or layers than this "
            f"{type(net).__name__}; give the float network that was quantized."
        )
    spec, shape = _told(words, path)
    device = next(net.parameters()).device
    example = _example(shape, device)
    seen = own_network.check(net, example, output=spec.output, task=spec.task)
    net = seen.net
    model = QuantModel(net, example, find_blocks(net), spec.placement).to(device)
    model.notes += [*notes, *seen.notes]
    if seen.task == "features":
        model.answers = Features(_variance(words, path))
    quantizer_file.load(model, path)
    model.switch(weights=True, inputs=True)
    return Quantized(net, model, spec)


class Quantized(nn.Module):
    """A quantized network: call it as the float one.

    Attributes:
        model: the `QuantModel` inside, with its layers, points and units.
        spec: the settings that it was made with, complete.
    """

    def __init__(
        self, net: nn.Module, model: QuantModel, spec: RunSpec, data: Calibration | None = None
    ) -> None:
        super().__init__()
        self.model, self.spec = model, spec
        self._beside = (net, data)  # in a tuple: the float network is no part of this one
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(channels_last(x))

    def bits(self, weights: int, acts: int | None = None) -> "Quantized":
        """Switch the bit-width (``acts``: that of activations, by default the same); returns self.

        Raises:
            InvalidSpec: the method makes one width, or this width was not made.
        """
        acts = weights if acts is None else acts
        switchable = switching.weight_bit_widths(self.model)
        if switching.bit_widths(self.model) and not switchable and weights != self.spec.weight_bits:
            raise InvalidSpec(
                f"The weights of this network are fixed at {self.spec.weight_bits} bits; give "
                'these, or quantize again with weight_set="per width".'
            )
        switching.set_bits(self.model, acts, weights=weights if switchable else None)
        return self

    def evaluate(self, images: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """Accuracy on labelled images, percentages from 0 to 100.

        Returns:
            top1 with its 95 % interval (top1_low, top1_high), top1_float, agreement with the float
            network, images lost and gained, n, kl: see `qlib.measure.metrics.accuracy`. Without
            labels agreement and KL alone, see `qlib.measure.metrics.unlabelled`. Of features their
            likeness to float, and with labels k-NN accuracy: see `qlib.measure.features`.

        Raises:
            InvalidSpec: images or labels are not what they should be.
        """
        net, answers = self._float_net, self.model.answers
        task = self.spec.task
        seen = own_network.check(net, images, task=task)
        here, there = (answers.read(_outputs(side, images)) for side in (self, net))
        if task == "features":
            kl = {"kl": float(answers.divergences(there, here).mean())}
            return features.similarity(there, here) | kl | _neighbours(labels, images, here, there)
        if labels is None:
            return metrics.unlabelled(here, there)
        own_network.check_labels(labels, images, seen.width)
        return metrics.accuracy(labels.cpu(), here, there)

    def layers(self, images: Tensor | None = None) -> "pd.DataFrame":
        """One row for each quantized tensor and each layer's output, in order of execution.

        Columns as in a run's ``layers.csv``: see `qlib.measure.metrics.layer_rows`.

        Args:
            images: what errors are measured on; by default the calibration images.

        Raises:
            InvalidSpec: the network was loaded, so it has no calibration images.
        """
        import pandas as pd

        data = self._beside[1] if images is None else self._calibration(images)
        if data is None:
            raise InvalidSpec(
                "A loaded network does not have its calibration images; say layers(images)."
            )
        images_used = data.images[: output_errors.images_for(self.model)]
        errors = output_errors.record(self.model, images_used, images_used[:0], ignore)
        seen = data.histograms(self.model)
        rows = metrics.layer_rows(self.model, seen, errors.calib, samples=errors.samples)
        return pd.DataFrame(rows)

    def _calibration(self, images: Tensor) -> Calibration:
        own_network.check(self._float_net, images, task=self.spec.task)
        return quantizable(self._float_net, images, self.spec, ignore)[1]

    @property
    def _float_net(self) -> nn.Module:
        """Whatever mode it has been switched to since."""
        return own_network.evaluated(self._beside[0])[0]

    @property
    def coverage(self) -> float:
        """Share of the multiply–accumulates whose two operands are quantized, from 0 to 1.

        `model.coverage` and `layers` say which are not.
        """
        return costs.coverage(self.model)["quantized"]

    def save(self, path: str | Path) -> None:
        """Write one ``.safetensors`` file: all but the float weights; see `load`.

        Raises:
            InvalidSpec: it cannot be written there.
        """
        path = Path(path).expanduser()
        words = {
            "spec": json.dumps(self.spec.to_json()),
            "model": self.spec.model,
            "network": _digest(self._beside[0]),
            "image_shape": json.dumps(self.model.partial.image_shape),
        }
        if isinstance(self.model.answers, Features):
            words["variance"] = repr(self.model.answers.variance)
        try:
            quantizer_file.save(self.model, path, words)
        except (OSError, SafetensorError) as error:
            raise InvalidSpec(
                f"{path} cannot be written ({error}); choose another place."
            ) from None


EXAMPLES = 2  # images that show a network's structure
MOST_CLASSES = 1_000_000  # of labels whose neighbours vote


def _example(shape: Sequence[int], device: torch.device) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return channels_last(torch.randn(EXAMPLES, *shape, generator=rng).to(device))


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def _neighbours(
    labels: Tensor | None, images: Tensor, here: Tensor, there: Tensor
) -> dict[str, float]:
    """k-NN accuracy of features, where there are labels and more than one image."""
    if labels is None or len(images) < 2:
        return {}
    own_network.check_labels(labels, images, MOST_CLASSES)
    labels = labels.cpu().long()
    votes = [features.vote(side, labels, int(labels.max()) + 1) for side in (here, there)]
    return features.neighbour_accuracy(labels, *votes)


def _variance(words: dict[str, str], path: Path) -> float:
    """The spread of features that a saved file tells."""
    try:
        variance = float(words["variance"])
    except (KeyError, ValueError):
        variance = 0.0
    if not 0 < variance < math.inf:
        raise InvalidSpec(f"{path} is damaged (the features' spread); save the network again.")
    return variance


@torch.no_grad()
def _outputs(net: nn.Module, images: Tensor) -> Tensor:
    """What the network returns for each image, on the CPU."""
    return torch.cat([net(channels_last(x)).float().cpu() for x in images.split(EVAL_BATCH)])


def _digest(net: nn.Module) -> str:
    """Of every name, shape and value of a network's state."""
    found = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return found.hexdigest()


def _told(words: dict[str, str], path: Path) -> tuple[RunSpec, list[int]]:
    """The specification and the shape of an image, of what a file says."""
    try:
        spec, shape = json.loads(words["spec"]), json.loads(words["image_shape"])
    except ValueError as error:
        raise InvalidSpec(f"{path} is damaged ({error}); save the network again.") from None
    right = isinstance(shape, list) and len(shape) == 3
    if not right or not all(type(n) is int and 0 < n < 2**16 for n in shape):
        raise InvalidSpec(
            f"{path} is damaged (its images have the shape {shape}); save the network again."
        )
    return recipe_checked(RunSpec.from_json(spec)), shape


def _words(path: Path) -> dict[str, str]:
    """What a saved file says of itself."""
    if not path.is_file():
        raise InvalidSpec(f"There is no file {path}; check the path.")
    try:
        with safe_open(path, "pt") as opened:
            words = dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InvalidSpec(f"{path} is damaged ({error}); save the network again.") from None
    if not {"spec", "model", "network", "image_shape"} <= set(words):
        raise InvalidSpec(f"{path} holds no quantized network; give a file that q.save wrote.")
    return words
