"""What each unit sees while networks are walked, against running the whole network again."""

import copy
from collections import Counter

import pytest
import torch
from helpers import BLOCKS, calibration, method, pictures, plan, quantizable
from helpers_nets import images, tiny
from test_model import Skipping, of_family
from torch import Tensor, nn

from qlib.core.functional import qparams
from qlib.core.records import Event
from qlib.core.scheme import BitPlan, Scheme
from qlib.learning.calibration import Calibration
from qlib.learning.fisher import output_gradients
from qlib.learning.units import Unit
from qlib.learning.walk import iter_units
from qlib.network.model import QuantModel
from qlib.observers.minmax import MinMax

FLAGS = [(True, True), (True, False), (False, True), (False, False)]


def seen(model: QuantModel, module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a module while the whole network runs on ``x``, as it is switched."""
    found = []
    hook = module.register_forward_hook(lambda m, args, out: found.append((args[0], out)))
    with torch.no_grad():
        model(x)
    hook.remove()
    return found[0]


def before_boundary(model: QuantModel, name: str, x: Tensor) -> Tensor:
    """Input of a module as its neighbour hands it over, before any point of its own."""
    found = []
    module = model.net.get_submodule(name)
    hook = module.register_forward_pre_hook(lambda m, args: found.append(args[0]), prepend=True)
    with torch.no_grad():
        model(x)
    hook.remove()
    return found[0]


def near(one: Tensor, two: Tensor) -> None:
    assert one.shape == two.shape
    assert (one - two).abs().max() <= 1e-4 * two.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize(("weights", "inputs"), FLAGS)
@pytest.mark.parametrize("placement", ["inputs", "boundary"])
def test_blocks_see_what_the_whole_network_shows(
    placement: str, weights: bool, inputs: bool
) -> None:
    model, data = quantizable(placement), calibration()
    data.attach(model, plan(model, 3, 3))
    names = []
    for unit in iter_units(model, data, weights=weights, inputs=inputs):
        names.append(unit.name)
        assert (unit.index, unit.of, unit.title) == (len(names), 4, unit.name)
        assert all(p.on == inputs for p in model.points.values())
        assert all(m.weight_point.on == weights for m in model.weighted().values())
        near(unit.inputs, before_boundary(model, unit.name, data.images))
        module = model.net.get_submodule(unit.name)
        with model.quantized(weights=False, inputs=False):
            float_in, float_out = seen(model, module, data.images)
        near(unit.float_inputs, float_in)
        near(unit.targets, float_out)
        assert list(unit.layers) == model.layers_of(unit.name)
        assert unit.boundary is model.boundaries.get(unit.name)
        near(unit(unit.inputs), seen(model, module, data.images)[1])
    assert names == model.units()
    if weights or inputs:
        assert not torch.equal(unit.inputs, unit.float_inputs)


@pytest.mark.parametrize(("weights", "inputs"), FLAGS[:2])
@pytest.mark.parametrize("family", ["tiny", "vit", "unknown"])
def test_layers_see_what_the_whole_network_shows(family: str, weights: bool, inputs: bool) -> None:
    model = quantizable() if family == "tiny" else of_family(family)
    data = calibration(None if family == "tiny" else images(family, 20))
    data.attach(model, plan(model, 3, 3))
    names = []
    for unit in iter_units(model, data, by="layer", weights=weights, inputs=inputs):
        names.append(unit.layer)
        assert (unit.index, unit.of) == (len(names), len(model.weighted()))
        assert list(unit.layers) == [unit.layer]
        near(unit.inputs, before_boundary(model, unit.layer, data.images))
        act = model.activation[unit.layer] or nn.Identity()
        with model.quantized(weights=False, inputs=False):
            float_in, float_out = seen(model, model.layers[unit.layer], data.images)
            near(unit.float_inputs, float_in)
            near(unit.targets, act(float_out))
            near(unit(unit.float_inputs), unit.targets)
    assert names == model.units("layer")


def test_change_to_a_unit_is_carried_on() -> None:
    """What a method does to a unit while it is visited shows in the inputs of the next."""
    model, data = quantizable(), calibration()
    data.attach(model, plan(model, 4, 4))
    for unit in iter_units(model, data):
        near(unit.inputs, before_boundary(model, unit.name, data.images))
        for layer in unit.weighted:
            point = layer.weight_point
            point.fill(type(point.quantizer).of_range(
                *(torch.full_like(point.quantizer.scale, v) for v in (-0.3, 0.3)), Scheme(2)
            ))  # fmt: skip


def test_changes_inside_a_block_reach_its_next_layer() -> None:
    model, data = quantizable(), calibration()
    data.attach(model, plan(model, 4, 4))
    for unit in iter_units(model, data, by="layer"):
        near(unit.inputs, before_boundary(model, unit.layer, data.images))
        (layer,) = unit.weighted
        layer.weight_point.fill(None)


def test_network_that_is_no_chain_is_run_from_the_images() -> None:
    x = pictures(20)[0]
    net = Skipping().eval().requires_grad_(False)
    model = QuantModel(net, x[:2], BLOCKS)
    data = calibration(x)
    data.attach(model, plan(model, 3, 3, "same"))
    names = []
    for unit in iter_units(model, data):
        names.append(unit.name)
        near(unit.inputs, before_boundary(model, unit.name, x))
        with model.quantized(weights=False, inputs=False):
            float_in, float_out = seen(model, model.net.get_submodule(unit.name), x)
        near(unit.float_inputs, float_in)
        near(unit.targets, float_out)
    assert names == ["stem", "one", "two", "fc"]


def unit_calls(depth: int) -> int:
    """How often blocks of a chain run while it is walked."""
    blocks = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
              for _ in range(depth)]  # fmt: skip
    net = nn.Sequential(*blocks).eval()
    x = pictures(32)[0]
    model = QuantModel(net, x[:2], [str(i) for i in range(depth)])
    data = calibration(x)
    data.attach(model, plan(model, 4, 4, "same"))
    counted = Counter()
    for name, layer in model.weighted().items():
        layer.register_forward_hook(lambda *_, name=name: counted.update([name]))
    for _ in iter_units(model, data):
        pass
    return sum(counted.values())


def test_work_grows_linearly_with_depth() -> None:
    few, some, many = (unit_calls(depth) for depth in (3, 6, 12))
    assert many - some == 2 * (some - few)
    assert some - few == 3 * 2 * 2 * 2  # blocks · layers · streams · batches


def test_ranges_are_those_of_the_float_activations() -> None:
    model, data = quantizable(), calibration()
    data.attach(model, plan(model, 4, 4))
    for name, point in model.points.items():
        module = model.layers[name.removesuffix(".input")]
        with model.quantized(weights=False, inputs=False):
            x, _ = seen(model, module, data.images)
        bits = 8 if name in ("stem.input", "fc.input") else 4
        scale, zero = qparams(x.min(), x.max(), Scheme(bits))
        torch.testing.assert_close(point.quantizer.scale.data, scale)
        assert float(point.quantizer.zero_point) == float(zero)
    for layer in model.weighted().values():
        rows = layer.weight.flatten(1)
        scheme = layer.weight_point.quantizer.scheme
        scale, _ = qparams(rows.amin(1), rows.amax(1), scheme)
        torch.testing.assert_close(layer.weight_point.quantizer.scale.flatten().data, scale)


def test_ranges_of_the_network_with_quantized_weights() -> None:
    model, data = quantizable(), calibration()
    made = plan(model, 2, 4)
    data.attach(model, made)
    before = model.points["two.conv2.input"].quantizer.scale.clone()
    data.attach_inputs(model, made, weights_quantized=True)
    with model.quantized(weights=True, inputs=False):
        x, _ = seen(model, model.layers["two.conv2"], data.images)
    scale, _ = qparams(x.min(), x.max(), Scheme(4))
    after = model.points["two.conv2.input"].quantizer.scale
    torch.testing.assert_close(after.data, scale)
    assert not torch.equal(after, before)
    data.attach_inputs(model, made)  # and the float ones were not forgotten
    assert torch.equal(model.points["two.conv2.input"].quantizer.scale, before)


def test_histograms_of_the_float_network_are_made_once() -> None:
    model, data = quantizable(), calibration()
    first = data.histograms(model)
    assert data.histograms(model) is first
    assert set(first) == set(model.points)


def test_calibration_tells_how_far_it_is() -> None:
    events: list[Event] = []
    model = quantizable()
    calibration(report=events.append).attach(model, plan(model))
    assert {e.phase for e in events} == {"calibrate"}
    assert [e.index for e in events if e.note == "weights"] == list(range(1, 8))
    assert [e.of for e in events if e.note == "activations"] == [32, 32]


# --- gradients of the loss


def softmax_net(classes: int = 4, width: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Flatten(), nn.Linear(width, 6), nn.Tanh(), nn.Linear(6, classes))
    return net.eval().requires_grad_(False)


def test_mean_square_of_gradients_is_the_fisher_diagonal() -> None:
    """F = Jᵀ(diag p − p pᵀ)J for logits with Jacobian J in the unit's output."""
    torch_net = softmax_net()
    torch_net[3].weight *= 3  # far from uniform predictions
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(3, 3, generator=rng)
    draws = 4000
    model = QuantModel(torch_net, x[:2])
    data = Calibration(x.repeat_interleave(draws, 0), rng, MinMax(), MinMax(), batch=3000)
    unit = next(iter_units(model, data))
    assert unit.name == "1"
    squares = output_gradients(unit, data).square().reshape(3, draws, 6).mean(1)
    hidden = torch_net[1](x)
    for i in range(3):
        p = torch_net[3](torch.tanh(hidden[i])).softmax(0)
        jacobian = torch_net[3].weight * (1 - torch.tanh(hidden[i]) ** 2)
        exact = (jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian).diag()
        torch.testing.assert_close(squares[i], exact, rtol=0.15, atol=0.02)


def test_mean_gradient_is_zero_and_follows_the_generator() -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(5)).repeat_interleave(3000, 0)
    model = QuantModel(softmax_net(), x[:2])
    found = []
    for seed in (1, 1, 2):
        data = Calibration(x, torch.Generator().manual_seed(seed), MinMax(), MinMax(), batch=2000)
        with torch.no_grad():
            found.append(output_gradients(next(iter_units(model, data)), data))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    mean = found[0].reshape(2, 3000, 6).mean(1)
    assert mean.abs().max() < 0.05


def assert_each_is_of_one_label(found: Tensor, per_label: Tensor) -> None:
    """Each image's gradient is that of some label; ``per_label``: (labels, *found.shape).

    Zeros would fail: no label's gradient is near them.
    """
    size = per_label.flatten(2).norm(dim=2)
    assert size.min() > 0.01, "an image whose answer is certain tells nothing"
    gap = (per_label - found).flatten(2).norm(dim=2).amin(0)
    assert (gap < 1e-3 * size.amin(0)).all()


def test_gradients_are_those_of_a_drawn_label_by_finite_differences() -> None:
    net, x = softmax_net(), torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    model = QuantModel(net, x[:2])
    data = Calibration(x, torch.Generator().manual_seed(0), MinMax(), MinMax())
    unit = next(iter_units(model, data))
    found = output_gradients(unit, data)
    exact, step = copy.deepcopy(net).double(), 1e-5

    def losses(y: Tensor) -> Tensor:
        """(labels, n) cross-entropies for what the unit returns."""
        return -exact[3](torch.tanh(y)).log_softmax(1).T

    y = unit.targets.double()
    ways = step * torch.eye(6, dtype=torch.float64)
    slopes = [(losses(y + way) - losses(y - way)) / (2 * step) for way in ways]
    per_label = torch.stack(slopes, 2)
    assert_each_is_of_one_label(found, per_label)
    drawn = (per_label - found).norm(dim=2).argmin(0)
    assert set(drawn.tolist()) == {0, 1, 2, 3}  # and not always the likeliest


def test_gradients_of_a_network_that_is_no_chain() -> None:
    """The tensor that jumps over a block must count: compare with autograd on the network."""
    x = pictures(6)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Skipping().eval().requires_grad_(False)
    net.fc.weight *= 4
    model = QuantModel(net, x[:2], BLOCKS)
    assert not model.is_sequential
    data = calibration(x)
    unit = next(u for u in iter_units(model, data) if u.name == "two")
    found = output_gradients(unit, data)
    stem = net.stem(x)
    y = net.two(net.one(stem)).requires_grad_(True)
    logits = net.fc((y + stem).mean((2, 3)))
    per_label = torch.stack([
        torch.autograd.grad(nn.functional.cross_entropy(
            logits, torch.full((6,), c), reduction="sum"), y, retain_graph=True)[0]
        for c in range(5)
    ])  # fmt: skip
    assert_each_is_of_one_label(found, per_label)


# --- units


def test_unit_knows_its_quantizers_and_channels() -> None:
    model, data = quantizable("boundary"), calibration()
    data.attach(model, plan(model))
    units = {unit.name: unit for unit in iter_units(model, data)}
    assert [units[n].channels for n in ("stem", "one", "two", "fc")] == [8, 8, 12, 5]
    one: Unit = units["one"]
    assert len(one.weighted) == 2
    assert one.points() == [model.points["one.boundary"], model.points["one.conv2.input"]]
    assert len(one.quantizers()) == 4
    assert len(units["stem"].quantizers()) == 1  # the image is left alone


def test_points_that_are_out_of_use_are_not_learned() -> None:
    model, data = quantizable("boundary"), calibration()
    full = plan(model)
    data.attach(model, BitPlan(full.weights, {}))
    unit = list(iter_units(model, data))[1]
    assert model.layers["one.conv1"].input_point not in unit.points()
    assert len(unit.quantizers()) == 2


def test_methods_run_on_a_network_with_two_heads() -> None:
    x = images("deit", 16)
    net = tiny("deit")
    model = QuantModel(net, x[:2], ("blocks.0", "blocks.1"))
    assert not model.is_sequential
    method("qdrop", 3).apply(model, plan(model), calibration(x), lambda event: None)
    model.switch(weights=True, inputs=True)
    assert torch.isfinite(model(x)).all()
