"""Methods for transformers on small ViT, DeiT, Swin: they run, are hard, come back, stay small."""

from itertools import product
from pathlib import Path

import pytest
import torch
from helpers import calibration, method, plan
from helpers_nets import images, tiny

from qlib.core.records import ignore
from qlib.measure import metrics, output_errors
from qlib.methods._search import layer_samples
from qlib.methods._search.layer_samples import products
from qlib.methods.noisyquant import BASES
from qlib.network.blocks import find_blocks
from qlib.network.model import QuantModel
from qlib.pipeline import quantizer_file
from qlib.pipeline.quantizer_file import FILE

NOISE = {"shift": True, "gain": 0.0, "integers": True}
CASES = {
    "easyquant": ("easyquant", {}),
    "ptq4vit": ("ptq4vit", {}),
    "ptq4vit sum": ("ptq4vit", {"form": "sum"}),
    "repq_vit": ("repq_vit", {}),
    **{f"noise on {base}": ("noisyquant", {"base": base} | NOISE) for base in BASES},
    "linear": ("noisyquant", {"search": "linear", "gain": 0.0, "clip": True}),
    "output": ("noisyquant", {"search": "output", "base": "ptq4vit", "candidates": 12}),
}


@pytest.mark.parametrize(("family", "case"), [*product(("vit", "deit", "swin"), CASES)])
def test_transformers_run_are_hard_and_come_back(family: str, case: str, tmp_path: Path) -> None:
    name, changes = CASES[case]
    net, x = tiny(family), images(family, 8)
    model = QuantModel(net, x[:2], find_blocks(net))
    made = plan(model, 4, 4, "same")
    quick = {} if name == "repq_vit" else {"rows": 64, "candidates": 20}
    method(name, **(quick | changes)).apply(model, made, calibration(x), ignore)
    model.switch(weights=True, inputs=True)
    fresh = images(family, 8, seed=7)
    with torch.no_grad():
        found = model(fresh)
        assert torch.isfinite(found).all()
        for layer in model.weighted().values():
            q = layer.weight_point.quantizer
            assert q.soft_values() is None
            code = q.codes(layer.weight)
            assert torch.equal(code, code.round())
            assert q.scheme.qmin <= float(code.min()) <= float(code.max()) <= q.scheme.qmax
        quantizer_file.save(model, tmp_path / FILE)
        again = QuantModel(net, x[:2], find_blocks(net))
        quantizer_file.load(again, tmp_path / FILE)
        again.switch(weights=True, inputs=True)
        assert torch.equal(again(fresh), found)
        seen = output_errors.record(model, x[:4], x[:4], ignore)
    rows = metrics.layer_rows(model, calibration(x).histograms(model), seen.calib, seen.test,
                              seen.samples)  # fmt: skip
    assert all(torch.isfinite(torch.tensor(float(r["sqnr_db"]))) for r in rows if r.get("sqnr_db"))


@pytest.mark.parametrize("family", ["vit", "swin"])
@pytest.mark.parametrize("gradients", [False, True])
def test_rows_that_are_held_do_not_grow_with_images(family: str, gradients: bool) -> None:
    net, sizes = tiny(family), []
    for n in (8, 64):
        x = images(family, n)
        model = QuantModel(net, x[:2], find_blocks(net))
        found = products(model, calibration(x), 24, gradients=gradients)
        sizes.append(sum(p.x.numel() for p in found.values()))
        for name, p in found.items():
            matmul = model.layers[name].kind == "matmul"
            assert matmul or p.x.shape[1] <= 24 + 64 // layer_samples.WITH_GRADIENTS
    assert sizes[1] <= 2.5 * sizes[0]
