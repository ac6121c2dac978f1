"""The smallest networks of timm that together hold every class of network and of block in timm.

Networks that share their code and differ in depth, width, layers or weights are one family. A
family begins where a network, looked at from the smallest to the largest, brings a class of
network or of block (see `qlib.network.blocks.find_blocks`) that none before it has. Other norms,
activations or helpers begin none. Networks that timm made for its own tests stand for nobody.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from qlib.network.blocks import find_blocks

SIZES = (64, 96, 112, 128, 160, 192, 224)  # of images, tried in this order, then timm's own
IMAGES = 4
LARGE = 150e6  # parameters: networks beyond get two blocks, where timm lets them be chosen
SHORT = {"depth": 2}


def families(
    names: Sequence[str] | None = None, report: Callable[[str], object] = lambda text: None
) -> dict[str, tuple[str, ...]]:
    """The smallest network of each family, and the classes that it is the first to bring.

    Args:
        names: architectures to choose from; by default all of timm's, which takes minutes.
        report: hears how far it is.
    """
    import timm

    names = timm.list_models(exclude_filters="test_*") if names is None else names
    sizes, classes = {}, {}
    for at, name in enumerate(names):
        if at % 100 == 0:
            report(f"looking at timm's networks: {at} of {len(names)}")
        sizes[name], classes[name] = _inside(name)
    seen: set[str] = set()
    brought = {}
    for name in sorted(names, key=lambda name: (sizes[name], name)):
        new = [kind for kind in classes[name] if kind not in seen]
        if new:
            brought[name] = tuple(kind.rpartition(".")[2] for kind in new)
            seen.update(new)
    return brought


def _inside(name: str) -> tuple[int, list[str]]:
    """Number of parameters, and the classes of the network and of its blocks that are timm's.

    The network's own class counts anew in each file of timm that builds networks with it.
    """
    import timm

    with torch.device("meta"):
        net = timm.create_model(name)
    blocks = {_full_name(type(net.get_submodule(block))) for block in find_blocks(net)}
    own = f"{timm.model_entrypoint(name).__module__}:{_full_name(type(net))}"
    return _parameters(net), [own, *sorted(kind for kind in blocks if kind.startswith("timm."))]


def small(name: str) -> tuple[nn.Module, Tensor, str]:
    """A network with random weights, the smallest images that it takes, and what is special.

    Returns:
        the network in eval mode, images (IMAGES, channels, height, width), and text such as
        "depth=2", "" for a network as timm builds it.

    Raises:
        Exception: whatever timm raises at the network's own image size.
    """
    torch.manual_seed(0)
    options = _options(name)
    channels, *own = _own_shape(name, options)
    sizes = [[size, size] for size in SIZES if size < own[0]]
    chooses = _takes(name, options | {"img_size": SIZES[-1]})
    fixed = None if chooses else _made(name, options)
    for size in sizes:
        net = _sized(name, options | {"img_size": size[0]}) if fixed is None else fixed
        images = _images(channels, *size)
        if net is not None and _runs(net, images[:2]):
            break
    else:
        net, images = fixed or _made(name, options), _images(channels, *own)
        with torch.no_grad():
            net(images[:2])
    return net, images, " ".join(f"{key}={value}" for key, value in options.items())


def own_images(name: str) -> Tensor:
    """Two images of the size that a network is made for."""
    return _images(*_own_shape(name, _options(name)))[:2]


def as_it_is(name: str) -> nn.Module:
    """A network built for images of that size."""
    torch.manual_seed(0)
    return _made(name, _options(name))


def _own_shape(name: str, options: dict) -> tuple[int, ...]:
    from timm.data.config import resolve_model_data_config

    return resolve_model_data_config(_made(name, options, "meta"))["input_size"]


def _images(*shape: int) -> Tensor:
    return torch.randn(IMAGES, *shape, generator=torch.Generator().manual_seed(0))


def _options(name: str) -> dict[str, int]:
    large = _parameters(_made(name, {}, "meta")) > LARGE
    return dict(SHORT) if large and _takes(name, SHORT) else {}


def _made(name: str, options: dict, device: str = "cpu") -> nn.Module:
    import timm

    with torch.device(device):
        return timm.create_model(name, **options).eval()


def _sized(name: str, options: dict) -> nn.Module | None:
    """None: this network cannot be built for such images."""
    try:
        return _made(name, options)
    except Exception:  # each kind of network refuses in its own way
        return None


def _takes(name: str, options: dict) -> bool:
    """Whether a network can be built with these options."""
    try:
        _made(name, options, "meta")
    except TypeError:  # there is no such option
        return False
    except Exception:  # there is, but not with this value
        return True
    return True


def _runs(net: nn.Module, images: Tensor) -> bool:
    try:
        with torch.no_grad():
            net(images)
    except Exception:  # each kind of network refuses in its own way
        return False
    return True


def _parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
