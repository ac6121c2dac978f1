"""The program in a folder of its own, with files dropped into it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def copied(folder: Path, dropped: Mapping[str, str]) -> Path:
    """The program in ``folder`` with more files: path inside the project → source."""
    for name in ("qlib", "pages", ".streamlit", "app.py"):
        source = ROOT / name
        take = shutil.copytree if source.is_dir() else shutil.copy
        take(source, folder / name)
    (folder / "assets").symlink_to(ROOT / "assets")
    for name, text in dropped.items():
        (folder / name).write_text(text.lstrip())
    (folder / "runs").mkdir()
    return folder


def called(copy: Path, *words: str) -> str:
    """What Python prints when it is called in the copy; it must end well."""
    own = {"PYTHONPATH": str(copy), "QLIB_RUNS": str(copy / "runs"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=copy, env=os.environ | own, text=True,
                          capture_output=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout
