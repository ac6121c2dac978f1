"""Runs part of a network: one unit, up to a place, or on from a place."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from qlib.network.trace import Call, removing


class PartialForward:
    """Runs parts of one network, from the calls of its units that one pass recorded.

    Attributes:
        units: names of the units, in order of execution.
        shapes: unit → shape of what it returns for one image, where that is one tensor.
        image_shape: (channels, height, width) of what the network takes.
    """

    def __init__(
        self, net: nn.Module, calls: Mapping[str, Call], image_shape: tuple[int, ...]
    ) -> None:
        """``calls``: unit → its call; only the extra arguments and the shapes are kept."""
        self._net = net
        self._extra = {name: (call.args[1:], call.kwargs) for name, call in calls.items()}
        self.units = list(calls)
        tensors = {n: c.output for n, c in calls.items() if isinstance(c.output, Tensor)}
        self.shapes = {name: tuple(output.shape[1:]) for name, output in tensors.items()}
        self.image_shape = image_shape

    def run_unit(self, unit: str, x: Tensor) -> Tensor:
        """One unit on its input, with the extra arguments that the network gave it."""
        args, kwargs = self._extra[unit]
        return self._net.get_submodule(unit)(x, *args, **kwargs)

    def run_units(self, units: Sequence[str], x: Tensor) -> Tensor:
        """Units in a row, from the first one's input to the last one's output, with gradients.

        Where there are several the network must be sequential: units before them are not run but
        return placeholders.
        """
        first, last = units[0], units[-1]
        if first == last:
            return self.run_unit(first, x)
        entry = self._net.get_submodule(first)
        enter = lambda module, args: (x, *args[1:])  # noqa: E731
        with removing([entry.register_forward_pre_hook(enter, prepend=True)]):
            images = _blank(x, self.image_shape)
            with _returning(self._net, self._blanks_before(first, x)):
                return _stopped_at(self._net, images, last, leaving=True)

    def run_until(self, images: Tensor, place: str) -> Tensor:
        """The network on images as far as the input of a unit or of a layer."""
        return _stopped_at(self._net, images, place)

    def run_between(self, unit: str, output: Tensor, until: str | None) -> Tensor:
        """From a unit's output to the next unit's input, or with None to the network's output.

        Needs a sequential network. Every unit up to this one returns a placeholder, so that only
        what lies between the units is computed and boundaries move forward at linear cost.
        """
        returns = {**self._blanks_before(unit, output), unit: output}
        with _returning(self._net, returns):
            return _stopped_at(self._net, _blank(output, self.image_shape), until)

    def rerun(self, images: Tensor, unit: str, output: Tensor) -> Tensor:
        """The network's output with ``output`` in place of what a unit returns on these images.

        As `run_between` to the end, also where the network is not sequential; costs a whole pass.
        """
        with _returning(self._net, {unit: output}):
            return self._net(images)

    def layer_input(self, unit: str, layer: str, x: Tensor) -> Tensor:
        """The input of a layer inside a unit, given the unit's input."""
        if layer == unit:
            return x
        with _stopping(self._net.get_submodule(layer)):
            try:
                self.run_unit(unit, x)
            except _Arrived as arrived:
                return arrived.value
        raise RuntimeError(f"{unit} ended before it reached {layer}.")

    def rerun_layer(
        self, images: Tensor, layer: str, activation: nn.Module | None, output: Tensor
    ) -> Tensor:
        """The network's output with ``output`` in place of what a layer returns.

        Or of what the activation function returns that alone reads the layer.
        """
        seen: list[Tensor] = []

        def layer_done(module: nn.Module, args: tuple, y: Tensor) -> Tensor | None:
            seen.append(y)
            return output if activation is None else None

        def activation_done(module: nn.Module, args: tuple, y: Tensor) -> Tensor | None:
            return output if seen and args[0] is seen[-1] else None

        hooks = [self._net.get_submodule(layer).register_forward_hook(layer_done)]
        if activation is not None:  # one module may serve several layers
            hooks.append(activation.register_forward_hook(activation_done))
        with removing(hooks):
            return self._net(images)

    def _blanks_before(self, unit: str, like: Tensor) -> dict[str, Tensor]:
        """A placeholder for what each unit before this one returns, for as many images."""
        before = self.units[: self.units.index(unit)]
        return {name: _blank(like, self.shapes[name]) for name in before}


def _blank(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A placeholder (images, *shape) that takes no memory."""
    return like.new_zeros(()).expand(len(like), *shape)


@contextmanager
def _returning(net: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """For a while these modules are not run but return what is given for them.

    A hook could change what a module returns, but not keep it from running.
    """
    modules = {net.get_submodule(name): value for name, value in values.items()}
    for module, value in modules.items():
        module.forward = lambda *a, value=value, **k: value
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _stopped_at(
    net: nn.Module, images: Tensor, place: str | None, *, leaving: bool = False
) -> Tensor:
    """What enters a module, or what leaves it; nothing after that is computed.

    Raises:
        RuntimeError: the network ended before it got there.
    """
    if place is None:
        return net(images)
    with _stopping(net.get_submodule(place), leaving=leaving):
        try:
            net(images)
        except _Arrived as arrived:
            return arrived.value
    raise RuntimeError(f"The network ended before it reached {place}.")


@contextmanager
def _stopping(module: nn.Module, *, leaving: bool = False) -> Iterator[None]:
    """For a while the module raises `_Arrived` with what enters it, or with what leaves it."""

    def enter(module: nn.Module, args: tuple) -> None:
        raise _Arrived(args[0])

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        raise _Arrived(output)

    hook = (
        module.register_forward_hook(leave)
        if leaving
        else module.register_forward_pre_hook(enter, prepend=True)
    )
    with removing([hook]):
        yield


class _Arrived(Exception):
    """Carries the tensor that reached the place asked for."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value
