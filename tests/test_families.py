"""Families of timm: who stands for whom, what a row says, and that nothing that happens is lost."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import qlib
from benchmarks import _coverage, _families, _planted, coverage
from qlib.network.blocks import find_blocks
from qlib.network.coverage import Coverage
from qlib.network.model import QuantModel

MEMORY = 0  # gigabytes: no bound, which the test's own process would keep


def row_of(name: str) -> dict:
    """A row, measured in this process."""
    row: dict = {}
    _coverage.tell(name, row.update)
    return row


# ---- families -----------------------------------------------------------------------------------


def test_the_smallest_network_stands_for_all_that_are_built_of_the_same() -> None:
    names = ["resnet34", "resnet18", "vit_tiny_patch16_224", "resnet50", "resnet26", "seresnet50"]
    brought = _families.families(names)
    assert brought == {
        "vit_tiny_patch16_224": ("VisionTransformer", "Block"),
        "resnet18": ("ResNet", "BasicBlock"),
        "resnet26": ("Bottleneck",),  # and seresnet50 has but another layer in it
    }


def test_a_network_class_counts_anew_in_each_file_that_builds_with_it() -> None:
    assert list(_families.families(["vit_tiny_patch16_224", "deit_tiny_patch16_224"])) == [
        "deit_tiny_patch16_224", "vit_tiny_patch16_224"
    ]  # fmt: skip


def test_images_are_the_smallest_that_run() -> None:
    net, images, options = _families.small("test_vit")  # 160 by itself
    assert images.shape == (_families.IMAGES, 3, 64, 64) and options == ""
    assert not net.training and net(images).shape == (4, 1000)
    assert _families.small("test_resnet")[1].shape[2:] == (64, 64)
    again = _families.small("test_vit")
    assert torch.equal(again[1], images) and torch.equal(again[0](images), net(images))


def test_a_large_network_gets_two_blocks_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_families, "LARGE", 1e5)
    net, _, options = _families.small("test_vit")
    assert options == "depth=2" and len(net.blocks) == 2
    assert _families.small("test_resnet")[2] == ""  # has no such option


# ---- the planted product ------------------------------------------------------------------------


class Plain(nn.Module):
    """Two blocks whose multiplications are counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Pair(), Pair())
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(self.a(x).relu())


def test_a_planted_product_changes_nothing_but_the_count() -> None:
    net, images = Plain().eval(), torch.randn(4, 4, 6, 7)
    twin, macs = _planted.planted(net, images)
    assert torch.equal(twin(images), net(images)) and macs == 4 * 6 * 7 * 7
    assert not hasattr(net.blocks[1], "planted") and hasattr(twin.blocks[1], "planted")
    plain, more = (QuantModel(n, images, find_blocks(n)).coverage for n in (net, twin))
    assert plain.share == 1 and more.macs == plain.macs + macs
    assert _planted.seen(plain, more, macs) in ("quantized", "in float")
    assert _planted.seen(plain, more, macs + 1).startswith("not found")
    assert _planted.seen(plain, plain, macs).startswith("not found: 0 more")


def test_a_product_is_where_the_count_says() -> None:
    plain = Coverage(100, {"a matmul": 10})
    for left, said in ((10, "quantized"), (17, "in float"), (12, "not found: others changed")):
        assert _planted.seen(plain, Coverage(107, {"a matmul": left}), 7) == said


# ---- rows ---------------------------------------------------------------------------------------


def test_a_row_says_what_came_of_each_stage() -> None:
    row = row_of("test_resnet")
    assert [row[stage] for stage in ("nearest", "brecq", "own_size")] == ["runs"] * 3
    assert row["planted"] in ("quantized", "in float")
    assert row["share"] == 1 and row["in_float"] == "" and row["cut"] == "in a row"
    assert row["own_share"] == 1 and row["own_input"] == "3 × 160 × 160" and row["joined"] == 0
    assert row["input"] == "3 × 64 × 64" and row["units"] == 8 and row["blocks"] == 4
    assert set(row) - {"stage"} <= set(coverage.COLUMNS)


def test_refusals_and_faults_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    untried = dict.fromkeys(_coverage.STAGES, "not tried")

    def refuse(*args: object, **more: object) -> None:
        raise qlib.InvalidSpec("Not this one; take another.")

    monkeypatch.setattr(qlib, "quantize", refuse)
    row = row_of("test_resnet")
    assert row["nearest"] == row["brecq"] == "refused: Not this one; take another."
    assert "planted" not in row and not coverage._broken(untried | row)
    monkeypatch.setattr(qlib, "quantize", lambda *args, **more: 1 / 0)
    row = untried | row_of("test_resnet")
    assert row["nearest"] == "fault: ZeroDivisionError: division by zero"
    assert coverage._broken(row) and not coverage.good(row)
    assert row_of("no_such_network")["nearest"].startswith("fault: timm: RuntimeError: Unknown")


def test_a_value_that_is_not_finite_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        qlib, "quantize", lambda *args, **more: lambda x: torch.full((4, 2), float("nan"))
    )
    assert "not finite" in row_of("test_resnet")["nearest"]


def dies(name: str, pipe, gigabytes: float) -> None:
    pipe.send({"stage": "nearest"})
    pipe.send({"nearest": "runs", "share": 0.5, "stage": "brecq"})
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(name: str, pipe, gigabytes: float) -> None:
    pipe.send({"stage": "nearest"})
    time.sleep(60)


def test_a_death_is_a_row_with_what_was_told_before() -> None:
    row = _coverage.measured("x", 60, MEMORY, dies)
    assert row["nearest"] == "runs" and row["share"] == 0.5 and row["planted"] == "not tried"
    assert row["brecq"] == "died: signal 11" and coverage._broken(row)


def test_what_takes_too_long_is_ended_and_is_a_row() -> None:
    row = _coverage.measured("x", 1, MEMORY, hangs)
    assert row["nearest"] == "over time: 1 s" and row["brecq"] == "not tried"
    assert row["seconds"] < 30


def test_a_process_of_its_own_tells_the_same() -> None:
    row = _coverage.measured("test_resnet", 120, 12)
    assert row["seconds"] > 0 and "stage" not in row
    want = row_of("test_resnet")
    assert {k: v for k, v in row.items() if k in want} == {
        k: v for k, v in want.items() if k != "stage"
    }


# ---- the table ----------------------------------------------------------------------------------


def pretended(name: str, *bounds: float) -> dict:
    row = {"network": name, "share": 0.995, "nearest": "runs", "planted": "quantized",
           "brecq": "runs", "own_size": "runs", "own_share": 0.995, "seconds": 1.0}  # fmt: skip
    bad = {"b": {"own_share": 0.5, "planted": "not found: 0"}, "c": {"brecq": "died: signal 6"},
           "d": {"brecq": "refused: no | never."}}  # fmt: skip
    return row | bad.get(name, {})


def test_rows_are_kept_and_what_failed_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked: list[str] = []

    def measure(name: str, *bounds: float) -> dict:
        asked.append(name)
        if asked == ["a", "b", "c", "d"]:
            raise KeyboardInterrupt
        return pretended(name)

    def called(*options: str) -> list[str]:
        asked.clear()
        monkeypatch.setattr("sys.argv", ["x", "--results", str(tmp_path), *options])
        coverage.main()
        return asked

    names = {name: ("New", "Classes") for name in "abcd"}
    monkeypatch.setattr(_families, "families", lambda report: names)
    monkeypatch.setattr(coverage, "measured", measure)
    with pytest.raises(KeyboardInterrupt):
        called()
    assert called() == ["d"]
    assert called() == []
    said = capsys.readouterr().out
    assert "| 4 of 4 tried |" not in said
    assert "| planted product counted | 3 of 4 tried | 75.0 |" in said
    assert called("--again") == ["b", "c", "d"]
    assert called("--only", "a") == ["a"]
    text = (tmp_path / "coverage.csv").read_text()
    assert [line.split(",")[:2] for line in text.splitlines()[1:]] == [
        [name, "New Classes"] for name in "abcd"
    ]


def test_a_size_that_takes_too_long_to_count_is_no_fault() -> None:
    row = dict.fromkeys(_coverage.STAGES, "runs") | {"own_share": "", "share": "0.999"}
    assert coverage._whole(row) and not coverage._broken(row | {"own_size": "over time: 240 s"})
    assert coverage._broken(row | {"brecq": "over time: 240 s"})
    assert coverage._broken(row | {"own_size": "died: signal 9"})


def test_goals_count_families() -> None:
    rows = [{k: str(v) for k, v in pretended(name).items()} for name in "abcd"]
    rows.append(dict.fromkeys(coverage.COLUMNS, "") | {"nearest": "not tried"})
    told = {line["families"]: (line["number"], line["%"]) for line in coverage.goals(rows)}
    assert list(told.values()) == [
        ("3 of 4 tried", "75.0"), ("3 of 4 tried", "75.0"), ("2 of 4 tried", "50.0"),
        ("2 of 4 tried", "50.0"), ("1 of 5", "20.0"),
    ]  # fmt: skip
    full = dict.fromkeys(coverage.COLUMNS, "") | rows[3]
    assert coverage.summary([full])[0]["BRECQ"] == "refused: no \\| never."
