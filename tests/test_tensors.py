"""Binned tensors of a run folder: what is written is read again, and broken files are named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import calibration, pictures, plan, quantizable

from qlib.core.records import InvalidSpec, ignore
from qlib.measure import output_errors, value_samples
from qlib.store import binning, tensors


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A run folder with ``hist.npz`` of the tiny network, and the arrays in it."""
    model, folder = quantizable("boundary"), tmp_path_factory.mktemp("saved") / "a_run"
    calibration().attach(model, plan(model, 3, 4, "float"))
    model.switch(weights=True, inputs=True)
    found = output_errors.record(model, pictures(24)[0], pictures(8)[0], ignore)
    folder.mkdir()
    binning.save(folder, found.samples.values(), found.sampled)
    return folder, binning.arrays(found.samples.values(), found.sampled)


def rewritten(saved: tuple[Path, dict], to: Path, **changes: np.ndarray | None) -> Path:
    folder = to / "a_run"
    folder.mkdir()
    arrays = saved[1] | changes
    np.savez(folder / "hist.npz", **{k: v for k, v in arrays.items() if v is not None})
    return folder


def test_what_is_written_is_read_again(saved) -> None:
    folder, arrays = saved
    found = tensors.load(folder)
    assert list(found) == arrays["names"].tolist()
    for t, (name, hist) in enumerate(found.items()):
        assert (hist.name, f"{hist.layer}.{hist.tensor}") == (name, name)
        assert hist.edges.shape == hist.error_edges.shape == (257,)
        assert hist.edges[[0, -1]] == pytest.approx([arrays["lo"][t], arrays["hi"][t]])
        for part in ("float", "rounded", "error", "codes"):
            assert (getattr(hist, part) == arrays[part][t]).all()
        assert hist.float.sum() == hist.rounded.sum() == hist.error.sum() == hist.count
        assert np.array_equal(hist.mse, arrays["mse"][t], equal_nan=True)
        assert (hist.channels is not None) == (hist.tensor == "weight")
        assert hist.bits == {"stem": 0, "fc": 0}.get(hist.layer, 3 if hist.channels else hist.bits)
    channels = found["two.conv2.weight"].channels
    assert channels.float.shape == channels.rounded.shape == (12, 64)
    assert channels.edges.shape == (65,)
    assert channels.float.sum() == found["two.conv2.weight"].count == 12 * 12 * 9


def test_levels_are_the_values_of_the_grid(saved) -> None:
    model = quantizable("boundary")
    calibration().attach(model, plan(model, 3, 4, "float"))
    found = tensors.load(saved[0])
    q = model.points["two.conv2.input"].quantizer
    hist = found["two.conv2.input"]
    want = (torch.arange(16) - q.zero_point) * q.scale
    assert hist.levels == pytest.approx(want.detach().numpy(), abs=1e-5)
    assert hist.levels[[0, -1]] == pytest.approx([hist.clip_lo, hist.clip_hi], abs=1e-5)
    assert hist.codes[16:].sum() == 0
    assert found["two.conv2.output"].levels.size == 0
    assert found["fc.weight"].levels.size == 0  # left in float
    assert np.array_equal(found["fc.weight"].float, found["fc.weight"].rounded)


def test_levels_that_are_not_even_are_read_as_they_are(saved, tmp_path: Path) -> None:
    levels = np.full((len(saved[1]["names"]), 256), np.nan, dtype=np.float32)
    t = saved[1]["names"].tolist().index("two.conv2.input")
    levels[t, :16] = np.arange(16) ** 2
    found = tensors.load(rewritten(saved, tmp_path, levels=levels))
    assert found["two.conv2.input"].levels.tolist() == [k * k for k in range(16)]
    even = tensors.load(saved[0])["two.conv2.weight"].levels
    assert np.array_equal(found["two.conv2.weight"].levels, even)


@pytest.mark.parametrize(
    ("percentiles", "ratio"),
    [
        ([-8, -2, 0, 0, 0, 0, 0, 1, 3], 4.0),
        ([-1, -1, 0, 0, 0, 0, 0, 1, 10], 10.0),
        ([0] * 9, 1.0),
        ([0, 0, 0, 0, 0, 0, 0, 0, 5], float("inf")),
    ],
)
def test_outlier_ratio_by_hand(saved, tmp_path: Path, percentiles: list, ratio: float) -> None:
    changed = saved[1]["percentiles"].copy()
    changed[0] = percentiles
    folder = rewritten(saved, tmp_path, percentiles=changed)
    assert next(iter(tensors.load(folder).values())).outlier_ratio == ratio


def test_a_run_without_counts_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"/hist.npz is missing: .*; run it again to see them\.$"):
        tensors.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95, 0.999])
def test_a_cut_off_file_is_named(saved, tmp_path: Path, share: float) -> None:
    folder = tmp_path / "a_run"
    folder.mkdir()
    whole = (saved[0] / "hist.npz").read_bytes()
    (folder / "hist.npz").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InvalidSpec, match=r"^a_run/hist\.npz is damaged or cut off; delete"):
        tensors.load(folder)


def test_a_flipped_bit_is_noticed(saved, tmp_path: Path) -> None:
    folder = tmp_path / "a_run"
    folder.mkdir()
    whole = bytearray((saved[0] / "hist.npz").read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    (folder / "hist.npz").write_bytes(whole)
    with pytest.raises(InvalidSpec, match=r"^a_run/hist\.npz is damaged"):
        tensors.load(folder)


BROKEN = {
    "missing array": {"mse": None},
    "one channel array": {"channel_float_0": None},
    "other bins": {"float": np.zeros((2, 3), dtype=np.uint32)},
    "too few rows": {"lo": np.zeros(1, dtype=np.float32)},
    "objects": {"scale": np.array([None])},
}


@pytest.mark.parametrize("case", BROKEN)
def test_arrays_that_do_not_fit_are_refused(saved, tmp_path: Path, case: str) -> None:
    folder = rewritten(saved, tmp_path, **BROKEN[case])
    with pytest.raises(InvalidSpec, match=r"^a_run/hist\.npz is damaged"):
        tensors.load(folder)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="cannot be written"):
        binning.save(tmp_path / "none", _some(), 1)


def _some() -> list[value_samples.Sample]:
    sample = value_samples.Sample("x.output")
    sample.pair(torch.arange(4.0), torch.arange(4.0), 10)
    return [sample]
