"""What everything that is found in a folder must do, whoever wrote it."""

import inspect
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from helpers import (
    BLOCKS,
    applied,
    calibration,
    codes,
    method,
    pictures,
    plan,
    quantizable,
    scales,
    settings,
    trained,
)
from torch import Tensor

from qlib.core import params
from qlib.core.records import PHASES, Cancelled, Event, ignore
from qlib.core.registry import discover, names
from qlib.core.scheme import BitPlan, Scheme
from qlib.network.model import QuantModel

METHODS = discover("methods")
OBSERVERS = discover("observers")
ALLOCATORS = discover("allocators")
KINDS = ("methods", "observers", "quantizers", "allocators", "models", "datasets")
EVERYTHING = [(kind, name) for kind in KINDS for name in names(kind)]
SOURCE = r"(?:arXiv )?\d{4}\.\d{4,5}\.?|AAAI 20\d\d\.|[A-Z].*\S\."
RECIPES = [(k, n) for k, n in EVERYTHING if k in ("methods", "observers", "allocators")]


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return set(one) == set(two) and all(torch.equal(one[n], two[n]) for n in one)


# --- describes itself


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_has_a_title_and_a_first_line(kind: str, name: str) -> None:
    cls = discover(kind)[name]
    assert 2 <= len(cls.title) <= 60
    assert "\n" not in cls.title
    assert says_what_it_is(inspect.getmodule(cls).__doc__ or "")
    assert inspect.getdoc(cls)


def says_what_it_is(text: str) -> bool:
    """Is the first line a sentence, with nothing behind it but where it comes from?"""
    first = (text.splitlines() or [""])[0]
    sentence, _, source = first.partition("  ")
    source = source.removeprefix("Paper: ").removeprefix("Study: ")
    told = re.fullmatch(r"[A-Z]\S* .*\S\.", sentence) is not None
    return told and (not source or re.fullmatch(SOURCE, source) is not None)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("Learn to round each weight up or down.", True),
        ("Learn to round each weight up or down.  Paper: arXiv 2004.10568\n\nMore.", True),
        ("One network for many bit-widths.  Paper: AAAI 2024.", True),
        ("", False),
        ("426", False),
        ("A method, found on page 426", False),
        ("Learn to round each weight (arXiv 2004.10568)", False),
        ("Learn to round each weight  arXiv 2004.10568", False),
        ("Learn to round each weight.  To be written", False),
        ("Something.", False),
    ],
)
def test_a_first_line_is_a_sentence_and_its_source(text: str, good: bool) -> None:
    assert says_what_it_is(text) is good


def test_titles_are_told_apart() -> None:
    for kind in KINDS:
        titles = [cls.title for cls in discover(kind).values()]
        assert len(set(titles)) == len(titles), kind


@pytest.mark.parametrize("name", METHODS)
def test_method_says_where_it_comes_from_and_what_it_does(name: str) -> None:
    cls = METHODS[name]
    assert re.search(r"\b(19|20)\d\d\b", cls.paper), "the year"
    assert re.search(r"arXiv \d{4}\.\d{4,5}|doi 10\.\d{4,5}/\S+", cls.paper)
    assert 20 <= len(cls.promise) <= 110
    assert cls.promise.endswith(".")
    assert cls.cost in ("seconds", "minutes")
    assert cls.paper_placement in ("inputs", "boundary")
    cls(**cls.paper_settings)  # as published lies inside the limits


@pytest.mark.parametrize(("kind", "name"), RECIPES)
def test_every_field_has_help_and_a_default_inside_its_limits(kind: str, name: str) -> None:
    cls = discover(kind)[name]
    made = cls()
    known = params.params(cls)
    assert [f.name for f in fields(cls)] == list(known), "a field without help text"
    for p in known.values():
        assert len(p.help) > 8, p.name
        assert p.help[0].isupper(), p.name
        assert p.help.endswith("."), p.name
        if p.type in (int, float):
            assert p.low is not None, f"{p.name} needs a lower limit"
        if p.type is str:
            assert p.choices, f"{p.name} needs its choices"
    with pytest.raises(FrozenInstanceError):
        made.title_of_mine = 1


@pytest.mark.parametrize(("kind", "name"), RECIPES)
def test_limits_are_enforced_and_named(kind: str, name: str) -> None:
    cls = discover(kind)[name]
    for p in params.params(cls).values():
        wrong = ["nonsense" if p.type is not str else 3]
        if p.type in (int, float):
            wrong += [] if p.low is None else [p.type(p.low - 1)]
            wrong += [] if p.high is None else [p.type(p.high + 1)]
            cls(**{p.name: p.type(p.low)})
        for value in wrong:
            text = f"{cls.__name__}.{p.name} must be {p.allowed}; got {value!r}"
            with pytest.raises(ValueError, match=re.escape(text)):
                cls(**{p.name: value})


def test_catalogue_is_read_without_torch() -> None:
    code = (
        "import sys; from qlib.core.registry import discover\n"
        "for kind in ('methods', 'models', 'datasets'): discover(kind)\n"
        "heavy = {'torch', 'torchvision', 'timm', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_sources_own_their_keys_and_no_others(kind: str) -> None:
    found = discover(kind)
    for name, cls in found.items():
        keys = cls.variants()
        assert keys, name
        for key in keys:
            example = re.sub(r"[A-Z]{3,}", "something", key)
            owners = [other for other, c in found.items() if c.owns(example)]
            assert owners == [name], key
        assert not cls.owns("nobody-owns-this")


# --- what every method does


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
@pytest.mark.parametrize("name", METHODS)
def test_off_is_float_and_float_weights_are_untouched(name: str, placement: str) -> None:
    model, x = quantizable(placement), pictures(16)[0]
    weights = {n: p.detach().clone() for n, p in model.net.named_parameters()}
    before = model(x)
    method(name).apply(model, plan(model, 2, 2), calibration(), ignore)
    assert torch.equal(model(x), before)  # nobody switched it on
    after = dict(model.net.named_parameters())
    for key, value in weights.items():
        assert value.numpy().tobytes() == after[key].detach().numpy().tobytes(), key
    want = trained()(x)
    assert (before - want).abs().max() <= 1e-5 * want.abs().max()
    model.switch(weights=True, inputs=True)
    assert not torch.equal(model(x), before)
    model.switch(weights=False, inputs=False)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("bits", [(2, 2), (3, 8), (8, 8)])
@pytest.mark.parametrize("name", METHODS)
def test_hard_afterwards(name: str, bits: tuple[int, int]) -> None:
    model = applied(name, bits=bits, steps=6)
    for layer_name, layer in model.weighted().items():
        quantizer = layer.weight_point.quantizer
        scheme = quantizer.scheme
        assert scheme.bits == (8 if layer_name in ("stem", "fc") else bits[0])
        found = quantizer.codes(layer.weight)
        assert torch.equal(found, found.round())
        assert scheme.qmin <= float(found.min())
        assert float(found.max()) <= scheme.qmax
        used = layer.weight_point(layer.weight)
        torch.testing.assert_close(used, quantizer.values(found), rtol=1e-5, atol=1e-6)
        if quantizer.up_or_down:
            split = scheme.granularity.split
            low = (split(layer.weight) / quantizer.scale).floor() + quantizer.zero_point
            low = low.clamp(scheme.qmin, scheme.qmax).reshape(found.shape)
            assert set((found - low).unique().tolist()) <= {0, 1}
        assert quantizer.penalty(2.0) is None
        zero = quantizer.zero_point
        assert torch.equal(zero, zero.round())
    for point in model.points.values():
        assert float(point.quantizer.scale) > 0
    assert not any(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_result_and_global_state_untouched(name: str) -> None:
    found = []
    for other in (11, 22):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(other)
            model, data = quantizable(), calibration(seed=4)
            recipe, made = method(name), plan(model, 3, 4)
            before = torch.get_rng_state()
            recipe.apply(model, made, data, ignore)
            assert torch.equal(torch.get_rng_state(), before)
        found.append((codes(model), scales(model)))
    assert same(found[0][0], found[1][0])
    assert same(found[0][1], found[1][1])


@pytest.mark.parametrize("name", METHODS)
def test_events_arrive_in_order(name: str) -> None:
    model, events = quantizable(), []
    recipe = method(name, 4)
    recipe.apply(model, plan(model), calibration(report=events.append), events.append)
    assert events
    assert {e.phase for e in events} <= set(PHASES)
    fitting = [e for e in events if e.phase == "reconstruct"]
    has_steps = any(field.endswith("steps") for field in settings(name))
    assert bool(fitting) == has_steps
    place = (0, 0)
    for event in fitting:
        assert 1 <= event.index <= event.of
        assert 1 <= event.step <= event.steps == 4
        assert event.of in (len(model.units()), len(model.units("layer")))
        assert event.unit in (*model.units(), *model.units("layer"))
        here = (event.index, event.step)
        again = here == (1, 1) and place[0] == event.of  # the next stage begins
        expected = {(place[0], place[1] + 1), (place[0] + 1, 1)}
        assert here in expected or again or (event.step == 1 and event.index > place[0])
        place = here
        assert float(event.loss) >= 0


@pytest.mark.parametrize("name", METHODS)
def test_cancelled_within_one_report(name: str) -> None:
    heard: list[Event] = []

    def stop(event: Event) -> None:
        heard.append(event)
        if len(heard) == 5:
            raise Cancelled

    model = quantizable()
    with pytest.raises(Cancelled):
        method(name).apply(model, plan(model), calibration(report=stop), stop)
    assert len(heard) == 5
    x = pictures(8)[0]
    assert torch.equal(model(x), quantizable()(x))


@pytest.mark.parametrize("name", METHODS)
def test_works_under_no_grad_with_the_same_result(name: str) -> None:
    with torch.no_grad():
        one = applied(name)
    two = applied(name)
    assert same(codes(one), codes(two))
    assert same(scales(one), scales(two))


@pytest.mark.parametrize("name", METHODS)
def test_what_the_plan_leaves_out_stays_float(name: str) -> None:
    model = quantizable()
    full = plan(model)
    weights = {n: s for n, s in full.weights.items() if n.startswith("two")}
    inputs = {n: s for n, s in full.inputs.items() if n.startswith("two")}
    method(name, 3).apply(model, BitPlan(weights, inputs), calibration(), ignore)
    assert set(codes(model)) == set(weights)
    assert set(scales(model)) == set(inputs)
    method(name, 3).apply(model, BitPlan(), calibration(), ignore)
    model.switch(weights=True, inputs=True)
    x = pictures(8)[0]
    assert torch.equal(model(x), quantizable()(x))


@pytest.mark.parametrize("name", METHODS)
def test_one_image_and_one_unit_are_enough(name: str) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    x = pictures(2)[0]
    model = QuantModel(net, x)
    data = calibration(x[:1])
    method(name, 2).apply(model, plan(model, 4, 4, "same"), data, ignore)
    model.switch(weights=True, inputs=True)
    assert torch.isfinite(model(x)).all()


# --- allocators


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
@pytest.mark.parametrize("name", ALLOCATORS)
def test_allocators_name_points_that_exist(name: str, placement: str) -> None:
    model = QuantModel(trained(), pictures(2)[0], BLOCKS, placement)
    made = ALLOCATORS[name]().allocate(model, Scheme(4), Scheme(6))
    assert set(made.weights) <= set(model.weighted())
    assert set(made.inputs) <= set(model.points)
    assert made.weights
    assert made.inputs
    assert all(2 <= s.bits <= 16 for s in [*made.weights.values(), *made.inputs.values()])
