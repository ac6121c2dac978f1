"""Everything public in the library says in a docstring what it is, for whoever does not know it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = sorted(p for p in (ROOT / "qlib").iterdir() if list(p.glob("*.py")))
# PyTorch calls these and documents them: what they do is what their class does
OF_TORCH = {"forward", "backward"}
Def = ast.ClassDef | ast.FunctionDef


def definitions(body: list[ast.stmt]) -> Iterator[Def]:
    """What stands public in a module or a class."""
    for node in body:
        if isinstance(node, Def) and not node.name.startswith("_"):
            yield node


def classes() -> dict[str, list[ast.ClassDef]]:
    """Every class of the library by name."""
    by_name: dict[str, list[ast.ClassDef]] = {}
    for path in (ROOT / "qlib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                by_name.setdefault(node.name, []).append(node)
    return by_name


def documented(owner: ast.ClassDef, by_name: dict[str, list[ast.ClassDef]]) -> set[str]:
    """Names of methods and fields that the bases of a class explain already."""
    names: set[str] = set()
    for base in owner.bases:
        for parent in by_name.get(ast.unparse(base).split("[")[0].split(".")[-1], []):
            if parent is not owner:
                own = {d.name for d in definitions(parent.body) if ast.get_docstring(d)}
                names |= own | fields(parent) | documented(parent, by_name)
    return names


def fields(owner: ast.ClassDef) -> set[str]:
    """Names that a class only declares."""
    declared = (node.target for node in owner.body if isinstance(node, ast.AnnAssign))
    return {target.id for target in declared if isinstance(target, ast.Name)}


def silent(tree: ast.Module, by_name: dict[str, list[ast.ClassDef]]) -> Iterator[str]:
    """What has no docstring and no base that has one for it."""
    if not ast.get_docstring(tree):
        yield "the file"
    for node in definitions(tree.body):
        if not ast.get_docstring(node):
            yield node.name
        if isinstance(node, ast.ClassDef):
            explained = documented(node, by_name) | OF_TORCH
            for method in definitions(node.body):
                if method.name not in explained and not ast.get_docstring(method):
                    yield f"{node.name}.{method.name}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_everything_public_has_a_docstring(folder: Path) -> None:
    by_name = classes()
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted(folder.rglob("*.py"))
        for name in silent(ast.parse(path.read_text()), by_name)
    ]
    assert missing == []


def test_a_missing_docstring_is_found() -> None:
    text = '"""A file."""\nclass Base:\n    """A."""\n    def f(self):\n        """F."""\n'
    text += "class Child(Base):\n    def f(self): ...\n    def g(self): ...\n"
    tree = ast.parse(text)
    by_name = {node.name: [node] for node in tree.body if isinstance(node, ast.ClassDef)}
    assert list(silent(tree, by_name)) == ["Child", "Child.g"]
