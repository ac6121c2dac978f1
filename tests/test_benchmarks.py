"""What the benchmarks measure is what runs of their own would tell, at the price of learning."""

from dataclasses import replace

import pytest

from benchmarks import _steps, accuracy
from benchmarks._bench import Bench
from qlib.core.records import Event, RunSpec
from qlib.pipeline.run import run

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
    monkeypatch.setattr("benchmarks._bench.load_experiment", None)
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
    assert "| digits-vit | qdrop | 3 |" in capsys.readouterr().out


def test_a_method_has_one_line_with_a_cell_for_each_width() -> None:
    def row(method: str, bits: int, seed: int, top1: float, nearest: float) -> dict[str, str]:
        steps, digits = "0" if method == "nearest" else "9", {"low": 0, "high": 0, "agreement": 0}
        made = {"model": "net", "weight_bits": bits, "act_bits": bits, "method": method}
        made |= {"settings": "", "steps": steps, "observer": "mse", "placement": "inputs"}
        made |= {"seed": seed, "n": 200, "top1": top1, "top1_float": 95.0, "top1_nearest": nearest}
        made |= digits | {"calibrate": 1.0, "reconstruct": 2.0}
        return {name: str(value) for name, value in made.items()}

    rows = [row("qdrop", 3, seed, 80.0 + seed, 82.0) for seed in (0, 1)]
    rows += [row("qdrop", 4, 0, 90.0, 88.0), row("nearest", 4, 0, 88.0, 88.0)]
    first, second = accuracy.summary(rows)
    assert (first["method"], first["W3A3"], first["seeds"]) == ("nearest", "", 1)
    assert second["W4A4"].startswith("90.00 (85.1–93.4)")  # Wilson's interval of 180 in 200
    assert second["W3A3"].startswith("80.50 ↓ (") and second["seeds"] == 2
    assert list(second)[-3:] == ["W4A4", "W3A3", "seconds"] and second["seconds"] == "3"


def test_a_step_is_told_in_plain_passes_with_the_range_of_its_rounds() -> None:
    def row(network: str, step: float, passed: float) -> dict[str, str]:
        return {"network": network, "step": "QDrop", "step_ms": str(step), "pass_ms": str(passed)}

    rows = [row("one", 3, 2), row("one", 5, 4), row("one", 8, 4), row("two", 1, 1)]
    assert _steps.summary(rows) == [
        {"a step of": "QDrop", "one": "1.50 (1.25–2.00)", "two": "1.00 (1.00–1.00)"}
    ]


def test_steps_that_look_at_a_unit_are_no_part_of_what_a_step_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0, 0, 1, 1, 9, 9, 12, 12, 20, 20])  # seconds, at the start and end of each report
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    watch = _steps.Watch()
    for unit, flipped in (("a", 0.1), ("a", None), ("a", 0.2), ("a", None), ("b", None)):
        watch(Event("reconstruct", unit, flipped=flipped))
    assert watch.seconds == {"a": [1, 3]}
