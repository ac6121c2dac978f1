"""A method is one file: dropped into its folder it is on the command line, in the form, in the
pictures and in the comparison, and no other file knows of it."""

import json
from pathlib import Path

import pytest
from helpers_copy import called, copied

METHOD = '''
"""Nearest, with one number to set.  arXiv 1712.05877"""

from dataclasses import dataclass

from qlib.core.params import param
from qlib.methods.base import Method


@dataclass(frozen=True)
class Dropped(Method):
    """Rounds to nearest."""

    title = "Dropped In"
    paper = "Nobody et al., 2020, arXiv 1712.05877"
    promise = "Rounds to nearest, and has a number that does nothing."
    cost = "seconds"

    strength: float = param(0.5, "A number that does nothing.", low=0.0, high=1.0)

    def apply(self, model, plan, data, report) -> None:
        data.attach(model, plan)
'''
PAGES = """
import json, sys
from streamlit.testing.v1 import AppTest


def opened(path, **query):
    at = AppTest.from_file("app.py", default_timeout=120)
    at.query_params.update(query)
    at.run()
    at.switch_page(path)
    at.query_params.update(query)
    at.run()
    assert not at.exception, at.exception[0].message
    return at


def said(at):
    kinds = (at.markdown, at.caption, at.info, at.success)
    charts = [c.proto.spec or c.spec for c in at.get("plotly_chart")]
    tables = [frame.value.to_json() for frame in at.dataframe]
    return "\\n".join([part.value for kind in kinds for part in kind] + charts + tables)


at = opened("pages/3_Run.py")
at.pills(key="method").set_value("dropped").run()
assert not at.exception, at.exception[0].message
form = {w.key: (w.value, w.help) for w in at.number_input if (w.key or "").startswith("dropped.")}
compare = opened("pages/9_Compare.py", m="digits-resnet")
start = opened("pages/1_Start.py", m="digits-resnet", q="dropped")
print(json.dumps({"form": form, "card": said(at), "compare": said(compare), "start": said(start)}))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The program in a folder of its own, with one file more."""
    return copied(tmp_path_factory.mktemp("copy"), {"qlib/methods/dropped.py": METHOD})


def test_a_dropped_in_method_is_everywhere(copy: Path) -> None:
    assert "dropped" in called(copy, "-m", "qlib", "list", "methods").split()
    run = ["-m", "qlib", "run", "--model", "digits-resnet", "--data", "digits", "--method"]
    few = ["--calib", "16", "--test", "50", "--set", "strength=0.25", "--json"]
    record = json.loads(called(copy, *run, "dropped", *few))
    assert record["spec"]["settings"] == {"strength": 0.25}
    assert record["metrics"]["top1"] == record["metrics"]["top1_nearest"]

    seen = json.loads(called(copy, "-c", PAGES).splitlines()[-1])
    assert seen["form"] == {"dropped.strength": [0.5, "A number that does nothing."]}
    assert "arXiv 1712.05877" in seen["card"]
    assert "has a number that does nothing" in seen["card"]
    for page in ("compare", "start"):
        assert "Dropped In" in seen[page], page
