"""The command line keeps its contract: one JSON object or one sentence out, and the exit code."""

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import fake_noise
import fake_worker
import pytest

from qlib import store
from qlib.__main__ import LISTS, _parser, main
from qlib.core.records import Cancelled, Event, InvalidSpec, RunRecord, RunSpec, ignore
from qlib.core.specs import checked
from qlib.export.summary import as_json, as_text
from qlib.jobs.progress import Progress
from qlib.noise import profile as noise_profile
from qlib.sensitivity import profile

ROOT = Path(__file__).resolve().parents[1]
RUN = ["run", "--model", "digits-vit", "--data", "digits", "--method", "nearest"]
KEYS = {
    *("spec", "metrics", "seconds", "peak_mb", "run_dir"),
    *("pictures", "doubts", "preprocess", "notes", "task"),
}


# ---- wrong input --------------------------------------------------------------------------------

WRONG = {
    "nothing": ([], "The following arguments are required: list|run|show; see python -m qlib"),
    "verb": (["walk"], "invalid choice: 'walk'"),
    "list": (["list", "colours"], "invalid choice: 'colours' .*see python -m qlib list --help"),
    "missing": (["run", "--model", "digits-vit"], "required: --data, --method; see .* run --help"),
    "model": ([*RUN, "--model", "digits-vitt"], "There is no model 'digits-vitt'; the nearest are"),
    "data": ([*RUN, "--data", "digit"], "There is no dataset 'digit'; the nearest are digits"),
    "method": ([*RUN, "--method", "brec"], "There is no method 'brec'; the nearest are brecq"),
    "observer": ([*RUN, "--act-observer", "mso"], "There is no observer 'mso'; the nearest are"),
    "bits": ([*RUN, "--weight-bits", "9"], r"weight_bits must be in \[2, 8\]; got 9"),
    "one bit": ([*RUN, "--act-bits", "1"], r"act_bits must be in \[2, 8\]; got 1\. A uniform"),
    "number": ([*RUN, "--act-bits", "four"], "Argument --act-bits: invalid int value: 'four'; see"),
    "edge": ([*RUN, "--edge-layers", "9-bit"], "must be one of 8-bit, same, float; got '9-b"),
    "placement": ([*RUN, "--placement", "in"], "must be one of inputs, boundary; got 'in'"),
    "granularity": ([*RUN, "--granularity", "row"], "must be one of channel, tensor, group; got"),
    "device": ([*RUN, "--device", "tpu"], "device must be one of cpu, cuda; got 'tpu'"),
    "calib": ([*RUN, "--calib", "0"], "calib must be at least 1; got 0"),
    "test": ([*RUN, "--test", "-5"], "test must be at least 1, or left out for all; got -5"),
    "seed": ([*RUN, "--seed", "-1"], "seed must be a whole number from 0 to"),
    "set": ([*RUN, "--set", "steps"], "--set takes NAME=VALUE, such as --set steps=500; got 's"),
    "setting": ([*RUN, "--set", "steps=5"], "Nearest has no setting 'steps'; it has none"),
    "old setting": ([*RUN, "--method", "qdrop", "--set", "keep=0.5"],
                    r"^QDrop has no setting 'keep'; it is called quant_prob now\.$"),
    "setting, once another's": ([*RUN, "--set", "keep=1"], "has no setting 'keep'; it has none"),
    "threads": ([*RUN, "--threads", "0"], "--threads must be at least 1; got 0"),
    "file": ([*RUN, "--weights", "no.safetensors"], "There is no file or folder no.safetensors;"),
    "folder": ([*RUN, "--data", "folder:/no/where"], "There is no file or folder /no/where; check"),
    "option": ([*RUN, "--colour", "red"], "Unrecognized arguments: --colour red; see"),
    "show": (["show", "/no/run"], r"run/run\.json is missing, so this is no finished run; delete"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_sentence(case: str, capsys: pytest.CaptureFixture) -> None:
    words, said = WRONG[case]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(said, err)
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_typo_is_answered_before_torch_is_loaded() -> None:
    program = (
        "import sys; from qlib.__main__ import main; "
        f"assert main({[*RUN, '--method', 'brec']!r}) == 2; "
        f"assert all(main(['list', what]) == 0 for what in {LISTS!r}); "
        "sys.exit(sorted({'torch', 'timm', 'streamlit', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)


# ---- lists --------------------------------------------------------------------------------------

SOME = {
    "models": {"digits-vit", "digits-resnet", "digits-mobilenet"},
    "datasets": {"digits", "folder:PATH"},
    "methods": {"nearest", "adaround", "brecq", "qdrop"},
    "observers": {"minmax", "percentile", "mse", "entropy"},
    "quantizers": {"uniform", "soft_round"},
    "allocators": {"same"},
}


@pytest.mark.parametrize("what", LISTS)
def test_lists_are_one_key_a_line(what: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["list", what]) == 0
    out, err = capsys.readouterr()
    keys = out.splitlines()
    assert set(keys) >= SOME[what]
    assert len(keys) == len(set(keys))
    assert all(re.fullmatch(r"\S+", key) for key in keys)
    assert err == ""


def test_a_reader_who_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m qlib list models | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- options ------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_specification() -> None:
    args = _parser().parse_args(RUN)
    assert not hasattr(args, "analysis")  # the verb says it
    assert args.keep_float == []
    for field in fields(RunSpec):
        if field.name not in (
            "model",
            "data",
            "method",
            "settings",
            "analysis",
            "keep_float",
            "code",
            "classes_digest",
        ):
            assert getattr(args, field.name) == field.default


def test_every_option_of_the_contract_is_understood() -> None:
    words = (
        "--weight-bits 3 --act-bits 8 --edge-layers same --placement boundary "
        "--weight-observer minmax --act-observer percentile --calib 64 --calib-data digits "
        "--test 100 --seed 7 --device cuda --granularity tensor --symmetric-weights "
        "--symmetric-acts --threads 2 --set steps=500 --set quant_prob=0.25 --runs DIR --json "
        "--keep-float head --keep-float blocks.0.attn.qkv --tune-norms --tune-biases 40 "
        "--calib-choice balanced --precision bfloat16"
    )
    line = ["run", "--model", "digits-vit", "--data", "digits", "--method", "qdrop", *words.split()]
    from qlib.__main__ import _spec

    spec = _spec(_parser().parse_args(line))
    assert spec == checked(
        RunSpec(
            "digits-vit", "digits", "qdrop", 3, 8, "same", "boundary", "minmax", "percentile",
            "tensor", True, True, None, 64, "digits", 100, 7, "cuda",
            {"steps": 500, "quant_prob": 0.25}, keep_float=("blocks.0.attn.qkv", "head"),
            tune_norms=True,
            tune_biases=40, calib_choice="balanced", precision="bfloat16",
        )
    )  # fmt: skip


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        main(["run", "--help"])
    assert left.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for field in fields(RunSpec):
        name = "set" if field.name == "settings" else field.name.replace("_", "-")
        assert (f"--{name} " in out) == (
            name not in ("analysis", "code", "classes-digest")
        )  # not one's to say
    assert "(default: 256)" in out


# ---- running, with a pretended run --------------------------------------------------------------


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """``pretend(run)`` puts a quick run in the place of the real one."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # main sets both: put back afterwards
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def use(run: Callable[[RunSpec, Callable, Path], RunRecord]) -> None:
        monkeypatch.setitem(sys.modules, "qlib.pipeline.run", SimpleNamespace(run=run))

    return use


def test_json_is_all_that_standard_output_gets(
    tmp_path: Path, pretend: Callable, capfd: pytest.CaptureFixture
) -> None:
    def noisy(spec: RunSpec, report: Callable, folder: Path, known: object = ()) -> RunRecord:
        print("Downloading ...")  # noqa: T201
        os.write(1, b"a C library speaks\n")
        subprocess.run(["echo", "a child speaks"], check=True)
        warnings.warn("a library warns", stacklevel=1)
        record = fake_worker.run(spec, report, folder)
        return replace(record, metrics=record.metrics | {"kl": math.inf})

    pretend(noisy)
    assert main([*RUN, "--runs", str(tmp_path), "--json", "--threads", "2"]) == 0
    assert os.environ["OMP_NUM_THREADS"] == "2"
    out, err = capfd.readouterr()
    assert out.count("\n") == 1
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert set(found) == KEYS
    assert (found["spec"]["method"], found["metrics"]["top1"]) == ("nearest", 91.25)
    assert (found["seconds"]["total"], found["metrics"]["kl"]) == (12.0, None)
    assert Path(found["run_dir"]).parent == tmp_path
    assert "a C library speaks\na child speaks" in err
    assert "Downloading" in err
    assert "warns" not in err


def test_a_second_run_replaces_the_first(
    tmp_path: Path, pretend: Callable, capsys: pytest.CaptureFixture
) -> None:
    pretend(fake_worker.run)
    line = [*RUN, "--runs", str(tmp_path / "new"), "--test", "5"]
    assert main(line) == 0
    (folder,) = (tmp_path / "new").iterdir()
    (folder / "mark").touch()
    assert main(line) == 0
    assert list((tmp_path / "new").iterdir()) == [folder]
    assert not (folder / "mark").exists()
    assert store.load(folder).spec == checked(RunSpec("digits-vit", "digits", "nearest", test=5))
    assert [event["phase"] for event in store.events(folder)] == ["load", *["reconstruct"] * 3]
    assert "top-1      91.2 % (88.5 to 93.0 %" in capsys.readouterr().out


def test_the_runs_folder_comes_from_the_environment(
    tmp_path: Path, pretend: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(fake_worker.run)
    monkeypatch.setenv("QLIB_RUNS", str(tmp_path / "own"))
    assert main(RUN) == 0
    assert len(store.list_runs(tmp_path / "own")) == 1


ENDS = {
    "refused": (
        InvalidSpec("No weights here; give a file."),
        2,
        r"^No weights here; give a file\.\n$",
    ),
    "cancelled": (Cancelled(), 130, r"^Cancelled; nothing was kept\.\n$"),
    "interrupted": (KeyboardInterrupt(), 130, r"^Cancelled; nothing was kept\.\n$"),
    "memory": (MemoryError(), 1, r"^There was not enough memory: use fewer .* \(details: .*\)\n$"),
    "bug": (
        KeyError("x"),
        1,
        r"^The run stopped by a fault of its own: KeyError: 'x' \(det.*\)\n$",
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_how_a_run_ends_is_its_exit_code(
    case: str, tmp_path: Path, pretend: Callable, capsys: pytest.CaptureFixture
) -> None:
    error, code, said = ENDS[case]

    def end(spec: RunSpec, report: Callable, folder: Path, known: object = ()) -> RunRecord:
        report(Event("load"))
        raise error

    pretend(end)
    assert main([*RUN, "--json", "--runs", str(tmp_path)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(said, err)
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([".last-fault.txt"] if code == 1 else [])
    if left:
        assert "Traceback" in (tmp_path / left[0]).read_text()


def test_what_a_refused_run_had_finished_is_kept(
    tmp_path: Path, pretend: Callable, capsys: pytest.CaptureFixture
) -> None:
    def diverge(spec: RunSpec, report: Callable, folder: Path, known: object = ()) -> RunRecord:
        (folder / "quantizers.safetensors").write_bytes(b"units")
        raise InvalidSpec("The loss is nan; try a smaller learning rate.")

    pretend(diverge)
    assert main([*RUN, "--runs", str(tmp_path)]) == 2
    (place,) = tmp_path.iterdir()
    said = f"The loss is nan; try a smaller learning rate. What was finished is in {place}.\n"
    assert capsys.readouterr().err == said
    assert (place / "quantizers.safetensors").read_bytes() == b"units"
    assert store.list_runs(tmp_path) == []


def test_an_unwritable_runs_folder_is_wrong_input(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert main([*RUN, "--runs", str(tmp_path / "file")]) == 2
    assert "cannot be written (" in capsys.readouterr().err


# ---- running for real ---------------------------------------------------------------------------


def test_a_real_run_prints_one_object(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    words = [*RUN, "--calib", "8", "--test", "20", "--runs", str(tmp_path), "--json"]
    command = [sys.executable, "-m", "qlib", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert found["metrics"]["n"] == 20
    assert set(found["seconds"]) >= {"load", "calibrate", "reconstruct", "evaluate", "total"}
    assert 0 <= found["metrics"]["top1_low"] <= found["metrics"]["top1"] <= 100
    folder = Path(found["run_dir"])
    assert as_json(store.load(folder), folder) == found
    assert "measuring" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, sent: int) -> None:
    words = [*RUN, "--runs", str(tmp_path), "--json"]
    program = textwrap.dedent(f"""
        import runpy, sys, types
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        import fake_worker
        slow = lambda spec, report, folder, known: fake_worker.run(
            fake_worker.spec(steps=9999, pause=0.1), report, folder)
        sys.modules["qlib.pipeline.run"] = types.SimpleNamespace(run=slow)
        sys.argv = ["qlib", *{words!r}]
        runpy.run_module("qlib", run_name="__main__")
    """)
    command = [sys.executable, "-c", program]
    # as a script's background job: the shell has it ignore the interrupt key
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, **ignoring) as run:
        try:
            line = next(line for line in run.stderr if "reconstructing" in line)
            assert "1/9999" in line
            run.send_signal(sent)
            start = time.monotonic()
            out, err = run.communicate(timeout=20)
        finally:
            run.kill()
    assert run.returncode == 130
    assert time.monotonic() - start < 5
    assert (out, err) == ("", "Cancelled; nothing was kept.\n")
    assert list(tmp_path.iterdir()) == []


# ---- layer by layer -----------------------------------------------------------------------------


def test_sensitivity_makes_the_profile_of_a_run(
    tmp_path: Path, pretend: Callable, capsys: pytest.CaptureFixture
) -> None:
    asked = []

    def remember(spec: RunSpec, report: Callable, folder: Path, known: list[Path]) -> RunRecord:
        asked.append((spec, known))
        return fake_worker.run(spec, report, folder)

    pretend(remember)
    words = ["sensitivity", *RUN[1:], "--runs", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    spec, known = asked.pop()
    assert spec == profile.spec_of(checked(RunSpec("digits-vit", "digits", "nearest")))
    assert known == [tmp_path, store.demo_dir()]
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {*KEYS, "worst"}
    assert found["worst"] == ["blocks.1", "blocks.2", "blocks.3"]
    assert "_sensitivity_" in Path(found["run_dir"]).name
    assert main([*words, "--test", "300", "--keep-float", "head"]) == 0
    spec, _ = asked.pop()
    assert (spec.test, spec.keep_float, spec.analysis) == (300, ("head",), "sensitivity")
    out = capsys.readouterr().out
    assert "worst      blocks.1 1, blocks.2 0.5, blocks.3 0.333 nats, each layer quantized" in out
    assert "halves     the worst 3 layers of two halves of the images agree" in out
    assert main(["show", found["run_dir"]]) == 0
    assert "worst      blocks.1 1, blocks.2 0.5" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["model", "bits", "test", "set", "file"])
def test_sensitivity_refuses_what_run_refuses(case: str, capsys: pytest.CaptureFixture) -> None:
    words, said = WRONG[case]
    assert main(["sensitivity", *words[1:]]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert re.search(said, err)


def test_a_real_analysis_names_the_worst_layers(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    words = [*RUN[1:], "--calib", "8", "--test", "20", "--runs", str(tmp_path), "--json"]
    command = [sys.executable, "-m", "qlib", "sensitivity", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    folder = Path(found["run_dir"])
    rows = profile.load(folder)
    assert found["worst"] == profile.worst(rows)
    assert found["metrics"]["n"] == 20
    assert found["seconds"]["profile"] > 0
    assert [(r["mode"], r["split"], r["layer"]) for r in profile.partial(folder)] == [
        (r["mode"], r["split"], r["layer"]) for r in rows
    ]
    assert "layer by layer" in done.stderr


# ---- what noise does --------------------------------------------------------------------------


def test_noise_makes_the_noise_analysis_of_a_run(
    tmp_path: Path, pretend: Callable, capsys: pytest.CaptureFixture
) -> None:
    asked, rows = [], noise_profile.rows(fake_noise.layers(2))

    def remember(spec: RunSpec, report: Callable, folder: Path, known: list[Path]) -> RunRecord:
        asked.append(spec)
        record = fake_worker.record(spec, layers=rows, data={"profile_rows": len(rows)})
        record = replace(record, metrics=record.metrics | noise_profile.summary(rows))
        store.write_record(record, folder)
        return record

    pretend(remember)
    words = ["noise", *RUN[1:], "--weight-bits", "3", "--runs", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    spec = asked.pop()
    assert spec == noise_profile.spec_of(checked(RunSpec("digits-vit", "digits", "qdrop", 6, 2)))
    found = json.loads(capsys.readouterr().out)
    assert set(found["helped"]) == {"3", "4", "6"}
    assert found["helped"]["4"][0] == "blocks.1.attn.proj"
    assert "_noise_W4A4_" in Path(found["run_dir"]).name
    assert main([*words, "--test", "300", "--seed", "7"]) == 0
    spec = asked.pop()
    assert (spec.test, spec.seed, spec.analysis) == (300, 7, "noise")
    out = capsys.readouterr().out
    left = next(r for r in rows if (r["layer"], r["bits"]) == ("blocks.1.attn.proj", 4))
    share = f"{100 * (left['left_test'] - 1):.0f} %"
    assert re.search(
        rf"noise      4 bits: helps \d of 8 layers; most blocks\.1\.attn\.proj {share}", out
    )
    assert main(["show", found["run_dir"]]) == 0
    assert "noise      6 bits: helps" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["model", "bits", "test", "set", "file"])
def test_noise_refuses_what_run_refuses(case: str, capsys: pytest.CaptureFixture) -> None:
    words, said = WRONG[case]
    assert main(["noise", *words[1:]]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert re.search(said, err)


# ---- what people see ----------------------------------------------------------------------------


def test_show_prints_what_matters(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fake_worker.run(fake_worker.spec(), ignore, tmp_path)
    assert main(["show", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for part in ("digits-vit on digits: nearest W4A4", "n = 50", "qkv.weight 18.5 dB", "12.0 s"):
        assert part in out


def test_a_record_without_some_metric_is_shown() -> None:
    record = replace(fake_worker.record(fake_worker.spec()), metrics={}, layers=[], notes=["n"])
    assert "top-1      ? % (? to ? %" in as_text(record, Path("x"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def steps(progress: Progress, clock: list[float]) -> None:
    progress(Event("load", "digits-vit"))
    for step in range(1, 1001):
        clock[0] += 0.01
        progress(Event("reconstruct", "blocks.1", 2, 4, step, 1000, loss=0.5))
    progress(Event("evaluate", "brecq", step=50, steps=200))
    progress.close()


def test_progress_on_a_terminal_renews_one_line() -> None:
    out, clock = Terminal(), [0.0]
    steps(Progress(out, lambda: clock[0]), clock)
    text = out.getvalue()
    assert "\n" not in text
    assert 50 < text.count("\r") < 120  # ten times a second
    assert "[#########...............]  38%    5 s  reconstructing 2/4 blocks.1 500/1000" in text
    assert "[######..................]  25%   10 s  measuring brecq 50/200" in text
    assert text.endswith("\r\x1b[K")


def test_progress_elsewhere_is_a_few_plain_lines() -> None:
    out, clock = io.StringIO(), [0.0]
    steps(Progress(out, lambda: clock[0]), clock)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0] == "   0.0 s  reconstructing 2/4 blocks.1 1/1000 loss 0.5"
    assert "\r" not in out.getvalue()
