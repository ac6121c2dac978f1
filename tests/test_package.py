"""The installed package: what it needs, what it carries, and the command that opens the app."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import qlib
from qlib import launch
from qlib.core import paths

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SHIPPED = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]


def test_it_needs_what_the_requirements_name() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert PROJECT["project"]["dependencies"] == [line.partition("#")[0].strip() for line in lines]


def test_the_version_is_said_once() -> None:
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "qlib/__init__.py"
    assert "version" in PROJECT["project"]["dynamic"] and qlib.__version__.count(".") == 2


def test_the_command_is_there() -> None:
    module, _, function = PROJECT["project"]["scripts"][launch.COMMAND].partition(":")
    assert module == launch.__name__ and getattr(launch, function) is launch.main


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder as an installation leaves it: the package, and inside it what it carries."""
    package = tmp_path / "site" / "qlib"
    package.mkdir(parents=True)
    for path in (ROOT / "qlib").iterdir():
        (package / path.name).symlink_to(path)
    for source, target in SHIPPED.items():
        place = package.parent / target
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(ROOT / source)
    return package.parent


PROGRAM = """
import os, sys
from streamlit import config, file_util
from streamlit.testing.v1 import AppTest
from qlib import launch, store
from qlib.core import paths
assert "_shipped" in str(paths.APP) and "_shipped" in str(store.demo_dir())
settings = file_util.get_main_script_streamlit_file_path(str(paths.APP), "config.toml")
assert os.path.samefile(settings, sys.argv[1]), settings
for page in [None, *sorted(paths.PAGES.glob("[1-9]*.py"))]:
    at = AppTest.from_file(str(paths.APP), default_timeout=60)
    (at.switch_page(str(page)) if page else at).run()
    assert not at.exception, (page, at.exception)
"""


def test_the_app_opens_from_anywhere_with_what_is_carried(installed: Path, tmp_path: Path) -> None:
    """Its pages, stored runs and settings: all are read from within the package."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT / ".streamlit/config.toml")],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("words", [[], ["app"], ["app", "--server.port", "8600"]])
def test_without_a_verb_the_app_takes_over(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def take_over(program: str, command: list[str]) -> None:
        taken.append((program, command))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", take_over)
    monkeypatch.setattr("sys.argv", [launch.COMMAND, *words])
    with pytest.raises(SystemExit):
        launch.main()
    app = [sys.executable, "-m", "streamlit", "run", str(paths.APP), *words[1:]]
    assert taken == [(sys.executable, app)]


def test_a_verb_is_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", [launch.COMMAND, "list", "methods"])
    assert launch.main() == 0
    assert "brecq" in capsys.readouterr().out.split()
    monkeypatch.setattr("sys.argv", [launch.COMMAND, "lst"])
    assert launch.main() == 2
    assert "see quant-explorer --help" in capsys.readouterr().err
