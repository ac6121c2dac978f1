"""What noise does to a layer: every number against a count by hand, an average or a limit."""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import fake_noise
import numpy as np
import pytest
import torch
from helpers import calibration, pictures, quantizable
from helpers_nets import images, tiny
from torch import Tensor, nn

from qlib import store
from qlib.core.records import Cancelled, Event, InvalidSpec, RunSpec, ignore
from qlib.core.scheme import PER_CHANNEL, BitPlan, Scheme
from qlib.core.specs import checked
from qlib.learning.calibration import Calibration
from qlib.network.blocks import find_blocks
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer
from qlib.noise import profile as noise_profile
from qlib.noise import study as noise_study
from qlib.noise import theorem
from qlib.noise._output import Grids, Output, best_clip, best_shift, reached
from qlib.noise.profile import REACHES, LayerNoise
from qlib.pipeline.run import run
from qlib.quantizers.noisy import Noisy, denoising_bias
from qlib.quantizers.uniform import Uniform
from qlib.store.eventlog import EventLog

BITS = (3, 5)
N = 24  # images of either set


def plans(model: QuantModel, bits: tuple[int, ...] = BITS) -> dict[int, BitPlan]:
    """The same grids everywhere, edge layers too."""
    return {
        b: BitPlan(
            dict.fromkeys(model.weighted(), Scheme(b, granularity=PER_CHANNEL)),
            dict.fromkeys(model.points, Scheme(b)),
        )
        for b in bits
    }


def wrapped(family: str) -> tuple[QuantModel, Tensor, Tensor]:
    net = tiny(family)
    model = QuantModel(net, images(family), find_blocks(net))
    return model, images(family, N, seed=2), images(family, N, seed=3)


def data_of(x: Tensor, report: Callable = ignore, quick: bool = True) -> Calibration:
    return calibration(x, seed=5, report=report, quick=quick)


@cache
def measured(family: str, quick: bool = True) -> tuple[QuantModel, list[LayerNoise]]:
    model, calib, test = wrapped(family)
    return model, noise_study.measure(model, data_of(calib, quick=quick), test, plans(model))


def rows_of(model: QuantModel, x: Tensor) -> dict[str, Tensor]:
    """All that each layer reads, by a hook of our own."""
    found: dict[str, Tensor] = {}
    for name, layer in model.weighted().items():
        layer.register_forward_pre_hook(lambda m, args, name=name: found.__setitem__(name, args[0]))
    with torch.no_grad():
        model(x)
    return found


# ---- one layer on its own -----------------------------------------------------------------------


class OneLayer(nn.Module):
    """(n, 1, 4, 8) read as four rows of eight: a network that is one linear layer."""

    def __init__(self, out: int = 6, bias: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(8, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x[:, 0]).mean(1)


def one_layer(x: Tensor, test: Tensor | None = None, bits=(4,), **kwargs) -> list[LayerNoise]:
    """Rows x (n, 8), n a multiple of four, all of them kept, on min–max grids."""
    torch.manual_seed(0)
    model = QuantModel(OneLayer(**kwargs).eval(), x.reshape(-1, 1, 4, 8)[:2])
    sides = [side.reshape(-1, 1, 4, 8) for side in (x, x if test is None else test)]
    return noise_study.measure(model, data_of(sides[0]), sides[1], plans(model, bits))


def heavy(n: int = 400, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=rng)
    return x * (1 + torch.rand(n, 8, generator=rng).pow(8) * 4)


def test_phase_rounding_and_clipping_are_what_a_count_gives() -> None:
    x = heavy()
    (found,) = one_layer(x)
    lo, hi = min(float(x.min()), 0), max(float(x.max()), 0)
    step = (hi - lo) / 15
    zero = round(-lo / step)
    assert found.step == pytest.approx(step, rel=1e-5)
    u = x.double().numpy().ravel() / found.step
    kept = u[(u >= -zero - 0.5) & (u <= 15 - zero + 0.5)]
    assert found.clipped == pytest.approx(1 - len(kept) / len(u), abs=1e-6)
    off = kept - np.round(kept)
    counts, _ = np.histogram(off, 64, (-0.5, 0.5))
    assert np.abs(found.phase - counts / len(kept)).sum() < 4 / len(kept)  # ties of single floats
    assert found.phase.sum() == pytest.approx(1)
    assert found.rounding == pytest.approx(12 * (off**2).mean(), rel=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("out", [3, 20])  # narrow, and wide enough for the triangular factor
def test_errors_are_those_of_noisy_quantizers_and_denoised_biases(out: int, bias: bool) -> None:
    x = heavy(80)
    torch.manual_seed(1)
    layer = QuantLayer(nn.Linear(8, out, bias=bias)).requires_grad_(False)
    scheme = Scheme(3)
    lo, hi = -torch.rand(1), 1 + torch.rand(1)  # clips
    grid = Grids.of(lo, hi, scheme)
    rows = Scheme(3, granularity=PER_CHANNEL)
    w_hat = Uniform.fit(layer.weight, rows, data_of(x).weight_observer)(layer.weight)
    draws = torch.randn(2, 8)
    curves, inside = reached(Output(x, layer, w_hat), grid, draws, REACHES)
    assert curves.shape == (2, len(REACHES))
    for s in range(2):
        for r in (0, 1, 13, 30):
            n = float(REACHES[r]) * float(grid.step) * draws[s]
            noisy = Noisy(Uniform(grid.step[0], -grid.low[0], scheme), n)
            codes = noisy(x) + n  # what the hardware multiplies: Q(x + N)
            y = codes @ w_hat.T + denoising_bias(w_hat, layer.bias, n)
            error = (y - layer(x)).double().square().sum()
            assert curves[s, r] == pytest.approx(float(error), rel=1e-4)
            there = ((noisy(x) - x) / grid.step).double().square().sum()
            assert inside[s, r] == pytest.approx(float(there), rel=1e-4)


def test_prediction_is_the_mean_over_draws() -> None:
    """Fresh draws for each row are the expectation that the closed form is about."""
    x = heavy(400, seed=3)
    (found,) = one_layer(x, bits=(3,))
    lo, hi = (torch.tensor([float(end)]) for end in (x.min().clamp(max=0), x.max().clamp(min=0)))
    grid, rng = Grids.of(lo, hi, Scheme(3)), torch.Generator().manual_seed(1)
    for r in (0, 5, 10, 20, 30):
        errors = []
        for _ in range(300 if r else 1):
            n = float(REACHES[r]) * (2 * torch.rand(x.shape, generator=rng) - 1)
            moved = x / grid.step + n
            errors.append(float((moved - moved.round().clamp(grid.low, grid.high)).square().sum()))
        if r == 0:
            base = errors[0]
        assert found.predicted[r] == pytest.approx(np.mean(errors) / base, rel=0.01)
    assert found.closed_form == REACHES[found.predicted.argmin()]


def test_spread_evenly_values_gain_nothing() -> None:
    """Uniform data: rounding is step²/12, and noise of half a step leaves it there."""
    rng = torch.Generator().manual_seed(0)
    inner = 5 * torch.rand(20_000, 8, generator=rng) + 2  # whole cells, away from the ends
    inner[0, :2] = torch.tensor([0.0, 15.0])  # a step of exactly 1
    (found,) = one_layer(inner)
    assert found.step == pytest.approx(1)
    assert found.rounding == pytest.approx(1, abs=0.02)
    assert found.phase == pytest.approx(np.full(64, 1 / 64), abs=8e-3)  # 4 σ of 4,096 values
    assert found.predicted == pytest.approx(np.ones(31), abs=0.03)
    assert found.predicted[10] == pytest.approx(1 / found.rounding, abs=5e-3)


@pytest.mark.parametrize(("place", "helps"), [(0.5, True), (0.0, False)])
def test_a_peak_between_levels_gains_and_one_on_a_level_loses(place: float, helps: bool) -> None:
    x = torch.full((400, 8), 6 + place)
    x[0, :2] = torch.tensor([0.0, 15.0])
    (found,) = one_layer(x)
    if helps:  # b² falls to b²/4 at n = 3b/2, b being half a step
        assert found.closed_form == pytest.approx(0.75)
        assert found.predicted[15] == pytest.approx(0.25, abs=0.01)
        assert found.rounding == pytest.approx(3, rel=0.01)
        assert found.left(0.75) < 0.7
        assert found.linear_search > 0
    else:
        assert found.closed_form == 0
        assert found.linear_search == 0
        assert found.rounding < 0.01
        assert found.left(0.0) == found.left(0.0, "test") == 1


def test_layers_without_any_error_divide_by_nothing() -> None:
    (found,) = one_layer(torch.zeros(40, 8))
    for f in fields(LayerNoise):
        value = getattr(found, f.name)
        assert isinstance(value, str) or np.isfinite(value).all(), f.name
    assert found.closed_form == 0


# ---- searches -----------------------------------------------------------------------------------


def test_linear_search_is_the_best_of_all_reaches() -> None:
    rng = np.random.default_rng(2)
    x, draw = rng.normal(size=(70, 5)) * 2, rng.uniform(-1, 1, 5)
    errors = []
    for reach in REACHES:
        moved = x + reach * draw
        errors.append(((np.round(moved).clip(-3, 4) - reach * draw - x) ** 2).sum())
    assert theorem.linear_search(x, draw, REACHES[::-1], -3, 4) == REACHES[np.argmin(errors)]
    assert theorem.linear_search(np.zeros((3, 2)), np.ones(2), [0.2, 0.0], -1, 1) == 0
    found = one_layer(heavy(), bits=(3, 6))
    assert all(layer.linear_search in REACHES for layer in found)


def test_expectation_over_bins_is_that_over_values() -> None:
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=2000)
    for low, high in ((-3, 4), (0, 7), (0, 1), (-np.inf, np.inf)):
        exact = theorem.error(x[:, None] + 0.5, REACHES, 0.5, low + 0.5, high + 0.5).mean(0)
        assert theorem.expected(x, REACHES, low, high) == pytest.approx(exact, rel=2e-3)


def test_clip_and_shift_are_never_worse_than_none() -> None:
    x, scheme = heavy(300, seed=4) + 0.3, Scheme(3)
    torch.manual_seed(2)
    layer = QuantLayer(nn.Linear(8, 6)).requires_grad_(False)
    lo, hi = (end.reshape(1) for end in x.aminmax())
    whole, output = Grids.of(lo, hi, scheme), Output(x, layer, layer.weight.detach())
    none = torch.zeros(1, 8)
    clip = best_clip(output, lo, hi, scheme, whole)
    every = torch.arange(1, 101) / 100
    errors = output.error(Grids.of(lo * every, hi * every, scheme), none)
    assert float(output.error(clip, none)) <= 1.05 * float(errors.min())
    assert float(output.error(clip, none)) < 0.8 * float(errors[-1])
    shift = best_shift(output, clip)
    assert -1.1 <= shift <= 1.1
    assert output.error(clip, none + shift) <= output.error(clip, none)
    on_levels = clip.step * torch.arange(0, 8).expand(40, 8) + clip.step * clip.low
    assert best_shift(Output(on_levels, layer, layer.weight.detach()), clip) == 0


# ---- whole networks -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_all_linear_layers_of_a_transformer(family: str) -> None:
    model, found = measured(family)
    kinds = {n: layer.kind for n, layer in model.weighted().items()}  # a patch embedding is "conv"
    assert [(x.layer, x.bits) for x in found] == [(n, b) for n in kinds for b in BITS]
    assert list(kinds.values()).count("conv") == 1
    order = list(model.layers)
    for x in found:
        assert (x.block, order[x.depth], x.kind) == (
            model.unit_of(x.layer),
            x.layer,
            kinds[x.layer],
        )
        for curve in (x.calib, x.test, x.normal, x.predicted):
            assert (curve[..., 0] == 1).all()
            assert np.isfinite(curve).all()
            assert (curve >= 0).all()
        assert x.calib.shape == x.test.shape == (noise_study.SEEDS, len(REACHES))
        assert (np.diff(x.calib.std(0)[[0, 10]]) > 0).all()  # draws are not one another's copy
        assert x.closed_form in REACHES
        plain, clip, shift, _ = x.stages[:, 0]
        assert plain >= clip >= shift > 0
        assert x.stages.shape == (4, 2)
        assert x.phase.sum() == pytest.approx(1)
    at = {(x.layer, x.bits): x for x in found}
    assert all(at[n, 3].stages[0, 0] > at[n, 5].stages[0, 0] for n in kinds)


def test_noise_of_no_reach_leaves_the_stage_before() -> None:
    none = [x for x in one_layer(torch.full((40, 8), 6.0), bits=(4, 6)) if x.closed_form == 0]
    assert none
    for x in none:
        assert (x.stages[3] == x.stages[2]).all()


def test_rows_are_the_networks_own() -> None:
    """Few images: all rows are kept, so a count over all of them is the same."""
    model, calib, test = wrapped("vit")
    calib = calib[:4]
    found = noise_study.measure(model, data_of(calib), test, plans(model))
    rows = rows_of(model, calib)
    for x in found:
        u = rows[x.layer].double().numpy() / x.step
        lo = round(-min(float(rows[x.layer].min()), 0) / x.step)
        _, clipped, rounding = theorem.cells(u, -lo, 2**x.bits - 1 - lo)
        assert x.rounding == pytest.approx(rounding, rel=1e-3)
        assert x.clipped == pytest.approx(clipped, abs=1e-6)


def test_observers_choose_the_grid() -> None:
    (model, quick), (_, slow) = measured("vit"), measured("vit", quick=False)
    for one, other in zip(quick, slow, strict=True):
        assert other.step <= one.step * (1 + 1e-5)
    data = data_of(wrapped("vit")[1], quick=False)
    values, counts = data.histograms(model)["head.input"].values()
    lo, hi = data.act_observer.find_range(values, Scheme(5), counts)
    head = next(x for x in slow if (x.layer, x.bits) == ("head", 5))
    assert head.step == pytest.approx(float(hi - lo) / 31, rel=1e-4)


def test_a_seed_is_a_result() -> None:
    model, found = measured("vit")
    _, calib, test = wrapped("vit")
    again = noise_study.measure(model, data_of(calib), test, plans(model))
    for one, other in zip(found, again, strict=True):
        assert all(np.array_equal(getattr(one, f.name), getattr(other, f.name))
                   for f in fields(LayerNoise))  # fmt: skip


def test_only_a_bounded_number_of_rows_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """More images, no more rows; the most are those that a profile tells of."""
    model, calib, test = wrapped("vit")
    monkeypatch.setattr(noise_study, "ROWS", range(10, 41))
    kept: list[int] = []
    seen = noise_study.sampled

    def count(*args) -> dict[str, Tensor]:
        found = seen(*args)
        kept.extend(len(x) for x in found.values())
        assert all(x.untyped_storage().nbytes() == 4 * x.numel() for x in found.values())
        return found

    monkeypatch.setattr(noise_study, "sampled", count)
    for times in (1, 3):
        noise_study.measure(model, data_of(calib.repeat(times, 1, 1, 1)), test, plans(model, (4,)))
    assert noise_study.rows_for(model) == 40
    assert max(kept) <= 40 + 3 * times  # a batch's share is rounded
    monkeypatch.setattr(noise_study, "WORK", 1.0)
    assert noise_study.rows_for(model) == 10


def test_only_layers_that_are_one_product_are_measured() -> None:
    model = quantizable()
    x = pictures(N)[0]
    found = noise_study.measure(model, data_of(x), x, plans(model, (4,)))
    left_out = noise_study.skipped(model)
    assert {x.layer for x in found} | set(left_out) == set(model.weighted())
    assert [(x.layer, x.kind) for x in found] == [("two.skip.0", "conv"), ("fc", "linear")]
    conv = found[0]  # 1×1 with a stride of 2: rows are the positions that it reads
    rows = []
    model.layers["two.skip.0"].register_forward_pre_hook(lambda m, args: rows.append(args[0]))
    with torch.no_grad():
        model(x)
    u = rows[0][:, :, ::2, ::2].double().numpy() / conv.step
    assert u.size == N * 8 * 16
    _, _, rounding = theorem.cells(u, 0, 15)
    assert conv.rounding == pytest.approx(rounding, rel=0.05)


def test_a_network_without_such_layers_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.randn(4, 1, 8, 8)
    model = QuantModel(net, x)
    with pytest.raises(InvalidSpec, match="no linear layer and no convolution of sep"):
        noise_study.measure(model, data_of(x), x, plans(model))


def test_every_layer_is_heard_of_and_can_be_the_last(tmp_path: Path) -> None:
    model, calib, test = wrapped("vit")
    heard: list[Event] = []
    with EventLog(tmp_path) as log:

        def stop(event: Event) -> None:
            log(event)
            heard.append(event)
            if event.index == 3:
                raise Cancelled

        with pytest.raises(Cancelled):
            noise_study.measure(model, data_of(calib, stop), test, plans(model))
    rows = noise_profile.partial(tmp_path)
    layers = list(model.weighted())
    assert [(r["layer"], r["bits"], r["index"]) for r in rows] == [
        (layers[0], 3, 1), (layers[0], 5, 2), (layers[1], 3, 3),
    ]  # fmt: skip
    assert {r["of"] for r in rows} == {2 * len(layers)}
    assert [r["left"] for r in rows] == pytest.approx(
        [e.loss for e in heard if e.phase == "profile"], rel=1e-3
    )


# ---- files --------------------------------------------------------------------------------------

BASE = checked(RunSpec("digits-vit", "digits", "brecq", 3, 3, keep_float=("head",), test=400))


def test_one_analysis_serves_all_bits_methods_and_placements() -> None:
    spec = noise_profile.spec_of(BASE)
    assert checked(spec) == spec
    assert (spec.analysis, spec.method, spec.test) == ("noise", "nearest", 128)
    for change in (
        {"weight_bits": 8}, {"act_bits": 2}, {"method": "nearest", "settings": {}},
        {"placement": "boundary"}, {"edge_layers": "float"}, {"keep_float": ()}, {"test": None},
        {"analysis": "sensitivity"},
    ):  # fmt: skip
        assert noise_profile.spec_of(replace(BASE, **change)) == spec
    for change in ({"seed": 1}, {"calib": 8}, {"act_observer": "minmax"}, {"test": 20},
                   {"symmetric_acts": True}, {"granularity": "tensor"}):  # fmt: skip
        assert noise_profile.spec_of(replace(BASE, **change)) != spec
    assert noise_profile.spec_of(spec) == spec
    assert spec.key.startswith("digits-vit_nearest_noise_W4A4_")


def test_a_profile_comes_back(tmp_path: Path) -> None:
    made = noise_profile.NoiseProfile(noise_profile.spec_of(BASE), fake_noise.layers(1), 3, 128)
    noise_profile.save(tmp_path, made)
    found = noise_profile.load(tmp_path)
    assert (found.spec, found.seeds, found.rows) == (made.spec, made.seeds, made.rows)
    assert (found.names, found.bits) == (made.names, (3, 4, 6))
    for one, other in zip(made.layers, found.layers, strict=True):
        for f in fields(LayerNoise):
            value, back = getattr(one, f.name), getattr(other, f.name)
            assert type(value) is type(back)
            assert value == back if np.ndim(value) == 0 else back == pytest.approx(value, rel=2e-4)
        assert (other.calib[:, 0] == 1).all()
    assert found.at("blocks.0.mlp.fc2", 4) is found.layers[10]
    with pytest.raises(KeyError, match=r"blocks\.0\.mlp\.fc2 at 7 bits"):
        found.at("blocks.0.mlp.fc2", 7)


BREAKS = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-200]),
    "noise": lambda file: file.write_bytes(bytes(range(256))),
    "part": lambda file: np.savez(file, names=np.zeros(3)),
    "shape": lambda file: _other(file, test=np.ones((12, 3, 5))),
    "spec": lambda file: _other(file, spec=np.array("{")),
}


def _other(file: Path, **changes) -> None:
    with np.load(file) as found:
        arrays = dict(found)
    np.savez(file, **(arrays | changes))


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_file_is_named_in_one_sentence(tmp_path: Path, case: str) -> None:
    made = noise_profile.NoiseProfile(noise_profile.spec_of(BASE), fake_noise.layers(1), 3, 128)
    noise_profile.save(tmp_path, made)
    BREAKS[case](tmp_path / "noise.npz")
    why = "is missing" if case == "gone" else "is damaged"
    with pytest.raises(InvalidSpec, match=rf"{tmp_path.name}/noise\.npz {why}") as error:
        noise_profile.load(tmp_path)
    assert "\n" not in str(error.value)


def test_the_fake_is_a_finished_run(tmp_path: Path) -> None:
    folder = fake_noise.write(tmp_path, BASE)
    found = store.find(noise_profile.spec_of(replace(BASE, weight_bits=8)), [tmp_path])
    assert found.folder == folder
    record, profile = store.load(folder), noise_profile.load(folder)
    assert [(r["layer"], r["bits"]) for r in record.layers] == [
        (x.layer, x.bits) for x in profile.layers
    ]
    best = noise_profile.helped(record.layers, 4)
    assert best[0]["layer"] in ("blocks.1.attn.proj", "blocks.3.attn.proj")
    assert profile.at("blocks.0.attn.proj", 4).closed_form == 0
    assert all(r["left_worst"] >= r["left_test"] for r in record.layers)
    certain = [x for x in profile.layers if (x.test[:, x.closed_form == REACHES] < 1).all()]
    assert record.metrics["better"] == len(certain) > 0
    assert {r["layer"] for r in best} <= {x.layer for x in certain}


def test_an_analysis_is_an_ordinary_run(tmp_path: Path) -> None:
    spec = replace(noise_profile.spec_of(BASE), calib=16, test=12)
    folder = tmp_path / spec.key
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise_profile, "BITS", (4,))
        patch.setattr(noise_study, "ROWS", range(16, 33))
        record = run(spec, folder=folder)
    assert sorted(f.name for f in folder.iterdir()) == ["noise.csv", "noise.npz", "run.json"]
    profile, stored = noise_profile.load(folder), store.load(folder)
    assert profile.spec == spec == stored.spec
    assert (profile.bits, profile.seeds, profile.rows) == ((4,), noise_study.SEEDS, 32)
    assert [r["layer"] for r in stored.layers] == list(profile.names)
    assert len(profile.names) == 26  # six blocks of four, the patch embedding and the head
    assert record.metrics["n"] == 12
    assert record.seconds["profile"] > 0
    assert record.notes == []
