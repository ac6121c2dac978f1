"""Who may import whom: dependencies point down, and the app's half of the project has no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# from the ground up; a name is a file or a folder of qlib, later layers may import earlier ones. A
# file inside a folder belongs with the folder unless it is named itself.
LAYERS = {
    "ground": (
        "__init__ records _params _registry scheme _kernels _powers fused functional histogram "
        "statistics paired noise allocation _knapsack sensitivity memory"
    ),
    "ranges": "observers",
    "rounding": "quantizers",
    "network": (
        "trace parts attention fold points model spans onward metrics switching samples recording"
    ),
    "learning": (
        "calibration snapshots optimizers reconstruct tuning sensitivity.layers sensitivity.units "
        "sensitivity._restore"
    ),
    "recipes": "methods allocators",
    "joining": (
        "specs run quantize widths worker jobs store store.tensors live live._net guide __main__ "
        "_about _analysis _artifacts _setup _summary sensitivity.profile sensitivity._run "
        "noise.profile noise.study noise._output noise._rows noise._run"
    ),
    "showing": "plots export",
    "screen": "ui app pages",
    # beside them: know nothing of quantization, are known to `run` alone
    "material": "models datasets",
}
RANK = {layer: rank for rank, layer in enumerate(LAYERS)}
LAYER_OF = {name: layer for layer, members in LAYERS.items() for name in members.split()}
# where networks, images and methods meet; torch from the first line
RUN = {
    "run",
    "quantize",
    "widths",
    "_about",
    "_analysis",
    "_artifacts",
    "_setup",
    "live._net",
    "sensitivity._run",
}
RUN |= {"noise.study", "noise._output", "noise._rows", "noise._run"}
# all that figures know
READS_RECORDS = {
    "records",
    "scheme",
    "statistics",
    "paired",
    "store.tensors",
    "noise",
    "noise.profile",
    "_params",
    "_registry",
    "plots",
}
# libraries of which only some layers may know; who may read the clock; nobody's global chance
OUTSIDE = {
    "streamlit": {"screen"},
    "plotly": {"showing", "screen"},
    "psutil": {"joining"},
    "numba": {"ground"},
    "time": {"joining", "screen", "material"},
    "random": set(),
}


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """All (module, name) pairs of a source, inside functions too; name is "" for plain imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            yield from ((dots + (node.module or ""), alias.name) for alias in node.names)


def at_start(tree: ast.Module) -> ast.Module:
    """What runs when the module is imported: no functions, nothing for type checkers."""

    class Outside(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None: ...
        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None: ...
        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else node

    return Outside().visit(tree)


def inside(module: str, name: str) -> str:
    """Target of an import with ``qlib.`` left out; "" for what lies outside the project."""
    if module == "qlib":
        return "__init__" if not name or name[0].isupper() else name
    if not module.startswith("qlib."):
        return ""
    target = module.removeprefix("qlib.")
    return f"{target}.{name}" if name and is_file(f"{target}.{name}") else target


def is_file(module: str) -> bool:
    """Is there a source file or a folder of this name?"""
    path = ROOT / "qlib" / module.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


def listed(module: str) -> str:
    """The name in `LAYERS` that a module goes by: its own, or that of a folder it lies in."""
    while module and module not in LAYER_OF:
        module = module.rpartition(".")[0]
    return module


def breaches(source: str, module: str) -> list[str]:
    """The rules that a module (``methods.brecq``, ``pages.3_Run``) breaks, in words."""
    if not listed(module):
        return [f"{module} has no layer: give it one in tests/test_layers.py"]
    own, found = LAYER_OF[listed(module)], []
    for target, name in imports(ast.parse(source)):
        outer = target.split(".")[0]
        if target.startswith("."):
            found.append(f"{module} imports {target}{name}: write it in full")
        elif own not in OUTSIDE.get(outer, {own}):
            found.append(f"{module} ({own}) imports {outer}")
        elif (inner := inside(target, name)) and (why := _upward(module, own, inner)):
            found.append(f"{module} imports {inner}: {why}")
    return found


def _upward(module: str, own: str, inner: str) -> str:
    to = listed(inner)
    if not to:
        return "that has no layer"
    theirs = LAYER_OF[to]
    if own == "material":
        return "" if theirs in ("ground", "material") else "material knows the ground alone"
    if theirs == "material":
        return "" if listed(module) in RUN else "only run knows networks and images"
    if RANK[theirs] > RANK[own]:
        return f"{theirs} lies above {own}"
    if own == "showing" and to not in READS_RECORDS | {"export"}:
        return "a figure reads records alone"
    head, _, tail = module.partition(".")
    folder, _, sibling = inner.partition(".")
    if own == "recipes" and folder == head and sibling[:1] != "_" and sibling != tail:
        return "siblings do not know each other"
    return ""


def modules() -> list[tuple[str, Path]]:
    """Every source file of the project with its name, ``qlib.`` left out."""
    files = [(ROOT / "qlib", path) for path in (ROOT / "qlib").rglob("*.py")]
    files += [(ROOT, path) for path in [ROOT / "app.py", *(ROOT / "pages").glob("*.py")]]
    named = [(".".join(p.relative_to(top).with_suffix("").parts), p) for top, p in files]
    named = [(name.removesuffix(".__init__"), path) for name, path in named]
    return sorted((name, path) for name, path in named if path.exists())


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_dependencies_point_down(module: str, path: Path) -> None:
    assert breaches(path.read_text(), module) == []


PLANTED = {
    "upward": ("functional", "from qlib.model import QuantModel", "network lies above ground"),
    "upward inside a function": (
        "observers.mse",
        "def find_range():\n    import qlib.methods.brecq",
        "observers.mse imports methods.brecq: recipes lies above ranges",
    ),
    "by the package": ("metrics", "from qlib import store", "joining lies above network"),
    "for types only": (
        "trace",
        "if TYPE_CHECKING:\n    from qlib.calibration import Calibration",
        "learning lies above network",
    ),
    "streamlit in the library": ("jobs", "import streamlit as st", "(joining) imports streamlit"),
    "streamlit in a figure": ("plots.x", "from streamlit import write", "imports streamlit"),
    "plotly in a method": ("methods.x", "import plotly.graph_objects as go", "imports plotly"),
    "method and method": (
        "methods.qdrop",
        "from qlib.methods.brecq import Brecq",
        "methods.qdrop imports methods.brecq: siblings do not know each other",
    ),
    "method and method by name": (
        "methods.qdrop", "def f():\n    from qlib.methods import brecq", "siblings do not know",
    ),
    "method and command line": ("methods.x", "from qlib import specs", "joining lies above rec"),
    "figure and store": ("plots.x", "from qlib.store import load", "reads records alone"),
    "figure and model": ("plots.x", "from qlib.model import QuantModel", "reads records alone"),
    "figure and page": ("plots.x", "from qlib.ui import cards", "screen lies above showing"),
    "material and quantization": ("models.x", "from qlib.fold import fold", "the ground alone"),
    "method and material": ("methods.x", "from qlib.datasets.digits import Digits", "only run"),
    "store and material": ("store", "from qlib.models import digits", "only run knows networks"),
    "relative": ("methods.x", "from . import brecq", "write it in full"),
    "no layer": ("utils", "import math", "utils has no layer"),
    "unknown target": ("run", "from qlib.utils import x", "that has no layer"),
    "the clock": ("reconstruct", "import time", "reconstruct (learning) imports time"),
    "global chance": ("run", "from random import shuffle", "run (joining) imports random"),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANTED)
def test_planted_breaches_are_caught(case: str) -> None:
    module, source, words = PLANTED[case]
    (found,) = breaches(source, module)
    assert words in found


FINE = [
    ("methods.brecq", "from qlib.methods._base import Method\nfrom qlib import _params"),
    ("methods.brecq", "def apply():\n    from qlib.reconstruct import Rate\n    import torch"),
    ("run", "from qlib.models._base import Built\nfrom qlib.datasets import digits"),
    ("models.digits", "from qlib.models import _zoo\nfrom qlib.records import Refused"),
    ("plots.x", "import plotly\nfrom qlib.plots import _theme\nfrom qlib.records import Event"),
    ("ui.cards", "import streamlit\nfrom qlib.plots import loss_curve\nfrom qlib import jobs"),
    ("pages.3_Run", "import streamlit\nfrom qlib.ui import forms\nfrom qlib import RunSpec"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "source"), FINE)
def test_what_is_allowed_is_not_caught(module: str, source: str) -> None:
    assert breaches(source, module) == []


def test_only_the_start_of_a_module_counts_for_torch() -> None:
    source = (
        "import json\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import torch\n"
        "class A:\n    import timm\n    def g(self):\n        import torch"
    )
    assert [name for name, _ in imports(at_start(ast.parse(source)))] == ["json", "timm"]


def torch_free() -> list[str]:
    """What the app loads before anyone presses a button, and what must load without torch."""
    names = [name for name, _ in modules()]
    plain = set(LAYERS["joining"].split()) | {"records", "scheme", "_params", "_registry"}
    found = {n for n in names if listed(n) in plain and n not in RUN}
    found |= {n for n in names if n.split(".")[0] in ("plots", "ui")}
    recipes = ("models", "datasets", "methods")  # files with an underscore are loaded when used
    found |= {
        n for n in names if n.split(".")[0] in recipes and n.count(".") == 1 and "._" not in n
    }
    for name, path in modules():
        if LAYER_OF.get(listed(name)) == "screen":
            found |= {inside(*pair) for pair in imports(at_start(ast.parse(path.read_text())))}
    return sorted(found - {""})


def test_the_app_lists_and_shows_everything_without_torch() -> None:
    screen = [f"qlib.{name}" for name in torch_free() if name.split(".")[0] == "ui"]
    others = [f"qlib.{name}" for name in torch_free() if name.split(".")[0] != "ui"]
    program = f"""
import importlib, sys
heavy = {{"torch", "torchvision", "timm", "sklearn", "scipy"}}
def load(names, without):
    for name in names:
        importlib.import_module(name)
        found = without & set(sys.modules)
        assert not found, f"importing {{name}} loads {{found}}"
load({others!r}, heavy | {{"streamlit"}})
from qlib import specs
from qlib._registry import discover
from qlib.records import RunSpec
for package in ("models", "datasets", "methods"):
    assert discover(package)
for method in discover("methods"):
    specs.checked(RunSpec(specs.model_keys()[0], "digits", method))
load({screen!r}, heavy)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
