"""What the readme files say is so: methods, folders, commands, measured tables."""

import csv
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_layers import LAYERS

import qlib
from benchmarks import __main__ as listing
from benchmarks import accuracy, readme
from benchmarks._table import Table, hardware
from benchmarks.readme import CHOSEN
from qlib import __main__ as command_line
from qlib.core import params
from qlib.core.registry import FOLDERS, discover

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
GUIDES = ("README.md", "qlib/README.md", "benchmarks/README.md")
METHODS = discover("methods")


def base_of(folder: str) -> type:
    """The base class of what lies in a folder of recipes."""
    return importlib.import_module(f"qlib.{FOLDERS.get(folder, folder)}.base").Base


def row(name: str) -> str:
    """The README's line of a method, as it should be."""
    method = METHODS[name]
    return f"| **{method.title}** | {method.promise} | {method.paper} | `qlib/methods/{name}.py` |"


@pytest.mark.parametrize("name", METHODS)
def test_method_has_its_row(name: str) -> None:
    assert row(name) in README, f"Put this line into the README's method table:\n{row(name)}"


@pytest.mark.parametrize("name", METHODS)
def test_every_field_has_a_help_text(name: str) -> None:
    for field in params.params(METHODS[name]).values():
        assert field.help.endswith("."), f"{name}.{field.name} needs a sentence"
    settings = METHODS[name].paper_settings
    METHODS[name](**settings)  # the paper's settings lie within the limits


@pytest.mark.parametrize("folder", ["observers", "quantizers", "allocators", "models", "datasets"])
def test_every_recipe_has_a_title(folder: str) -> None:
    for name, recipe in discover(folder).items():
        assert recipe.title, f"qlib/{folder}/{name}.py needs a title"


@pytest.mark.parametrize("file", GUIDES)
def test_named_paths_exist(file: str) -> None:
    text = (ROOT / file).read_text()
    named = re.findall(r"`((?:qlib|pages|assets|tests|benchmarks)/[\w/.*]*)`", text)
    named = [path for path in named if not {"NAME", "N_Name"} & set(re.split(r"[/.]", path))]
    assert named
    for path in named:
        found = list(ROOT.glob(path)) if "*" in path else [ROOT / path]
        assert found and found[0].exists(), f"{file} names {path}, which is not there"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_pictures_in_the_readme_exist() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < 1_500_000


def test_the_map_names_every_folder_in_the_order_of_the_layers() -> None:
    rows = re.findall(r"^\| `qlib/(\w+)/`", (ROOT / "qlib/README.md").read_text(), re.MULTILINE)
    assert rows == [folder for folder in LAYERS if (ROOT / "qlib" / folder).is_dir()]


def test_add_your_own_names_what_the_base_classes_ask_for() -> None:
    table = (ROOT / "qlib/README.md").read_text().partition("## Add your own")[2]
    for folder in ("methods", "quantizers", "observers", "allocators", "models", "datasets"):
        base = base_of(folder)
        row = next(line for line in table.splitlines() if f"one `{base.__name__}`" in line)
        for name in base.__abstractmethods__ - {"__init__"}:
            assert f"`{name}`" in row, f"{base.__name__} asks for {name}"


# ---- commands -----------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language, "" for commands."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind == language]


COMMANDS = [line for block in blocks("") for line in block.splitlines()]
INLINE = re.findall(r"`((?:python -m|pip install|streamlit|pytest)[^`]*)`", README)
# these take too long or change the machine: where each is checked instead
ELSEWHERE = {
    "pip install -r requirements.txt && streamlit run app.py": "every browser test starts the app",
    "pip install . && quant-explorer": "test_package.py",
    "pip install -r requirements.txt -r tests/requirements.txt && pytest": ".ci/run does so",
    "python -m qlib.models.train_zoo": "test_models.py measures again what it left",
}
FEW = {"run": "--calib 32 --test 50", "sensitivity": "--calib 16 --test 16",
       "noise": "--calib 16 --test 16"}  # fmt: skip
OWN = """
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
"""


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ELSEWHERE])
def test_command_of_the_readme_works(command: str, tmp_path: Path) -> None:
    """As written, but for fewer images and steps."""
    if ".py:build" in command:
        (tmp_path / "mine.py").write_text(OWN)
    assert command.startswith("python -m qlib ")
    verb = command.split()[3]
    few = FEW.get(verb, "") + (" --set steps=2" if "--method brecq" in command else "")
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    done = subprocess.run(
        command.replace("python", shlex.quote(sys.executable), 1) + f" {few}",
        shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "QLIB_RUNS": str(tmp_path / "runs")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_every_command_is_executed_or_checked_elsewhere() -> None:
    inline = set(INLINE) - set(ELSEWHERE)
    assert set(ELSEWHERE) <= {*COMMANDS, *INLINE}
    measured = {command for *_, command in CHOSEN}
    assert inline == measured | {"python -m benchmarks", "python -m qlib run --help"}


def test_a_run_says_what_it_takes(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        command_line.main(["run", "--help"])
    assert end.value.code == 0 and "--weight-bits" in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted({command for *_, command in CHOSEN}))
def test_the_measuring_commands_are_understood(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", shlex.split(command)[2:])
    args = accuracy._arguments()
    assert len(args.only) == 1 and command.startswith("python -m benchmarks.accuracy ")


def test_the_snippet_of_the_readme_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import torch
    from torch import nn

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    images, labels = torch.rand(24, 3, 8, 8), torch.arange(24) % 5
    (snippet,) = blocks("python")
    names = {"net": net, "images": images, "labels": labels}
    exec(snippet, names)
    assert capsys.readouterr().out
    again = qlib.load("mine.safetensors", net)
    assert torch.equal(again(images), names["q"](images))


# ---- tables and versions ------------------------------------------------------------------------


def test_changelog_has_the_three_headings_or_fewer() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert headings and set(headings) <= {"Added", "Changed", "Fixed"}
    versions = re.findall(r"^## (\S+) \(\d{4}-\d\d-\d\d\)$", text, re.MULTILINE)
    assert versions[0] == qlib.__version__


@pytest.mark.parametrize("file", readme.FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_measured_tables_are_those_of_the_results_files(file: Path) -> None:
    text = file.read_text()
    assert "<!-- table" in text
    assert readme.filled(text, *readme.measured()) == text


def test_every_results_file_is_told_of_and_names_its_machine(
    capsys: pytest.CaptureFixture,
) -> None:
    listing.main()
    said = capsys.readouterr().out
    for file in (ROOT / "benchmarks/results").glob("*.csv"):
        assert said.count(f"benchmarks/results/{file.name}") == 1, file.name
        with file.open(newline="") as text:
            assert all(row["machine"] for row in csv.DictReader(text)), file.name
    for path in (ROOT / "benchmarks").glob("[a-z]*.py"):
        assert f"python -m benchmarks.{path.stem}\n    " in said


def test_a_measured_row_names_the_machine(tmp_path: Path) -> None:
    table = Table("x", ["top1"], fresh=True, folder=tmp_path)
    table.add({"top1": 9})
    assert table.rows() == [{"top1": "9", "machine": hardware()}]
    assert re.fullmatch(r".*\S, \d+ cores", hardware())
