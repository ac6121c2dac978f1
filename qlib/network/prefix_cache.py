"""Runs a network on from the middle, so that what lies before a change is computed once.

The tensor that enters a unit moves forward from unit to unit in the float network; each
measurement goes on from there. With L units in a row that is about L/2 passes for a measurement at
each, not L.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from qlib.core.records import Event, Report
from qlib.network.cuts import Span
from qlib.network.model import QuantModel
from qlib.network.points import QuantPoint
from qlib.network.trace import removing

CHUNK = 128  # images whose tensors between units are held at once
PASS = 40e9  # multiply–accumulates of one pass: large networks take fewer images at once


class PrefixCache:
    """Passes over images in chunks that reuse the tensor entering a unit.

    Attributes:
        starts, size: of the chunks.
        doing: what listeners hear of between two units; set its unit, place and note as you go.
            ``step`` of ``steps`` images is set here.
    """

    def __init__(self, model: QuantModel, images: Tensor, report: Report, phase: str) -> None:
        """``images``: (n, c, h, w), preprocessed, anywhere; they go to the model's device."""
        self.model, self.images, self.report = model, images, report
        self.batch = max(1, min(CHUNK, int(PASS / max(1, sum(model.macs.values())))))
        self.size = CHUNK
        self.starts = range(0, len(images), CHUNK)
        self.doing = Event(phase)

    def chunk(self, start: int) -> Tensor:
        """The images from number ``start`` on, one chunk of them, on the model's device."""
        device = next(self.model.parameters()).device
        return self.images[start : start + self.size].to(device)

    def logits(self) -> Tensor:
        """(n, classes) of all images, in the current state of the model."""
        return torch.cat([self.each(self.model, self.chunk(start)) for start in self.starts])

    def each(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The joined outputs of ``call`` on batches of ``x``."""
        outputs = []
        for part in x.split(self.batch):
            outputs.append(call(part))
            self.doing = replace(self.doing, step=sum(map(len, outputs)))
        return torch.cat(outputs)

    def iter_layers(
        self, images: Tensor, layers: Iterable[str]
    ) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """Each layer with a function that goes on from what enters its units to the logits.

        What lies before these is in the state that the model had when the walk passed it.
        """
        model, spans = self.model, self.model.spans
        if not model.is_sequential:
            yield from ((layer, lambda: self.each(model, images)) for layer in layers)
            return
        run, x = model.partial, images
        if spans[0][0] != run.from_images:
            x = self.each(lambda part: run.run_until(part, spans[0][0]), images)
        for span, following in zip(spans, [*spans[1:], None], strict=True):

            def onward(part: Tensor, until: str | None = None, span: Span = span) -> Tensor:
                return run.run_between(span[-1], run.run_units(span, part), until)

            for layer in (name for unit in span for name in model.layers_of(unit)):
                if layer in layers:
                    yield layer, lambda x=x, onward=onward: self.each(onward, x)
            if following is not None:
                x = self.each(lambda part, go=onward, to=following[0]: go(part, to), x)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Report progress at every unit, so that a run can be cancelled there."""
        modules = {name: self.model.net.get_submodule(name) for name in self.model.units()}
        hooks = [m.register_forward_pre_hook(self._tick) for m in modules.values()]
        with removing(hooks):
            yield

    def _tick(self, *_: object) -> None:
        self.report(self.doing)


@contextmanager
def flipped(points: Iterable[QuantPoint]) -> Iterator[None]:
    """Inside a ``with`` block some points are switched over: on where off, off where on."""
    for point in points:
        point.on = not point.on
    try:
        yield
    finally:
        for point in points:
            point.on = not point.on
