"""Runs part of a network: one unit, several in a row, up to a place, or on from a place."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qlib.network.ports import Port, tensors_in
from qlib.network.trace import removing


@dataclass(frozen=True)
class Ends:
    """The two sides of a unit or of a layer.

    ``runs``: how often one pass runs it on tensors of one shape; 1 where shapes differ.
    """

    given: Port
    back: Port
    runs: int = 1


class PartialForward:
    """Runs parts of one network. Tensors between parts have the images first, whatever it does.

    Attributes:
        units: names of the units, in order of execution.
        ends: unit or layer → its two sides.
        onward: last unit of a row that is run as one and whose result is read where the next unit
            begins → that unit; None: the result is the network's answer.
        from_images: the first unit of a row that takes the images themselves, if there is one.
        image_shape: (channels, height, width) of what the network takes.
    """

    def __init__(
        self,
        net: nn.Module,
        units: Sequence[str],
        ends: Mapping[str, Ends],
        image_shape: tuple[int, ...],
    ) -> None:
        self._net, self.units, self.ends = net, list(units), dict(ends)
        self.onward: dict[str, str | None] = {}
        self.from_images: str | None = None
        self.image_shape = image_shape

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Unit → shape of what it returns for one image, where that is one tensor."""
        backs = {name: self.ends[name].back.shape for name in self.units}
        return {name: shape for name, shape in backs.items() if shape is not None}

    def joined(self, units: Sequence[str]) -> bool:
        """Are these run inside the network, since the first of them alone would not do?"""
        return len(units) > 1 or units[0] == self.from_images or units[0] in self.onward

    def run_unit(self, unit: str, x: Tensor) -> Tensor:
        """One unit on its input, with the extra arguments that the network gave it."""
        ends = self.ends[unit]
        args, kwargs = ends.given.arguments(x)
        return ends.back.read(self._net.get_submodule(unit)(*args, **kwargs), len(x))

    def run_units(self, units: Sequence[str], x: Tensor) -> Tensor:
        """Units in a row, from the first one's input to what the row returns, with gradients.

        Units before them are not run but return placeholders.
        """
        first, last = units[0], units[-1]
        if not self.joined(units):
            return self.run_unit(first, x)
        if first == self.from_images:
            return self._end_of(x, last)
        with self._entering(first, x):
            return self._end_of(self._blank_images(x), last)

    def run_until(self, images: Tensor, place: str, run: int = 0) -> Tensor:
        """The network on images as far as the input of a unit or of a layer.

        ``run``: which of its runs, where one pass has several.
        """
        return self._arrived(images, place, run=run)

    def run_between(self, unit: str, output: Tensor, until: str | None) -> Tensor:
        """From a unit's output to the next unit's input, or with None to the network's output.

        Every unit up to this one returns a placeholder, so that only what lies between the units
        is computed and boundaries move forward at linear cost.
        """
        if unit in self.onward:
            following = self.onward[unit]
            if following in (None, until):
                return output
            return self.run_on(following, output, until)
        returns = self._blanks_before(unit, output)
        returns[unit] = self.ends[unit].back.write(output)
        with _returning(self._net, returns):
            return self._until(self._blank_images(output), until)

    def run_on(self, unit: str, x: Tensor, until: str | None) -> Tensor:
        """From what enters a unit to what enters a later one, or with None to the answer."""
        with self._entering(unit, x):
            return self._until(self._blank_images(x), until)

    def rerun(self, images: Tensor, unit: str, output: Tensor, run: int = 0) -> Tensor:
        """The network's output with ``output`` in place of what a unit returns on these images.

        As `run_between` to the end, also where the network is not sequential; costs a whole pass.
        """
        if unit in self.onward:
            return self.run_between(unit, output, None)
        ends = self.ends[unit]
        given = {unit: ends.back.write(output)}
        with _returning(self._net, given, run=run if ends.runs > 1 else None):
            return self._net(images)

    def layer_input(self, units: Sequence[str], layer: str, x: Tensor, run: int = 0) -> Tensor:
        """The input of a layer inside some units in a row, given what enters these."""
        if tuple(units) == (layer,) and not self.joined(units):
            return x
        value = _reached(lambda: self.run_units(units, x), self._net, layer, run=run)
        return self.ends[layer].given.read(value, len(x))

    def layer_output(self, layer: str, x: Tensor) -> Tensor:
        """What a layer returns, as it does, given its input with the images first."""
        args, kwargs = self.ends[layer].given.arguments(x)
        return self._net.get_submodule(layer)(*args, **kwargs)

    def run_layer(self, layer: str, activation: nn.Module | None, x: Tensor) -> Tensor:
        """A layer and the activation function that alone reads it, images first."""
        y = self.layer_output(layer, x)
        return self.ends[layer].back.read(y if activation is None else activation(y), len(x))

    def rerun_layer(
        self,
        images: Tensor,
        layer: str,
        activation: nn.Module | None,
        output: Tensor,
        run: int = 0,
    ) -> Tensor:
        """The network's output with ``output`` in place of what a layer returns.

        Or of what the activation function returns that alone reads the layer. ``run``: which of
        the layer's runs.
        """
        seen: list[Tensor] = []
        output = self.ends[layer].back.write(output)

        def layer_done(module: nn.Module, args: tuple, y: Tensor) -> Tensor | None:
            seen.append(y)
            return output if activation is None and len(seen) == run + 1 else None

        def activation_done(m: nn.Module, args: tuple, kwargs: dict, y: Tensor) -> Tensor | None:
            here = len(seen) == run + 1 and tensors_in((args, kwargs))[0] is seen[-1]
            return output if here else None

        hooks = [self._net.get_submodule(layer).register_forward_hook(layer_done)]
        if activation is not None:  # one module may serve several layers
            hooks.append(activation.register_forward_hook(activation_done, with_kwargs=True))
        with removing(hooks):
            return self._net(images)

    def _until(self, images: Tensor, place: str | None) -> Tensor:
        if place is None:
            return self._net(images)
        return self._arrived(images, place)

    def _end_of(self, images: Tensor, last: str) -> Tensor:
        """What a row of units that ends with ``last`` returns."""
        if last in self.onward:
            return self._until(images, self.onward[last])
        return self._arrived(images, last, leaving=True)

    def _arrived(
        self, images: Tensor, place: str, *, leaving: bool = False, run: int = 0
    ) -> Tensor:
        value = _reached(lambda: self._net(images), self._net, place, leaving=leaving, run=run)
        ends = self.ends[place]
        return (ends.back if leaving else ends.given).read(value, len(images))

    @contextmanager
    def _entering(self, unit: str, x: Tensor) -> Iterator[None]:
        """For a while ``x`` enters a unit at its first run; those before it return placeholders."""
        given, entered = self.ends[unit].given, []

        def enter(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            if entered:
                return None
            entered.append(True)
            return given.write(x)

        entry = self._net.get_submodule(unit)
        hook = entry.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        with removing([hook]), _returning(self._net, self._blanks_before(unit, x)):
            yield

    def _blanks_before(self, unit: str, like: Tensor) -> dict[str, Any]:
        """A placeholder for what each unit before this one returns, for as many images."""
        before = self.units[: self.units.index(unit)]
        return {name: self.ends[name].back.blank(len(like), like.device) for name in before}

    def _blank_images(self, like: Tensor) -> Tensor:
        """Images that take no memory, as many as ``like`` has rows."""
        return like.new_zeros(()).expand(len(like), *self.image_shape)


@contextmanager
def _returning(
    net: nn.Module, values: Mapping[str, Any], *, run: int | None = None
) -> Iterator[None]:
    """For a while these modules are not run but return what is given for them.

    A hook could change what a module returns, but not keep it from running. ``run``: only in this
    one of their runs.
    """
    modules = {net.get_submodule(name): value for name, value in values.items()}
    for module, value in modules.items():
        module.forward = _answering(module.forward, value, run)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _answering(own: Any, value: Any, run: int | None) -> Any:
    """A ``forward`` that gives ``value``, always or in one run, and else what ``own`` gives."""
    if run is None:
        return lambda *args, **kwargs: value
    runs: list[bool] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        runs.append(True)
        return value if len(runs) == run + 1 else own(*args, **kwargs)

    return forward


def _reached(
    call: Callable[[], Any], net: nn.Module, place: str, *, leaving: bool = False, run: int = 0
) -> Any:
    """What enters a module in one of its runs (or leaves it) during a call; the call ends there.

    Raises:
        RuntimeError: it ended before it got there.
    """
    runs: list[bool] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        runs.append(True)
        if len(runs) == run + 1:
            raise _Arrived(runs, (args, kwargs))

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        raise _Arrived(runs, output)

    module = net.get_submodule(place)
    hook = (
        module.register_forward_hook(leave)
        if leaving
        else module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
    )
    with removing([hook]):
        try:
            call()
        except _Arrived as arrived:
            if arrived.by is not runs:  # at another place, where somebody else waits
                raise
            return arrived.value
    raise RuntimeError(f"The network ended before it reached {place}.")


class _Arrived(BaseException):
    """Carries what reached the place asked for; no ``except Exception`` of a network stops it."""

    def __init__(self, by: object, value: Any) -> None:
        super().__init__()
        self.by, self.value = by, value
