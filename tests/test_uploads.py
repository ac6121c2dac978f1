"""Uploads: kept by their content inside the runs folder, bounded, and never named by a path."""

import io
import os
import time
import zipfile
from pathlib import Path

import pytest

from qlib import store
from qlib.core.records import InvalidSpec, RunSpec
from qlib.store import uploads
from qlib.store.uploads import NETWORK, PICTURES, WEIGHTS, Kind

CODE = b"def build():\n    return None\n"


def put(runs: Path, kind: Kind, name: str, body: bytes, used=()) -> str:
    return uploads.save(runs, kind, name, io.BytesIO(body), used)


def packed() -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr("one/a.png", b"no picture")
    return body.getvalue()


def test_same_content_is_the_same_file_and_run(tmp_path):
    one, again = (put(tmp_path, NETWORK, "net.py", CODE) for _ in range(2))
    other = put(tmp_path, NETWORK, "net.py", CODE + b"\n")
    assert one == again != other
    spec = RunSpec(
        f"{one}:build", f"folder:{put(tmp_path, PICTURES, 'a.zip', packed())}", "nearest"
    )
    found = uploads.located(spec, tmp_path)
    file, _, function = found.model.rpartition(":")
    assert Path(file).read_bytes() == CODE and function == "build"
    assert uploads.shown(found.model, tmp_path) == spec.model
    assert uploads.shown(found.data, tmp_path) == spec.data
    assert store.list_runs(tmp_path) == []  # hidden from listings


def test_a_file_that_is_there_is_not_written_again(tmp_path):
    file = uploads.path_of(put(tmp_path, WEIGHTS, "w.pth", b"1"), tmp_path)
    before = file.stat()
    put(tmp_path, WEIGHTS, "w.pth", b"1")
    after = file.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize(
    ("kind", "name", "body", "words"),
    [
        (NETWORK, "net.txt", CODE, r"ends in \.py; got net\.txt"),
        (NETWORK, "net.py", b"", "is empty"),
        (NETWORK, "net.py", b"def build(:", r"no Python that can be run .*line 1"),
        (NETWORK, "net.py", b"\xff\xfe\x00", "no text of Python"),
        (NETWORK, "net.py", b"x = 1\ndef f(a): ...\n", "no function that can be called without"),
        (NETWORK, "net.py", b"#" * (NETWORK.most + 1), r"too large: a network file may have 1 MB"),
        (PICTURES, "a.zip", b"PK no zip", "no readable zip"),
        (PICTURES, "a.rar", packed(), r"ends in \.zip"),
        (WEIGHTS, "w.exe", b"1", r"ends in \.safetensors or"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(kind, name, body, words, tmp_path):
    with pytest.raises(InvalidSpec, match=words):
        put(tmp_path, kind, name, body)
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.name != uploads.LOCK] == []


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/net.py", "net.py"),
        ("C:\\nets\\my net.py", "my-net.py"),
        ("..py", "py"),
        ("Größe.py", "Gr-e.py"),
        ("n" * 300 + ".py", "n" * 60 + "n" * 17 + ".py"),
    ],
)
def test_names_are_plain(name, kept):
    assert uploads._safe(name) == kept
    assert uploads.NAME.fullmatch(kept)


@pytest.mark.parametrize("text", ["upload:../../x/net.py", "upload:0123456789abcdef/.hidden"])
def test_a_name_leads_nowhere_else(text, tmp_path):
    assert uploads.resolved(text, tmp_path) == text  # a name like any other, and no such file


def test_an_upload_that_is_gone_is_told(tmp_path):
    with pytest.raises(InvalidSpec, match=r"The upload net\.py is not here"):
        uploads.resolved("upload:0123456789abcdef/net.py:build", tmp_path)


def _aged(token: str, runs: Path, seconds: float) -> Path:
    file = uploads.path_of(token, runs)
    os.utime(file.parent, (time.time() - seconds,) * 2)
    return file


def test_only_what_no_run_needs_goes_after_a_week(tmp_path):
    old = _aged(put(tmp_path, NETWORK, "old.py", CODE), tmp_path, uploads.UNUSED + 60)
    needed = _aged(put(tmp_path, NETWORK, "kept.py", CODE + b"#\n"), tmp_path, uploads.UNUSED + 60)
    young = uploads.path_of(
        put(tmp_path, NETWORK, "new.py", CODE + b"##\n", [str(needed)]), tmp_path
    )
    assert not old.exists() and needed.exists() and young.exists()


def test_uploads_are_bounded_together(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_TOTAL", 100)
    first = put(tmp_path, WEIGHTS, "a.pth", b"a" * 60)
    with pytest.raises(InvalidSpec, match="there is no room for this one"):
        put(tmp_path, WEIGHTS, "b.pth", b"b" * 60)  # the first may be about to be used
    file = _aged(first, tmp_path, 2 * 3600)
    with pytest.raises(InvalidSpec, match="there is no room"):
        put(tmp_path, WEIGHTS, "b.pth", b"b" * 60, [f"weights {file}"])
    assert file.exists()
    assert uploads.path_of(put(tmp_path, WEIGHTS, "b.pth", b"b" * 60), tmp_path).exists()
    assert not file.exists()


def test_functions_without_arguments_are_read_and_not_run():
    source = "raise SystemExit\ndef a(): ...\ndef b(x, y=1): ...\ndef c(x=1, *, z=2): ...\n"
    source += "def d(*, z): ...\nclass E:\n    def f(): ...\nasync def g(): ...\n"
    assert uploads.functions(source) == ["a", "c"]
