"""Any network of timm by its name, with published weights or a file of one's own.

Library: R. Wightman, PyTorch Image Models, doi 10.5281/zenodo.4414861.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from qlib.core.online import reachable
from qlib.core.preprocess import Preprocess
from qlib.core.records import InvalidSpec
from qlib.models import _timm_name
from qlib.models._timm_name import PREFIX, Options
from qlib.models.base import Built, Model

if TYPE_CHECKING:
    from torch import nn

    from qlib.models._checkpoint import Checkpoint

PATTERN = "timm:NAME"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # in the order in which timm prefers them
FED = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
SHAPING = ("global_pool", "in_chans", "num_classes", "patch_size", "window_size")


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

    @classmethod
    def proper(cls, name: str) -> str:
        """See `Model.proper`; options after a ``?`` are checked and put in order."""
        return _timm_name.proper(name)

    def build(self, name: str, weights: str | None) -> Built:
        """See `Model.build`; ``timm:NAME.TAG?OPTION=VALUE&…``, tag and options may be left out.

        The tag (or timm's default one) says how images are prepared, with weights from a file too.
        """
        from timm.data.imagenet_info import infer_imagenet_subset

        asked, options = _timm_name.parts(name)
        arch, notes = _known(asked)
        if weights is None:
            net, more = _published(arch, options), _adapted(options)
        else:
            net, more = _from_file(arch, options, weights)
        classes = net.num_classes if isinstance(net.num_classes, int) else None
        subset = (infer_imagenet_subset(net) if classes else None) or ""
        preprocess = _preprocess(net, options)
        notes += [*more, *_other_ways(arch, options, from_tag=weights is None)]
        return Built(net.eval(), preprocess, classes, tuple(notes), label_set=subset)


# ---- names --------------------------------------------------------------------------------------


def _known(asked: str) -> tuple[str, list[str]]:
    """The name that timm has now, and a note where an old one was given.

    Raises:
        InvalidSpec: timm has no such network, or no such tag of it.
    """
    import difflib

    import timm

    arch, notes = _renamed(asked)
    if timm.is_model(arch):
        base, _, tag = arch.partition(".")
        tags = _tags(base)
        if tag and tag not in tags:
            raise InvalidSpec(
                f"timm has no weights {tag!r} for {base}; there are "
                f"{', '.join(tags) or 'none'}. Choose one, or leave the part after the dot out."
            )
        return arch, notes
    near = difflib.get_close_matches(arch, timm.list_models(), n=3, cutoff=0.4)
    hint = f"the nearest are {', '.join(near)}" if near else "timm.list_models() lists them"
    raise InvalidSpec(f"timm {timm.__version__} has no network {arch!r}; {hint}.")


def _renamed(asked: str) -> tuple[str, list[str]]:
    import timm

    old, _, tag = asked.partition(".")
    renamed = timm.models.get_deprecated_models()
    if old not in renamed:
        return asked, []
    now = renamed[old]
    if not now:
        raise InvalidSpec(
            f"timm {timm.__version__} has taken {old} out and names no other in its place; choose "
            "another network."
        )
    if tag:
        raise InvalidSpec(f"timm calls {old} {now} now; choose that name, with a tag of its own.")
    base, _, tag = now.partition(".")
    tags = _tags(base)
    if tag and tag not in tags:  # timm's table of old names has tags that it renamed once more
        near = next((f".{t}" for t in tags if t.startswith(tag)), "")
        now = f"{base}{near}"
    return now, [f"timm calls {old} {now} now; that network was taken."]


def _tags(base: str) -> list[str]:
    import timm

    return [n.partition(".")[2] for n in timm.list_pretrained(f"{base}.*")]


# ---- networks -----------------------------------------------------------------------------------


def _made(arch: str, options: Options, **more: Any) -> "nn.Module":
    """A network with random weights, or what ``more`` says.

    Raises:
        InvalidSpec: the network has no such option, or takes no such value.
    """
    import timm

    shape = {name: value for name, value in options.given.items() if name in SHAPING}
    config = timm.get_pretrained_cfg(arch)
    if config is not None and config.fixed_input_size:
        size = options.img_size
        if options.preprocess == "test" and size is None and config.test_input_size:
            size = config.test_input_size[-1]
        shape |= {"img_size": size} if size is not None else {}
    if not shape:
        return timm.create_model(arch, **more)
    try:
        return timm.create_model(arch, **(shape | more))
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        said = ", ".join(f"{name}={value}" for name, value in shape.items())
        raise InvalidSpec(
            f"timm cannot make {arch} with {said} ({reason}); leave the option out, or choose "
            "another value."
        ) from None


def _published(arch: str, options: Options) -> "nn.Module":
    """With the weights that the hub offers, from its cache when they are there."""
    import timm
    from huggingface_hub import constants, is_offline_mode

    config = timm.get_pretrained_cfg(arch)
    if config is None or not (config.hf_hub_id or config.url):
        raise InvalidSpec(
            f"No weights are published for timm:{arch}; give a file (--weights FILE), or choose "
            "another network."
        )
    if options.num_classes and options.num_classes != config.num_classes:
        raise InvalidSpec(
            f"The published weights of timm:{arch} tell {config.num_classes} classes apart, so "
            f"that a head of {options.num_classes} would be untrained; leave num_classes out, or "
            "give a file of trained weights (--weights FILE)."
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
        return _made(arch, options, pretrained=True, pretrained_cfg_overlay=overlay)
    except InvalidSpec:
        raise
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
        there = try_to_load_from_cache(repo, file, revision=revision or None)
        if isinstance(there, str):
            return there
    return None


def _from_file(arch: str, options: Options, weights: str) -> tuple["nn.Module", tuple[str, ...]]:
    from dataclasses import replace

    from qlib.models._weights import load_weights, read_weights

    checkpoint = read_weights(weights)
    net = _made(arch, options, pretrained=False)
    if options.num_classes is None:
        config: Any = net.pretrained_cfg
        classes = _classes_in(checkpoint, config.get("classifier"))
        if classes and classes != net.num_classes:  # fine-tuned on another task
            net = _made(arch, replace(options, num_classes=classes), pretrained=False)
    hint = (
        "Choose the model that they were saved from, or say how it was made, such as "
        f"{PREFIX}{arch}?img_size=96&in_chans=1."
    )
    return net, load_weights(net, weights, f"{PREFIX}{arch}", checkpoint, hint)


def _classes_in(
    checkpoint: "Checkpoint", classifier: str | tuple[str, ...] | list[str] | None
) -> int | None:
    """How many outputs the head in the file has, if a head is where timm has it."""
    head = classifier[0] if isinstance(classifier, tuple | list) else classifier
    name = f"{head}.weight"
    sizes = {
        entry.value.shape[0]
        for full, entry in checkpoint.tensors.items()
        if (full == name or full.endswith(f".{name}")) and entry.value.dim() > 1
    }
    return sizes.pop() if len(sizes) == 1 else None


# ---- images -------------------------------------------------------------------------------------


def _preprocess(net: "nn.Module", options: Options) -> Preprocess:
    """How the network's tag prepares images, with the size and the channels asked for."""
    from timm.data.config import resolve_model_data_config

    asked = {"img_size": options.img_size, "in_chans": options.in_chans}
    test = options.preprocess == "test"
    config: dict[str, Any] = resolve_model_data_config(net, asked, use_test_size=test)
    channels = options.in_chans or config["input_size"][0]
    if channels != len(config["mean"]):
        # one grey channel stands for three: its mean and spread are theirs on average
        config |= {k: (sum(config[k]) / len(config[k]),) * channels for k in ("mean", "std")}
    size = (channels, *config["input_size"][1:])
    fed: dict[str, Any] = {k: config[k] for k in FED}
    fed["input_size"] = size
    return Preprocess(**fed)


def _adapted(options: Options) -> list[str]:
    if options.in_chans in (None, 3):
        return []
    return ["timm adds up the published weights of the first layer over the three colours."]


def _other_ways(arch: str, options: Options, *, from_tag: bool) -> list[str]:
    """Notes on other ways to prepare images that timm lists for the same architecture.

    Args:
        from_tag: the weights are those of the tag, so that only its own test settings matter.
    """
    import timm

    base, _, tag = arch.partition(".")
    notes: list[str] = []
    config = timm.get_pretrained_cfg(arch)
    if config is None:
        return notes
    test_size = config.test_input_size or config.input_size
    test = (*test_size, config.test_crop_pct or config.crop_pct)
    if test != (*config.input_size, config.crop_pct) and options.preprocess == "train":
        size = f"{test[1]} × {test[2]}"
        notes.append(
            f"timm tests this tag at {size} with crop {test[3]:g}: ?preprocess=test does the same."
        )
    own = _way(config)
    others = [t for t in _tags(base) if _way(timm.get_pretrained_cfg(f"{base}.{t}")) != own]
    if others and not tag and not from_tag:
        notes.append(
            f"Images are prepared as for the tag {config.tag}; weights of the tags "
            f"{', '.join(others[:4])}{' …' * (len(others) > 4)} need another way: write the tag "
            f"that yours come from, such as {PREFIX}{base}.{others[0]}."
        )
    return notes


def _way(config: Any) -> tuple[Any, ...]:
    return tuple(getattr(config, name) for name in FED)
