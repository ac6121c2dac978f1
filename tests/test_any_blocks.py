"""Blocks as people write them: each learns as its plain twin to the bit, or is joined, and told."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from helpers import calibration, method, plan
from torch import Tensor, nn
from torch.nn import functional as F

from qlib.core.records import ignore
from qlib.learning.fisher import output_gradients
from qlib.learning.walk import iter_units
from qlib.network.blocks import find_blocks
from qlib.network.model import QuantModel
from qlib.sensitivity.layers import measure

WIDTH, CLASSES = 6, 4
METHODS = ("nearest", "brecq", "qdrop", "ptmq", "adaround", "adaquant", "gptq", "noisyquant",
           "ptq4vit")  # fmt: skip


class Plain(nn.Module):
    """A residual block; the twins below compute the same in other words."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.b = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def branch(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.branch(x))


class Row(nn.Module):
    """(n, 3, 6, 6) → (n, 4): a stem, three blocks, a head."""

    def __init__(self, block: type[nn.Module] = Plain) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(F.relu(self.stem(x))).mean((2, 3)))


# --- blocks that are given their input in another way


class Keywords(Row):
    class Block(Plain):
        def branch(self, x: Tensor) -> Tensor:
            return self.b(input=F.relu(self.a(input=x)))

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x=x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=self.body(F.relu(self.stem(input=x))).mean((2, 3)))


class BehindOthers(Row):
    """The tensor is neither the first argument nor alone, and comes back in a dictionary."""

    class Block(Plain):
        def forward(self, how: str, shift: Tensor, *, given: list[Tensor]) -> dict[str, Any]:
            assert how == "plainly" and not shift.any()
            return {"kind": how, "y": super().forward(given[0])}

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block("plainly", torch.zeros(WIDTH, 1, 1), given=[x])["y"]
        return x


class Sizes(Row):
    """Told how many images there are, and how large they are."""

    class Block(Plain):
        def forward(self, x: Tensor, n: int, side: int) -> Tensor:
            return super().forward(x.reshape(n, WIDTH, side, side))

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x.flatten(2), len(x), x.shape[-1])
        return x


class ImagesLast(Row):
    """Between blocks the images lie along the last axis."""

    class Block(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.movedim(-1, 0)).movedim(0, -1)

    def body(self, x: Tensor) -> Tensor:
        return super().body(x.movedim(0, -1)).movedim(-1, 0)


class Patches(Row):
    """Between blocks every image lies in four rows, one below the other."""

    class Block(Plain):
        def forward(self, x: Tensor) -> Tensor:
            whole = x.unflatten(0, (-1, 4)).movedim(1, -1).unflatten(-1, (2, 2))
            whole = whole.movedim(-2, 2).movedim(-1, 4).flatten(2, 3).flatten(3, 4)
            return _patches(super().forward(whole))

    def body(self, x: Tensor) -> Tensor:
        y = super().body(_patches(x)).unflatten(0, (-1, 4))
        y = y.movedim(1, -1).unflatten(-1, (2, 2)).movedim(-2, 2).movedim(-1, 4)
        return y.flatten(2, 3).flatten(3, 4)


def _patches(x: Tensor) -> Tensor:
    """(n, c, h, w) → (4n, c, h/2, w/2), the quarters of an image together."""
    x = x.unflatten(3, (2, -1)).unflatten(2, (2, -1))  # n, c, 2, h/2, 2, w/2
    return x.movedim(2, 1).movedim(4, 2).flatten(0, 2)


class Wordy(Row):
    """A forward with arguments of its own, which have defaults."""

    def forward(self, x: Tensor, scale: float = 1.0, *, flipped: bool = False) -> Tensor:
        assert not flipped
        return super().forward(x * scale)


class Writing(Plain):
    """Adds to its own input."""

    def forward(self, x: Tensor) -> Tensor:
        x += self.branch(x)
        return F.relu_(x)


class WritingAhead(Plain):
    """Writes before it reads: only a copy keeps what was captured."""

    def forward(self, x: Tensor) -> Tensor:
        saved = x.clone()
        x[:, 0] = 7.0
        x.add_(1).sub_(1)
        x.copy_(saved)
        return super().forward(x)


class Between(Row):
    """The last step of a block is the network's."""

    class Block(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x)

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = F.relu(block(x))
        return x


class WritingBetween(Between):
    """The network writes into what a block has returned, and into its images."""

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
            x.relu_()
        return x

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2).div_(2)
        return super().forward(x)


Build = Callable[[], nn.Module]

between: Build = lambda: Between(Between.Block)  # noqa: E731
# each with its plain twin
TWINS: dict[str, tuple[Build, Build]] = {
    "by keyword": (lambda: Keywords(Keywords.Block), Row),
    "behind others": (lambda: BehindOthers(BehindOthers.Block), Row),
    "with sizes": (lambda: Sizes(Sizes.Block), Row),
    "images last": (lambda: ImagesLast(ImagesLast.Block), Row),
    "in patches": (lambda: Patches(Patches.Block), Row),
    "arguments of its own": (Wordy, Row),
    "adds to its input": (lambda: Row(Writing), Row),
    "overwrites its input": (lambda: Row(WritingAhead), Row),
    "written between": (lambda: WritingBetween(Between.Block), between),
}
# their layers read another tensor than the one that enters the block (a view, or it was written
# into), and so have a point of their own beside the boundary
BESIDE = {"with sizes", "images last", "in patches", "overwrites its input"}
# what is drawn for an element is drawn by its place, and these lie elsewhere
DRAWN = {"in patches": {"qdrop", "ptmq"}}


def made(build: Build) -> nn.Module:
    """With the same weights for the same layers, whatever the network around them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build().eval().requires_grad_(False)


def pictures(n: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def quantizable(build: Build, placement: str = "inputs") -> QuantModel:
    net = made(build)
    return QuantModel(net, pictures(2), find_blocks(net), placement)


def learned(build: Build, name: str, placement: str) -> Tensor:
    """Answers after a method, to other images."""
    model, data = quantizable(build, placement), calibration(pictures())
    method(name, 3).apply(model, plan(model, 3, 3), data, ignore)
    model.switch(weights=True, inputs=True)
    with torch.no_grad():
        return model(pictures(5, seed=2))


PLAIN: dict[tuple[Build, str, str], Tensor] = {}


def plainly(build: Build, name: str, placement: str) -> Tensor:
    if (build, name, placement) not in PLAIN:
        PLAIN[build, name, placement] = learned(build, name, placement)
    return PLAIN[build, name, placement]


def cases() -> list[tuple[str, str, str]]:
    every = product(TWINS, METHODS, ("inputs", "boundary"))
    return [
        (twin, name, placement)
        for twin, name, placement in every
        if not (placement == "boundary" and twin in BESIDE) and name not in DRAWN.get(twin, ())
    ]


@pytest.mark.parametrize(("twin", "name", "placement"), cases())
def test_twin_learns_what_the_plain_network_learns(twin: str, name: str, placement: str) -> None:
    build, plain = TWINS[twin]
    assert torch.equal(learned(build, name, placement), plainly(plain, name, placement))


@pytest.mark.parametrize("twin", TWINS)
def test_twin_is_cut_like_the_plain_network_and_takes_its_images_as_they_are(twin: str) -> None:
    model, plain = (quantizable(build) for build in TWINS[twin])
    assert model.spans == plain.spans == [(unit,) for unit in plain.units()]
    assert model.is_sequential and model.notes == []
    x = pictures(3)
    assert torch.equal(model(x), plain(x))
    assert torch.equal(x, pictures(3))


# --- blocks that need more than one tensor


class Pair(Plain):
    """Takes and returns two tensors of the images."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return F.relu(x + self.branch(y)), y + x


class Pairs(Row):
    def body(self, x: Tensor) -> Tensor:
        y = x.flip(-1)
        for block in self.blocks:
            x, y = block(x, y)
        return x + y


class Dense(Row):
    """Each block reads a list of all that came before it."""

    class Block(Plain):
        def forward(self, every: list[Tensor]) -> Tensor:
            return self.branch(torch.stack(every).sum(0))

    def body(self, x: Tensor) -> Tensor:
        every = [x]
        for block in self.blocks:
            every.append(block(every))
        return every[-1]


class Remembering(Row):
    """A block leaves its input in an attribute, and one later adds it."""

    class Block(Plain):
        skip: Tensor | float = 0.0
        source: list["Remembering.Block"]

        def forward(self, x: Tensor) -> Tensor:
            self.skip = x
            return super().forward(x) + (self.source[0].skip if self.source else 0.0)

    def __init__(self) -> None:
        super().__init__(self.Block)
        for block in self.blocks:
            block.source = []
        self.blocks[2].source = [self.blocks[1]]  # in a list: it is no child


class TwoStems(Row):
    """Nothing can be cut: a second branch of the images goes past everything."""

    def __init__(self) -> None:
        super().__init__(Pair)
        self.other = nn.Conv2d(3, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y, images = self.other(x), x
        x = self.stem(x)
        for block in self.blocks:
            x, y = block(x, y)
        return self.head((x + y).mean((2, 3))) + images.mean((1, 2, 3))[:, None]


class Pieces(Row):
    """Two kinds of row in one network: a pair of blocks that belong together, then plain ones."""

    def __init__(self) -> None:
        super().__init__(Pair)
        self.more = nn.ModuleList(Plain() for _ in range(2))

    def body(self, x: Tensor) -> Tensor:
        y = x.flip(-1)
        for block in self.blocks:
            x, y = block(x, y)
        x = x + y
        for block in self.more:
            x = block(x)
        return x


BLOCKS3 = ("blocks.0", "blocks.1", "blocks.2")
JOINED: dict[str, tuple[Build, list[tuple[str, ...]]]] = {
    "two tensors": (lambda: Pairs(Pair), [("stem", *BLOCKS3), ("head",)]),
    "all before": (lambda: Dense(Dense.Block), [("stem", *BLOCKS3), ("head",)]),
    "attribute": (Remembering, [("stem",), ("blocks.0",), ("blocks.1", "blocks.2"), ("head",)]),
    "uncut": (TwoStems, [("other", "stem", *BLOCKS3, "head")]),
    "pieces": (Pieces, [("stem", *BLOCKS3), ("more.0",), ("more.1",), ("head",)]),
}


@pytest.mark.parametrize("name", JOINED)
def test_what_cannot_be_cut_is_joined_and_said(name: str) -> None:
    build, spans = JOINED[name]
    model = quantizable(build)
    assert model.spans == spans
    assert model.is_sequential
    (note,) = (note for note in model.notes if "one unit" in note)
    assert all(span[0] in note for span in spans if len(span) > 1) or len(spans) == 1


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("net", JOINED)
def test_joined_blocks_are_learned_by_every_method(net: str, name: str, placement: str) -> None:
    answers = learned(JOINED[net][0], name, placement)
    assert answers.isfinite().all()
    if name == "brecq":
        assert not torch.equal(answers, learned(JOINED[net][0], "nearest", placement))


ALL: dict[str, Build] = {name: build for name, (build, _) in (TWINS | JOINED).items()}


@pytest.mark.parametrize("net", ALL)
def test_units_stand_on_what_a_plain_pass_shows(net: str) -> None:
    """What enters each unit, in the float and in the quantized network, and what it makes of it."""
    model, x = quantizable(ALL[net]), pictures()
    data = calibration(x)
    data.attach(model, plan(model, 3, 3))
    for unit in iter_units(model, data):
        for quantized, inputs in ((False, unit.float_inputs), (True, unit.inputs)):
            with model.quantized(weights=quantized, inputs=quantized):
                want = (
                    x if unit.name == model.partial.from_images else entering(model, unit.name, x)
                )
            assert torch.equal(inputs, want), unit.title
        with model.quantized(weights=False, inputs=False), torch.no_grad():
            assert torch.equal(unit(unit.float_inputs), unit.targets), unit.title
            answers = unit.answers(x, unit.targets)
            assert torch.allclose(answers, model(x), atol=1e-5), unit.title


def entering(model: QuantModel, name: str, images: Tensor) -> Tensor:
    """What a module is given in a pass over all images, images first; by a hook of its own."""
    seen = list[Tensor]()

    def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(model.partial.ends[name].given.read((args, kwargs), len(images)).clone())

    hook = model.net.get_submodule(name).register_forward_pre_hook(
        look, with_kwargs=True, prepend=True
    )
    with torch.no_grad():
        model(images)
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("net", ["two tensors", "attribute", "uncut", "adds to its input"])
def test_layers_alone_are_measured_as_in_whole_passes(net: str) -> None:
    model, x = quantizable(ALL[net]), pictures()
    method("nearest").apply(model, plan(model, 3, 3), calibration(x), ignore)
    rows = measure(model, x, torch.zeros(8))
    assert model.is_sequential
    model.is_sequential = False
    again = measure(model, x, torch.zeros(8))
    assert [r["kl"] for r in rows] == pytest.approx([r["kl"] for r in again], rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("net", ["two tensors", "all before", "attribute"])
def test_importance_of_a_joined_unit_is_autograds_own(net: str) -> None:
    """∂ loss / ∂ output of the joined unit, against a network that is run with a shift of it."""
    model, x = quantizable(JOINED[net][0]), pictures(4)
    data = calibration(x)
    unit = next(u for u in iter_units(model, data) if " … " in u.title)
    ends = model.partial
    shift = torch.zeros_like(unit.targets, requires_grad=True)
    following = JOINED[net][1][JOINED[net][1].index(unit.span) + 1][0]
    module = model.net.get_submodule(following)
    crossing = ends.onward.get(unit.span[-1]) is not None
    target = module if crossing else model.net.get_submodule(unit.span[-1])
    hook = (
        target.register_forward_pre_hook(lambda m, args: (args[0] + shift,))
        if crossing
        else target.register_forward_hook(lambda m, args, y: y + shift)
    )
    logits = model(x)
    hook.remove()
    found = output_gradients(unit, data)
    per_label = torch.stack([
        torch.autograd.grad(F.cross_entropy(logits, torch.full((4,), c), reduction="sum"), shift,
                            retain_graph=True)[0]
        for c in range(CLASSES)
    ])  # fmt: skip
    gaps = (per_label - found).flatten(2).norm(dim=2)  # (label, image): one label fits each image
    assert (gaps.min(0).values <= 1e-4 * per_label.flatten(2).norm(dim=2).max()).all()


# --- modules that run more than once


class Again(Row):
    """The same block twice, and the same layer twice inside of another."""

    class Twice(Plain):
        def branch(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(F.relu(self.a(x)))))

    def __init__(self) -> None:
        super().__init__()
        self.blocks[1] = self.blocks[0]
        self.blocks[2] = self.Twice()


def test_what_runs_twice_is_learned_from_both_inputs_and_said() -> None:
    model, x = quantizable(Again), pictures()
    assert model.units() == ["stem", "blocks.0", "blocks.2", "head"]
    assert any("blocks.0 runs 2 times" in note and "all of them" in note for note in model.notes)
    assert any("blocks.2.a runs 2 times" in note for note in model.notes)
    units = {unit.name: unit for unit in iter_units(model, calibration(x))}
    assert len(units["blocks.0"].inputs) == 2 * len(x)
    with model.quantized(weights=False, inputs=False):
        assert torch.equal(units["blocks.0"].float_inputs, entering(model, "blocks.0", x))
    layers = {unit.title: unit for unit in iter_units(model, calibration(x), by="layer")}
    with model.quantized(weights=False, inputs=False):
        for name in ("blocks.0.a", "blocks.0.b", "blocks.2.a"):
            assert torch.equal(layers[name].float_inputs, entering(model, name, x)), name
    assert len(layers["blocks.2.b"].inputs) == len(x)


@pytest.mark.parametrize("by", ["block", "layer"])
def test_importance_of_each_run_is_its_own(by: str) -> None:
    """A unit that runs twice: the gradient at each of its two outputs, images in their order."""
    model, x = quantizable(Again), pictures(4)
    data = calibration(x)
    unit = next(u for u in iter_units(model, data, by=by) if u.title.startswith("blocks.0"))
    module = model.net.get_submodule(unit.title)
    shift = torch.zeros_like(unit.targets, requires_grad=True)
    runs = iter((0, 1))
    after = module if by == "block" else None
    if after is None:  # the functional activation belongs to nobody: the layer's own output
        after = module
    hook = after.register_forward_hook(
        lambda m, a, y: y + shift[len(x) * (k := next(runs)) : len(x) * (k + 1)]
    )
    logits = model(x)
    hook.remove()
    per_label = torch.stack([
        torch.autograd.grad(F.cross_entropy(logits, torch.full((4,), c), reduction="sum"), shift,
                            retain_graph=True)[0]
        for c in range(CLASSES)
    ])  # fmt: skip
    found = output_gradients(unit, data)
    gaps = (per_label - found).flatten(2).norm(dim=2)
    assert (gaps.min(0).values <= 1e-4 * per_label.flatten(2).norm(dim=2).max()).all()


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
@pytest.mark.parametrize("name", METHODS)
def test_what_runs_twice_is_learned_by_every_method(name: str, placement: str) -> None:
    assert learned(Again, name, placement).isfinite().all()


# --- what the walk must not mix


class Constant(Row):
    """A layer whose input is the same for all images, added to each."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-1, 1, 36).reshape(1, 1, 6, 6))
        self.places = nn.Conv2d(1, WIDTH, 1)

    def body(self, x: Tensor) -> Tensor:
        return super().body(x + self.places(self.grid))


@pytest.mark.parametrize("by", ["block", "layer"])
def test_input_without_images_counts_for_every_image(by: str) -> None:
    model, x = quantizable(Constant), pictures(40)  # more than are carried on at once
    unit = next(u for u in iter_units(model, calibration(x), by=by) if u.title == "places")
    assert unit.inputs.shape == (40, 1, 1, 6, 6)
    assert (unit.inputs == model.net.grid).all()
    assert unit(unit.inputs).shape == unit.targets.shape == (40, 1, WIDTH, 6, 6)


@pytest.mark.parametrize("name", METHODS)
def test_network_with_a_constant_branch_is_learned(name: str) -> None:
    assert learned(Constant, name, "inputs").isfinite().all()
