"""PTMQ's limits, its parts on tiny tensors, switching, and what is stored."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    applied,
    calibration,
    codes,
    method,
    pictures,
    plan,
    quantizable,
    scales,
    trained,
)
from torch import Tensor

from qlib.core.functional import KeepMask
from qlib.core.records import InvalidSpec, ignore
from qlib.core.scheme import BitPlan, Scheme
from qlib.methods._gradient.multibit_mixer import Mixing, _blend
from qlib.methods.ptmq import PTMQ
from qlib.network import switching
from qlib.network.model import QuantModel
from qlib.pipeline import quantizer_file
from qlib.pipeline.quantizer_file import FILE
from qlib.quantizers.shared_round import SharedRound, pack, unpack
from qlib.quantizers.switchable import Switchable
from qlib.quantizers.uniform import Uniform

WIDTHS = (3, 4, 5, 6, 7, 8)


def answers(model: QuantModel) -> Tensor:
    with torch.no_grad():
        return model(pictures(16)[0])


def at_each(model: QuantModel) -> dict[int, Tensor]:
    found = {}
    with switching.keeping(model):
        for bits in switching.bit_widths(model):
            switching.set_bits(model, bits)
            found[bits] = answers(model)
    return found


# --- limits


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_one_width_is_qdrop_to_the_bit(placement: str, keep: float) -> None:
    one = applied("qdrop", placement=placement, steps=25, quant_prob=keep)
    two = applied("ptmq", placement=placement, steps=25, quant_prob=keep, lowest=4, highest=4)
    assert torch.equal(answers(one), answers(two))
    assert all(torch.equal(codes(one)[n], codes(two)[n]) for n in codes(one))
    assert all(torch.equal(scales(one)[n], scales(two)[n]) for n in scales(one))


@pytest.mark.parametrize("shares", [(0.4, 0.3), (0.2, 0.5)])
def test_one_width_does_not_ask_for_shares(shares: tuple[float, float]) -> None:
    low, middle = shares
    one = applied("qdrop", steps=10)
    two = applied("ptmq", steps=10, lowest=4, highest=4, low_share=low, middle_share=middle)
    assert torch.equal(answers(one), answers(two))


def test_learned_at_the_highest_width_alone_is_qdrop_there() -> None:
    one = applied("qdrop", steps=15, bits=(8, 8))
    two = applied("ptmq", steps=15, bits=(8, 8), learned_at="highest", start="highest")
    assert torch.equal(answers(one), answers(two))
    assert switching.bit_widths(two) == WIDTHS


def test_float_inputs_alone_when_nothing_is_kept() -> None:
    """keep 0 and no dropping inside: units are fitted on the float network's own features."""
    seen = []
    model, data = quantizable(), calibration()
    recipe = method("ptmq", 3, quant_prob=0.0, drop_inside=False)
    original = Mixing._input

    def spy(self: Mixing, at: Tensor, drawn: list[int]) -> Tensor:
        x = original(self, at, drawn)
        seen.append(torch.equal(x, self.unit.float_inputs[at]))
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mixing, "_input", spy)
        recipe.apply(model, plan(model), data, ignore)
    assert len(seen) == 3 * len(model.units())
    assert all(seen)


# --- the mixer and the loss


def _mixing(features: dict[int, Tensor], clean: Tensor, **changes: object) -> Mixing:
    unit = SimpleNamespace(inputs_by_bits=features, float_inputs=clean, boundary=None, channels=4,
                           targets=clean)  # fmt: skip
    asked = {
        "groups": ((3,), (5,), (8,)), "shares": (0.5, 0.25, 0.25), "case": "three",
        "quant_prob": 0.5,
        "middle": 1.0, "low": 1.0, "detach": False, "batch": len(clean),
    }  # fmt: skip
    return Mixing(unit, generator=torch.Generator().manual_seed(0), **asked | changes)


@pytest.mark.parametrize("case", ["one", "three"])
def test_mixture_of_equal_features_holds_only_them_and_the_float_one(case: str) -> None:
    clean, other = torch.zeros(64, 4, 8, 8), torch.ones(64, 4, 8, 8)
    mixed = _mixing(dict.fromkeys((3, 5, 8), other), clean, case=case, quant_prob=0.3)
    x = mixed._input(torch.arange(64), [3, 5, 8])
    assert set(x.unique().tolist()) == {0.0, 1.0}
    n = x.numel()
    assert abs(float(x.mean()) - 0.3) < 3 * (0.3 * 0.7 / n) ** 0.5 + 1e-3


def test_cases_mix_what_the_paper_says() -> None:
    shape = (32, 4, 8, 8)
    features = {3: torch.full(shape, 3.0), 5: torch.full(shape, 5.0), 8: torch.full(shape, 8.0)}
    clean, at = torch.zeros(shape), torch.arange(32)
    three = _mixing(features, clean)._input(at, [3, 5, 8])
    assert set(three.unique().tolist()) == {0.0, 0.5 * 3 + 0.25 * 5 + 0.25 * 8}
    two = _mixing(features, clean, case="two")._input(at, [3, 5, 8])
    assert set(two.unique().tolist()) == {3.0, 6.5}  # low, or half middle and half high
    made = _mixing(features, clean, case="one", quant_prob=1.0)
    drawn = [float(made._input(at, [3, 5, 8]).unique()) for _ in range(200)]
    assert set(drawn) == {3.0, 5.0, 8.0}


def test_the_mixture_has_the_error_that_independence_predicts() -> None:
    rng = torch.Generator().manual_seed(1)
    clean = torch.zeros(256, 4, 8, 8)
    errors = {b: 2.0**-b * torch.randn(clean.shape, generator=rng) for b in (3, 5, 8)}
    x = _mixing(errors, clean, quant_prob=0.5)._input(torch.arange(256), [3, 5, 8])
    shares = {3: 0.5, 5: 0.25, 8: 0.25}
    want = 0.5 * sum((shares[b] * 2.0**-b) ** 2 for b in shares)
    assert float(x.square().mean()) == pytest.approx(want, rel=0.05)


def test_blend_of_one_width_is_that_tensor_itself() -> None:
    x = torch.randn(3)
    assert _blend([4, 4, 4], (0.1, 0.2, 0.7), {4: x}) is x
    y = _blend([3, 8, 8], (0.5, 0.25, 0.25), {3: x, 8: torch.zeros(3)})
    torch.testing.assert_close(y, 0.5 * x)


@pytest.mark.parametrize("detach", [False, True])
def test_distillation_loss_and_its_gradients(detach: bool) -> None:
    rng = torch.Generator().manual_seed(2)
    target = torch.randn(4, 4, 2, 2, generator=rng)
    outputs = {b: torch.randn(4, 4, 2, 2, generator=rng).requires_grad_() for b in (3, 5, 8)}
    mixed = _mixing({}, target, middle=0.7, low=0.3, detach=detach)
    found = mixed._distilled([3, 5, 8], outputs, target)
    asked = torch.autograd.grad(found, list(outputs.values()))
    low, middle, high = outputs.values()
    teacher = high.detach() if detach else high
    gaps = {1.0: 0.5 * low + 0.25 * middle + 0.25 * high - target, 0.7: middle - teacher}
    gaps |= {0.3: low - teacher}
    want = sum(weight * gap.square().sum() / (4 * 4) for weight, gap in gaps.items())
    torch.testing.assert_close(found, want)
    for one, two in zip(asked, torch.autograd.grad(want, list(outputs.values())), strict=True):
        torch.testing.assert_close(one, two)


def test_compared_alone_each_drawn_width_counts_by_itself() -> None:
    target = torch.zeros(4, 4, 2, 2)
    features = dict.fromkeys((3, 5, 8), target)
    mixed = _mixing(features, target, alone=True, middle=0.0, low=0.0)
    mixed._output = lambda bits, x: torch.full_like(target, float(bits))
    found = {float(mixed.loss(torch.arange(4))) for _ in range(50)}
    assert found == {4.0 * b * b for b in (3, 5, 8)}


def test_equal_outputs_cost_no_distillation() -> None:
    target = torch.randn(4, 4, 2, 2)
    y = torch.randn(4, 4, 2, 2)
    plain = _mixing({}, target)._distilled([4, 4, 4], {4: y}, target)
    torch.testing.assert_close(plain, (y - target).square().sum() / 16)


def test_masks_are_shared_by_the_passes_of_a_step_and_renewed_for_the_next() -> None:
    mixed = _mixing({}, torch.zeros(4, 4, 8, 8))
    x = torch.zeros(4, 4, 8, 8)
    first = mixed.mask(0, x)
    assert torch.equal(first, mixed.mask(0, x))
    assert not torch.equal(first, mixed.mask(1, x))
    mixed._shared.clear()
    assert not torch.equal(first, mixed.mask(0, x))
    assert isinstance(mixed._masks, KeepMask)


# --- groups, shares, widths


def test_groups_divide_the_widths() -> None:
    made = PTMQ()
    assert made.groups(made.widths(set())) == ((3, 4), (5, 6), (7, 8))
    assert made.widths({2, 4}) == (2, 3, 4, 5, 6, 7, 8)
    assert made.groups((4,)) == ((4,), (4,), (4,))
    assert made.groups((8,)) == ((8,), (8,), (8,))
    assert made.groups((3, 8)) == ((3,), (3,), (8,))
    assert PTMQ(learned_at="highest").groups((3, 4, 8)) == ((8,), (8,), (8,))


@pytest.mark.parametrize(("low", "middle"), [(1 / 3, 1 / 3), (0.4, 0.3), (0.9, 0.9), (0.0, 0.0)])
def test_shares_sum_to_one(low: float, middle: float) -> None:
    shares = PTMQ(low_share=low, middle_share=middle).shares
    assert sum(shares) == pytest.approx(1)
    assert min(shares) >= 0


# --- switching


@pytest.mark.parametrize("changes", [{}, {"nested": True}, {"weight_set": "fixed"}])
def test_a_switch_back_and_forth_changes_nothing(changes: dict) -> None:
    model = applied("ptmq", **changes)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    before, own = at_each(model), switching.current_bits(model)
    for bits in (8, 3, 6, 3, 8):
        switching.set_bits(model, bits)
        assert torch.equal(answers(model), before[bits])
    switching.set_bits(model, 4)
    assert switching.current_bits(model) == own
    after = model.state_dict()
    assert set(state) == set(after)
    assert all(torch.equal(state[k], after[k]) for k in state)


def test_more_bits_come_nearer_to_float() -> None:
    model = applied("ptmq", steps=60)
    with model.quantized(weights=False, inputs=False):
        want = answers(model)
    torch.testing.assert_close(want, trained()(pictures(16)[0]), rtol=1e-4, atol=1e-4)
    gap = {b: float((y - want).norm() / want.norm()) for b, y in at_each(model).items()}
    assert gap[8] < 0.05
    assert gap[8] <= gap[6] + 0.01
    assert gap[6] < gap[4] < 0.5
    assert gap[6] < gap[3]


def test_learning_for_all_widths_beats_switching_a_network_for_one() -> None:
    """What PTMQ is for: at the lowest width, with rounding learned at the highest alone, error
    is larger."""
    errors = {}
    for learned_at in ("every width", "highest"):
        model = applied("ptmq", steps=120, learned_at=learned_at)
        with model.quantized(weights=False, inputs=False):
            want = answers(model)
        errors[learned_at] = float((at_each(model)[3] - want).norm())
    assert errors["every width"] < 0.8 * errors["highest"]


def test_units_have_widths_of_their_own() -> None:
    model = applied("ptmq")
    same = at_each(model)
    switching.set_bits(model, 8)
    switching.set_bits(model, {"one": 3, "two": 3})
    assert torch.equal(answers(model), same[3])  # the edges keep their 8 bits
    switching.set_bits(model, {"one": 8})
    assert switching.current_bits(model) == {"one": 8, "two": 3}
    mixed = answers(model)
    assert not torch.equal(mixed, same[3])
    assert not torch.equal(mixed, same[8])
    switching.set_bits(model, 8, weights=3)
    points = {n: m.weight_point.quantizer.scheme.bits for n, m in model.weighted().items()}
    assert {points["one.conv1"], points["two.conv2"]} == {3}
    assert model.points["one.conv1.input"].quantizer.scheme.bits == 8


def test_wrong_widths_and_units_are_refused_and_nothing_is_switched() -> None:
    model = applied("ptmq")
    before = switching.current_bits(model)
    for wrong, text in ((2, "2 bits"), ({"one": 3, "nine": 3}, "'nine'"), ({"one": 9}, "9 bits")):
        with pytest.raises(InvalidSpec, match=text):
            switching.set_bits(model, wrong)
        assert switching.current_bits(model) == before
    with pytest.raises(InvalidSpec, match="one bit-width"):
        switching.set_bits(applied("nearest"), 4)


def test_a_switch_keeps_one_set_of_rounded_weights() -> None:
    model = applied("ptmq")
    points = [m.weight_point for m in model.weighted().values()]
    for bits in WIDTHS:
        switching.set_bits(model, bits)
        switchable = [p for p in points if isinstance(p.quantizer, Switchable)]
        assert all(p._kept is None for p in switchable) or bits == 4
        answers(model)
        kept = [p._kept for p in points]
        assert all(
            k.shape == m.weight.shape for k, m in zip(kept, model.weighted().values(), strict=True)
        )
    shared = [p.quantizer for p in points if isinstance(p.quantizer, SharedRound)]
    assert shared
    for q in shared:  # one boolean for each weight, and small step sets
        tensors = [*q.parameters(), *q.buffers()]
        large = [t for t in tensors if t.numel() > 2 * q.scale.numel()]
        assert [t.dtype for t in large] == [torch.bool]


def test_edges_and_missing_layers_keep_out_of_it() -> None:
    model = quantizable()
    full = plan(model)
    weights = {n: s for n, s in full.weights.items() if n.startswith("two")}
    inputs = {n: s for n, s in full.inputs.items() if n.startswith("two")}
    method("ptmq", 3).apply(model, BitPlan(weights, inputs, full.fixed), calibration(), ignore)
    assert set(switching.current_bits(model)) == {"two"}
    model = applied("ptmq", steps=3)
    assert not isinstance(model.layers["stem"].weight_point.quantizer, Switchable)
    model = quantizable()
    same = plan(model, edge_layers="same")
    method("ptmq", 3).apply(model, same, calibration(), ignore)
    assert set(switching.current_bits(model)) == set(model.units())


# --- nested steps


def test_a_shift_of_the_integer_is_the_floor_of_a_doubled_step() -> None:
    """⌊w/(2s)⌋ = ⌊⌊w/s⌋/2⌋, also below zero, for every w."""
    w = torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in range(1, 6):
        fine = (w / 0.01).floor()
        assert torch.equal((w / (0.01 * 2**k)).floor(), fine.to(torch.int64).bitwise_right_shift(k))


def test_nested_weights_come_from_integers_bits_and_steps_alone() -> None:
    model = applied("ptmq", nested=True, steps=20)
    for layer in model.weighted().values():
        q = layer.weight_point.quantizer
        if not isinstance(q, SharedRound):
            continue
        top = q.at(8)
        stored = q.base_codes(layer.weight).to(torch.uint8)
        integers = stored.to(torch.int64) - top.zero_point.to(torch.int64)
        for bits in WIDTHS:
            grid = q.at(bits)
            torch.testing.assert_close(grid.scale, top.scale * 2.0 ** (8 - bits), rtol=0, atol=0)
            shifted = integers.bitwise_right_shift(8 - bits) + q.rounding.reshape(stored.shape)
            low = (grid.scheme.qmin - grid.zero_point).to(torch.int64)
            high = (grid.scheme.qmax - grid.zero_point).to(torch.int64)
            want = torch.minimum(torch.maximum(shifted, low), high) * grid.scale
            assert torch.equal(q.set_bits(bits)(layer.weight), want)


# --- storage


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
@pytest.mark.parametrize("changes", [{}, {"nested": True}, {"weight_set": "fixed"}])
def test_stored_and_loaded_it_gives_the_same_bits_at_every_width(
    placement: str, changes: dict, tmp_path: Path
) -> None:
    model = applied("ptmq", placement=placement, **changes)
    quantizer_file.save(model, tmp_path / FILE)
    again = quantizable(placement)
    quantizer_file.load(again, tmp_path / FILE)
    again.switch(weights=True, inputs=True)
    assert torch.equal(answers(model), answers(again))
    one, two = at_each(model), at_each(again)
    assert set(one) == set(two) == set(WIDTHS)
    assert all(torch.equal(one[b], two[b]) for b in one)
    assert switching.stored_bytes(model) == switching.stored_bytes(again)


def test_a_file_of_another_weight_is_refused(tmp_path: Path) -> None:
    model = applied("ptmq", nested=True, steps=2)
    quantizer_file.save(model, tmp_path / FILE)
    again = quantizable()
    with torch.no_grad():
        again.layers["one.conv1"].layer.weight.mul_(1.5)
    with pytest.raises(InvalidSpec, match="another weight"):
        quantizer_file.load(again, tmp_path / FILE)


def test_stored_size_is_weights_a_bit_each_and_the_steps() -> None:
    model = applied("ptmq", nested=True, steps=2)
    total = 0.0
    for name, layer in model.weighted().items():
        n, channels = layer.weight.numel(), layer.weight.shape[0]
        edge = name in ("stem", "fc")
        total += n + channels * 5 if edge else n + n / 8 + 6 * channels * 5
    tensors = [n for n in model.points if n.partition(".")[0] not in ("stem", "fc")]
    assert switching.stored_bytes(model) == total + 6 * 5 * len(tensors)


def test_rounding_bits_survive_packing() -> None:
    bits = torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = pack(bits)
    assert packed.shape == (14,)
    assert torch.equal(unpack(packed, bits.shape), bits)
    with pytest.raises(ValueError, match="14 bytes"):
        unpack(packed, (200,))


def test_shared_rounding_starts_where_it_is_told() -> None:
    w = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    scale, zero = torch.full((6, 1), 0.4), torch.full((6, 1), 3.0)
    per_channel = plan(quantizable()).weights["one.conv1"].granularity
    grids = {
        b: Uniform(scale * 2.0 ** (4 - b), zero * 2 ** (b - 3), Scheme(b, granularity=per_channel))
        for b in (3, 4, 6)
    }
    for start, bits in (("lowest", 3), ("middle", 4), ("highest", 6)):
        made = SharedRound.from_nearest(Switchable(grids), w, start, False)
        inside = made.set_bits(bits)(w)
        low, high = (end * grids[bits].scale for end in (grids[bits].low, grids[bits].high))
        torch.testing.assert_close(inside, torch.minimum(torch.maximum(w, low), high),
                                   atol=1e-3, rtol=0)  # fmt: skip
    made = SharedRound.from_nearest(Switchable(grids), w, "mean", False)
    fractions = [(w / grids[b].scale) - (w / grids[b].scale).floor() for b in (3, 4, 6)]
    torch.testing.assert_close(made.soft_values(), sum(fractions) / 3, atol=2e-3, rtol=0)
