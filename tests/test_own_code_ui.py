"""Code of one's own is run from the app only for whoever sits at the machine."""

from pathlib import Path
from types import SimpleNamespace

import own_nets
import pytest
from test_pages import RUN, folders, open_page, texts  # noqa: F401

from qlib.core import specs
from qlib.core.records import InvalidSpec, RunSpec
from qlib.ui.shared import job_panel, live, own_code, pickers

ROOT = Path(__file__).resolve().parents[1]
OWN = RunSpec(f"{own_nets.__file__}:cnn", "digits", "nearest", calib=8)
HERE = {"address": "127.0.0.1", "host": "localhost:8501", "ip": None, "more": {}}


def visit(monkeypatch, address: str, host: str, ip: str | None, more: dict) -> None:
    headers = ({"Host": host} if host else {}) | more
    context = SimpleNamespace(headers=headers, ip_address=ip)
    monkeypatch.setattr(own_code.st, "context", context)
    monkeypatch.setattr(own_code.st, "get_option", {"server.address": address}.get)


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({}, True),
        ({"host": "127.0.0.1:8501"}, True),
        ({"address": "::1", "host": "[::1]:8501"}, True),
        ({"address": "0.0.0.0"}, False),
        ({"address": None}, False),
        ({"ip": "192.168.0.7"}, False),
        ({"host": "class.example.org"}, False),
        ({"host": ""}, False),
        ({"more": {"X-Forwarded-For": "192.168.0.7"}}, False),
    ],
)
def test_only_a_visitor_at_the_machine_may(change, allowed, monkeypatch):
    monkeypatch.delenv(own_code.OPT_IN, raising=False)
    visit(monkeypatch, **HERE | change)
    assert own_code.allowed() is allowed


def test_whoever_starts_the_app_may_open_it(monkeypatch):
    visit(monkeypatch, "0.0.0.0", "class.example.org", "192.168.0.7", {})
    monkeypatch.setenv(own_code.OPT_IN, "0")
    assert not own_code.allowed()
    monkeypatch.setenv(own_code.OPT_IN, "1")
    assert own_code.allowed()


def test_neither_jobs_nor_live_runs_get_past_it(monkeypatch):
    monkeypatch.setattr(own_code, "allowed", lambda: False)
    monkeypatch.setattr(job_panel.jobs, "submit", lambda *_: pytest.fail("queued"))
    monkeypatch.setattr(live, "shared", lambda: pytest.fail("loaded"))
    with pytest.raises(InvalidSpec, match=r"runs code of one's own only for a visitor at the m"):
        job_panel.queue(OWN)
    with pytest.raises(InvalidSpec, match=r"own_nets\.py:cnn is code"):
        live._open(SimpleNamespace(record=SimpleNamespace(spec=OWN), folder=ROOT))


def test_there_is_one_way_from_pages_to_processes():
    sources = [*(ROOT / "qlib" / "ui").rglob("*.py"), *(ROOT / "pages").glob("*.py")]
    text = {str(path.relative_to(ROOT)): path.read_text() for path in sources}
    assert [n for n in text if "jobs.submit(" in text[n]] == ["qlib/ui/shared/job_panel.py"]
    assert [n for n in text if ").start(" in text[n]] == ["qlib/ui/shared/live.py"]
    assert text["qlib/ui/shared/live.py"].count(").start(") == 1


def test_link_to_code_does_not_run_it(folders, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.delenv(own_code.OPT_IN, raising=False)
    at = open_page(RUN, model="FILE.py:BUILD", name=OWN.model)
    assert "runs code of one's own only for a visitor" in texts(at)
    assert at.button(key="start").disabled
    monkeypatch.setenv(own_code.OPT_IN, "1")
    at = open_page(RUN, model="FILE.py:BUILD", name=OWN.model)
    assert not at.button(key="start").disabled
    assert "Runs the code in this file on this machine" in texts(at)
    assert not list(folders[1].iterdir())  # nothing starts before Start is pressed


def test_pattern_is_filled_and_read_back():
    keys = specs.model_keys()
    assert pickers.hole("FILE.py:BUILD") == "FILE.py:BUILD" and pickers.hole("timm:NAME") == "NAME"
    assert pickers.unfilled(OWN.model, keys) == ("FILE.py:BUILD", OWN.model)
    assert pickers.unfilled("timm:resnet18", keys) == ("timm:NAME", "resnet18")
    assert pickers.unfilled("gone", keys)[0] is None
