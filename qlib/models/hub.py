"""Any network of timm by its name, with published weights or a file of one's own.

Library: R. Wightman, PyTorch Image Models, doi 10.5281/zenodo.4414861.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from qlib.core.online import reachable
from qlib.core.preprocess import Preprocess
from qlib.core.records import InvalidSpec
from qlib.models.base import Built, Model

if TYPE_CHECKING:
    from torch import Tensor, nn

PATTERN = "timm:NAME"
PREFIX = "timm:"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # in the order in which timm prefers them


class Hub(Model):
    """Networks of timm; published weights are downloaded once, into the hub's own cache."""

    title: ClassVar[str] = "timm (any name)"

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """The pattern of keys."""
        return (PATTERN,)

    @classmethod
    def owns(cls, name: str) -> bool:
        """Whether ``name`` begins with ``timm:``."""
        return name.startswith(PREFIX) and name != PATTERN

    def build(self, name: str, weights: str | None) -> Built:
        """See `Model.build`; ``name`` may carry a tag: ``timm:resnet18.a1_in1k``."""
        from timm.data.config import resolve_model_data_config

        arch = _known(name.removeprefix(PREFIX))
        net = _published(arch) if weights is None else _from_file(arch, weights)
        config = resolve_model_data_config(net)
        classes = net.num_classes
        if not isinstance(classes, int) or classes < 1:
            raise InvalidSpec(
                f"{name} gives features and no classes, so it has no accuracy; choose a network "
                "with a classifier, such as timm:deit_tiny_patch16_224."
            )
        fields = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
        return Built(net.eval(), Preprocess(**{k: config[k] for k in fields}), classes)


def _known(arch: str) -> str:
    import difflib

    import timm

    if timm.is_model(arch):
        tag = arch.partition(".")[2]
        tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{arch.partition('.')[0]}.*")]
        if tag and tag not in tags:
            raise InvalidSpec(
                f"timm has no weights {tag!r} for {arch.partition('.')[0]}; there are "
                f"{', '.join(tags) or 'none'}. Choose one, or leave the part after the dot out."
            )
        return arch
    near = difflib.get_close_matches(arch, timm.list_models(), n=3, cutoff=0.4)
    hint = f"the nearest are {', '.join(near)}" if near else "timm.list_models() lists them"
    raise InvalidSpec(f"timm {timm.__version__} has no network {arch!r}; {hint}.")


def _published(arch: str) -> "nn.Module":
    """With the weights that the hub offers, from its cache when they are there."""
    import timm
    from huggingface_hub import constants, is_offline_mode

    config = timm.get_pretrained_cfg(arch)
    if config is None or not (config.hf_hub_id or config.url):
        raise InvalidSpec(
            f"No weights are published for timm:{arch}; give a file (--weights FILE), or choose "
            "another network."
        )
    overlay: dict[str, Any] = {}
    cached = _cached(config.hf_hub_id)
    if cached:
        overlay = {"file": cached, "custom_load": False}
    else:
        url = constants.ENDPOINT if config.hf_hub_id else str(config.url)
        if is_offline_mode() or not reachable(url):
            raise InvalidSpec(
                f"The weights of timm:{arch} are not on this machine and {url} cannot be "
                "reached; connect to the internet, or give a file (--weights FILE)."
            )
    try:
        return timm.create_model(arch, pretrained=True, pretrained_cfg_overlay=overlay)
    except (
        Exception
    ) as error:  # from hub, network, disk or timm: libraries with errors of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InvalidSpec(
            f"The weights of timm:{arch} could not be fetched ({reason}); try again, or give a "
            "file (--weights FILE)."
        ) from error


def _cached(hub_id: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    repo, _, revision = (hub_id or "").partition("@")
    for file in HUB_FILES if repo else ():
        found = try_to_load_from_cache(repo, file, revision=revision or None)
        if isinstance(found, str):
            return found
    return None


def _from_file(arch: str, weights: str) -> "nn.Module":
    import timm

    from qlib.models._weights import load_weights, read_weights

    state = read_weights(weights)
    net = timm.create_model(arch, pretrained=False)
    config = timm.get_pretrained_cfg(arch)
    classes = _classes_in(state, config.classifier if config else None)
    if classes and classes != net.num_classes:  # fine-tuned on another task
        net = timm.create_model(arch, pretrained=False, num_classes=classes)
    load_weights(net, state, f"timm:{arch}", weights)
    return net


def _classes_in(state: "dict[str, Tensor]", classifier: str | tuple[str, ...] | None) -> int | None:
    """How many outputs the head in the file has, if the head is where timm has it."""
    head = classifier[0] if isinstance(classifier, tuple | list) else classifier
    weight = state.get(f"{head}.weight")
    return None if weight is None else len(weight)
