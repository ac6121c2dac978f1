"""Every row of a profile equals a whole pass with the points switched by hand."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import calibration, codes, method, pictures, plan, quantizable, trained
from helpers_nets import images, tiny
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax, rel_entr
from torch import Tensor, nn

from qlib import store
from qlib.core.records import Cancelled, Event, InvalidSpec, RunSpec, ignore
from qlib.core.registry import discover
from qlib.core.scheme import PER_CHANNEL, BitPlan, Granularity, Scheme
from qlib.core.specs import checked
from qlib.measure.statistics import wilson
from qlib.network import prefix_cache
from qlib.network.blocks import find_blocks
from qlib.network.model import QuantModel
from qlib.network.points import QuantLayer
from qlib.pipeline import quantizer_file
from qlib.pipeline.quantize import bit_plan, bits_of
from qlib.pipeline.quantizer_file import FILE
from qlib.pipeline.run import run
from qlib.sensitivity import profile
from qlib.sensitivity.layers import measure, points_of

N = 13  # images: odd, so that the halves differ in size


def residual(placement: str) -> QuantModel:
    return _filled(quantizable(placement), pictures(32)[0])


def transformer(placement: str) -> QuantModel:
    net = tiny("vit")
    return _filled(QuantModel(net, images("vit"), find_blocks(net), placement), images("vit", 32))


def two_heads(placement: str) -> QuantModel:
    net = tiny("deit")  # no chain
    model = QuantModel(net, images("deit"), find_blocks(net), placement)
    assert not model.is_sequential
    return _filled(model, images("deit", 32))


def _filled(model: QuantModel, x: Tensor) -> QuantModel:
    discover("methods")["nearest"]().apply(model, plan(model, 3, 3), calibration(x), ignore)
    return model


NETS: dict[str, tuple[Callable[[str], QuantModel], Callable[[int], Tensor]]] = {
    "residual": (residual, lambda n: pictures(n, seed=8)[0]),
    "transformer": (transformer, lambda n: images("vit", n, seed=8)),
    "two heads": (two_heads, lambda n: images("deit", n, seed=8)),
}


@pytest.fixture(scope="module", params=[(n, p) for n in NETS for p in ("inputs", "boundary")])
def measured(request: pytest.FixtureRequest):
    """Model, images, labels, rows and events of a profile whose chunks and batches are small."""
    (make, draw), placement = NETS[request.param[0]], request.param[1]
    model, x, events = make(placement), draw(N), []
    labels = torch.arange(N) % 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_cache, "CHUNK", 8)
        patch.setattr(prefix_cache, "PASS", 3.5 * sum(model.macs.values()))  # three at once
        rows = measure(model, x, labels, events.append)
    return model, x, labels, rows, events


def by_hand(model: QuantModel, mode: str, split: str, layer: str) -> set[str]:
    """Names of the points that are on, as a reader of the column table would choose them."""
    filled = {n for n, p in model.points.items() if p.quantizer is not None}
    filled |= {f"{n}.weight" for n, m in model.weighted().items() if m.weight_point.quantizer}
    sides = {"none": (), "weights": ("w",), "inputs": ("i",), "both": ("w", "i")}[split]
    chosen = {n for n in filled if ("w" if n.endswith(".weight") else "i") in sides}
    if mode == "all":
        return chosen
    unit = next((b for b in model.blocks if layer.startswith(f"{b}.")), layer)
    own = {n for n in chosen if n.rpartition(".")[0] == layer}
    if next(n for n in model.layers if n.startswith(unit)) == layer:
        own |= chosen & {f"{unit}.boundary"}
    return own if mode == "alone" else chosen - own


@torch.no_grad()
def whole_pass(model: QuantModel, on: set[str], x: Tensor) -> Tensor:
    for name, layer in model.weighted().items():
        layer.weight_point.on = f"{name}.weight" in on
    for name, point in model.points.items():
        point.on = name in on
    return model(x)


def test_every_row_is_what_a_whole_pass_gives(measured) -> None:
    model, x, labels, rows, _ = measured
    reference = whole_pass(model, set(), x)
    for row in rows:
        on = by_hand(model, row["mode"], row["split"], row["layer"])
        logits = whole_pass(model, on, x)
        p, q = (log_softmax(t.double().numpy(), axis=1) for t in (reference, logits))
        kl = rel_entr(np.exp(p), np.exp(q)).sum(1)
        for name, part in (("kl", kl), ("kl_a", kl[::2]), ("kl_b", kl[1::2])):
            assert row[name] == pytest.approx(part.mean(), rel=1e-4, abs=1e-8), row
        hits = int((logits.argmax(1) == labels).sum())
        assert row["top1"] == pytest.approx(100 * hits / N)
        assert (row["top1_low"], row["top1_high"]) == pytest.approx(
            tuple(100 * end for end in wilson(hits, N))
        )
        same = (logits.argmax(1) == reference.argmax(1)).double().mean()
        assert row["agreement"] == pytest.approx(100 * float(same))
        noise = float((logits - reference).double().square().sum())
        if noise:
            db = 10 * np.log10(float(reference.double().square().sum()) / noise)
            assert row["sqnr_db"] == pytest.approx(db, abs=1e-3)
        assert (row["n"], row["data"]) == (N, "test")
        assert tuple(row) == profile.COLUMNS


def test_rows_are_complete_and_the_most_useful_come_first(measured) -> None:
    model, _, _, rows, _ = measured
    assert [(r["mode"], r["split"]) for r in rows[:4]] == [
        ("all", s) for s in ("none", "weights", "inputs", "both")
    ]
    assert rows[0]["kl"] == 0
    assert rows[0]["sqnr_db"] == np.inf
    groups = list(dict.fromkeys((r["mode"], r["split"]) for r in rows[4:]))
    assert groups == [
        ("alone", "both"), ("left_out", "both"), ("alone", "weights"), ("left_out", "weights"),
        ("alone", "inputs"), ("left_out", "inputs"),
    ]  # fmt: skip
    for mode, split in groups:
        found = [r for r in rows if (r["mode"], r["split"]) == (mode, split)]
        want = [n for n in model.layers if by_hand(model, "alone", split, n)]
        assert [r["layer"] for r in found] == want
        assert [(r["unit"], r["kind"]) for r in found] == [
            (model.unit_of(n), model.layers[n].kind) for n in want
        ]
    if any(r["kind"] == "matmul" for r in rows):
        assert "matmul" not in {r["kind"] for r in rows if r["split"] == "weights"}


def test_each_row_is_told_when_it_is_ready(measured) -> None:
    _, _, _, rows, events = measured
    told = [e for e in events if e.phase == "profile" and not e.steps]
    assert [(e.unit, e.index, e.of, e.loss, e.note) for e in told] == [
        (r["layer"], i, len(rows), r["kl"], f"{r['mode']} {r['split']}")
        for i, r in enumerate(rows, 1)
    ]
    between = [e for e in events if e.steps]
    assert len(between) > len(rows)
    assert all(1 <= e.index <= e.of and e.step <= e.steps == N for e in between)


def test_switches_and_float_weights_are_as_before() -> None:
    model = residual("boundary")
    model.switch(weights=True, inputs=False)
    before = codes(model)
    floats = {n: p.clone() for n, p in model.net.named_parameters()}
    measure(model, pictures(4)[0], torch.zeros(4))
    assert all(m.weight_point.on for m in model.weighted().values())
    assert not any(p.on for p in model.points.values())
    assert all(torch.equal(before[n], found) for n, found in codes(model).items())
    assert all(torch.equal(floats[n], p) for n, p in model.net.named_parameters())

    def stop(event: Event) -> None:
        if event.note == "left_out both" and event.index > 14:
            raise Cancelled

    with pytest.raises(Cancelled):
        measure(model, pictures(4)[0], torch.zeros(4), stop)
    assert all(m.weight_point.on for m in model.weighted().values())
    assert not any(p.on for p in model.points.values())
    assert torch.equal(model(pictures(4)[0]), model(pictures(4)[0]))  # nothing is left replaced


# ---- speed --------------------------------------------------------------------------------------


class Deep(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        row = [nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(depth)]
        self.row, self.head = nn.Sequential(*row), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.row(x.flatten(1)))


def test_a_deep_chain_costs_half_a_pass_for_each_layer() -> None:
    depth = 40
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Deep(depth - 1).eval()
    x = torch.randn(4, 6, 1, 1, generator=torch.Generator().manual_seed(1))
    model = _filled(QuantModel(net, x), x)
    assert model.is_sequential
    assert len(model.units()) == depth
    calls = {"n": 0}

    def count(*_: object) -> None:
        calls["n"] += 1

    for layer in model.weighted().values():  # a child of the layer: runs when the layer computes
        layer.weight_point.register_forward_hook(count)
    rows = measure(model, x, torch.zeros(4))
    passes = 4 + 6 * depth  # whole network and the layers: what nobody would keep
    assert len(rows) == passes
    half = depth * (depth + 1) // 2
    assert calls["n"] <= 4 * depth + 6 * (half + depth)
    assert calls["n"] < 0.6 * passes * depth


def test_what_was_measured_already_is_not_measured_again() -> None:
    model, x = transformer("inputs"), images("vit", 3)
    finals = {"n": 0}

    def count(*_: object) -> None:
        finals["n"] += 1

    model.layers["head"].weight_point.register_forward_hook(count)
    rows = measure(model, x, torch.zeros(3))
    again = [
        r for r in rows if r["kind"] == "matmul" and (r["mode"], r["split"]) == ("alone", "inputs")
    ]
    assert len(again) == 6
    assert finals["n"] == len(rows) - len(again)
    alone = {(r["split"], r["layer"]): r["kl"] for r in rows if r["mode"] == "alone"}
    assert all(r["kl"] == alone["both", r["layer"]] for r in again)


# ---- keeping a layer in float -------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["inputs", "boundary"])
def test_keeping_a_layer_in_float_gives_the_row_of_all_but_it(placement: str) -> None:
    spec = RunSpec("digits-vit", "digits", "nearest", 3, 3, placement=placement, edge_layers="same")
    x = pictures(16, seed=4)[0]
    rows = measure(model := residual(placement), x, torch.zeros(16))
    but = {r["layer"]: r for r in rows if (r["mode"], r["split"]) == ("left_out", "both")}
    worst = profile.worst(rows, n=len(but))
    assert len(worst) == len(but) > 5
    for layer in worst:
        kept = quantizable(placement)
        grids = bit_plan(kept, replace(spec, keep_float=(layer,)))
        grids = BitPlan(  # the helper's plan, without what is kept
            {n: s for n, s in plan(kept, 3, 3).weights.items() if n in grids.weights},
            {n: s for n, s in plan(kept, 3, 3).inputs.items() if n in grids.inputs},
        )
        discover("methods")["nearest"]().apply(kept, grids, calibration(pictures(32)[0]), ignore)
        kept.switch(weights=True, inputs=True)
        with torch.no_grad(), model.quantized(weights=True, inputs=True):
            for point in points_of(model, layer, "both"):
                point.on = False
            assert torch.equal(kept(x), model(x)), layer
        (whole,) = (r for r in measure(kept, x, torch.zeros(16)) if r["split"] == "both"
                    and r["mode"] == "all")  # fmt: skip
        assert whole["kl"] == pytest.approx(but[layer]["kl"], rel=1e-5)


# ---- bringing quantizers back -------------------------------------------------------------------

GRIDS = {
    "asymmetric": Scheme(3, granularity=PER_CHANNEL),
    "symmetric": Scheme(3, symmetric=True, granularity=PER_CHANNEL),
    "group": Scheme(3, granularity=Granularity("group", 9)),
    "tensor": Scheme(4),
}


def saved(name: str, grid: str, placement: str, folder: Path) -> tuple[QuantModel, BitPlan]:
    model = quantizable(placement)
    act = Scheme(4, symmetric=grid == "symmetric")
    asked = discover("allocators")["same"]().allocate(model, GRIDS[grid], act)
    method(name, 6).apply(model, asked, calibration(), ignore)
    model.switch(weights=True, inputs=True)
    quantizer_file.save(model, folder / FILE)
    return model, asked


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("placement", ["inputs", "boundary"])
@pytest.mark.parametrize("name", discover("methods"))
def test_a_restored_network_gives_the_same_bits(
    name: str, placement: str, grid: str, tmp_path: Path
) -> None:
    """From the file alone: it tells kinds of quantizers, grids and codes."""
    model, asked = saved(name, grid, placement, tmp_path)
    again = quantizable(placement)
    quantizer_file.load(again, tmp_path / FILE, bits_of(asked, again))
    x = pictures(9, seed=6)[0]
    with torch.no_grad():
        for weights, inputs in ((True, True), (True, False), (False, True)):
            model.switch(weights=weights, inputs=inputs)
            again.switch(weights=weights, inputs=inputs)
            assert torch.equal(model(x), again(x)), (weights, inputs)
    before, after = codes(model), codes(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_quantizers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _, asked = saved("nearest", "tensor", "inputs", tmp_path)
    file, model = tmp_path / FILE, quantizable("inputs")
    net = trained()
    net.fc = torch.nn.Linear(12, 7)
    smaller = torch.nn.Sequential(net.stem, net.act, net.pool, torch.nn.Flatten())
    cases = (
        (quantizable(net=net), "fc.weight is for another shape than (7, 12)"),
        (quantizable(net=smaller), "which the network has not"),
        (quantizable("boundary"), "it has one.conv1.input, which the network has not"),
    )
    for other, words in cases:
        with pytest.raises(
            InvalidSpec, match=f"does not hold .* of this network .*{re.escape(words)}"
        ):
            quantizer_file.load(other, file)
        assert all(m.weight_point.quantizer is None for m in other.weighted().values())
        assert all(point.quantizer is None for point in other.points.values())
    with pytest.raises(InvalidSpec, match="other bits than the record tells"):
        quantizer_file.load(model, file, bits_of(asked, model) | {"fc.weight": 3})
    assert all(m.weight_point.quantizer is None for m in model.weighted().values())
    save_file(load_file(file), old := tmp_path / "old.safetensors")
    with pytest.raises(InvalidSpec, match="written by an earlier version"):
        quantizer_file.load(model, old)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InvalidSpec, match=f"{FILE} does not hold"):
        quantizer_file.load(model, file)
    file.unlink()
    with pytest.raises(InvalidSpec, match=f"{FILE} does not hold"):
        quantizer_file.load(model, file)


# ---- as a run -----------------------------------------------------------------------------------

ZOO = Path(__file__).parents[1] / "assets" / "zoo" / "digits-resnet.safetensors"
needs_zoo = pytest.mark.skipif(not ZOO.exists(), reason=f"{ZOO.name} has not been trained")
BASE = checked(
    RunSpec("digits-resnet", "digits", "adaround", 3, 3, calib=32, test=90,
            weight_observer="minmax", act_observer="minmax", settings={"steps": 8, "batch": 8})
)  # fmt: skip
SPEC = replace(profile.spec_of(BASE), test=40)


@pytest.fixture(scope="module")
def based(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with the run that is analysed."""
    runs = tmp_path_factory.mktemp("runs")
    with store.private(runs, BASE.key) as folder:
        run(BASE, ignore, folder)
        store.finish(folder, runs, BASE.key)
    return runs


def made(runs: Path, spec: RunSpec, known: list[Path]):
    events: list[Event] = []
    with store.private(runs, spec.key) as folder:
        record = run(spec, events.append, folder, known)
        store.finish(folder, runs, spec.key)
    return record, events


@needs_zoo
def test_an_analysis_takes_the_quantizers_of_the_stored_run(based: Path, tmp_path: Path) -> None:
    record, events = made(tmp_path, SPEC, [tmp_path / "none", based])
    assert record.data["base"] == BASE.key
    assert "reconstruct" not in {e.phase for e in events}
    assert record.seconds["reconstruct"] == 0 < record.seconds["profile"]
    fresh, events = made(tmp_path, SPEC, [])
    assert fresh.data["base"] == ""
    assert "reconstruct" in {e.phase for e in events}
    assert fresh.layers == record.layers  # the method on the same images and seed
    assert {f.name for f in (tmp_path / SPEC.key).iterdir()} == {"run.json", "profile.csv"}
    assert store.load(tmp_path / SPEC.key).layers == profile.load(tmp_path / SPEC.key)
    assert profile.load(tmp_path / SPEC.key) == fresh.layers
    assert record.metrics["n"] == 40
    whole = next(r for r in record.layers if (r["mode"], r["split"]) == ("all", "both"))
    assert record.metrics["kl"] == whole["kl"] > 0


@needs_zoo
def test_stored_quantizers_that_answer_otherwise_are_not_trusted(
    based: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = quantizer_file.load

    def spoilt(model: QuantModel, *where: object) -> None:
        load(model, *where)
        layer = next(m for m in model.weighted().values() if isinstance(m, QuantLayer))
        layer.weight_point.quantizer.chosen.zero_()

    monkeypatch.setattr(quantizer_file, "load", spoilt)
    record, _ = made(tmp_path, SPEC, [based])
    assert record.data["base"] == ""


@needs_zoo
def test_a_run_without_its_quantizers_is_made_again(tmp_path: Path) -> None:
    base = checked(replace(BASE, method="nearest", settings={}))
    with store.private(tmp_path, base.key) as folder:
        run(base, ignore, folder)
        (folder / FILE).unlink()
        store.finish(folder, tmp_path, base.key)
    record, _ = made(tmp_path, profile.spec_of(base), [tmp_path])
    assert record.data["base"] == ""
    assert record.metrics["n"] == 90


@needs_zoo
def test_an_analysis_makes_do_with_the_images_there_are() -> None:
    spec = checked(replace(SPEC, method="nearest", settings={}, test=5000))
    assert run(spec).metrics["n"] == 600
    assert run(replace(spec, test=None)).metrics["n"] == profile.IMAGES
