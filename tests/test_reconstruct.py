"""The optimisation loop against brute force, hand-made examples and a loop written out plainly."""

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from qlib.core.records import Event, InvalidSpec, ignore
from qlib.core.scheme import Scheme
from qlib.learning.objective import OutputError
from qlib.learning.reconstruct import BetaSchedule, FitSettings, Rate, reconstruct
from qlib.learning.units import LayerUnit
from qlib.network.attention import MatMul
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer, QuantMatMul, multiplying
from qlib.quantizers.soft_round import SoftRound
from qlib.quantizers.uniform import Uniform


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_unit(weight: list[list[float]], x: Tensor, scale: float = 1.0) -> LayerUnit:
    """One linear layer on a grid with a known step, ready to be reconstructed."""
    net = nn.Sequential(nn.Linear(x.shape[1], len(weight), bias=False))
    net[0].weight.data = torch.tensor(weight)
    model = QuantModel(net, x[:2])
    layer = model.layers["0"]
    scheme = Scheme(4, symmetric=True)
    nearest = Uniform(torch.tensor(scale), torch.tensor(0.0), scheme)
    layer.weight_point.fill(SoftRound.from_nearest(nearest, layer.weight))
    model.switch(weights=True, inputs=True)
    targets = x @ torch.tensor(weight).T
    return LayerUnit(model=model, name="0", layers={"0": layer}, inputs=x, float_inputs=x,
                     targets=targets, layer="0")  # fmt: skip


def fitted(unit: LayerUnit, steps: int = 600, penalty: float = 0.01, rate: float = 1e-2,
           seed: int = 0, beta_schedule: BetaSchedule = BetaSchedule()) -> Tensor:  # fmt: skip  # noqa: B008
    settings = FitSettings({"rounding": Rate(rate)}, steps, penalty=penalty,
                           beta_schedule=beta_schedule)  # fmt: skip
    reconstruct(unit, settings, generator=rng(seed), report=ignore)
    layer = unit.layers["0"]
    return layer.weight_point.quantizer.codes(layer.weight)


# --- rounding, learned


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(("weight", "want"), [((0.45, 0.35), (1, 0)), ((0.3, 0.45), (0, 1))])
def test_two_weights_on_the_same_input(weight: tuple, want: tuple, cosine: bool) -> None:
    """Nearest gives (0, 0), which loses 0.8 or 0.75 of the sum; one up and one down lose less."""
    x = torch.randn(256, 1, generator=rng(1)).expand(-1, 2).contiguous()
    unit = linear_unit([list(weight)], x)
    layer = unit.layers["0"]
    nearest = Uniform(torch.tensor(1.0), torch.tensor(0.0), Scheme(4, symmetric=True))
    assert nearest.codes(layer.weight).tolist() == [[0, 0]]
    codes = fitted(unit, steps=1000, beta_schedule=BetaSchedule(cosine=cosine))
    assert codes.tolist() == [list(want)]


@pytest.mark.parametrize(("share", "seed"), [(0.5, 1), (0.5, 5), (0.8, 0), (0.8, 1), (0.8, 5)])
def test_six_weights_against_all_roundings(share: float, seed: int) -> None:
    common = torch.randn(512, 1, generator=rng(seed))
    x = share * common + (1 - share) * torch.randn(512, 6, generator=rng(seed + 10))
    weight = (torch.rand(6, generator=rng(seed + 20)) * 4 - 2).tolist()
    floor = [math.floor(w) for w in weight]

    def error(codes: list[float]) -> float:
        gap = x.double() @ (torch.tensor(codes) - torch.tensor(weight)).double()
        return float(gap.square().mean())

    choices = itertools.product((0, 1), repeat=6)
    best = min(error([f + u for f, u in zip(floor, up, strict=True)]) for up in choices)
    nearest = error([float(round(w)) for w in weight])
    unit = linear_unit([weight], x)
    found = error(fitted(unit, steps=1000, penalty=0.1)[0].tolist())
    assert nearest > 1.05 * best, "the example must leave something to learn"
    assert found <= 1.05 * best + 1e-9
    assert found < nearest


def test_decorrelated_inputs_leave_nearest_as_the_best() -> None:
    x = torch.randn(2048, 8, generator=rng(3))
    x = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(2048)  # E[x xᵀ] = identity
    weight = (torch.rand(3, 8, generator=rng(4)) * 6 - 3).tolist()
    codes = fitted(linear_unit(weight, x), steps=800)
    clear = (torch.tensor(weight).frac().abs() - 0.5).abs() > 0.05
    assert clear.float().mean() > 0.7
    assert torch.equal(codes[clear], torch.tensor(weight).round()[clear])


def test_rounding_is_hard_afterwards() -> None:
    x = torch.randn(64, 4, generator=rng(3))
    unit = linear_unit([[0.3, 0.5, -0.4, 1.7]], x)
    fitted(unit, steps=20)
    layer = unit.layers["0"]
    quantizer = layer.weight_point.quantizer
    assert not quantizer.soft
    with torch.no_grad():
        y = layer.weight_point(layer.weight)
    assert torch.equal(y, y.round())
    assert not any(p.requires_grad for p in quantizer.parameters())


def test_loop_is_the_plain_loop_with_autograd() -> None:
    """Adam on mean |Δ|² summed over channels plus λ·Σ(1 − |2h − 1|^β), step by step."""
    x = torch.randn(64, 5, generator=rng(1)) @ torch.randn(5, 5, generator=rng(2))
    weight = (torch.rand(3, 5, generator=rng(3)) * 6 - 3).tolist()
    unit = linear_unit(weight, x)
    layer = unit.layers["0"]
    soft = layer.weight_point.quantizer
    v = soft.up.detach().clone().requires_grad_()
    floor = torch.tensor(weight).floor()
    optimizer, draws, steps = torch.optim.Adam([v], lr=0.05), rng(7), 40
    losses = []
    for step in range(steps):
        at = torch.randint(64, (16,), generator=draws)
        h = (torch.sigmoid(v) * 1.2 - 0.1).clamp(0, 1)
        y = x[at] @ (floor + h).clamp(-8, 7).T
        error = (y - unit.targets[at]).square().sum(1).mean()
        loss = error
        if step >= 8:
            beta = 20 - 18 * (step - 8) / 32
            loss = error + 0.3 * (1 - (2 * h - 1).abs().pow(beta)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(error.detach()))
    events: list[Event] = []
    kept = {}
    harden = soft.harden
    soft.harden = lambda: (kept.update(v=soft.up.detach().clone()), harden())
    settings = FitSettings({"rounding": Rate(0.05)}, steps, batch=16, penalty=0.3)
    reconstruct(unit, settings, generator=rng(7), report=events.append)
    torch.testing.assert_close(kept["v"], v.detach(), rtol=1e-3, atol=1e-4)
    assert [float(e.loss) for e in events] == pytest.approx(losses, rel=1e-3)
    want = (v.detach() >= 0).float()
    assert torch.equal(soft.codes(layer.weight), floor + want)


def test_error_sums_over_channels_and_averages_over_the_rest() -> None:
    """(2, 3, 4, 4) outputs, three channels: Σ over channels, mean over images and places."""
    net = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False)).requires_grad_(False)
    x = torch.randn(10, 2, 4, 4, generator=rng(1))
    model = QuantModel(net, x[:2])
    layer = model.layers["0"]
    nearest = Uniform(torch.tensor(0.5), torch.tensor(0.0), Scheme(3, symmetric=True))
    for power, importance in ((2.0, None), (2.4, None), (2.0, torch.rand(10, 3, 4, 4))):
        layer.weight_point.fill(SoftRound.from_nearest(nearest, layer.weight))
        model.switch(weights=True, inputs=False)
        targets = torch.randn(10, 3, 4, 4, generator=rng(2))
        unit = LayerUnit(model=model, name="0", layers={"0": layer}, inputs=x, float_inputs=x,
                     targets=targets, layer="0")  # fmt: skip
        at = torch.randint(10, (4,), generator=rng(5))
        size = (layer(x[at]) - targets[at]).abs().pow(power)
        want = (size if importance is None else size * importance[at]).sum(1).mean()
        events: list[Event] = []
        settings = FitSettings({"rounding": Rate(1e-3)}, steps=1, batch=4)
        error = OutputError(unit, power=power, importance=importance)
        reconstruct(unit, settings, generator=rng(5), report=events.append, objective=error)
        assert float(events[0].loss) == pytest.approx(float(want), rel=1e-4)


def test_a_unit_may_stop_once_its_choices_are_made() -> None:
    """The same steps until then."""
    x = torch.randn(256, 6, generator=rng(1))
    weight = [[0.45, 0.35, -0.3, 1.2, -0.7, 0.1]]

    def learned(**changes: object) -> tuple[Tensor, list[int]]:
        unit, events = linear_unit(weight, x), []
        settings = FitSettings({"rounding": Rate(3e-2)}, steps=1000, penalty=1.0, **changes)
        reconstruct(unit, settings, generator=rng(), report=events.append)
        layer = unit.layers["0"]
        assert not layer.weight_point.quantizer.soft
        return layer.weight_point.quantizer.codes(layer.weight), [e.step for e in events]

    _, every = learned()
    _, some = learned(early_stop_undecided=0.2)  # five of six
    assert every[-1] == 1000
    assert 500 < some[-1] < 1000
    assert some == every[: len(some)]
    nearest = torch.tensor([[0.0, 0, 0, 1, -1, 0]])
    codes, few = learned(early_stop_undecided=1.0)
    assert few[-1] == 201  # as soon as the penalty has begun
    assert torch.equal(codes, nearest)  # soft values stood where they had started


def test_activation_scale_is_learned_and_cooled() -> None:
    """A scale that is twice too large finds its way; the rate falls to zero as a cosine."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False)).requires_grad_(False)
    net[0].weight.copy_(torch.eye(4))
    x = torch.rand(256, 4, generator=rng(1))
    model = QuantModel(net, x[:2])
    layer = model.layers["0"]
    layer.input_point.quantizer = Uniform(torch.tensor(2 / 15), torch.tensor(0.0), Scheme(4))
    model.switch(weights=False, inputs=True)
    unit = LayerUnit(model=model, name="0", layers={"0": layer}, inputs=x, float_inputs=x,
                     targets=x.clone(), layer="0")  # fmt: skip
    before = float((layer(x) - x).square().mean())
    moved = [2 / 15]
    scale = layer.input_point.quantizer.scale
    settings = FitSettings({"act_scale": Rate(2e-3, cosine=True)}, steps=100)
    watch = lambda event: moved.append(float(scale.detach()))  # noqa: E731
    reconstruct(unit, settings, generator=rng(), report=watch)
    after = float((layer(x) - x).square().mean())
    assert after < 0.5 * before
    assert float(scale) == pytest.approx(1 / 15, rel=0.2)
    jumps = [abs(b - a) for a, b in itertools.pairwise(moved)]
    assert jumps[0] == pytest.approx(2e-3, rel=1e-3)  # Adam's first step is the rate
    assert max(jumps[-5:]) < 2e-3 * 0.05


# --- the schedule of β


def test_beta_by_hand() -> None:
    linear, cosine, steps = BetaSchedule(), BetaSchedule(cosine=True), 20_000
    assert linear.beta(0, steps) is None
    assert linear.beta(3999, steps) is None
    assert linear.beta(4000, steps) == 20
    assert cosine.beta(4000, steps) == 20
    for step, straight, curved in ((8000, 15.5, 17.364), (12000, 11, 11), (16000, 6.5, 4.636)):
        assert linear.beta(step, steps) == pytest.approx(straight, abs=1e-3)
        assert cosine.beta(step, steps) == pytest.approx(curved, abs=1e-3)
    assert linear.beta(steps, steps) == pytest.approx(2)
    assert cosine.beta(steps, steps) == pytest.approx(2)


# --- events and trouble


def test_every_step_is_reported() -> None:
    unit = linear_unit([[0.3, 0.6]], torch.randn(64, 2, generator=rng(1)))
    events: list[Event] = []
    settings = FitSettings({"rounding": Rate(1e-2)}, steps=120, penalty=0.1)
    reconstruct(unit, settings, generator=rng(), report=events.append)
    assert [e.step for e in events] == list(range(1, 121))
    assert {(e.phase, e.unit, e.index, e.of, e.steps) for e in events} == {
        ("reconstruct", "0", 1, 1, 120)
    }
    assert all(math.isfinite(float(e.loss)) for e in events)
    assert events[10].penalty is None  # warm-up
    assert float(events[-1].penalty) >= 0


def test_no_steps_or_nothing_to_learn_still_hardens() -> None:
    for steps, rate in ((0, 1e-2), (5, 0.0)):
        unit = linear_unit([[0.3, 0.6, -0.7]], torch.randn(64, 3, generator=rng(1)))
        events: list[Event] = []
        settings = FitSettings({"rounding": Rate(rate)}, steps, penalty=0.1)
        reconstruct(unit, settings, generator=rng(), report=events.append)
        quantizer = unit.layers["0"].weight_point.quantizer
        assert not quantizer.soft
        assert quantizer.codes(unit.layers["0"].weight).tolist() == [[0, 1, -1]]
        assert events == []


def test_works_when_the_caller_has_gradients_off() -> None:
    x = torch.randn(256, 1, generator=rng(1)).expand(-1, 2).contiguous()
    unit = linear_unit([[0.45, 0.35]], x)
    with torch.no_grad():
        assert fitted(unit, steps=1000).tolist() == [[1, 0]]
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_no_number_is_refused(bad: float) -> None:
    unit = linear_unit([[0.3, 0.6]], torch.randn(64, 2, generator=rng(1)))
    unit.targets[:] = bad
    text = r"The loss of 0 \(unit 1 of 1\) is (nan|inf) at iteration 1;.*Try a smaller"
    with pytest.raises(InvalidSpec, match=text):
        fitted(unit)
    assert not any(p.requires_grad for p in unit.quantizers()[0].parameters())


def test_gradients_and_flags_are_gone_after_a_cancelled_run() -> None:
    unit = linear_unit([[0.3, 0.6]], torch.randn(64, 2, generator=rng(1)))

    def stop(event: Event) -> None:
        if event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        settings = FitSettings({"rounding": Rate(1e-2)}, steps=50)
        reconstruct(unit, settings, generator=rng(), report=stop)
    (quantizer,) = unit.quantizers()
    assert quantizer.up.grad is None
    assert not quantizer.up.requires_grad
    assert torch.isfinite(unit(unit.inputs)).all()


# --- products in bfloat16


@pytest.mark.parametrize("kind", ["linear", "conv", "matmul"])
def test_bfloat16_rounds_the_operands_of_a_product_and_nothing_else(kind: str) -> None:
    g = rng(3)
    if kind == "matmul":
        layer, of = QuantMatMul(MatMul()), [torch.randn(2, 3, 4, 5, generator=g) for _ in "ab"]
        of[1] = of[1].transpose(-2, -1)
        want = of[0].bfloat16() @ of[1].bfloat16()
    else:
        inner = nn.Linear(6, 4) if kind == "linear" else nn.Conv2d(3, 4, 3)
        layer = QuantLayer(inner.requires_grad_(False))
        of = [torch.randn((2, 6) if kind == "linear" else (2, 3, 5, 5), generator=g)]
        want = copy.deepcopy(inner).bfloat16()(of[0].bfloat16())
    before = layer(*of)
    with multiplying([layer], torch.bfloat16):
        inside = layer(*of)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, want.float())
    assert not torch.equal(inside, before)
    assert torch.equal(layer(*of), before)
    with multiplying([layer], torch.float32):
        assert torch.equal(layer(*of), before)


@pytest.mark.parametrize(("weight", "want"), [((0.45, 0.35), (1, 0)), ((0.3, 0.45), (0, 1))])
def test_rounding_is_learned_in_bfloat16_too(weight: tuple, want: tuple) -> None:
    x = torch.randn(256, 1, generator=rng(1)).expand(-1, 2).contiguous()
    unit = linear_unit([list(weight)], x)
    unit.arithmetic = torch.bfloat16
    assert fitted(unit, steps=1000).tolist() == [list(want)]
    assert unit.layers["0"].arithmetic is None  # outside the loop everything is in float32
