"""What the benchmarks measure is what runs of their own would tell, at the price of learning."""

from dataclasses import replace

import pytest

from benchmarks import accuracy
from benchmarks._bench import Bench
from qlib.records import RunSpec
from qlib.run import run

SPEC = RunSpec("digits-resnet", "digits", "qdrop", 3, 3, calib=32, test=100, seed=2,
               settings={"steps": 3})  # fmt: skip


def test_a_bench_tells_what_a_run_of_its_own_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was measured before on the same network, and with nothing loaded again."""
    specs = [
        SPEC,
        replace(SPEC, method="gptq", settings={}, weight_bits=2),
        replace(SPEC, weight_observer="minmax", act_observer="minmax", tune_biases=2),
        SPEC,
    ]
    bench = Bench(SPEC)
    monkeypatch.setattr("benchmarks._bench.set_up", None)
    for spec in specs:
        assert bench.fits(spec)
        found, seconds = bench.measured(spec)
        want = run(spec).metrics
        for name in ("top1", "top1_nearest", "top1_float", "agreement", "kl"):
            assert found[name] == want[name], (spec.method, name)
        assert set(seconds) == {"calibrate", "reconstruct"}
    assert not any(bench.fits(replace(SPEC, **other)) for other in (
        {"seed": 1}, {"calib": 31}, {"placement": "boundary"}, {"model": "digits-vit"}
    ))  # fmt: skip


def test_the_table_holds_every_method_at_every_width(tmp_path) -> None:
    cells = {(m, w) for m in accuracy.METHODS for w in accuracy.WIDTHS}
    for specs in (
        [*accuracy.digits([0, 1], accuracy.METHODS, None)],
        [*accuracy.cifar([0, 1], accuracy.METHODS, 7, tmp_path)],
    ):
        rows = [accuracy._described(spec) for spec in specs]
        assert len({accuracy._identity(row) for row in rows}) == len(rows)
        for model in {row["model"] for row in rows}:
            for seed in (0, 1):
                found = {
                    (r["method"], (r["weight_bits"], r["act_bits"]))
                    for r in rows
                    if (r["model"], r["seed"], r["observer"]) == (model, seed, "mse")
                }
                assert found >= cells
    assert {r["steps"] for r in rows} == {0, 7}


def test_a_stopped_measurement_goes_on_where_it_was(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    said = ["x", "--only", "digits", "--seeds", "1", "--methods", "qdrop", "--results",
            str(tmp_path), "--steps", "3"]  # fmt: skip
    measured: list[str] = []

    def pretend(bench: object, spec: RunSpec) -> dict[str, object]:
        measured.append(spec.key)
        if len(measured) == 4:
            raise KeyboardInterrupt
        numbers = dict.fromkeys((*accuracy.NUMBERS, *accuracy.SECONDS), 50.0)
        return accuracy._described(spec) | numbers | {"n": 600, "threads": 1, "torch": "2"}

    class Loaded:
        def __init__(self, spec: RunSpec) -> None:
            self.model = spec.model

        def fits(self, spec: RunSpec) -> bool:
            return spec.model == self.model

    monkeypatch.setattr(accuracy, "Bench", Loaded)
    monkeypatch.setattr(accuracy, "_measured", pretend)
    monkeypatch.setattr("sys.argv", said)
    with pytest.raises(KeyboardInterrupt):
        accuracy.main()
    monkeypatch.setattr("sys.argv", [*said, "--resume"])
    accuracy.main()
    assert len(measured) == 3 * len(accuracy.WIDTHS) + 1  # one was begun twice
    assert len(set(measured)) == 3 * len(accuracy.WIDTHS)
    assert "| digits-vit | W4A4 | qdrop | 3 |" in capsys.readouterr().out
