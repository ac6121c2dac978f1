"""Who may import whom: dependencies point down, and the app's half of the project has no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# from the ground up, a folder a line: it may import what stands above it in this list
LAYERS = (
    "core",
    "observers",
    "quantizers",
    "network",
    "measure",
    "learning",
    "allocation",
    "methods",
    "store",
    "sensitivity",
    "noise",
    "datasets",  # these two know nothing of quantization, and `pipeline` alone knows them
    "models",
    "pipeline",
    "jobs",
    "live",
    "guide",
    "plots",
    "export",
    "worker",
    "ui",
    "__main__",
    "launch",
    "app",
    "pages",
    "__init__",  # the door itself: it opens what is asked for, when it is asked for
)
RANK = {folder: rank for rank, folder in enumerate(LAYERS)}
MATERIAL = ("models", "datasets")
# all that figures know, folders or files of them
READ_BY_PLOTS = ("core", "measure.statistics", "measure.paired", "noise.profile", "noise.theorem",
                 "store.tensors", "plots")  # fmt: skip
# libraries of which only some folders may know; who may read the clock; nobody's global chance
OUTSIDE = {
    "streamlit": {"ui", "app", "pages"},
    "plotly": {"plots", "export", "ui", "app", "pages"},
    "psutil": {"core", "store", "pipeline", "jobs", "live", "worker"},
    "numba": {"core"},
    "time": {"core", "models", "datasets", "store", "pipeline", "jobs", "live", "worker",
             "__main__", "ui", "pages"},
    "random": set(),
}  # fmt: skip


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
    if module != "qlib" and not module.startswith("qlib."):
        return ""
    target = module.removeprefix("qlib").removeprefix(".")
    deeper = f"{target}.{name}".strip(".")
    return deeper if name and is_module(deeper) else target


def is_module(module: str) -> bool:
    """Is there a source file or a folder of this name?"""
    path = ROOT / "qlib" / module.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


def breaches(source: str, module: str) -> list[str]:
    """The rules that a module (``methods.brecq``, ``pages.3_Run``) breaks, in words."""
    own, found = module.split(".")[0], []
    if own not in RANK:
        return [f"{own} has no layer: give it one in tests/test_layers.py"]
    for target, name in imports(ast.parse(source)):
        outer = target.split(".")[0]
        if target.startswith("."):
            found.append(f"{module} imports {target}{name}: write it in full")
        elif own not in OUTSIDE.get(outer, {own}):
            found.append(f"{module} imports {outer}")
        elif (inner := inside(target, name)) and (why := _wrong(module, inner)):
            found.append(f"{module} imports {inner}: {why}")
    return found


def _wrong(module: str, inner: str) -> str:
    """What is wrong with this import inside the project; "" if nothing is."""
    own, to = module.split(".")[0], inner.split(".")[0]
    if to not in RANK:
        return f"{to} has no layer"
    if own in MATERIAL and to not in (*MATERIAL, "core"):
        return "material knows the core alone"
    if to in MATERIAL and own not in (*MATERIAL, "pipeline"):
        return "only the pipeline knows networks and images"
    if RANK[to] > RANK[own]:
        return f"{to} lies above {own}"
    if own == "plots" and not _within(inner, READ_BY_PLOTS):
        return "a figure reads records alone"
    return _private(module, inner) or _sibling(module, inner) or _other_page(module, inner)


def _within(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def _private(module: str, inner: str) -> str:
    """``_name`` is private to the folder that it lies in."""
    parts = inner.split(".")
    hidden = next((i for i, part in enumerate(parts) if _is_hidden(part)), None)
    if hidden is None or _within(module, (".".join(parts[:hidden]),)):
        return ""
    return f"{parts[hidden]} is private to {'.'.join(parts[:hidden])}"


def _is_hidden(part: str) -> bool:
    return part.startswith("_") and not part.startswith("__")


def _sibling(module: str, inner: str) -> str:
    """Of a folder with one recipe a file, none knows another."""
    head, _, tail = module.partition(".")
    folder, _, sibling = inner.partition(".")
    if head not in ("methods", "allocation", "observers") or folder != head or sibling == tail:
        return ""
    recipe = sibling and "." not in sibling and not _is_hidden(sibling) and sibling != "base"
    return "siblings do not know each other" if recipe and sibling != "front" else ""


def _other_page(module: str, inner: str) -> str:
    """In `ui` and `plots` each page has a folder: it knows itself and what is shared."""
    (head, _, rest), (folder, _, target) = module.partition("."), inner.partition(".")
    page, theirs = rest.partition(".")[0], target.partition(".")[0]
    if head not in ("ui", "plots") or folder != head or theirs in ("", "shared", page):
        return ""
    return f"{folder}.{theirs} belongs to another page"


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
    "upward": ("core.x", "from qlib.network.model import QuantModel", "network lies above core"),
    "upward inside a function": (
        "observers.mse",
        "def find_range():\n    import qlib.methods.brecq",
        "observers.mse imports methods.brecq: methods lies above observers",
    ),
    "by the package": ("measure.metrics", "from qlib import store", "store lies above measure"),
    "for types only": (
        "network.trace",
        "if TYPE_CHECKING:\n    from qlib.learning.calibration import Calibration",
        "learning lies above network",
    ),
    "streamlit in the library": ("jobs", "import streamlit as st", "jobs imports streamlit"),
    "streamlit in a figure": ("plots.x", "from streamlit import write", "imports streamlit"),
    "plotly in a method": ("methods.x", "import plotly.graph_objects as go", "imports plotly"),
    "method and method": (
        "methods.qdrop",
        "from qlib.methods.brecq import Brecq",
        "methods.qdrop imports methods.brecq: siblings do not know each other",
    ),
    "method and method by name": (
        "methods.qdrop",
        "def f():\n    from qlib.methods import brecq",
        "siblings do not know",
    ),
    "parts and method": (
        "methods._gradient.fit",
        "from qlib.methods.brecq import Brecq",
        "siblings do not know",
    ),
    "method and command line": ("methods.x", "from qlib import jobs", "jobs lies above methods"),
    "figure and store": ("plots.x", "from qlib.store import load", "reads records alone"),
    "figure and model": ("plots.x", "from qlib.network import model", "reads records alone"),
    "figure and page": ("plots.x", "from qlib.ui.shared import cards", "ui lies above plots"),
    "figure and another page's": (
        "plots.bits.front",
        "from qlib.plots.noise import curves",
        "plots.noise belongs to another page",
    ),
    "page and another page's": (
        "ui.bits.view",
        "from qlib.ui.run import form",
        "ui.run belongs to another page",
    ),
    "what is shared and a page's": (
        "ui.shared.bar",
        "from qlib.ui.bits.view import Pair",
        "ui.bits belongs to another page",
    ),
    "material and quantization": ("models.x", "from qlib.network import fold", "the core alone"),
    "method and material": ("methods.x", "from qlib.datasets.digits import Digits", "only the pi"),
    "store and material": ("store", "from qlib.models import digits", "only the pipeline knows"),
    "private": (
        "live._net",
        "from qlib.jobs._rooms import Room",
        "_rooms is private to jobs",
    ),
    "private folder": (
        "pipeline.run",
        "from qlib.methods._gradient import fit",
        "_gradient is private to methods",
    ),
    "private in a folder": (
        "plots.shared.theme",
        "from qlib.plots.noise._fast_figure import x",
        "_fast_figure is private to plots.noise",
    ),
    "relative": ("methods.x", "from . import brecq", "write it in full"),
    "no layer": ("utils", "import math", "utils has no layer"),
    "unknown target": ("pipeline.run", "from qlib.utils import x", "utils has no layer"),
    "the clock": ("learning.reconstruct", "import time", "learning.reconstruct imports time"),
    "global chance": ("pipeline.run", "from random import shuffle", "imports random"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_planted_breaches_are_caught(case: str) -> None:
    module, source, words = PLANTED[case]
    (found,) = breaches(source, module)
    assert words in found


FINE = [
    ("methods.brecq", "from qlib.methods.base import Method\nfrom qlib.core import params"),
    ("methods.brecq", "def f():\n    from qlib.methods._gradient.fit import fit\n    import torch"),
    ("pipeline.run", "from qlib.models.base import Built\nfrom qlib.datasets import digits"),
    ("models.digits", "from qlib.models import _zoo\nfrom qlib.core.records import RunSpec"),
    ("plots.x", "import plotly\nfrom qlib.plots.shared import theme\nimport qlib.core.records"),
    ("ui.bits.bar", "import streamlit\nfrom qlib.ui.shared import bar\nfrom qlib import jobs"),
    ("pages.3_Run", "import streamlit\nfrom qlib.ui.run import form\nfrom qlib import RunSpec"),
]


@pytest.mark.parametrize(("module", "source"), FINE)
def test_what_is_allowed_is_not_caught(module: str, source: str) -> None:
    assert breaches(source, module) == []


def test_only_the_start_of_a_module_counts_for_torch() -> None:
    source = (
        "import json\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import torch\n"
        "class A:\n    import timm\n    def g(self):\n        import torch"
    )
    assert [name for name, _ in imports(at_start(ast.parse(source)))] == ["json", "timm"]


# where networks, images and methods meet, and what these are made of: loaded when they are used
WITH_TORCH = ("core.functional", "core.fused", "core.histogram", "core._kernels", "core._powers",
              "observers", "quantizers", "network", "learning", "measure", "methods._gradient",
              "methods._search", "pipeline", "sensitivity.layers", "sensitivity.units",
              "noise.study", "noise._output", "noise._rows", "live._net", "store.binning",
              "models._resnet", "models._units", "models._weights", "models._zoo",
              "models.train_zoo", "datasets.preprocessing")  # fmt: skip
WITHOUT = ("measure.statistics", "measure.paired")
RECIPES = ("models", "datasets", "methods")  # files with an underscore are loaded when used


def torch_free() -> list[str]:
    """What the app loads before anyone presses a button, and what must load without torch."""
    names = {name for name, _ in modules() if name.split(".")[0] not in ("app", "pages")}
    found = {n for n in names if not _within(n, WITH_TORCH) or _within(n, WITHOUT)}
    found = {n for n in found if n.split(".")[0] not in RECIPES or "._" not in n}
    for name, path in modules():
        if name.split(".")[0] in ("ui", "app", "pages"):
            found |= {inside(*pair) for pair in imports(at_start(ast.parse(path.read_text())))}
    return sorted(found - {"", "__init__", "__main__"})


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
from qlib.core import specs
from qlib.core.registry import discover
from qlib.core.records import RunSpec
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
